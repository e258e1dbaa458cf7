"""lbless itself on a lab: the CRDs, the access rules, one operator, and sync and dataplane on each node.

Owns starting and stopping the programs as a cluster would, under the service accounts and with the access
rules that the chart ships. In this form they are processes in the nodes' namespaces, not pods.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.host import Host
from lab.lan import Lan
from lab.progress import Progress, Silence
from lbless_api.clusterip import ClusterIP, parse_clusterip
from lbless_api.hashing import TCP, bucket
from lbless_api.node import parse_node_status

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "crds"
RBAC = ROOT / "helm/lbless/rbac"
NAMESPACE = "lbless-system"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
OPERATOR = "lbless-operator"
SYNC = "lbless-sync"
DATAPLANE = "lbless-dataplane"
STOP_SECONDS = 20
REPORT_SECONDS = 120
"""A node with an emulated processor takes a minute where others use the machine as well."""
WAITING = "waiting for its end to take over"
"""What a dataplane says that is to follow a running one."""
CHART_CAPABILITIES = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all")
"""A wrapper that leaves dataplane the capabilities that the chart gives it, and no more."""
PROGRAMS = Path(sys.executable).parent
"""The console scripts stand beside the interpreter of the environment that runs the tests."""


class Installation:
    """`with Installation(lan, control_plane) as lbless:` has it running on all nodes of the LAN.

    Or only on `nodes`: the others are machines that know nothing of lbless or Kubernetes.
    """

    def __init__(
        self,
        lan: Lan,
        control_plane: ControlPlane,
        progress: Progress | None = None,
        nodes: Sequence[Host] | None = None,
        *,
        dataplane_arguments: Sequence[str] = (),
        dataplane_wrapper: Sequence[str] = (),
        heartbeats: bool = True,
    ) -> None:
        """Plan it; every dataplane is started with `dataplane_arguments`, by the program `dataplane_wrapper`.

        Without `heartbeats` it has no key file, and no node takes over from another by itself.
        """
        self.heartbeats = heartbeats
        self.dataplane_arguments = tuple(dataplane_arguments)
        self.dataplane_wrapper = tuple(dataplane_wrapper)
        self.lan = lan
        self.nodes = lan.nodes if nodes is None else nodes
        self.control_plane = control_plane
        self._progress = progress or Silence()
        self._running: dict[tuple[str, str], subprocess.Popen[str]] = {}

    def __enter__(self) -> Installation:
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop every program, all at once and then each to its end; not where the LAN is to stay up."""
        if self.lan.kept:
            return
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for program, host in list(self._running):
            self.stop(program, host)

    def start(self, program: str, host: Host, *arguments: str, server: str = "") -> None:
        """Start a program on a host: the operator on the control plane's, the others on nodes.

        `server` is the URL that it is to take for the API server's, such as a fault proxy's.
        """
        key = (program, host.name)
        if key in self._running and self._running[key].poll() is None:
            raise LabError(f"{program} runs on {host.name} already")
        self._running[key] = self._begin(program, host, arguments, server)

    def _begin(
        self, program: str, host: Host, arguments: Sequence[str], server: str = ""
    ) -> subprocess.Popen[str]:
        command: list[str] = [str(PROGRAMS / program), *arguments]
        environment = {}
        if program == DATAPLANE:
            keys = ["--key-file", str(self.key_file)] if self.heartbeats else []
            command = [*self.dataplane_wrapper, *command, *keys, *self.dataplane_arguments]
        else:
            bound = host.name if program == SYNC else None
            account = OPERATOR if program == OPERATOR else "lbless-node"
            kubeconfig = self.control_plane.kubeconfig_for_service_account(
                NAMESPACE, account, bound, server=server
            )
            environment["KUBECONFIG"] = str(kubeconfig)
            command += ["--namespace", NAMESPACE]
        if program != OPERATOR:
            state = self.state_directory(host)
            state.mkdir(parents=True, exist_ok=True)
            command += ["--node", host.name, "--state-dir", str(state)]
        return host.popen(command, environment=environment, log=program)

    def succeed(self, host: Host) -> int:
        """Replace a node's dataplane as an upgrade does: the successor waits, then the present one is ended.

        Returns the exit status of the one that ended; its successor may not serve yet.
        """
        said = self.log(DATAPLANE, host).count(WAITING)
        successor = self._begin(DATAPLANE, host, ["--wait"])

        def waits() -> bool:
            if successor.poll() is not None:
                raise LabError(f"the successor on {host.name} ended: {host.last_words(DATAPLANE)}")
            return self.log(DATAPLANE, host).count(WAITING) > said

        try:
            self._progress.until(f"the successor on {host.name}", waits, timeout_seconds=STOP_SECONDS)
        except LabError:
            successor.kill()
            successor.wait()
            raise
        status = self.stop(DATAPLANE, host)
        self._running[DATAPLANE, host.name] = successor
        return status

    def stop(self, program: str, host: Host | str, number: int = signal.SIGTERM) -> int:
        """End a program and return its exit status; what does not end in time is killed and is an error."""
        name = host if isinstance(host, str) else host.name
        process = self._running.pop((program, name))
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LabError(f"{program} on {name} did not stop within {STOP_SECONDS} s") from None

    def process(self, program: str, host: Host) -> subprocess.Popen[str]:
        """The running process of a program on a host."""
        return self._running[program, host.name]

    def state_directory(self, node: Host) -> Path:
        """A node's state directory."""
        return self.lan.directory / f"{node.name}-state"

    @property
    def key_file(self) -> Path:
        """The key of the nodes' heartbeats, as the Secret that the chart makes: one for all nodes."""
        return self.lan.directory / "heartbeat.keys"

    def log(self, program: str, host: Host) -> str:
        """All that a program has logged on a host."""
        path = host.log(program)
        return path.read_text() if path.exists() else ""

    def serving(self, node: Host) -> int:
        """How many dataplanes of a node have begun to serve so far."""
        return self.log(DATAPLANE, node).count("Serving node")

    def get(self, name: str, namespace: str = "default") -> dict[str, Any]:
        """A ClusterIP as the API has it."""
        path = f"/apis/lbless.dev/v1alpha1/namespaces/{namespace}/clusterips/{name}"
        return self.control_plane.api("GET", path)

    def create(self, name: str, spec: Mapping[str, object], namespace: str = "default") -> dict[str, Any]:
        """Create a ClusterIP."""
        return self.control_plane.make_clusterip(name, spec, namespace)

    def delete(self, name: str, namespace: str = "default") -> None:
        """Delete a ClusterIP."""
        path = f"/apis/lbless.dev/v1alpha1/namespaces/{namespace}/clusterips/{name}"
        self.control_plane.api("DELETE", path)

    def condition(self, name: str, kind: str = "Ready") -> Mapping[str, str]:
        """One condition of a ClusterIP; an empty mapping where it has none of this type yet."""
        conditions = self.get(name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def wait_ready(self, name: str, *, timeout_seconds: float = 30, after_epoch: int = -1) -> ClusterIP:
        """Wait until a ClusterIP is Ready and programmed in an epoch above `after_epoch`, and return it."""
        state: dict[str, Any] = {}

        def ready() -> bool:
            state.update(self.get(name))
            status = state.get("status", {})
            true = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
            current = status.get("observedGeneration") == state["metadata"]["generation"]
            return current and status.get("epoch", 0) > after_epoch and {"Ready", "Programmed"} <= true

        try:
            self._progress.until(f"ClusterIP {name} to be ready", ready, timeout_seconds=timeout_seconds)
        except LabError as error:
            raise LabError(f"{error}; its status is {json.dumps(state.get('status', {}))}") from None
        return parse_clusterip(state)

    def incarnations(self) -> dict[str, int]:
        """Each node's present incarnation on the segment; 0 where it has none yet."""
        found = {}
        for node in self.nodes:
            path = self.state_directory(node) / "identity.json"
            interfaces = json.loads(path.read_text())["interfaces"] if path.exists() else {}
            found[node.name] = int(interfaces.get(node.interface, {}).get("incarnation", 0))
        return found

    def await_joined(self) -> None:
        """Wait until every node has said that it takes part as the incarnation that it is, as after a start of
        dataplane: a ClusterIP made before might be spread in steps."""
        self._progress.until("every node to take part", self._have_joined, timeout_seconds=REPORT_SECONDS)

    def _have_joined(self) -> bool:
        incarnations = self.incarnations()
        for node in self.nodes:
            path = f"/apis/lbless.dev/v1alpha1/clusteripnodes/{node.name}"
            status = parse_node_status(self.control_plane.api("GET", path).get("status", {}))
            interface = next((one for one in status.interfaces if one.name == node.interface), None)
            if interface is None or interface.incarnation != incarnations[node.name]:
                return False
            if interface.segment and not interface.segment.is_reliable:
                return False
        return True

    def _set_up(self) -> None:
        self._progress.say("installing lbless: CRDs, access rules, nodes")
        install_crds(self.control_plane, self._progress)
        self.control_plane.apply(RBAC)
        for number, node in enumerate(self.nodes, 1):
            self.control_plane.make_node(node.name, node.address, pod_cidr=f"10.244.{number}.0/24")
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(f"{secrets.token_hex(32)}\n")
        self._progress.say("starting the operator, and sync and dataplane on each node")
        self.start(OPERATOR, self.lan.control)
        for node in self.nodes:
            self.start(DATAPLANE, node)
            self.start(SYNC, node)
        self._progress.until("every node to report", self._has_every_report, timeout_seconds=REPORT_SECONDS)

    def _has_every_report(self) -> bool:
        """Whether each node says that it is ready: a ClusterIP made before would be spread in steps."""
        reports = self.control_plane.api("GET", "/apis/lbless.dev/v1alpha1/clusteripnodes")["items"]
        ready = {
            report["metadata"]["name"]
            for report in reports
            for condition in report.get("status", {}).get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        }
        return ready == {node.name for node in self.nodes}


def install_crds(control_plane: ControlPlane, progress: Progress | None = None) -> None:
    """Apply the CRDs and wait until the API server serves them."""
    control_plane.apply(CRDS)

    def served() -> bool:
        try:
            for plural in ("clusterips", "clusteripnodes"):
                control_plane.api("GET", f"/apis/lbless.dev/v1alpha1/{plural}")
        except LabError:
            return False
        return True

    (progress or Silence()).until("the API server to serve the CRDs", served, timeout_seconds=20)


def bucket_of(clusterip: ClusterIP, source: str, source_port: int, port: int, protocol: int = TCP) -> int:
    """The bucket that the hash names for a packet of a client."""
    parameters = clusterip.spec.hash
    return bucket(
        parameters.function,
        parameters.mode,
        source,
        source_port,
        port,
        buckets=parameters.buckets,
        seed=parameters.seed,
        protocol=protocol,
        prefix_length=parameters.prefix_length,
    )


def owner(clusterip: ClusterIP, source: str, source_port: int, port: int, protocol: int = TCP) -> str:
    """The node that the assignment and the hash name for a packet of a client."""
    number = bucket_of(clusterip, source, source_port, port, protocol)
    owners = [a.node for a in clusterip.assignments if number in a.buckets]
    if len(owners) != 1:
        raise LabError(
            f"bucket {number} of {clusterip.identity.key} has the owners {owners}, not exactly one"
        )
    return owners[0]
