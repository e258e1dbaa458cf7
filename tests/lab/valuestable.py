"""The chart's values as a table: each with its default and the comment above it. `python -m lab.valuestable` prints it.

Pure but for reading values.yaml. The table is kept as helm/lbless/README.md, which a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from lab.helm import CHART

_LINE = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z]+):")
HEAD = """# Values of the chart lbless

Made from `values.yaml` by `make chart`.

| value | default | what it is |
|---|---|---|
"""


def table(text: str) -> str:
    """The README of a chart whose values.yaml is `text`: a row for each value above which there is a line `# -- …`."""
    values = yaml.safe_load(text)
    rows = [
        f"| `{name}` | `{json.dumps(_at(values, name))}` | {comment} |" for name, comment in _comments(text)
    ]
    return HEAD + "\n".join(rows) + "\n"


def _comments(text: str) -> Iterator[tuple[str, str]]:
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped.removeprefix("# -- ")]
        elif stripped.startswith("#") and comment:
            comment.append(stripped.removeprefix("# "))
        elif found := _LINE.match(line):
            path = [*path[: len(found["indent"]) // 2], found["name"]]
            if comment:
                yield ".".join(path), " ".join(comment)
            comment = []


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


if __name__ == "__main__":
    print(table((CHART / "values.yaml").read_text()), end="")
