"""The Node object that this sync serves: its UID owns what sync writes, its pod ranges go to a file.

Owns desired/.node.json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Set

from lbless_api.fields import Invalid
from lbless_api.state import NODE, parse_desired_node
from lbless_edge.kube import Object
from lbless_nodeagent.sync.intent import why_it_goes
from lbless_nodeagent.sync.storage import Storage

_log = logging.getLogger("lbless.sync")


class OwnNode:
    """A listener for the one Node of `name`."""

    def __init__(self, name: str, storage: Storage, on_change: Callable[[], None]) -> None:
        self.name = name
        self.uid = ""
        """Empty while the API has no such Node."""
        self.goes = ""
        """Why the node will not serve for long; empty if it will, or nothing is known of it."""
        self._storage = storage
        self._said = ""
        self._on_change = on_change

    def changed(self, obj: Object) -> None:
        """Remember its UID and write what of it the kernel needs."""
        self.uid = obj["metadata"]["uid"]
        self.goes = why_it_goes(obj)
        spec = obj.get("spec") or {}
        wanted = {"podCIDRs": spec.get("podCIDRs") or [c for c in [spec.get("podCIDR")] if c]}
        try:
            parse_desired_node(wanted)
        except Invalid as fault:
            self._storage.release(NODE)
            self._say(f"The pod ranges of Node {self.name} are left aside, the last good ones stay: {fault}")
        else:
            self._say("")
            content = json.dumps(wanted, separators=(",", ":")) + "\n"
            self._storage.write(NODE, content.encode())
        self._on_change()

    def removed(self, uid: str) -> None:
        """Forget it, unless another one of its name has taken its place already. Its file stays."""
        if uid == self.uid:
            self.uid = ""
            self.goes = "is deleted"
            self._say_absent()
        self._on_change()

    def listed(self, present: Set[str]) -> None:
        """Say so where there is no such Node."""
        if not present:
            self._say_absent()

    def _say_absent(self) -> None:
        self._storage.release(NODE)
        self._say(f"Node {self.name} does not exist: waiting for kubelet to register it (or correct --node).")

    def _say(self, trouble: str) -> None:
        """Log it where it is another one than the last time; empty: there is none."""
        if trouble and trouble != self._said:
            _log.warning("%s", trouble)
        self._said = trouble
