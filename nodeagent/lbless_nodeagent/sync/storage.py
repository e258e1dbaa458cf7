"""desired/ on a disk that may be full, read-only or lost: what is to be in it, and what of that is not.

Owns writing and removing its files, and remembering what could not be. What they say is `desired`'s and
`ownnode`'s; trying again is `upkeep`'s.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Set
from pathlib import Path

from lbless_api.fields import Invalid
from lbless_nodeagent import files

_LISTING = "."
"""What a fault of listing the directory is kept under: no file has that name."""
_SETTLED_NS = 1_000_000_000
"""A directory's time of change moves in ticks: only one this old says that nothing changed since."""


class Storage:
    """The directory; safe to use from several threads as long as each name has one writer."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if absent."""
        self.directory = directory
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._faults: dict[str, str] = {}
        self._unchanged: tuple[int, int] | None = None
        self.make()

    @property
    def faults(self) -> Mapping[str, str]:
        """For each file that could not be written or removed a sentence, the oldest first.

        The directory has two such names of its own, for making and for listing it.
        """
        with self._lock:
            return dict(self._faults)

    def make(self) -> None:
        """Make the directory if it is absent."""
        try:
            if not os.path.isdir(self.directory):
                files.make_directory(self.directory)
        except files.UnwritableError as error:
            self._failed("", error)
        else:
            self._succeeded("")

    def write(self, name: str, content: bytes, *, durable: bool = True) -> bool:
        """Give a file this content, unless it has it already; return whether it has it now."""
        path = self.directory / name
        try:
            if not _holds(path, content):
                files.write_bytes(path, content, durable=durable)
        except files.UnwritableError as error:
            self._failed(name, error)
            if os.path.lexists(path):  # with an older content, perhaps an earlier process's
                self._hold(name)
            return False
        self._hold(name)
        self._succeeded(name)
        return True

    def holds(self, name: str) -> bool:
        """Whether it was written and nobody wants it away; it may be of older content, and it may be lost."""
        with self._lock:
            return name in self._held

    def release(self, name: str) -> None:
        """Take it as it is, there or not: nothing of this name is to be there any more."""
        with self._lock:
            self._held.discard(name)
            self._faults.pop(name, None)

    def remove(self, name: str) -> bool:
        """Remove a file if it is there; return whether it is gone for good."""
        with self._lock:
            self._held.discard(name)
        try:
            files.remove(self.directory / name)
        except files.UnwritableError as error:
            self._failed(name, error)
            return False
        self._succeeded(name)
        return True

    def names(self) -> Set[str]:
        """The files in the directory now, whoever made them.

        Where it cannot be read there are none, and that is a fault until this was asked for again and it could.
        """
        found = self._scan()
        if found is None:
            return frozenset()
        self._succeeded(_LISTING)
        return found

    def lost(self) -> Set[str]:
        """What was written and is gone, though `remove` did not remove it.

        One look at the directory's time of change where nothing changed since the last call.
        """
        with self._lock:
            held = frozenset(self._held)
        change = self._last_change()
        if change is not None and change == self._unchanged:
            return frozenset()
        there = self._scan()
        if there is None:
            return frozenset()  # that is told as a fault, and no loss
        gone = held - there
        with self._lock:
            gone &= self._held  # what was removed since is no loss
        settled = change is not None and time.time_ns() - change[1] > _SETTLED_NS
        self._unchanged = change if settled and not gone else None
        return gone

    def _scan(self) -> Set[str] | None:
        """The files in the directory, none where it is absent; None, and a fault, where it cannot be read."""
        try:
            with os.scandir(self.directory) as entries:
                return {entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)}
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        except OSError as error:
            sentence = f"{self.directory} could not be listed ({error.strerror}): check its permissions and the disk."
            self._failed(_LISTING, sentence)
            return None

    def _last_change(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.directory)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _hold(self, name: str) -> None:
        with self._lock:
            self._held.add(name)

    def _failed(self, name: str, error: files.UnwritableError | str) -> None:
        with self._lock:
            self._faults[name] = str(error)

    def _succeeded(self, name: str) -> None:
        with self._lock:
            self._faults.pop(name, None)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return files.read_bytes(path) == content
    except (FileNotFoundError, Invalid):
        return False  # absent or damaged: written anew
