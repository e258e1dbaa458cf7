"""`make bench`: every measurement with its limit, medians and worst samples, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import dataplane, planner
from bench.measure import Row
from lab.errors import LabError

CASES: dict[str, Callable[[], Iterable[Row]]] = {"planner": planner.rows, "dataplane": dataplane.rows}


def main() -> int:
    """Run the chosen measurements, print the table, and write the JSON where asked."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("cases", nargs="*", default=[], help=f"which ones: {', '.join(CASES)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}: choose from {', '.join(CASES)}")
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} processors")
    print(f"{'what':<58} {'median':>9} {'worst':>9} {'limit':>9}  unit  median/limit")
    rows: list[Row] = []
    for name in arguments.cases or CASES:
        try:
            for row in CASES[name]():
                rows.append(row)
                print(_line(row), flush=True)
        except LabError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        arguments.json.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    return 0


def _line(row: Row) -> str:
    median, worst = statistics.median(row.samples), max(row.samples)
    figures = f"{median:>9.4g} {worst:>9.4g} {row.limit:>9.4g}"
    return f"{row.what:<58} {figures}  {row.unit:<4}  {median / row.limit:.2f}"


if __name__ == "__main__":
    sys.exit(main())
