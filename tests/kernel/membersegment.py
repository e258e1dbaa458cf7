"""A segment without Kubernetes: dataplanes with heartbeats on the nodes of a LAN, and epochs that a test writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kernel import synced
from kernel.dataplane import Dataplane, wait_for
from lab.host import Host
from lab.kernelstate import leases, owned_buckets
from lab.lan import Lan
from unit.stateobjects import desired_json

BUCKETS = 32
KEY = "5f" * 32


class MemberSegment:
    """Each node of `lan` with a dataplane. `assign` is the operator; nothing else moves a bucket."""

    def __init__(
        self, lan: Lan, directory: Path, arguments: Sequence[str] = (), buckets: int = BUCKETS
    ) -> None:
        self.lan, self.buckets = lan, buckets
        self.key_file = directory / "key"
        self.key_file.write_text(f"{KEY}\n")
        self.arguments = ("--key-file", str(self.key_file), *arguments)
        self.planes = {
            node.name: Dataplane(node, directory / node.name, node.name, self.arguments) for node in lan.nodes
        }
        self.epochs: dict[str, int] = {}

    def start(self) -> None:
        """Start all of them, and wait until each has listened and has a lease."""
        for plane in self.planes.values():
            plane.complete()
            plane.start()
        for plane in self.planes.values():
            self.await_lease(plane)

    def await_lease(self, plane: Dataplane) -> None:
        """Wait until the node listens no more."""
        wait_for(lambda: plane.running() and "has a lease" in plane.log)

    def incarnation(self, name: str) -> int:
        """A node's present one."""
        return self.planes[name].observed().interfaces[0].incarnation

    def assign(
        self, uid: str, ip: str, shares: Mapping[str, str], nodes: Sequence[str] | None = None
    ) -> None:
        """Write the next epoch of a ClusterIP into the state directories of `nodes`, of all by default."""
        self.epochs[uid] = self.epochs.get(uid, 0) + 1
        incarnations = {name: self.incarnation(name) for name in shares}
        value = desired_json(
            uid, ip, shares, epoch=self.epochs[uid], incarnations=incarnations, buckets=self.buckets
        )
        for name in nodes or self.planes:
            synced.put(self.planes[name].desired, uid, value)

    def owned(self, ip: str) -> dict[str, str]:
        """The buckets that each node's kernel would answer for at this moment."""
        return {node.name: self.owned_by(node, ip) for node in self.lan.nodes}

    def owned_by(self, node: Host, ip: str) -> str:
        """The buckets that one kernel would answer for."""
        running = leases(node)
        return str(owned_buckets(node, ip)) if running and "eth0" in running else ""

    def stop(self) -> None:
        """End what runs."""
        for plane in self.planes.values():
            if plane.process and plane.process.poll() is None:
                plane.process.kill()
                plane.process.wait()
