"""The figures of a run as a file, so that the next run can be compared with it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import Noise, Row
from lab.errors import LabError
from lab.programs import cache_directory

LAST = cache_directory() / "bench.json"


@dataclass(frozen=True)
class Record:
    """When a run was, and the median of each of its rows."""

    at: str
    medians: Mapping[str, float]


def read(path: Path) -> Record | None:
    """Return a former run, None if there was none. Raises LabError for a file that is no such record."""
    try:
        value = json.loads(path.read_text())
        return Record(str(value["at"]), {row["what"]: float(row["median"]) for row in value["rows"]})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} does not hold the figures of a run ({error!r}): remove it") from None


def write(path: Path, rows: Sequence[Row], noises: Mapping[str, Noise]) -> None:
    """Keep a run; rows of a former one that were not measured now stay."""
    try:
        kept = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    measured = {row.what for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "noise": {name: one.as_json() for name, one in noises.items()},
        "rows": [*(row for row in kept if row["what"] not in measured), *(row.as_json() for row in rows)],
    }
    path.write_text(json.dumps(value, indent=1) + "\n")
