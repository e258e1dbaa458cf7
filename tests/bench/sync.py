"""sync with a thousand ClusterIPs of fifty nodes on a real API server, beside a dataplane that reports as it does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import Row
from cluster.syncing import ACCOUNT, CLUSTERIPNODES, CLUSTERIPS, SyncedNode, repeating, wait_for
from lab import claim
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.installation import NAMESPACE, RBAC, install_crds
from lab.lan import Lan
from lab.progress import Silence
from lbless_api.node import EngineReport, Outstanding
from lbless_api.state import Observed, render_observed
from lbless_nodeagent import files

ADDRESSES, NODES, CHANGES = 1000, 50, 20
NODE = "node-00"
REPORT_SECONDS = 1.5
IDLE_SECONDS = 30.0
MIB = 1024.0


class _Dataplane:
    """observed.json as dataplane writes it: everything applied, every 1.5 s, with other counters each time."""

    def __init__(self, state: Path, uids: list[str]) -> None:
        self.epochs = dict.fromkeys(uids, 1)
        self.failures: tuple[Outstanding, ...] = ()
        self._path = state / "observed.json"

    def report(self) -> None:
        """Write it."""
        failed = {failure.uid for failure in self.failures}
        observed = Observed(
            boot_id=files.boot_id(),
            boottime_seconds=files.boottime_seconds(),
            kernel=os.uname().release,
            engines=(EngineReport("nftables", True),),
            applied={uid: epoch for uid, epoch in self.epochs.items() if uid not in failed},
            failures=self.failures,
            counters={"foreign": time.monotonic_ns()},
        )
        files.write_json(self._path, render_observed(observed), durable=False)


def rows() -> Iterator[Row]:
    """Measure memory, idle cost, the way of a change from the API to its file, and the report's size."""
    if os.geteuid() != 0:
        raise LabError("the API server is in a network namespace and needs root: run make bench as root")
    with (
        tempfile.TemporaryDirectory() as directory,
        Lan(claim.unique("lbbsync"), nodes=0) as lan,
        ControlPlane(lan, progress=Silence()) as plane,
    ):
        install_crds(plane)
        plane.apply(RBAC)
        plane.make_node(NODE, "10.80.0.99", pod_cidr="10.244.7.0/24")
        made = [_create(plane, number) for number in range(ADDRESSES)]
        kubeconfig = plane.kubeconfig_for_service_account(NAMESPACE, ACCOUNT, NODE, outside=True)
        with SyncedNode(plane, NODE, Path(directory), kubeconfig) as node:
            files.make_directory(node.state)
            dataplane = _Dataplane(node.state, [obj["metadata"]["uid"] for obj in made])
            dataplane.report()
            with repeating(dataplane.report, REPORT_SECONDS):
                node.start()
                yield from _measured(plane, node, dataplane)


def _measured(plane: ControlPlane, node: SyncedNode, dataplane: _Dataplane) -> Iterator[Row]:
    size = f"sync: {ADDRESSES} ClusterIPs"
    wait_for("everything to be applied", lambda: node.ready["reason"] == "Applied", seconds=60)
    wait_for("the Lease", lambda: node.lease)
    cpu, requests, memory = [], [], []
    for _ in range(3):
        former, began, spent = len(_requests(plane)), time.monotonic(), node.cpu_seconds()
        time.sleep(IDLE_SECONDS)  # the span that is measured
        seconds = time.monotonic() - began
        cpu.append(100 * (node.cpu_seconds() - spent) / seconds)
        requests.append((len(_requests(plane)) - former) / seconds)
        memory.append(node.memory_kib("VmRSS") / MIB)
    yield Row(f"{size}, idle, of one core", "%", 0.5, tuple(cpu))
    yield Row(f"{size}, idle, API requests", "1/s", 1, tuple(requests))
    yield Row(f"{size}, resident memory when steady", "MiB", 70, tuple(memory))
    yield Row(f"{size}, bytes of the ClusterIPNode, all well", "B", 32768, (_size(plane),))
    yield Row(f"{size}, one changes, from the API to its file", "ms", 100, tuple(_latencies(plane, node)))
    name, sentence = (
        f"{'n' * 63}/{'c' * 253}",
        "The address cannot be used here, and why is a long story. " * 50,
    )
    dataplane.failures = tuple(
        Outstanding(uid, name, 0, "EngineFailed", sentence) for uid in list(dataplane.epochs)[: ADDRESSES - 1]
    )
    wait_for("the failures", lambda: node.report["status"]["unlisted"])
    yield Row(f"{size}, bytes of the ClusterIPNode, {ADDRESSES - 1} fail", "B", 32768, (_size(plane),))
    yield Row(f"{size}, resident memory at its peak", "MiB", 70, (node.memory_kib("VmHWM") / MIB,))


def _create(plane: ControlPlane, number: int) -> dict[str, Any]:
    """A ClusterIP that is spread over all nodes."""
    name = f"web-{number:04}"
    made = plane.make_clusterip(name, {"ip": f"10.80.{16 + number // 250}.{1 + number % 250}"})
    _assign(plane, name, 1)
    return made


def _assign(plane: ControlPlane, name: str, epoch: int) -> None:
    share = 256 // NODES
    assignments = [
        {
            "node": f"node-{n:02}",
            "incarnation": 1764000000000,
            "buckets": f"{n * share}-{(n + 1) * share - 1}",
            "share": share,
        }
        for n in range(NODES)
    ]
    status = {"epoch": epoch, "assignments": assignments}
    plane.api("PATCH", f"{CLUSTERIPS}/{name}/status", {"status": status})


def _latencies(plane: ControlPlane, node: SyncedNode) -> Iterator[float]:
    """Milliseconds from the answer to a change until its file says so."""
    for number in range(CHANGES):
        name = f"web-{number:04}"
        uid = plane.api("GET", f"{CLUSTERIPS}/{name}")["metadata"]["uid"]
        path = node.state / "desired" / f"{uid}.json"
        before = path.stat().st_ino
        _assign(plane, name, 2)
        began = time.monotonic()
        wait_for("the file", lambda: path.stat().st_ino != before)  # noqa: B023 - it is called in this round
        yield (time.monotonic() - began) * 1000


def _requests(plane: ControlPlane) -> list[object]:
    user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
    return [request for request in plane.requests() if request.user == user]


def _size(plane: ControlPlane) -> float:
    return len(plane.kubectl("get", "--raw", f"{CLUSTERIPNODES}/{NODE}").stdout.encode())
