"""What dataplane says of itself: observed.json, heard of within milliseconds, and how old it is.

Owns reading it and telling silence from life. What follows from it is `report`'s.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from inotify_simple import INotify, flags

from lbless_api import OBSERVED_STALE_SECONDS
from lbless_api.fields import Invalid
from lbless_api.state import OBSERVED, Observed, parse_observed
from lbless_nodeagent import files

LOOK_SECONDS = 1.0
CLOCK_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Observation:
    """The last good observed.json, if there ever was one, and what is wrong with the present one."""

    observed: Observed | None = None
    fault: str = ""


def silence(observation: Observation, boot_id: str, now_seconds: float) -> str:
    """Why dataplane counts as silent, one sentence that stays the same as time passes; empty if it does not.

    `now_seconds` is CLOCK_BOOTTIME.
    """
    observed = observation.observed
    if observed is not None and observed.boot_id == boot_id:
        age_seconds = now_seconds - observed.boottime_seconds
        # A time of writing that is still to come can only be garbage: it must not look fresh until then.
        if -CLOCK_TOLERANCE_SECONDS <= age_seconds <= OBSERVED_STALE_SECONDS:
            return ""
    if observation.fault:
        return observation.fault
    if observed is None:
        return f"lbless-dataplane has not written {OBSERVED} yet."
    if observed.boot_id != boot_id:
        return f"lbless-dataplane has not written {OBSERVED} since the node was started."
    return f"lbless-dataplane has not written {OBSERVED} for more than {OBSERVED_STALE_SECONDS} s."


def observe(path: Path, boot_id: str, last: Observation) -> Observation:
    """Read observed.json; where that cannot be used, keep the last good one and say why.

    Of another boot only what outlives a reboot is kept: what was applied then is in no kernel now, and whom the
    node heard then it may not hear.
    """
    try:
        observed = parse_observed(files.read_json(path))
    except FileNotFoundError:
        return Observation(last.observed)
    except Invalid as fault:
        return Observation(last.observed, f"{OBSERVED} cannot be used: {fault}")
    if observed.boot_id != boot_id:
        interfaces = tuple(replace(interface, segment=None) for interface in observed.interfaces)
        observed = replace(observed, interfaces=interfaces, applied={}, failures=(), problems=(), drains=())
    return Observation(observed)


def essence(observed: Observed | None) -> Observed | None:
    """What a report may depend on: all but the time of writing and the counters."""
    return observed and replace(observed, boottime_seconds=0, counters={})


class Observer:
    """Keeps the latest observation; `run` in a thread of its own."""

    def __init__(self, state_directory: Path, on_change: Callable[[], None], stop: threading.Event) -> None:
        """Read it once."""
        self._directory = state_directory
        self._path = state_directory / OBSERVED
        self._boot_id = files.boot_id()
        self._on_change = on_change
        self._stop = stop
        self._inotify = INotify(nonblocking=True)
        self._watched: tuple[int, int] | None = None
        self._cut = os.eventfd(0)
        self._poll = select.poll()
        for descriptor in (self._inotify.fileno(), self._cut):
            self._poll.register(descriptor, select.POLLIN)
        self._watch()
        self._read = _signature(self._path)
        self.latest = observe(self._path, self._boot_id, Observation())

    @property
    def silence(self) -> str:
        """Why dataplane counts as silent just now, empty if it does not."""
        return silence(self.latest, self._boot_id, files.boottime_seconds())

    def run(self) -> None:
        """Look at the file whenever its directory changes, and every second, until the stop event is set."""
        while not self._stop.is_set():
            self._poll.poll(LOOK_SECONDS * 1000)
            self._look(announced=self._drain())

    def cut(self) -> None:
        """End a wait for the next change, from another thread, after setting the stop event."""
        os.eventfd_write(self._cut, 1)

    def _drain(self) -> bool:
        """Whether the file was announced to have changed."""
        events = self._inotify.read(timeout=0)
        if any(event.mask & flags.IGNORED for event in events):
            self._watched = None  # the directory was removed; another one may get its number
        return any(event.name == OBSERVED for event in events)

    def _look(self, *, announced: bool) -> None:
        self._watch()
        signature = _signature(self._path)
        # What is written twice within a tick of the file system's clock may look the same.
        if not announced and signature is not None and signature == self._read:
            return
        was_silent = bool(self.silence)
        before, self.latest = self.latest, observe(self._path, self._boot_id, self.latest)
        self._read = signature
        news = essence(before.observed) != essence(self.latest.observed) or before.fault != self.latest.fault
        if news or was_silent != bool(self.silence):
            self._on_change()

    def _watch(self) -> None:
        """Watch the directory of this name, which may be another one than a second ago.

        Where there is none, or nothing more can be watched, the file is looked at every second.
        """
        try:
            found = os.stat(self._directory)
            place = found.st_dev, found.st_ino
            if place != self._watched:
                self._inotify.add_watch(self._directory, flags.MOVED_TO | flags.CLOSE_WRITE | flags.ONLYDIR)
                self._watched = place
        except OSError:
            self._watched = None


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
