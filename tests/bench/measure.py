"""One measured thing: its samples, its unit and the limit that it is compared with."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of the table. The limit is a promise of the project's, or a peer measured in the same run."""

    what: str
    unit: str
    limit: float
    samples: tuple[float, ...]

    def as_json(self) -> dict[str, object]:
        """The row as JSON, for comparing runs."""
        return {"what": self.what, "unit": self.unit, "limit": self.limit, "samples": list(self.samples)}


def wall_ms(function: Callable[[], object], rounds: int) -> tuple[float, ...]:
    """Milliseconds of wall time of each of `rounds` calls, after one that is not counted."""
    function()
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        samples.append((time.perf_counter() - started) * 1000)
    return tuple(samples)
