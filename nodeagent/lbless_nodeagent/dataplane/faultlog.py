"""Log lines about faults: each fault once, a few in full, the others as a number, and never too many.

Owns what is worth a line. What is wrong was found out elsewhere; the full list is in observed.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

MAX_TOLD = 16
"""Faults at one time that have a line of their own. A thousand files may be bad for one reason."""

MAX_LINES, WINDOW_SECONDS = 100, 60.0
"""Lines at most in a time: a fault that comes and goes with every pass fills no disk."""

Line = tuple[int, str]
"""A level of `logging`, and the text."""


class FaultLog:
    """Remembers what was said. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._others = 0
        self._window_ends = 0.0
        self._left = 0
        self._unsaid = 0

    def lines(self, faults: Mapping[str, str], now: float) -> list[Line]:
        """Return what is new, when `faults` (sentences by subject) are all that there are."""
        if not faults and not self._told and not self._others:
            return []
        found: list[Line] = []
        for subject, sentence in list(self._told.items()):
            if subject not in faults:
                del self._told[subject]
                found.append((logging.INFO, f"No longer: {_text(subject, sentence)}"))
            elif faults[subject] != sentence:
                self._told[subject] = faults[subject]
                found.append((logging.WARNING, _text(subject, faults[subject])))
        for subject, sentence in faults.items():
            if len(self._told) >= MAX_TOLD:
                break
            if subject not in self._told:
                self._told[subject] = sentence
                found.append((logging.WARNING, _text(subject, sentence)))
        others = len(faults) - len(self._told)
        if _notably(self._others, others):
            self._others = others
            found.append((logging.WARNING, f"{others} more faults are listed in observed.json alone."))
        return self._few_enough(found, now)

    def _few_enough(self, found: list[Line], now: float) -> list[Line]:
        kept: list[Line] = []
        if now >= self._window_ends:
            if self._unsaid:
                kept.append((logging.WARNING, f"{self._unsaid} lines about faults were left out."))
            self._window_ends, self._left, self._unsaid = now + WINDOW_SECONDS, MAX_LINES, 0
        kept += found[: self._left]
        self._unsaid += len(found) - min(len(found), self._left)
        self._left -= min(len(found), self._left)
        return kept


def _notably(former: int, present: int) -> bool:
    """Whether a number changed so much that it is worth a line: to or from 0, twice or half of it."""
    if 0 in (former, present):
        return former != present
    return present >= 2 * former or former >= 2 * present


def _text(subject: str, sentence: str) -> str:
    return f"{subject}: {sentence}" if sentence else subject
