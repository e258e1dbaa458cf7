"""The operator with 1,000 ClusterIPs, 50 nodes and 5,000 pods in a real API server: memory, CPU, requests, time.

Only its own process counts; what the API server and the stand-ins for agents cost on the same machine makes
the times longer than they would be in a cluster.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.bigcluster import CLUSTERIPS, NODES, PODS, Selected, fill
from bench.leanagents import LeanAgents
from bench.measure import Row
from cluster.operatorworld import Operator, end
from lab import claim
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.installation import RBAC, install_crds
from lab.lan import Lan
from lab.progress import Silence

CONTROLLERS = ("serviceaccount-controller", "root-ca-certificate-publisher-controller")
"""What it takes to admit a pod; the others would be most of the load."""
IDLE_SECONDS = 66.0
"""More than a round of LISTs."""
POD_CHANGES = 8
QUIET_SECONDS = 1.5
"""How long the process must cost hardly anything before a change, and after it, counts as over."""


def rows() -> Iterator[Row]:
    """Measure from nothing to steady, a restart, idling, single pods' changes, and the loss of a node."""
    if os.geteuid() != 0:
        raise LabError("the control plane needs root and network namespaces: run make bench as root")
    with (
        tempfile.TemporaryDirectory() as directory,
        Lan(claim.unique("lbbench"), nodes=0) as lan,
        ControlPlane(lan, progress=Silence(), controllers=CONTROLLERS) as control_plane,
    ):
        install_crds(control_plane)
        control_plane.apply(RBAC)
        selected = fill(control_plane)
        agents = LeanAgents(control_plane, NODES)
        program = Operator(control_plane, Path(directory))
        try:
            yield from _measure(control_plane, agents, program, selected)
        finally:
            program.close()
            agents.close()


def _measure(
    control_plane: ControlPlane, agents: LeanAgents, program: Operator, selected: list[Selected]
) -> Iterator[Row]:
    size = f"operator, {CLUSTERIPS} ClusterIPs, {NODES} nodes, {PODS} pods"
    first = Running(program)
    seconds = first.until("every ClusterIP to be programmed", lambda: agents.programmed == CLUSTERIPS)
    yield Row(f"{size}: from nothing to all programmed", "s", 60, (seconds,))
    yield Row("operator: CPU for that", "s", 60, (first.cpu_seconds(),))
    yield Row("operator: peak memory until then", "MiB", 200, (first.memory("VmHWM"),))
    first.end()

    second = Running(program)
    yield Row(
        "operator: restarted, start to steady", "s", 20, (second.until("work to be done", second.is_steady),)
    )
    yield Row("operator: CPU for that", "s", 20, (second.cpu_seconds(),))
    second.await_quiet()

    requests, cpu = _requests(control_plane), second.cpu_seconds()
    time.sleep(IDLE_SECONDS)  # the span that is measured
    idle = (second.cpu_seconds() - cpu) / IDLE_SECONDS
    yield Row(
        "operator: idle, API requests", "1/s", 1, ((_requests(control_plane) - requests) / IDLE_SECONDS,)
    )
    yield Row("operator: idle, CPU", "%", 5, (idle * 100,))
    yield Row("operator: memory when idle", "MiB", 200, (second.memory("VmRSS"),))

    samples = tuple(_change_a_pod(control_plane, agents, second, one, idle) for one in selected[:POD_CHANGES])
    yield Row("operator: CPU of one pod's change, until confirmed by all nodes", "ms", 50, samples)

    cpu, concerned = second.cpu_seconds(), agents.naming(7)
    began = time.monotonic()
    agents.lose(7)
    second.until("nothing to be left of the node", lambda: agents.naming(7) == 0)
    moved = time.monotonic() - began
    second.until("every ClusterIP to be programmed", lambda: agents.programmed == CLUSTERIPS)
    programmed = time.monotonic() - began
    yield Row(f"operator: one node lost, {concerned} ClusterIPs assigned anew", "s", 20, (moved,))
    yield Row("operator: and confirmed by all nodes", "s", 30, (programmed,))
    yield Row("operator: CPU for that", "s", 20, (second.cpu_seconds() - cpu,))
    yield Row("operator: peak memory of all this", "MiB", 200, (second.memory("VmHWM"),))
    second.end()


def _change_a_pod(
    control_plane: ControlPlane, agents: LeanAgents, operator: Running, one: Selected, idle: float
) -> float:
    """Milliseconds of CPU, less what idling costs, of a pod that is no longer ready: its node leaves."""
    key = f"{one.namespace}/{one.name}"
    epoch, cpu, began = agents.epoch(key), operator.cpu_seconds(), time.monotonic()
    control_plane.set_pod_ready(one.namespace, one.pods[0], False)
    operator.until(
        f"{key} to be programmed anew",
        lambda: agents.epoch(key) == epoch + 1 and agents.is_programmed(key),
    )
    time.sleep(QUIET_SECONDS)  # a span: what its own writes bring back to it counts
    return (operator.cpu_seconds() - cpu - idle * (time.monotonic() - began)) * 1000


def _requests(control_plane: ControlPlane) -> int:
    return sum(request.user.endswith(":lbless-operator") for request in control_plane.requests())


class Running:
    """A running operator, seen from outside: /proc and its metrics."""

    def __init__(self, program: Operator) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = int(listener.getsockname()[1])
        self._began = time.monotonic()
        self._process: subprocess.Popen[bytes] = program.start("--metrics-port", str(self._port))

    def until(self, what: str, condition: Callable[[], bool], timeout_seconds: float = 180) -> float:
        """Wait for a condition; return the seconds since the program was started."""
        Silence().until(what, condition, timeout_seconds=timeout_seconds, interval_seconds=0.05)
        return time.monotonic() - self._began

    def cpu_seconds(self) -> float:
        """CPU time of all its threads, user and system."""
        # The process's clock, to the nanosecond: clock_getcpuclockid(3) makes its number so.
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def memory(self, field: str) -> float:
        """MiB of VmRSS, as it is now, or VmHWM, the most that it ever was."""
        with open(f"/proc/{self._process.pid}/status") as status:
            line = next(line for line in status if line.startswith(field))
        return int(line.split()[1]) / 1024

    def is_steady(self) -> bool:
        """Whether every ClusterIP was looked at and none waits to be."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return False
        metrics = {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
        }
        return metrics["lbless_operator_reconciles"] >= CLUSTERIPS and not metrics["lbless_operator_waiting"]

    def await_quiet(self) -> None:
        """Wait until it costs less than a tenth of a core for QUIET_SECONDS."""

        def quiet() -> bool:
            before = self.cpu_seconds()
            time.sleep(QUIET_SECONDS)
            return self.cpu_seconds() - before < QUIET_SECONDS / 10

        self.until("it to be quiet", quiet)

    def end(self) -> None:
        """End it, so that it releases its Lease."""
        end(self._process)
