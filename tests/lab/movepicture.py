"""One move as a picture: what each of two nodes does with a bucket, moment by moment.

Owns the record that the picture needs, as JSON, and drawing it: the same record gives the same SVG, byte for byte.
`python -m lab.movepicture RECORD.json > PICTURE.svg` draws one; `unit.segment.onemove` makes the record.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, LANE, FOOT = 960, 60, 20, 70, 56, 44
INK, FAINT = "#24292f", "#d0d7de"
COLOURS = {
    "owned": "#1a7f37",
    "standby": "#d4a72c",
    "drain, sends on": "#0969da",
    "drain": "#54aeff",
    "ending": "#b6e3ff",
    "fresh": "#4ac26b",
}
"""By state, but for one in which a node has nothing of the bucket."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a node does with the bucket between two moments, in ms after the epoch is in use at the first node."""

    node: str
    from_ms: float
    to_ms: float
    state: str


@dataclass(frozen=True, slots=True)
class Record:
    """What a picture shows. `marks` are moments with what happened then."""

    title: str
    from_ms: float
    to_ms: float
    spans: tuple[Span, ...]
    marks: tuple[tuple[float, str], ...]


def to_json(shown: Record) -> str:
    """The record as a text that can be kept."""
    value = {
        "title": shown.title,
        "fromMs": shown.from_ms,
        "toMs": shown.to_ms,
        "spans": [[s.node, s.from_ms, s.to_ms, s.state] for s in shown.spans],
        "marks": [list(mark) for mark in shown.marks],
    }
    return json.dumps(value, indent=1) + "\n"


def from_json(written: str) -> Record:
    """Read it again. Raises KeyError, ValueError or TypeError for a text that is none."""
    value = json.loads(written)
    return Record(
        str(value["title"]),
        float(value["fromMs"]),
        float(value["toMs"]),
        tuple(Span(str(n), float(a), float(b), str(state)) for n, a, b, state in value["spans"]),
        tuple((float(at), str(what)) for at, what in value["marks"]),
    )


def svg(shown: Record) -> str:
    """Draw it: a lane for each node, with a bar for each state, and a line for each mark."""
    nodes = sorted({span.node for span in shown.spans})
    lanes_end = TOP + LANE * len(nodes)
    bottom = lanes_end + 16 * len(shown.marks) + 8
    height = bottom + FOOT
    scale = (WIDTH - LEFT - RIGHT) / (shown.to_ms - shown.from_ms)

    def x(at_ms: float) -> float:
        return LEFT + (at_ms - shown.from_ms) * scale

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 26, shown.title, size=16),
        _text(
            LEFT, 46, "What each node does with the bucket; blank: nothing, every packet of it is dropped."
        ),
    ]
    for number, node in enumerate(nodes):
        top = TOP + LANE * number
        parts.append(_text(LEFT - 10, top + 26, node, anchor="end"))
        for span in (s for s in shown.spans if s.node == node and s.state in COLOURS):
            left, width = x(span.from_ms), (span.to_ms - span.from_ms) * scale
            parts.append(
                f'<rect x="{left:.1f}" y="{top + 8}" width="{width:.1f}" height="26" fill="{COLOURS[span.state]}"/>'
            )
            if width > 7 * len(span.state):
                parts.append(_text(left + 4, top + 25, span.state))
            else:
                parts.append(_text(left, top + 48, span.state, size=10))
    for number, (at, what) in enumerate(sorted(shown.marks)):
        level = lanes_end + 16 * number + 12
        right = x(at) > WIDTH * 0.6
        parts.append(_line(x(at), TOP, x(at), level - 4, dashed=True))
        parts.append(
            _text(
                x(at) + (-4 if right else 4),
                level,
                f"{at:.1f} ms: {what}",
                anchor="end" if right else "start",
            )
        )
    parts.append(_line(LEFT, bottom, WIDTH - RIGHT, bottom))
    step = 5
    for at in range(int(shown.from_ms // step + 1) * step, int(shown.to_ms) + 1, step):
        parts.append(_line(x(at), bottom, x(at), bottom + 5))
        parts.append(_text(x(at), bottom + 20, f"{at}", anchor="middle"))
    parts.append(_text(WIDTH - RIGHT, bottom + 36, "ms", anchor="end"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.0f}" x2="{x2:.1f}" y2="{y2:.0f}" stroke="{INK}"{dashes}/>'


def main(arguments: Sequence[str]) -> int:
    """Draw the record that a file holds."""
    sys.stdout.write(svg(from_json(Path(arguments[0]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
