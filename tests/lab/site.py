"""A site for failover trials: three nodes that share one address, healthy again after whatever was done to them.

Owns what makes it healthy and how that is seen: by the operator, or where no API server runs by epochs that the test
writes into the state directories. Who is struck how is `faults`'s, what is measured `failover`'s.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import claim, servers
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.host import Host
from lab.installation import SYNC, Installation
from lab.kernelstate import leases, owned_buckets
from lab.lan import Lan
from lab.prober import Sources
from lab.progress import Silence
from lbless_api.clusterip import ClusterIP
from lbless_nodeagent import files

NAME = "failover"
BUCKETS = 32
DRAIN_SECONDS = 0
HEALTHY_SECONDS = 60


@dataclass
class Site:
    """One shared address on all nodes of an installation. `by_hand`: no operator is there to assign."""

    lbless: Installation
    clusterip: ClusterIP
    servers: dict[str, subprocess.Popen[str]]
    sources: Sources
    by_hand: bool = False
    _incarnations: dict[str, int] = field(default_factory=dict)
    _epoch: int = 0

    @property
    def lan(self) -> Lan:
        """The LAN."""
        return self.lbless.lan

    @property
    def operated(self) -> bool:
        """Whether an operator plans."""
        return not self.by_hand

    @property
    def address(self) -> str:
        """The shared address."""
        return str(self.clusterip.spec.ip)

    def keepers(self) -> dict[int, list[str]]:
        """Which nodes' kernels would answer for each bucket at this moment."""
        found: dict[int, list[str]] = {number: [] for number in range(BUCKETS)}
        for node in self.lbless.nodes:
            running = leases(node)
            if running is None or node.interface in running:
                for number in owned_buckets(node, self.address):
                    found[number].append(node.name)
        return found

    def owners(self) -> dict[int, str]:
        """The one owner of each bucket. Raises LabError where it is none or two."""
        keepers = self.keepers()
        wrong = {number: names for number, names in keepers.items() if len(names) != 1}
        if wrong:
            raise LabError(f"these buckets of {self.address} have not exactly one owner: {wrong}")
        return {number: names[0] for number, names in keepers.items()}

    def start_servers(self, node: Host) -> None:
        """Start what answers on a node."""
        self.servers[node.name] = servers.start(
            node, tcp=[servers.TCP_PORT], udp=[servers.UDP_PORT], stream=[servers.STREAM_PORT]
        )
        servers.await_ready(node, self.servers[node.name])

    def leave_to_hand(self) -> None:
        """Stop the API server and its storage for good; from now on the test assigns."""
        self.await_healthy()
        self.clusterip = self.lbless.wait_ready(NAME)
        for node in self.lbless.nodes:
            self.lbless.stop(SYNC, node)
        self.lbless.control_plane.stop(storage=True)
        self.by_hand = True
        self._incarnations = self.incarnations()
        self._epoch = self.clusterip.epoch

    def await_healthy(self) -> None:
        """Wait until every node has its fair share again and nothing is under way."""
        check = self._healthy_by_hand if self.by_hand else self._healthy
        try:
            Silence().until("health", check, timeout_seconds=HEALTHY_SECONDS, interval_seconds=0.1)
        except LabError:
            state = "" if self.by_hand else json.dumps(self.lbless.get(NAME).get("status", {}))
            raise LabError(
                f"not healthy within {HEALTHY_SECONDS} s: the kernels have {self.keepers()}; {state}"
            ) from None

    def incarnations(self) -> dict[str, int]:
        """Each node's present incarnation on the segment; 0 where it has none yet."""
        return self.lbless.incarnations()

    def assign(self, shares: Mapping[str, str]) -> None:
        """Write a new epoch into every node's state directory: the buckets ("0-9") of each node."""
        self._epoch += 1
        self._incarnations = self.incarnations()
        assignments = [
            {"node": name, "incarnation": self._incarnations[name], "buckets": buckets}
            for name, buckets in shares.items()
        ]
        for node in self.lbless.nodes:
            path = self.lbless.state_directory(node) / "desired" / f"{self.clusterip.identity.uid}.json"
            written: dict[str, Any] = json.loads(path.read_text())
            written["status"] = {**written["status"], "epoch": self._epoch, "assignments": assignments}
            files.write_json(path, written)

    def _fair(self) -> dict[str, str]:
        """The shares of the first assignment."""
        return {a.node: str(a.buckets) for a in self.clusterip.assignments}

    def _healthy_by_hand(self) -> bool:
        if self.incarnations() != self._incarnations:
            self.assign(self._fair())
        return self._as_assigned(self._fair())

    def _healthy(self) -> bool:
        obj = self.lbless.get(NAME)
        status = obj["status"]
        true = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
        if not {"Ready", "Programmed"} <= true or status.get("moves"):
            return False
        shares = {a["node"]: a["buckets"] for a in status["assignments"]}
        incarnations = {a["node"]: a["incarnation"] for a in status["assignments"]}
        return incarnations == self.incarnations() and self._as_assigned(shares)

    def _as_assigned(self, shares: Mapping[str, str]) -> bool:
        """Whether all nodes have a fair share and every kernel has just what it was given."""
        try:
            owners = self.owners()
        except LabError:
            return False
        held = {n.name: [b for b, name in owners.items() if name == n.name] for n in self.lbless.nodes}
        fair = all(len(own) >= BUCKETS // len(held) for own in held.values())
        return fair and all(str(owned_buckets(n, self.address)) == shares[n.name] for n in self.lbless.nodes)


@contextmanager
def site(
    prefix: str, *, dataplane_arguments: Sequence[str] = (), dataplane_wrapper: Sequence[str] = ()
) -> Iterator[Site]:
    """A site of three nodes with a control plane of its own, healthy at the beginning of the block."""
    with (
        Lan(claim.unique(prefix), nodes=3) as lan,
        servers.serving(lan.nodes, stream=[servers.STREAM_PORT]) as serving,
        ControlPlane(lan, progress=Silence()) as control_plane,
    ):
        for node in lan.nodes:
            lan.enable_conntrack(node)
        with Installation(
            lan,
            control_plane,
            dataplane_arguments=dataplane_arguments,
            dataplane_wrapper=dataplane_wrapper,
        ) as lbless:
            # A flow whose end a node without a lease has missed would keep a move from ending, and a trial waiting.
            lbless.create(NAME, {"ip": Lan.vip(1), "buckets": BUCKETS, "drainTimeoutSeconds": DRAIN_SECONDS})
            made = lbless.wait_ready(NAME)
            sources = Sources(made.spec.hash, servers.TCP_PORT, lan.client.addresses)
            running = dict(zip((node.name for node in lan.nodes), serving, strict=True))
            one = Site(lbless, made, running, sources)
            try:
                one.await_healthy()
                yield one
            finally:
                for server in one.servers.values():
                    servers.stop(server)
