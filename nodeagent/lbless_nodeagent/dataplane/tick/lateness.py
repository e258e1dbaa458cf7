"""How late ticks come: a histogram with fixed bounds, for metrics.

Owns the counts. Nothing is allocated when a tick is added.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Upper bounds, inclusive as Prometheus has them; above the last, everything."""


class Lateness:
    """Ticks by how late they came, in ms."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self.sum_ms = 0.0
        self._counts = [0] * (len(BOUNDS_MS) + 1)

    def add(self, late_ms: float) -> None:
        """Count a tick; one that came early was not late."""
        late_ms = max(late_ms, 0.0)
        self._counts[bisect_left(BOUNDS_MS, late_ms)] += 1
        self.sum_ms += late_ms
        self.worst_ms = max(self.worst_ms, late_ms)

    def cumulative(self) -> tuple[int, ...]:
        """How many ticks were at most as late as each of BOUNDS_MS, and last how many there were."""
        return tuple(accumulate(self._counts))
