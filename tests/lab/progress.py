"""Progress: what a person reads while the lab works, and waiting for conditions with a deadline.

It never decides anything and owns no state of the lab.
"""

import io
import sys
import time
from collections.abc import Callable
from typing import TextIO, TypeVar

from lab.errors import LabError

# A person doubts a program that is silent for two seconds; loops look a few times a second.
SILENCE_SECONDS = 1.7

T = TypeVar("T")


class Progress:
    """Lines of progress on `stream` (default: standard error), each with the seconds since the start."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._started = time.monotonic()
        self._spoken = self._started

    def say(self, text: str) -> None:
        """Write one line at once."""
        self._spoken = time.monotonic()
        self._stream.write(f"[{self._spoken - self._started:6.1f} s] {text}\n")
        self._stream.flush()

    def still(self, text: str) -> None:
        """Write the line only where nothing was said for `SILENCE_SECONDS`; for use inside loops."""
        if time.monotonic() - self._spoken >= SILENCE_SECONDS:
            self.say(text)

    def until(
        self,
        what: str,
        condition: Callable[[], T],
        *,
        timeout_seconds: float,
        interval_seconds: float = 0.05,
    ) -> T:
        """Return the first true value of `condition()`, saying every two seconds what is waited for.

        Raises LabError with `what` when the deadline passes; the condition is tried once more at its end.
        """
        started = time.monotonic()
        while True:
            late = time.monotonic() - started >= timeout_seconds
            if value := condition():
                return value
            if late:
                raise LabError(f"waited {timeout_seconds:.0f} s in vain for {what}")
            if time.monotonic() - max(started, self._spoken) >= SILENCE_SECONDS:
                self.say(f"waiting for {what} ({time.monotonic() - started:.0f} s)")
            time.sleep(interval_seconds)


class Silence(Progress):
    """Progress that nobody reads: for callers with an own way to report, and for tests of quick things."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
