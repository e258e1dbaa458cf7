"""desired/: every ClusterIP of the API as a file of its own, and the marks that say what the files mean.

Owns writing and removing them. Whether what they say can be done is dataplane's to find out and report.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Set
from pathlib import Path

from lbless_api.clusterip import MAX_INCARNATION, is_uid, parse_identity
from lbless_api.fields import Invalid, integer, mapping
from lbless_api.state import COMPLETE, DESIRED, INTENT, Intent, render_desired
from lbless_edge.kube import Object
from lbless_nodeagent import files
from lbless_nodeagent.sync.report import Wanted

_log = logging.getLogger("lbless.sync")


class DesiredFiles:
    """A listener for ClusterIPs. Nothing is removed before a complete LIST has shown its absence."""

    def __init__(self, state_directory: Path, on_change: Callable[[], None]) -> None:
        """Make the directory if absent; raises files.UnwritableError."""
        self.directory = state_directory / DESIRED
        files.make_directory(self.directory)
        self._boot_id = files.boot_id()
        self._on_change = on_change
        self._lock = threading.Lock()
        self._wanted: dict[str, Wanted] = {}
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the first LIST of this process was complete."""
        return self._complete

    @property
    def wanted(self) -> dict[str, Wanted] | None:
        """What the API wants, by UID; None until the first LIST of this process was complete."""
        with self._lock:
            return dict(self._wanted) if self._complete else None

    def write_intent(self, intent: Intent) -> None:
        """Say what ending dataplane is to mean from now on."""
        _write_if_changed(self.directory / INTENT, f"{intent}\n".encode())

    def changed(self, obj: Object) -> None:
        """Write a ClusterIP's file, unless it holds just that already."""
        try:
            identity = parse_identity(obj)
            rendered = render_desired(obj)
        except Invalid as fault:
            _log.error("A ClusterIP is left aside, its last good state stays: %s", fault)
            return
        content = json.dumps(rendered, separators=(",", ":"), sort_keys=True) + "\n"
        _write_if_changed(self._path(identity.uid), content.encode())
        wanted = Wanted(identity.key, _epoch(obj, identity.key))
        with self._lock:
            if self._wanted.get(identity.uid) == wanted:
                return
            self._wanted[identity.uid] = wanted
        self._on_change()

    def removed(self, uid: str) -> None:
        """Remove a ClusterIP's file."""
        if is_uid(uid):
            files.remove(self._path(uid))
        with self._lock:
            self._wanted.pop(uid, None)
        self._on_change()

    def listed(self, present: Set[str]) -> None:
        """Remove what was deleted while nobody watched, and only then mark the directory as complete."""
        for path in self.directory.glob("[!.]*.json"):
            if path.stem not in present and not path.is_dir():
                _log.info("ClusterIP with UID %s was deleted while sync was away.", ascii(path.stem))
                files.remove(path)
        _write_if_changed(self.directory / COMPLETE, f"{self._boot_id}\n".encode())
        with self._lock:
            self._complete = True
        self._on_change()

    def _path(self, uid: str) -> Path:
        return self.directory / f"{uid}.json"


def _write_if_changed(path: Path, content: bytes) -> None:
    try:
        if files.read_bytes(path) == content:
            return
    except (FileNotFoundError, Invalid):
        pass  # absent or damaged: written anew
    files.write_bytes(path, content)


def _epoch(obj: Object, key: str) -> int:
    """status.epoch; 0 where nothing was assigned yet."""
    try:
        status = mapping(obj.get("status") or {}, "status")
        return integer(status.get("epoch", 0), "status.epoch", 0, MAX_INCARNATION)
    except Invalid as fault:
        _log.error("ClusterIP %s counts as not assigned: %s", key, fault)
        return 0
