"""A sentence in the log when it is new, and not again with every retry."""

from __future__ import annotations

import logging
import time

REPEAT_SECONDS = 600.0
"""What is still so, or so again, after this long is said again."""


class Said:
    """Remembers what was said on one subject. For one thread."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    def warn(self, sentence: str) -> None:
        """Log a warning, unless it was said a short while ago; others said in between do not count."""
        now = time.monotonic()
        self._said = {old: at for old, at in self._said.items() if now - at < REPEAT_SECONDS}
        if sentence not in self._said:
            self._log.warning("%s", sentence)
            self._said[sentence] = now

    def settled(self, sentence: str) -> None:
        """Log that what was warned of is over; nothing if nothing was."""
        if self._said:
            self._log.info("%s", sentence)
        self._said.clear()
