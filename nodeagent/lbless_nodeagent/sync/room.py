"""How much fits into a ClusterIPNode: 32 KiB of JSON as the API server writes it, whatever happened.

Owns measuring and shortening. What is worth its room is `report`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TypeVar

OBJECT_BYTES = 32 * 1024
FRAME_BYTES = 4 * 1024
"""Metadata, owner, field managers, and the condition but for its message, with the longest of all names."""

STATUS_BYTES = OBJECT_BYTES - FRAME_BYTES

T = TypeVar("T")


def size(value: object) -> int:
    """Bytes that a value takes at most in the API server's JSON, which escapes <, > and & as well."""
    text = json.dumps(value, separators=(",", ":"))
    return len(text) + 5 * sum(text.count(character) for character in "<>&")


def shorten(text: str, room: int) -> str:
    """A text that takes at most `room` bytes with its quotes; one that is cut ends in an ellipsis."""
    if size(text) <= room:
        return text
    left, kept = room - size("…"), 0
    for character in text:
        left -= size(character) - 2
        if left < 0:
            break
        kept += 1
    return text[:kept] + "…"


def fitting(entries: Iterable[T], room: int, render: Callable[[T], object]) -> list[T]:
    """As many of the first entries as fit, as a list's, into `room` bytes."""
    kept = []
    for entry in entries:
        room -= size(render(entry)) + 1
        if room < 0:
            break
        kept.append(entry)
    return kept
