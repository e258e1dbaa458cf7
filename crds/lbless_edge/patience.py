"""How long to wait for an answer of a server that may be slow, over a connection that may be half open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

FIRST_SECONDS = 10.0
MOST_SECONDS = 120.0

T = TypeVar("T")


class Patience:
    """Short at first, as a half-open connection never answers; after each time-out twice as long, up to a bound, as
    it may have been the server; after an answer twice what that took."""

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

    def timed(self, answers: Iterable[T]) -> Iterator[T]:
        """Hand on answers, each of which is waited for, and learn from the slowest when all have come."""
        slowest, asked_at = 0.0, time.monotonic()
        for answer in answers:
            slowest = max(slowest, time.monotonic() - asked_at)
            yield answer
            asked_at = time.monotonic()
        self._seconds = min(self._most_seconds, max(self._first_seconds, 2 * slowest))
