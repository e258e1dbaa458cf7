"""How long to wait for an answer of a server that may be slow, over a connection that may be half open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

FIRST_SECONDS = 10.0
MOST_SECONDS = 65.0
"""Everything is to be right 80 s after a server that stalled is well again. What was asked just before that, over a
connection that stays silent, costs this time; then comes a back-off of 10 s at most, and 5 s are left to connect and
to LIST anew. (A watch that went silent costs 70 s, and no back-off to speak of if it had been open.) Less than
60 s must it not be: so long the API server works on a request before it gives up by itself."""

T = TypeVar("T")


class Patience:
    """Short at first, as a half-open connection never answers; after each time-out twice as long, up to a bound, as
    it may have been the server; after an answer twice what that took. For requests of one kind: what a server
    answers to one says nothing of another."""

    def __init__(self, first_seconds: float = FIRST_SECONDS, most_seconds: float = MOST_SECONDS) -> None:
        self._first_seconds = first_seconds
        self._most_seconds = most_seconds
        self._seconds = first_seconds

    @property
    def seconds(self) -> float:
        """How long to wait this time."""
        return self._seconds

    def ran_out(self, waited_seconds: float) -> None:
        """Nothing came in that time; several threads may say so of one and the same."""
        self._seconds = max(self._seconds, min(self._most_seconds, 2 * waited_seconds))

    def answered(self, took_seconds: float) -> None:
        """An answer came, after that time."""
        self._seconds = min(self._most_seconds, max(self._first_seconds, 2 * took_seconds))

    def timed(self, answers: Iterable[T]) -> Iterator[T]:
        """Hand on answers, each of which is waited for, and learn from the slowest when all have come."""
        slowest, asked_at = 0.0, time.monotonic()
        for answer in answers:
            slowest = max(slowest, time.monotonic() - asked_at)
            yield answer
            asked_at = time.monotonic()
        self.answered(slowest)
