"""From a pod's condition in the API to the kernels of all nodes: the whole control path, alone and in a crowd."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench.changes import Changes
from bench.measure import Row
from lab import claim
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.installation import Installation
from lab.kernelstate import owned_buckets
from lab.lan import Lan
from lab.progress import Progress

ROUNDS = 40
CROWD = 1000
LABELS = {"app": "measured"}
LIMIT_MS = 500


def rows() -> Iterator[Row]:
    """Measure with one ClusterIP, and with one among a thousand."""
    if os.geteuid() != 0:
        raise LabError("the whole path needs root and network namespaces: run make bench as root")
    progress = Progress()
    with (
        Lan(claim.unique("lblat"), nodes=3) as lan,
        ControlPlane(lan, progress=progress) as control_plane,
        Installation(lan, control_plane, progress) as lbless,
    ):
        for node in lan.nodes:
            control_plane.make_pod("default", f"pod-{node.name}", node.name, labels=LABELS)
        lbless.create("measured", {"ip": lan.vip(1), "workload": {"podSelector": {"matchLabels": LABELS}}})
        lbless.wait_ready("measured")
        what = "pod condition changed, until 3 nodes are programmed"
        yield _row(f"{what}: alone", _measure(lbless))
        _gather_crowd(lbless, progress)
        yield _row(f"{what}: one of {CROWD + 1}", _measure(lbless))


def _row(what: str, samples: tuple[float, ...]) -> Row:
    """The limit is for the 95th percentile, so that is the figure: the worst twentieth of the samples."""
    whole = Row(what, "ms", LIMIT_MS, samples)
    slowest = sorted(samples)[-max(1, len(samples) // 20) :]
    return Row(f"{what} (p95)", "ms", LIMIT_MS, (whole.p95, *[s for s in slowest if s > whole.p95]))


def _gather_crowd(lbless: Installation, progress: Progress) -> None:
    """A thousand further ClusterIPs, served by all three nodes."""

    def create(number: int) -> None:
        lbless.create(f"crowd-{number}", {"ip": f"10.80.{128 + number // 250}.{1 + number % 250}"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(CROWD)))

    def programmed() -> bool:
        objects = lbless.control_plane.api("GET", "/apis/lbless.dev/v1alpha1/clusterips")["items"]
        ready = sum(
            c["type"] == "Programmed" and c["status"] == "True"
            for one in objects
            for c in (one.get("status") or {}).get("conditions", [])
        )
        progress.still(f"{ready} of {CROWD + 1} ClusterIPs are programmed")
        return ready == CROWD + 1

    progress.until("the crowd", programmed, timeout_seconds=600, interval_seconds=2)


def _measure(lbless: Installation) -> tuple[float, ...]:
    """Milliseconds from each change of one pod's readiness to the last change of rules on any node."""
    samples = []
    with ExitStack() as stack:
        heard = [Changes(node) for node in lbless.lan.nodes]
        for one in heard:
            stack.callback(one.close)
        for number in range(ROUNDS):
            node = lbless.lan.nodes[number // 2 % 3]
            for one in heard:
                one.forget()
            began = time.monotonic()
            lbless.control_plane.set_pod_ready("default", f"pod-{node.name}", number % 2 == 1)
            samples.append((max(one.await_quiet() for one in heard) - began) * 1000)
    now = lbless.wait_ready("measured")
    for node in lbless.lan.nodes:
        assignment = now.assigned_to(node.name)
        if assignment is None or owned_buckets(node, str(now.spec.ip)) != assignment.buckets:
            raise LabError(f"{node.name} does not hold what it is assigned: the times mean nothing")
    return tuple(samples)
