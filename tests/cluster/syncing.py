"""lbless-sync as a process against a real API server, and what stands in for dataplane: files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from lab.controlplane import ControlPlane
from lab.installation import LEASES, NAMESPACE, RBAC  # noqa: F401 - the tests of sync have RBAC from here
from lab.rest import ApiError
from lbless_api.interfaces import Interface
from lbless_api.node import EngineReport, Outstanding
from lbless_api.state import Observed, parse_complete, render_observed
from lbless_nodeagent import files

ACCOUNT = "lbless-node"
CLUSTERIPS = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips"
CLUSTERIPNODES = "/apis/lbless.dev/v1alpha1/clusteripnodes"
DEADLINE_SECONDS = 20

_numbers = count(1)

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], *, seconds: float = DEADLINE_SECONDS) -> T:
    """The first true value of `condition`; one that raises for lack of an object is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except (ApiError, FileNotFoundError, KeyError, StopIteration):
            value = None  # type: ignore[assignment]  # not there yet
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.01)


class SyncedNode:
    """One node: its sync as a process, its state directory, and its objects in the API."""

    def __init__(self, control_plane: ControlPlane, name: str, directory: Path, kubeconfig: Path) -> None:
        self.control_plane = control_plane
        self.name = name
        self.state = directory / "state"
        self.log_path = directory / "sync.log"
        self._kubeconfig = kubeconfig
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SyncedNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self, *options: str) -> None:
        """Start lbless-sync."""
        assert self._process is None
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lbless_nodeagent.sync", "--node", self.name]
                + ["--state-dir", str(self.state), "--namespace", NAMESPACE, *options],
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig)},
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM it; return its exit status."""
        assert self._process is not None
        self.signal(signal.SIGTERM)
        status = self._process.wait(10)
        self._process = None
        return status

    def cpu_seconds(self) -> float:
        """The processor time that its process has taken so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_kib(self, kind: str) -> int:
        """Its process's VmRSS or VmHWM."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{kind}:"))

    @property
    def log(self) -> str:
        """All that was logged."""
        return self.log_path.read_text()

    @property
    def desired(self) -> dict[str, dict[str, Any]]:
        """The files of desired/ that name a ClusterIP, by its name; not one that is removed just now."""
        found = {}
        for path in (self.state / "desired").glob("[!.]*.json"):
            with contextlib.suppress(FileNotFoundError):
                document = json.loads(path.read_text())
                found[document["metadata"]["name"]] = document
        return found

    @property
    def complete(self) -> bool:
        """Whether a LIST was completed since boot."""
        written = files.read_text(self.state / "desired" / ".complete")
        return parse_complete(written, files.boot_id()) is not None

    def observe(
        self,
        applied: Mapping[str, int] | None = None,
        failures: tuple[Outstanding, ...] = (),
        *,
        interfaces: tuple[Interface, ...] = (),
        age_seconds: float = 0,
        foreign: int = 0,
        make_directory: bool = True,
    ) -> None:
        """Write observed.json as dataplane does; with None, everything that is desired is applied."""
        if applied is None:
            applied = {d["metadata"]["uid"]: d["status"].get("epoch", 0) for d in self.desired.values()}
        observed = Observed(
            boot_id=files.boot_id(),
            boottime_seconds=files.boottime_seconds() - age_seconds,
            kernel="6.1.0-test",
            engines=(EngineReport("nftables", True),),
            interfaces=interfaces,
            applied=dict(applied),
            failures=failures,
            counters={"foreign": foreign},
        )
        if make_directory:
            files.make_directory(self.state)
        files.write_json(self.state / "observed.json", render_observed(observed))

    @property
    def report(self) -> dict[str, Any]:
        """Its ClusterIPNode."""
        return self.control_plane.api("GET", f"{CLUSTERIPNODES}/{self.name}")

    @property
    def ready(self) -> dict[str, str]:
        """Ready of its ClusterIPNode."""
        return next(c for c in self.report["status"]["conditions"] if c["type"] == "Ready")

    @property
    def lease(self) -> dict[str, Any]:
        """Its Lease."""
        return self.control_plane.api("GET", f"{LEASES}/lbless-node-{self.name}")

    @property
    def node(self) -> dict[str, Any]:
        """Its Node."""
        return self.control_plane.api("GET", f"/api/v1/nodes/{self.name}")


@contextmanager
def synced_node(control_plane: ControlPlane, directory: Path) -> Iterator[SyncedNode]:
    """A Node of its own whose sync is not started yet; at its end neither it nor any ClusterIP is left."""
    name = f"sync-node-{next(_numbers)}"
    control_plane.make_node(name, "10.80.0.99", pod_cidr="10.244.7.0/24")
    kubeconfig = control_plane.kubeconfig_for_service_account(NAMESPACE, ACCOUNT, name, outside=True)
    try:
        with SyncedNode(control_plane, name, directory, kubeconfig) as node:
            yield node
    finally:
        for item in control_plane.api("GET", CLUSTERIPS)["items"]:
            delete(control_plane, item["metadata"]["name"])
        control_plane.api("DELETE", f"/api/v1/nodes/{name}")


@contextmanager
def speaking(node: SyncedNode, period_seconds: float = 0.5) -> Iterator[None]:
    """While this lasts, observed.json is rewritten as by a dataplane to which whatever is desired happens."""

    def speak() -> None:
        # A disk that takes nothing, or a file that was removed since it was listed: as dataplane does.
        with suppress(files.UnwritableError, FileNotFoundError):
            node.observe(make_directory=False)

    with repeating(speak, period_seconds):
        yield


@contextmanager
def repeating(act: Callable[[], None], period_seconds: float) -> Iterator[None]:
    """While this lasts, `act` is called so often, by a thread."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(period_seconds):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def create(control_plane: ControlPlane, name: str, number: int = 1, **spec: Any) -> dict[str, Any]:
    """Create a ClusterIP."""
    return control_plane.make_clusterip(name, {"ip": f"192.0.2.{number}", **spec})


def assign(control_plane: ControlPlane, name: str, epoch: int) -> None:
    """Write the status that the operator would."""
    assignments = [{"node": "some-node", "incarnation": 1, "buckets": "0-255", "share": 256}]
    status = {"epoch": epoch, "assignments": assignments}
    control_plane.api("PATCH", f"{CLUSTERIPS}/{name}/status", {"status": status})


def delete(control_plane: ControlPlane, name: str) -> None:
    """Delete a ClusterIP."""
    control_plane.api("DELETE", f"{CLUSTERIPS}/{name}")
