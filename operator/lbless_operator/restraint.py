"""Log lines and Events within limits: of one reason a burst, then a trickle, then a line that counts the rest.

A thousand objects with the same fault are one piece of news. Each object's own status says it anyway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

BURST = 20
REFILL_SECONDS = 6.0
"""One more line of a reason this often, BURST at once."""
SUMMARY_SECONDS = 60.0


@dataclass(slots=True)
class TokenBucket:
    """Admits `burst` at once and one more every `refill_seconds`. Pure: `now` is handed in."""

    burst: int
    refill_seconds: float
    left: float
    at: float

    @classmethod
    def full(cls, burst: int, refill_seconds: float, now: float) -> TokenBucket:
        """One of which nothing was taken yet."""
        return cls(burst, refill_seconds, burst, now)

    def admits(self, now: float) -> bool:
        """Whether there is one left; takes it if so."""
        self.left = min(self.burst, self.left + (now - self.at) / self.refill_seconds)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Restraint:
    """A logger that says of one reason only so much. For any thread."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, TokenBucket] = {}
        self._left_out: Counter[str] = Counter()
        self._summary_due = clock() + SUMMARY_SECONDS

    def log(self, level: int, reason: str, sentence: str, *, exc_info: bool = False) -> None:
        """Log a sentence, or only count it. `reason` is one of a few words, the same for the same cause."""
        now = self._clock()
        with self._lock:
            bucket = self._buckets.setdefault(reason, TokenBucket.full(BURST, REFILL_SECONDS, now))
            admitted = bucket.admits(now)
            if not admitted:
                self._left_out[reason] += 1
        if admitted:
            self._log.log(level, "%s", sentence, exc_info=exc_info)
        self.summarise()

    def summarise(self) -> None:
        """Say, once a minute, how much was left out; to be called now and then."""
        now = self._clock()
        with self._lock:
            if now < self._summary_due:
                return
            self._summary_due = now + SUMMARY_SECONDS
            left_out = dict(sorted(self._left_out.items()))
            self._left_out.clear()
        if left_out:
            counts = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
            self._log.warning(
                "Not logged one by one in the last minute, as there were too many of a kind: %s. "
                "The objects' own conditions say it of each.",
                counts,
            )
