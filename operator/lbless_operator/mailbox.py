"""The door between the threads that watch and the one that decides: news in, each object's newest only.

Owns coalescing and waking up. Whether news are newer than what is known is the state's to say.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lbless_operator.facts import Kind, Seen
from lbless_operator.state import Listing


@dataclass(frozen=True, slots=True)
class RoundDone:
    """Every scope was listed, in a round of LISTs that began at `began`."""

    began: float


News = Seen | Listing | RoundDone


class Mailbox:
    """Takes news from any thread; one thread empties it."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._seen: dict[tuple[Kind, str], Seen] = {}
        self._rest: list[Listing | RoundDone] = []
        self._closed = False

    def put(self, news: News) -> None:
        """Leave news; of one object only the newest is kept, so that a stuck reader costs no memory."""
        with self._arrived:
            if isinstance(news, Seen):
                key = (news.kind, news.key)
                waiting = self._seen.get(key)
                if waiting is None or waiting.version < news.version:
                    self._seen[key] = news
            else:
                self._rest.append(news)
            self._arrived.notify()

    def close(self) -> None:
        """Never let anybody wait again."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()

    def take(self, timeout_seconds: float) -> list[News]:
        """Return all news, after waiting up to `timeout_seconds` for the first; empty if none came."""
        with self._arrived:
            if not self._seen and not self._rest and not self._closed:
                self._arrived.wait(max(0.0, timeout_seconds))
            news: list[News] = [*self._rest, *self._seen.values()]
            self._seen.clear()
            self._rest.clear()
            return news


class KeyQueue:
    """The ClusterIPs to look at, each once and not before its time. Used by one thread."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def add(self, key: str, due: float) -> None:
        """Look at a ClusterIP at `due`, or earlier if that was asked for already."""
        self._due[key] = min(due, self._due.get(key, due))

    def postpone(self, key: str, due: float) -> None:
        """Look at it at `due` and not earlier, whatever was asked for."""
        self._due[key] = due

    def take(self, now: float) -> str | None:
        """Return one that is due and forget it; None if none is. The longest due comes first."""
        if not self._due:
            return None
        key = min(self._due, key=self._due.__getitem__)
        if self._due[key] > now:
            return None
        del self._due[key]
        return key

    def next_due(self) -> float | None:
        """When the next one is due."""
        return min(self._due.values(), default=None)

    def __len__(self) -> int:
        return len(self._due)
