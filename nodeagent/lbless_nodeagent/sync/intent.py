"""What ending dataplane is to mean for this node's share, from what the API says of the Node and of ClusterIPs.

Owns desired/.intent. What dataplane does about it is dataplane's.

- `hold`: another one follows, as when the DaemonSet replaces the pod or a container restarts. Also while nothing
  is known yet: for a node that goes nevertheless, peers take over when the hold is over.
- `handover`: the node goes. It is being deleted, shut down, cordoned, or its share is taken anyway.
- `remove`: there is no ClusterIP at all. That is as much as sync may know of an uninstallation: it reads no
  DaemonSet, and a pod that is deleted for good looks like one that is replaced. So ClusterIPs go first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from lbless_api import EXCLUDE_LABEL, WEIGHT_ANNOTATION
from lbless_api.state import Intent
from lbless_edge.kube import Object

_SHUTTING_DOWN = "node is shutting down"
"""What kubelet says in the Node's condition Ready when systemd has told it (graceful node shutdown)."""

_log = logging.getLogger("lbless.sync")


def why_it_goes(node: Object) -> str:
    """Why a Node will not serve for long, in the words that go after "the node"; empty if it will.

    A cordoned one may just be upgraded. But mostly it is about to be restarted, and a hand-over costs nobody a
    connection, where a hold in vain costs its share for two seconds.
    """
    metadata, spec = node.get("metadata") or {}, node.get("spec") or {}
    taints = [t.get("key", "") for t in spec.get("taints") or [] if t.get("effect") == "NoExecute"]
    ready = [c for c in (node.get("status") or {}).get("conditions") or [] if c.get("type") == "Ready"]
    said = [c.get(field) or "" for c in ready for field in ("reason", "message")]
    reasons = {
        "is being deleted": bool(metadata.get("deletionTimestamp")),
        "is shutting down": any(_SHUTTING_DOWN in words for words in said),
        f"is tainted NoExecute ({', '.join(taints)})": bool(taints),
        "is cordoned": bool(spec.get("unschedulable")),
        "has weight 0": (metadata.get("annotations") or {}).get(WEIGHT_ANNOTATION) == "0",
        f"has the label {EXCLUDE_LABEL}": EXCLUDE_LABEL in (metadata.get("labels") or {}),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def intend(why: str, clusterips: int | None) -> Intent:
    """What is meant, where the node goes for the reason `why` and the API has so many ClusterIPs, None: unknown."""
    if clusterips == 0:
        return Intent.REMOVE
    return Intent.HANDOVER if why else Intent.HOLD


class IntentFile:
    """Keeps the file; `update` from any thread, whenever something may have changed."""

    def __init__(
        self,
        why: Callable[[], str],
        clusterips: Callable[[], int | None],
        write: Callable[[Intent], None],
    ) -> None:
        self._why = why
        self._clusterips = clusterips
        self._write = write
        self._lock = threading.Lock()
        self._written: Intent | None = None

    def update(self, *, anew: bool = False) -> None:
        """Write it if it is another one than before, or in any case."""
        with self._lock:
            why = self._why()
            intent = intend(why, self._clusterips())
            if intent is self._written and not anew:
                return
            self._write(intent)
            if self._written not in {None, intent}:
                because = f": the node {why}" if intent is Intent.HANDOVER else ""
                _log.info("Ending lbless-dataplane means %s from now on%s.", intent, because)
            self._written = intent
