"""Two of the system's clocks read at the same time: who reads one after the other may be interrupted in between, and
is wrong by as long. Clocks are named as in `time`: `time.CLOCK_BOOTTIME`, for one."""

from __future__ import annotations

import time

_READINGS = 3
_PROMPT_NS = 50_000


def read_together(clock: int, other: int) -> tuple[int, int]:
    """Both, in ns: the best of three readings, to within some 25 µs."""
    readings = []
    for _ in range(_READINGS):
        before = time.clock_gettime_ns(other)
        read = time.clock_gettime_ns(clock)
        took = time.clock_gettime_ns(other) - before
        readings.append((took, read, before + took // 2))
        if took < _PROMPT_NS:
            break
    _, read, at = min(readings)
    return read, at


def seconds_ahead(clock: int, other: int) -> float:
    """By how much a clock is ahead of another one."""
    read, at = read_together(clock, other)
    return (read - at) / 1e9
