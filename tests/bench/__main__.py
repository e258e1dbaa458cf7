"""`make bench`: every measurement beside its limit, its worst sample, and what it was in the last run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import dataplane, latency, packets, planner, record, segment, sync, the_operator
from bench.measure import Row, noise
from lab.errors import LabError

CASES: dict[str, Callable[[], Iterable[Row]]] = {
    "planner": planner.rows,
    "dataplane": dataplane.rows,
    "packets": packets.rows,
    "segment": segment.rows,
    "sync": sync.rows,
    "operator": the_operator.rows,
    "latency": latency.rows,
}


def main() -> int:
    """Run the chosen measurements, print the table, and keep the figures for the next run."""
    arguments = _arguments()
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} processors")
    try:
        before = record.read(arguments.compare)
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    if before:
        print(f"compared with the run of {before.at}")
    print(f"{'what':<66} {'median':>9} {'worst':>9} {'limit':>9}  unit  median/limit  /last")
    rows: list[Row] = []
    noises = {}
    for name in arguments.cases or CASES:
        noises[name] = noise()
        print(f"{name}: {noises[name]}")
        try:
            for row in CASES[name]():
                rows.append(row)
                print(_line(row, before.medians.get(row.what) if before else None), flush=True)
        except LabError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    over = [row.what for row in rows if row.median > row.limit]
    print(
        f"{len(rows) - len(over)} of {len(rows)} within their limits{': not ' * bool(over)}{'; '.join(over)}"
    )
    record.write(arguments.json, rows, noises)
    print(f"figures for the next comparison: {arguments.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("cases", nargs="*", default=[], help=f"which ones: {', '.join(CASES)} (default: all)")
    parser.add_argument("--json", type=Path, default=record.LAST, help="write the figures there")
    parser.add_argument("--compare", type=Path, default=record.LAST, help="the figures to compare with")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}: choose from {', '.join(CASES)}")
    return arguments


def _line(row: Row, last: float | None) -> str:
    figures = f"{row.median:>9.4g} {row.worst:>9.4g} {row.limit:>9.4g}"
    ratio = f"{row.median / row.limit:>12.2f}" + (" !" if row.median > row.limit else "  ")
    since = f"{row.median / last:>6.2f}" if last else ""
    return f"{row.what:<66} {figures}  {row.unit:<4}  {ratio}{since}"


if __name__ == "__main__":
    sys.exit(main())
