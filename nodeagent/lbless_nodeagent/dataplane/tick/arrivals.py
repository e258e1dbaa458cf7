"""When frames arrived, by the monotonic clock, from what the kernel says by the wall clock.

The kernel stamps frames with the wall clock alone (SO_TIMESTAMPNS). At each draining both clocks are read
together, and their difference then is taken for what it was at arrival. That is wrong by what somebody turned
the wall clock in between: an adjustment of NTP is at most 0.5 ms in a second; a step is noticed, because the
difference is another than at the last draining, and the frames of that draining count as arrived now. In no
case does a frame count as arrived before the last draining, which left nothing behind, nor after this one. So
the error is some microseconds, and after a step at most the time between two drainings, a tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lbless_nodeagent.dataplane.clocks import read_together

_STEP_NS = 1_000_000
_SLEW_PER_SECOND = 1_000
"""One part in so many: twice as much as NTP turns a clock without a step."""


def read_clocks() -> tuple[int, int]:
    """Wall clock and monotonic clock, in ns, read at the same time."""
    return read_together(time.CLOCK_REALTIME, time.CLOCK_MONOTONIC)


class Arrivals:
    """The conversion for one socket. Nanoseconds everywhere."""

    def __init__(self, clocks: Callable[[], tuple[int, int]] = read_clocks) -> None:
        self._clocks = clocks
        wall, self._now = clocks()
        self._floor = self._now
        self._difference = wall - self._now
        self._stepped = False

    def begin(self) -> int:
        """Begin a draining; return the monotonic time of that."""
        wall, now = self._clocks()
        difference = wall - now
        allowed = _STEP_NS + (now - self._now) // _SLEW_PER_SECOND
        self._stepped = abs(difference - self._difference) > allowed
        self._now, self._difference = now, difference
        return now

    def at(self, stamp_ns: int) -> int:
        """The monotonic time of what the kernel stamped with `stamp_ns`."""
        if self._stepped:
            return self._now
        return min(max(stamp_ns - self._difference, self._floor), self._now)

    def is_later(self, stamp_ns: int) -> bool:
        """Whether the frame came after the draining had begun. After a step nobody knows: then it is not."""
        return not self._stepped and stamp_ns - self._difference > self._now

    def end(self) -> None:
        """Note that all that had arrived when this draining began was taken."""
        self._floor = self._now
