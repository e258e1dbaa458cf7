"""One measured thing: its samples, its unit and the limit that it is compared with; and the machine's noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WORK_ROUNDS = 40
WORK_STEPS = 60_000
NAP_SECONDS = 0.001


@dataclass(frozen=True)
class Row:
    """A row of the table. The limit is a promise of the project's, or a peer measured in the same run.

    More is worse, in every row.
    """

    what: str
    unit: str
    limit: float
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.samples)

    @property
    def worst(self) -> float:
        """The largest sample."""
        return max(self.samples)

    @property
    def p95(self) -> float:
        """The sample that 95 % do not exceed; of fewer than 20 the worst."""
        return sorted(self.samples)[max(0, -(-len(self.samples) * 95 // 100) - 1)]

    def as_json(self) -> dict[str, object]:
        """The row as JSON, for comparing runs."""
        return {
            "what": self.what,
            "unit": self.unit,
            "limit": self.limit,
            "median": self.median,
            "worst": self.worst,
            "samples": list(self.samples),
        }


@dataclass(frozen=True)
class Noise:
    """How evenly the machine worked: milliseconds of a fixed piece of work, and of a nap of 1 ms."""

    work_ms: tuple[float, ...]
    nap_ms: tuple[float, ...]

    def __str__(self) -> str:
        usual, worst = statistics.median(self.work_ms), max(self.work_ms)
        return (
            f"the same work takes {usual:.1f} ms, at worst {worst:.1f} (x{worst / usual:.1f}); "
            f"a nap of {NAP_SECONDS * 1000:.0f} ms lasts up to {max(self.nap_ms):.1f}"
        )

    def as_json(self) -> dict[str, float]:
        """The figures of the line."""
        return {
            "work_median_ms": statistics.median(self.work_ms),
            "work_worst_ms": max(self.work_ms),
            "nap_worst_ms": max(self.nap_ms),
        }


def wall_ms(function: Callable[[], object], rounds: int) -> tuple[float, ...]:
    """Milliseconds of wall time of each of `rounds` calls, after one that is not counted."""
    function()
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        samples.append((time.perf_counter() - started) * 1000)
    return tuple(samples)


def noise() -> Noise:
    """Measure the machine itself, for less than a second."""
    return Noise(
        wall_ms(lambda: sum(range(WORK_STEPS)), WORK_ROUNDS),
        wall_ms(lambda: time.sleep(NAP_SECONDS), WORK_ROUNDS),
    )
