"""Whether the state directory is as it should be, and making it so again, without a restart, when it is not.

Owns noticing files that somebody removed, finding out whether the disk takes what it refused, and when to
try again. No content is kept in memory for that: the API is asked for everything once more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from lbless_api.state import OBSERVED
from lbless_edge.backoff import Backoff
from lbless_nodeagent import files
from lbless_nodeagent.sync.storage import Storage

LOOK_SECONDS = 1.0
_PAGE_BYTES = 4096

_log = logging.getLogger("lbless.sync")


class Upkeep:
    """`run` in a thread of its own."""

    def __init__(
        self,
        state_directory: Path,
        storage: Storage,
        is_silent: Callable[[], bool],
        write_anew: Callable[[], None],
        on_change: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """`write_anew` has everything written once more, in whatever thread; `is_silent` is dataplane's silence."""
        self.trouble = ""
        """One sentence about what the state directory lacks, empty while it lacks nothing."""
        self._observed = state_directory / OBSERVED
        self._storage = storage
        self._is_silent = is_silent
        self._write_anew = write_anew
        self._on_change = on_change
        self._stop = stop
        self._logged = ""
        # Only for what fails although the disk takes other files: what the disk refuses is tried when it does not.
        self._backoff = Backoff()
        self._due = 0.0

    def run(self) -> None:
        """Look every second until the stop event is set."""
        self.look()
        while not self._stop.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Find what is wrong, say it where it is new, and try to put it right."""
        lost = self._storage.lost()
        if lost or self._storage.faults:
            self._storage.make()
        faults = self._storage.faults
        refusal = self._refusal() if faults or lost or self._is_silent() else ""
        first, more = _first(faults)
        self._say(first or refusal or _loss(self._storage.directory, lost), more)
        if not faults and not lost:
            self._backoff.succeeded()
            self._due = 0.0
        elif not refusal and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._backoff.failed()
            self._write_anew()

    def _refusal(self) -> str:
        """Why the disk would not take observed.json, the largest file that must always find room on it."""
        try:
            size = self._observed.stat().st_size
        except OSError:
            size = 0
        try:
            files.check_room(self._observed, max(size, _PAGE_BYTES))
        except files.UnwritableError as error:
            return str(error)
        return ""

    def _say(self, trouble: str, more: str) -> None:
        """Log it without `more`, so that the log has one line for a disk that takes nothing of a thousand files."""
        if trouble != self._logged:
            if trouble:
                _log.error("%s", trouble)
            else:
                _log.info("The state directory is as it should be again.")
        self._logged = trouble
        if self.trouble != trouble + more:
            self.trouble = trouble + more
            self._on_change()


def _first(faults: Mapping[str, str]) -> tuple[str, str]:
    """The oldest fault, which stays the same one while it lasts, and how many more there are."""
    first = next(iter(faults.values()), "")
    return first, f" There are {len(faults) - 1} more such faults." if len(faults) > 1 else ""


def _loss(directory: Path, lost: Set[str]) -> str:
    if not lost:
        return ""
    return (
        f"Somebody removed files of {directory} ({len(lost)}, such as {min(lost)}): they are written again."
    )
