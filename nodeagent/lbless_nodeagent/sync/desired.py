"""desired/: every ClusterIP of the API as a file of its own, and the marks that say what the files mean.

Owns what they say, and their order. Whether the disk takes them is `storage`'s, and whether what they say
can be done is dataplane's to find out and report.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Set

from lbless_api.clusterip import is_uid, parse_identity
from lbless_api.fields import Invalid, integer, mapping
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.state import COMPLETE, INTENT, Intent, render_complete, render_desired
from lbless_edge.kube import Object
from lbless_nodeagent import files
from lbless_nodeagent.sync.report import Wanted
from lbless_nodeagent.sync.storage import Storage

_log = logging.getLogger("lbless.sync")


class DesiredFiles:
    """A listener for ClusterIPs. Nothing is removed before a complete LIST has shown its absence.

    A file that is missing and that .complete names is known to be lost, so each change comes to be in such
    an order that this is never said of a deletion: first the file and then its name, but when a ClusterIP
    is deleted first the name and then the file. Nor is it said of a file that the disk never took: only what
    was written is named.
    """

    def __init__(self, storage: Storage, on_change: Callable[[], None]) -> None:
        self._storage = storage
        self._boot_id = files.boot_id()
        self._on_change = on_change
        self._lock = threading.Lock()
        self._wanted: Mapping[str, Wanted] = {}
        self._owed: Set[str] = frozenset()  # files that are to be removed once .complete does not name them
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the first LIST of this process was complete."""
        return self._complete

    @property
    def wanted(self) -> Mapping[str, Wanted] | None:
        """What the API wants, by UID; None until the first LIST of this process was complete.

        It is the same object until something changes.
        """
        with self._lock:
            return self._wanted if self._complete else None

    @property
    def unstored(self) -> Mapping[str, str]:
        """By UID, why the file of a ClusterIP is not what the API wants it to be."""
        suffix = ".json"
        return {
            name.removesuffix(suffix): sentence
            for name, sentence in self._storage.faults.items()
            if name.endswith(suffix) and not name.startswith(".")
        }

    def write_intent(self, intent: Intent) -> None:
        """Say what ending dataplane is to mean from now on."""
        self._storage.write(INTENT, f"{intent}\n".encode())

    def changed(self, obj: Object) -> None:
        """Write a ClusterIP's file, unless it holds just that already."""
        try:
            identity = parse_identity(obj)
            rendered = render_desired(obj)
        except Invalid as fault:
            _log.error("A ClusterIP is left aside, its last good state stays: %s", fault)
            return
        content = json.dumps(rendered, separators=(",", ":"), sort_keys=True) + "\n"
        name = _file(identity.uid)
        self._owed -= {name}
        was_named = self._storage.holds(name)
        self._storage.write(name, content.encode())
        wanted = Wanted(identity.key, _epoch(obj, identity.key))
        is_news = self._wanted.get(identity.uid) != wanted
        if is_news:
            self._want({**self._wanted, identity.uid: wanted})
        if self._storage.holds(name) and not was_named:
            self._settle()
        if is_news:
            self._on_change()

    def removed(self, uid: str) -> None:
        """Remove a ClusterIP's file."""
        self._want({other: wanted for other, wanted in self._wanted.items() if other != uid})
        if is_uid(uid):
            self._storage.release(_file(uid))
            self._owed |= {_file(uid)}
            self._settle()
        self._on_change()

    def listed(self, present: Set[str]) -> None:
        """Mark the directory as complete, and remove what was deleted while nobody watched."""
        with self._lock:
            self._complete = True
        strays = {name for name in self._storage.names() if _is_stray(name, present)}
        for name in sorted(strays - self._owed):
            _log.info("%s goes: the API has no such ClusterIP.", ascii(name))
        self._owed |= strays
        self._settle()
        self._on_change()

    def _want(self, wanted: Mapping[str, Wanted]) -> None:
        with self._lock:
            self._wanted = wanted

    def _settle(self) -> None:
        """Say what there is, and remove what there is not; what fails is a fault, and owed until the next time."""
        if not self._complete:
            return
        named = [uid for uid in self._wanted if self._storage.holds(_file(uid))]
        if len(named) < len(self._wanted) and not self._storage.holds(COMPLETE):
            # Whether a file that this process never saw was lost or never written nobody can tell. Named it
            # would count as lost, and unnamed as deleted: what an earlier process said stays until it is there.
            return
        # After a power cut it is of another boot whatever it says, so the disk is not waited for.
        content = render_complete(self._boot_id, named)
        if self._storage.write(COMPLETE, content.encode(), durable=False):
            self._owed = {name for name in sorted(self._owed) if not self._storage.remove(name)}


def _file(uid: str) -> str:
    return f"{uid}.json"


def _is_stray(name: str, present: Set[str]) -> bool:
    """Whether a file is of no ClusterIP in the API, or a temporary one that a crash left behind."""
    if name.startswith("."):
        uid = name.removeprefix(".").removesuffix(".json.tmp")
        return name == f".{_file(uid)}.tmp" and is_uid(uid)
    return name.endswith(".json") and name.removesuffix(".json") not in present


def _epoch(obj: Object, key: str) -> int:
    """status.epoch; 0 where nothing was assigned yet."""
    try:
        status = mapping(obj.get("status") or {}, "status")
        return integer(status.get("epoch", 0), "status.epoch", 0, MAX_NUMBER)
    except Invalid as fault:
        _log.error("ClusterIP %s counts as not assigned: %s", key, fault)
        return 0
