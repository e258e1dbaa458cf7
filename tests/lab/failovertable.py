"""Many failover trials as rows of a table, for the documentation: fault, how long, and what must not be.

Pure; the trials are `failover`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from lab.failover import Trial

HEAD = (
    "| fault | API server | trials | takeover, median / worst | unserved, worst | connections | answered twice |"
    " without owner | others' buckets moved | broken |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Row:
    """Trials of one fault. Seconds are over all buckets of the struck nodes in all trials, the rest are sums.

    `broken`: connections and downloads by way of nodes that were not struck.
    """

    fault: str
    api: str
    trials: int
    median_seconds: float
    worst_seconds: float
    unserved_seconds: float
    connections: int
    doubles: int
    orphans: int
    moved: int
    broken: int


def row(api: str, trials: Sequence[Trial]) -> Row:
    """The row of trials of one fault; `api` says what became of the API server."""
    seconds = [second for trial in trials for second in trial.seconds]
    return Row(
        trials[0].fault.name,
        api,
        len(trials),
        median(seconds),
        max(seconds),
        max(second for trial in trials for second in trial.unserved_seconds),
        sum(len(trial.probes) for trial in trials),
        sum(len(trial.doubles) + len(trial.overlaps) for trial in trials),
        sum(len(trial.orphans) for trial in trials),
        sum(len(trial.moved) for trial in trials),
        sum(len(trial.disturbed) + len(trial.broken_downloads) for trial in trials),
    )


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    lines = [
        f"| {r.fault} | {r.api} | {r.trials} | {r.median_seconds:.2f} / {r.worst_seconds:.2f} s | "
        f"{r.unserved_seconds:.2f} s | {r.connections:,} | {r.doubles} | {r.orphans} | {r.moved} | {r.broken} |"
        for r in rows
    ]
    return "\n".join([HEAD, *lines, ""])
