"""The time line of one takeover as a picture: who answered when, and what was done meanwhile.

Owns the record of a trial that a picture needs, as JSON, and drawing it: the same record gives the same SVG, byte for
byte. `python -m lab.timeline RECORD.json > PICTURE.svg` draws one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from lab.failover import Trial

BEFORE_SECONDS, AFTER_SECONDS = 0.3, 0.4
"""How much is shown before the fault, and after the last bucket was taken over."""
WIDTH, LEFT, RIGHT, TOP, LANE, FOOT = 960, 110, 20, 70, 46, 44
STEP_MS = 100
INK, FAINT, LOST = "#24292f", "#d0d7de", "#cf222e"
COLOURS = ("#0969da", "#1a7f37", "#9a6700", "#8250df")
NOBODY = "nobody"

_Place = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, in ms after the fault."""

    at_ms: float
    what: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt in a bucket of the struck node: when it began, and who answered it; `NOBODY` if nobody did."""

    at_ms: float
    bucket: int
    node: str


@dataclass(frozen=True, slots=True)
class Record:
    """What a picture shows, from `from_ms` to `to_ms`. `struck` is the lane on top."""

    title: str
    struck: str
    from_ms: float
    to_ms: float
    marks: tuple[Mark, ...]
    attempts: tuple[Attempt, ...]


def record(trial: Trial) -> Record:
    """Cut a trial of one node down to what the picture shows. Raises ValueError where not all was taken over."""
    last = max(trial.seconds)
    if last == float("inf"):
        raise ValueError("a picture needs a trial in which every bucket was taken over")
    first = min(trial.seconds)
    to = trial.at + last + AFTER_SECONDS
    marks = [Mark(_ms(event.at - trial.at), event.what) for event in trial.events if event.at < to]
    marks.append(Mark(_ms(first), "first bucket answered by its new owner"))
    marks.append(Mark(_ms(last), "all buckets answered by their new owners"))
    attempts = [
        Attempt(_ms(p.started - trial.at), p.bucket, p.answerer or NOBODY)
        for p in trial.probes
        if trial.owners[p.bucket] in trial.struck and trial.at - BEFORE_SECONDS <= p.started < to
    ]
    return Record(
        f"{trial.fault.name} ({trial.struck[0]})",
        trial.struck[0],
        _ms(-BEFORE_SECONDS),
        _ms(to - trial.at),
        tuple(marks),
        tuple(attempts),
    )


def to_json(shown: Record) -> str:
    """The record as a text that can be kept."""
    value = {
        "title": shown.title,
        "struck": shown.struck,
        "fromMs": shown.from_ms,
        "toMs": shown.to_ms,
        "marks": [[mark.at_ms, mark.what] for mark in shown.marks],
        "attempts": [[a.at_ms, a.bucket, a.node] for a in shown.attempts],
    }
    return json.dumps(value, indent=None, separators=(",", ":")).replace("],[", "],\n[") + "\n"


def from_json(written: str) -> Record:
    """Read it again. Raises KeyError, ValueError or TypeError for a text that is none."""
    value = json.loads(written)
    return Record(
        str(value["title"]),
        str(value["struck"]),
        float(value["fromMs"]),
        float(value["toMs"]),
        tuple(Mark(float(at), str(what)) for at, what in value["marks"]),
        tuple(Attempt(float(at), int(bucket), str(node)) for at, bucket, node in value["attempts"]),
    )


def svg(shown: Record) -> str:
    """Draw it: a lane for each node and one for what nobody answered, a line for each mark."""
    nodes = sorted({a.node for a in shown.attempts} - {shown.struck, NOBODY})
    lanes = [shown.struck, NOBODY, *nodes]
    bottom = TOP + LANE * len(lanes) + 16 * len(shown.marks)
    height = bottom + FOOT
    scale = (WIDTH - LEFT - RIGHT) / (shown.to_ms - shown.from_ms)

    def x(at_ms: float) -> str:
        return f"{LEFT + (at_ms - shown.from_ms) * scale:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 26, shown.title, size=16),
        _text(
            LEFT, 46, f"Each dot is a new connection to one of {shown.struck}'s buckets, by who answered it."
        ),
    ]
    parts += _axis(shown, x, bottom)
    for number, lane in enumerate(lanes):
        middle = TOP + LANE * number + LANE // 2
        parts.append(_line(str(LEFT), middle, str(WIDTH - RIGHT), middle, FAINT))
        parts.append(_text(LEFT - 10, middle + 4, lane, anchor="end"))
        colour = LOST if lane == NOBODY else COLOURS[number % len(COLOURS)]
        own = [a for a in shown.attempts if a.node == lane]
        parts += [_dot(x(a.at_ms), middle + _spread(a.bucket), colour, hollow=lane == NOBODY) for a in own]
    for number, mark in enumerate(sorted(shown.marks, key=lambda m: m.at_ms)):
        level = TOP + LANE * len(lanes) + 16 * number + 12
        right = (mark.at_ms - shown.from_ms) * scale > (WIDTH - LEFT) / 2
        parts.append(_line(x(mark.at_ms), TOP, x(mark.at_ms), level - 4, INK, dashed=True))
        place = float(x(mark.at_ms)) + (-4 if right else 4)
        parts.append(
            _text(place, level, f"{mark.at_ms:.0f} ms: {mark.what}", anchor="end" if right else "start")
        )
    return "\n".join([*parts, "</svg>", ""])


def _axis(shown: Record, x: _Place, bottom: int) -> list[str]:
    first = int(shown.from_ms // STEP_MS + 1) * STEP_MS
    parts = []
    for at in range(first, int(shown.to_ms) + 1, STEP_MS):
        parts.append(_line(x(at), bottom, x(at), bottom + 5, INK))
        if at % (2 * STEP_MS) == 0:
            parts.append(_text(float(x(at)), bottom + 20, f"{at}", anchor="middle"))
    parts.append(_line(str(LEFT), bottom, str(WIDTH - RIGHT), bottom, INK))
    parts.append(_text(WIDTH - RIGHT, bottom + 36, "ms after the fault", anchor="end"))
    return parts


def _spread(bucket: int) -> int:
    """So that attempts at nearly the same time do not hide each other."""
    return bucket % 7 * 4 - 12


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: str, y1: float, x2: str, y2: float, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1:.0f}" x2="{x2}" y2="{y2:.0f}" stroke="{colour}"{dashes}/>'


def _dot(x: str, y: float, colour: str, *, hollow: bool) -> str:
    fill = f'fill="none" stroke="{colour}"' if hollow else f'fill="{colour}"'
    return f'<circle cx="{x}" cy="{y:.0f}" r="2" {fill}/>'


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def main(arguments: Sequence[str]) -> int:
    """Draw the record that a file holds."""
    sys.stdout.write(svg(from_json(Path(arguments[0]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
