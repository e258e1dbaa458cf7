"""The door between the threads that watch and the one that decides: news in, each object's newest only.

Owns coalescing and waking up. Whether news are newer than what is known is the state's to say.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lbless_edge.kube import ApiError
from lbless_operator.facts import Kind, Seen
from lbless_operator.leader import NotLeading
from lbless_operator.state import Listing


@dataclass(frozen=True, slots=True)
class RoundDone:
    """Every scope was listed, in a round of LISTs that began at `began`."""

    began: float


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a write of a ClusterIP's status: the object as it is then, or why there was no write."""

    key: str
    seen: Seen | None = None
    error: ApiError | NotLeading | None = None


News = Seen | Listing | RoundDone | Written


GATHERED = frozenset({Kind.AGENT, Kind.LEASE})
GATHER_SECONDS = 0.1
"""Fifty nodes confirm one change in fifty reports: such news wait so long for each other, and all others do not."""


class Mailbox:
    """Takes news from any thread; one thread empties it."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._seen: dict[tuple[Kind, str], Seen] = {}
        self._listings: dict[tuple[Kind, str], Listing] = {}
        self._round: RoundDone | None = None
        self._written: list[Written] = []
        self._closed = False
        self._hurry = False
        """Whether something is in it that does not wait for others."""
        self._gathering = False

    def put(self, news: News) -> None:
        """Leave news; of one object and of one collection only the newest are kept: a stuck reader costs no memory."""
        with self._arrived:
            match news:
                case Seen():
                    waiting = self._seen.get((news.kind, news.key))
                    if waiting is None or waiting.version < news.version:
                        self._seen[news.kind, news.key] = news
                case Listing():
                    self._listings[news.scope.kind, news.scope.namespace] = news
                case RoundDone():
                    self._round = news
                case Written():  # no more than there are writers
                    self._written.append(news)
            if not (isinstance(news, Seen) and news.kind in GATHERED):
                self._hurry = True
            if self._hurry or not self._gathering:
                self._arrived.notify()

    def close(self) -> None:
        """Never let anybody wait again."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()

    def take(self, timeout_seconds: float) -> list[News]:
        """Return all news, after waiting up to `timeout_seconds` for the first; empty if none came.

        Where others may follow soon, it waits for those as well, but never longer than that.
        """
        timeout_seconds = max(0.0, timeout_seconds)
        with self._arrived:
            if not (self._seen or self._written or self._listings or self._round or self._closed):
                self._arrived.wait(timeout_seconds)
            if not self._hurry and not self._closed and self._seen:
                self._gathering = True
                gather_seconds = min(GATHER_SECONDS, timeout_seconds)
                self._arrived.wait_for(lambda: self._hurry or self._closed, gather_seconds)
                self._gathering = False
            self._hurry = False
            # A round counts only after all that it has listed.
            rounds = [self._round] if self._round else []
            news: list[News] = [*self._written, *self._listings.values(), *rounds, *self._seen.values()]
            self._seen.clear()
            self._written.clear()
            self._listings.clear()
            self._round = None
            return news
