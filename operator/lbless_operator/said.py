"""A sentence in the log when it is new, and not again with every retry."""

from __future__ import annotations

import logging


class Said:
    """Remembers what was said last on one subject. For one thread."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last = ""

    def warn(self, sentence: str) -> None:
        """Log a warning, unless it was the last thing said."""
        if sentence != self._last:
            self._log.warning("%s", sentence)
        self._last = sentence

    def settled(self, sentence: str) -> None:
        """Log that what was warned of is over; nothing if nothing was."""
        if self._last:
            self._log.info("%s", sentence)
        self._last = ""
