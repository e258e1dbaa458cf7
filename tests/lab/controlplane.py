"""The control plane: etcd, kube-apiserver and kube-controller-manager on a LAN's management network.

Owns their start, stop and credentials; the objects that tests write are `objects`'s, the programs `programs`'s.
"""

import itertools
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from lab import audit, kubeconfig
from lab import programs as lab_programs
from lab.errors import LabError
from lab.host import Host
from lab.lan import Lan
from lab.objects import Objects
from lab.pki import MASTERS, Authority, Identity
from lab.programs import Programs
from lab.progress import Progress
from lab.rest import Api, ApiError

API_PORT = 6443
START_SECONDS = 120
SERVICE_RANGE = "10.96.0.0/16"
TOKEN_SECONDS = 24 * 3600

# Not node-lifecycle: without kubelets that renew, it would call every node of the lab unreachable.
CONTROLLERS = (
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "endpointslice-controller",
)


class ControlPlane(Objects):
    """`with ControlPlane(lan) as control_plane:` answers requests in the block; it ends with it, or with the LAN."""

    def __init__(
        self,
        lan: Lan,
        programs: Programs | None = None,
        *,
        progress: Progress | None = None,
        controllers: Sequence[str] = CONTROLLERS,
    ) -> None:
        """Plan it on a LAN that is up; programs are found or built where none are given."""
        super().__init__()
        self._lan = lan
        self._host = lan.control
        self._progress = progress or Progress()
        self._programs = programs
        self._controllers = tuple(controllers)
        self._directory = lan.directory / "control-plane"
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> "ControlPlane":
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lan.kept:
            self.close()

    def close(self) -> None:
        """Kill every program; what etcd held is lost."""
        for name in list(self._running):
            self._kill(name)

    def start(self) -> None:
        """Start the API server (again, after `stop`) and return when it is ready."""
        if "kube-apiserver" in self._running:
            raise LabError("the API server runs already: stop() it first")
        if "etcd" not in self._running:
            self._start_etcd()
        self._start_api_server()
        self._await_api_server()

    def stop(self, *, storage: bool = False) -> None:
        """Kill the API server, and etcd too with `storage`; what etcd holds stays, clients see closed connections."""
        self._kill("kube-apiserver")
        if storage:
            self._kill("etcd")

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig for this machine, outside of the lab's namespaces."""
        return self._directory / "admin.kubeconfig"

    @property
    def url(self) -> str:
        """Where hosts of the lab reach the API server."""
        return f"https://{self._host.address}:{API_PORT}"

    @property
    def host(self) -> Host:
        """Where it runs."""
        return self._host

    @property
    def address(self) -> str:
        """Where hosts of the lab reach the API server, without its port."""
        return self._host.address

    @property
    def authority(self) -> Path:
        """The certificate that whatever answers as the API server must be signed by."""
        return self._authority

    def certificate(self, host: Host) -> Identity:
        """Sign a certificate for one more server, on a host's main address and on this machine's loopback."""
        number = next(self._certificates)
        return self._signer.server(f"{host.name}-{number}", [host.address, "127.0.0.1"], ["localhost"])

    def kubeconfig_for_service_account(
        self,
        namespace: str,
        name: str,
        bound_node: str | None = None,
        *,
        outside: bool = False,
        server: str = "",
    ) -> Path:
        """Write a kubeconfig with a token of the account and return its path.

        It is for use on the lab's hosts, or (`outside`) on this machine, out of their namespaces; `server` is another
        URL than the API server's own, such as a fault proxy's. With `bound_node` the token names that Node and dies
        with it. Raises ApiError if the account or the Node does not exist.
        """
        spec: dict[str, Any] = {"expirationSeconds": TOKEN_SECONDS}
        if bound_node is not None:
            uid = self.api("GET", f"/api/v1/nodes/{bound_node}")["metadata"]["uid"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": bound_node, "uid": uid}
        answer = self.api(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        server = server or (self._outside_url if outside else self.url)
        # Not with its colon: $KUBECONFIG is a list of paths that colons part.
        reached = urlsplit(server).netloc.replace(":", "-")
        label = ".".join(part for part in (namespace, name, bound_node, reached) if part)
        path = self._directory / f"{label}.kubeconfig"
        return kubeconfig.with_token(path, server, self._authority, answer["status"]["token"])

    def kubectl(
        self, *arguments: str, check: bool = True, stdin: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator. Raises LabError with what it said last if it fails (and `check`)."""
        command = [
            str(self._found.kubectl),
            f"--kubeconfig={self._directory / 'inside.kubeconfig'}",
            *arguments,
        ]
        return self._host.run(
            command,
            check=check,
            stdin=stdin,
            timeout=timeout,
            # Not the user's own cache of some other cluster's discovery.
            environment={"KUBECACHEDIR": str(self._directory / "kubectl-cache")},
        )

    def apply(self, manifests: Path | Sequence[Mapping[str, Any]]) -> None:
        """Apply a file, a directory's files or objects, server-side. Raises LabError with the first refusal."""
        command = ["apply", "--server-side", "--force-conflicts", "-f"]
        if isinstance(manifests, Path):
            self.kubectl(*command, str(manifests))
        else:
            items = {"apiVersion": "v1", "kind": "List", "items": [dict(manifest) for manifest in manifests]}
            self.kubectl(*command, "-", stdin=json.dumps(items))

    def api(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str | None = None,
    ) -> dict[str, Any]:
        """Make one request as administrator and return the parsed answer. Raises ApiError (with `status`)."""
        return self._api.request(method, path, body, content_type=content_type)

    def requests(self) -> list[audit.Request]:
        """Return the finished requests of service accounts so far; a watch counts when it has ended."""
        return audit.read(self._directory / "audit.log")

    @property
    def _found(self) -> Programs:
        if self._programs is None:
            self._programs = lab_programs.find(self._progress)
        return self._programs

    def _set_up(self) -> None:
        _ = self._found
        self._progress.say("starting etcd, kube-apiserver and kube-controller-manager")
        # What an earlier control plane on this LAN has left.
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700)
        self._make_credentials()
        self._start_etcd()
        self._start_api_server()
        self._start_relay()
        self._await_api_server()
        self._start_controller_manager()
        # The first thing that its controllers make; before that no pod is admitted.
        self._progress.until(
            "the controller manager",
            lambda: self._has_default_account() or self._check_running(),
            timeout_seconds=START_SECONDS,
        )
        self._progress.say("the control plane is ready")

    def _make_credentials(self) -> None:
        authority = self._signer = Authority(self._directory / "pki")
        self._authority = authority.certificate
        self._certificates = itertools.count(1)
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        self._server = authority.server(
            "kube-apiserver", [self._host.address, "127.0.0.1", "10.96.0.1"], names
        )
        self._account_key = authority.key_pair("service-accounts")
        administrator = authority.client("lab-administrator", MASTERS)
        controllers = authority.client("system:kube-controller-manager", MASTERS)
        # Made outside the namespaces: this machine reaches the API server through it (see inside/relay.py).
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        relayed = self._listener.getsockname()[1]
        self._api = Api("127.0.0.1", relayed, self._authority, administrator)
        self._outside_url = f"https://127.0.0.1:{relayed}"
        for name, server, identity in (
            ("admin", self._outside_url, administrator),
            ("inside", self.url, administrator),
            ("controller-manager", self.url, controllers),
        ):
            path = self._directory / f"{name}.kubeconfig"
            kubeconfig.with_certificate(path, server, self._authority, identity)
        (self._directory / "audit-policy.json").write_text(json.dumps(audit.POLICY))

    def _start_etcd(self) -> None:
        self._start(
            self._found.etcd,
            "--name=lab",
            f"--data-dir={self._directory / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=lab=http://127.0.0.1:2380",
            # The data does not outlive the lab, so it need not outlive a power cut.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _start_api_server(self) -> None:
        self._start(
            self._found.kube_apiserver,
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={self._host.address}",
            "--bind-address=0.0.0.0",
            f"--secure-port={API_PORT}",
            f"--tls-cert-file={self._server.certificate}",
            f"--tls-private-key-file={self._server.key}",
            f"--client-ca-file={self._authority}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            # It would taint each new node until node-lifecycle, which does not run, removes that.
            "--disable-admission-plugins=TaintNodesByCondition",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={self._account_key}",
            f"--service-account-signing-key-file={self._account_key}",
            f"--audit-policy-file={self._directory / 'audit-policy.json'}",
            f"--audit-log-path={self._directory / 'audit.log'}",
            "--endpoint-reconciler-type=none",
            "--anonymous-auth=false",
            "--profiling=false",
        )

    def _start_controller_manager(self) -> None:
        self._start(
            self._found.kube_controller_manager,
            f"--kubeconfig={self._directory / 'controller-manager.kubeconfig'}",
            f"--controllers={','.join(self._controllers)}",
            f"--service-account-private-key-file={self._account_key}",
            f"--root-ca-file={self._authority}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            # The default is below /usr, which may be read-only, and it is made at start.
            f"--flex-volume-plugin-dir={self._directory / 'flex'}",
        )

    def _start_relay(self) -> None:
        descriptor = self._listener.fileno()
        command = self._host.inside("relay", str(descriptor), self._host.address, str(API_PORT))
        self._running["relay"] = self._host.popen(command, pass_fds=[descriptor], log="relay")
        self._listener.close()

    def _start(self, program: Path, *arguments: str) -> None:
        self._running[program.name] = self._host.popen([program, *arguments])

    def _kill(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is None:
            raise LabError(f"{name} is not running")
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _await_api_server(self) -> None:
        self._progress.until(
            "kube-apiserver",
            lambda: self._is_ready() or self._check_running(),
            timeout_seconds=START_SECONDS,
        )

    def _is_ready(self) -> bool:
        try:
            self.api("GET", "/readyz")
        except ApiError:
            return False
        return True

    def _has_default_account(self) -> bool:
        try:
            self.api("GET", "/api/v1/namespaces/default/serviceaccounts/default")
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def _check_running(self) -> bool:
        """Return False. Raises LabError if a program has ended, with what it said last."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise LabError(
                    f"{name} ended with exit code {process.returncode}: {self._host.last_words(name)} "
                    f"(its log is {self._host.log(name)})"
                )
        return False
