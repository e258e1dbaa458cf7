"""Agents of many nodes without nodes behind them: what any ClusterIP is to be, all of them confirm soon after.

The agents of tests/cluster list everything each 50 ms, which at this size would be most of the load.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.bigcluster import THREADS, node_address, node_name
from lab.controlplane import ControlPlane
from lab.installation import LEASES
from lab.rest import APPLY_PATCH, ApiError
from lbless_api.digest import applied_digest
from lbless_edge.kube import CLUSTERIPNODES, CLUSTERIPS, connect
from lbless_edge.listwatch import ListWatch

RENEW_SECONDS = 10
BURST_SECONDS = 0.1
"""Nodes program what came within so long together, and report once."""


class LeanAgents:
    """One watch, one digest, as many reports as there are nodes. `programmed` and `epochs` are what the watch says."""

    def __init__(self, control_plane: ControlPlane, nodes: int) -> None:
        self._control_plane = control_plane
        self._nodes = set(range(nodes))
        self._lock = threading.Lock()
        self._epochs: dict[str, int] = {}
        self._named: dict[str, frozenset[str]] = {}
        self._programmed: set[str] = set()
        self._keys: dict[str, str] = {}
        self._written = ""
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._list_watch = ListWatch(connect(str(control_plane.kubeconfig)), CLUSTERIPS, self, self._stop)
        self._pool = ThreadPoolExecutor(THREADS)  # each of its threads keeps its connection
        list(self._pool.map(self._make, range(nodes)))
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._list_watch.run, self._report, self._renew)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        self._changed.set()
        self._list_watch.cut()
        for thread in self._threads:
            thread.join(15)
        self._pool.shutdown()

    def lose(self, number: int) -> None:
        """A node is gone, with all that the garbage collector takes along."""
        with self._lock:
            self._nodes.discard(number)
        name = node_name(number)
        self._control_plane.delete_node(name)
        for path in (f"{CLUSTERIPNODES}/{name}", f"{LEASES}/lbless-node-{name}"):
            self._control_plane.api("DELETE", path)

    @property
    def programmed(self) -> int:
        """How many ClusterIPs are in all nodes' kernels, as the operator says."""
        with self._lock:
            return len(self._programmed)

    def naming(self, number: int) -> int:
        """How many ClusterIPs name a node."""
        with self._lock:
            return sum(node_name(number) in named for named in self._named.values())

    def is_programmed(self, key: str) -> bool:
        """Whether one ClusterIP, ``namespace/name``, is in all nodes' kernels."""
        with self._lock:
            return self._keys.get(key) in self._programmed

    def epoch(self, key: str) -> int:
        """Its epoch."""
        with self._lock:
            return self._epochs[self._keys[key]]

    def changed(self, obj: dict[str, Any]) -> None:
        """For the ListWatch."""
        metadata, status = obj["metadata"], obj.get("status", {})
        uid, epoch = metadata["uid"], status.get("epoch", 0)
        conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
        with self._lock:
            self._keys[f"{metadata['namespace']}/{metadata['name']}"] = uid
            if conditions.get("Programmed") == "True":
                self._programmed.add(uid)
            else:
                self._programmed.discard(uid)
            self._named[uid] = frozenset(a["node"] for a in status.get("assignments", []) if a["share"])
            if self._epochs.get(uid, 0) == epoch:
                return
            self._epochs[uid] = epoch
        self._changed.set()

    def removed(self, uid: str) -> None:
        """For the ListWatch."""
        with self._lock:
            self._epochs.pop(uid, None)
            self._named.pop(uid, None)
            self._programmed.discard(uid)

    def listed(self, present: Set[str]) -> None:
        """For the ListWatch."""

    def _make(self, number: int) -> None:
        body = {**_kind("ClusterIPNode"), "metadata": {"name": node_name(number)}}
        self._control_plane.api("POST", CLUSTERIPNODES, body)
        self._renew_one(number)
        self._report_one(number, "")

    def _report(self) -> None:
        while not self._stop.is_set():
            self._changed.wait()
            self._stop.wait(BURST_SECONDS)
            self._changed.clear()
            with self._lock:
                digest = applied_digest({uid: epoch for uid, epoch in self._epochs.items() if epoch})
                nodes = sorted(self._nodes)
            if digest != self._written and not self._stop.is_set():
                list(self._pool.map(self._report_one, nodes, [digest] * len(nodes)))
                self._written = digest

    def _renew(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                nodes = sorted(self._nodes)
            # Spread over the period, as nodes that started at different times are.
            for number in nodes:
                if number in self._nodes:
                    self._renew_one(number)
                if self._stop.wait(RENEW_SECONDS / max(1, len(nodes))):
                    return

    def _report_one(self, number: int, digest: str) -> None:
        name = node_name(number)
        interface = {
            "name": "eth0",
            "mac": f"02:00:00:00:01:{number:02x}",
            "addresses": [f"{node_address(number)}/16"],
            "gateways": ["10.80.255.254"],
            "carrier": True,
            "incarnation": 1,
        }
        body = {
            **_kind("ClusterIPNode"),
            "metadata": {"name": name},
            "status": {"kernel": "6.1.0", "interfaces": [interface], "appliedDigest": digest},
        }
        self._apply(f"{CLUSTERIPNODES}/{name}/status", body)

    def _renew_one(self, number: int) -> None:
        name = f"lbless-node-{node_name(number)}"
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {"holderIdentity": node_name(number), "renewTime": now},
        }
        self._apply(f"{LEASES}/{name}", body)

    def _apply(self, path: str, body: Mapping[str, Any]) -> None:
        while not self._stop.is_set():
            try:
                self._control_plane.api(
                    "PATCH", f"{path}?fieldManager=lbless-sync&force=true", body, content_type=APPLY_PATCH
                )
            except ApiError as error:
                if error.status == 404:  # of a node that is lost just now
                    return
                self._stop.wait(0.2)
            else:
                return


def _kind(kind: str) -> dict[str, str]:
    return {"apiVersion": "lbless.dev/v1alpha1", "kind": kind}
