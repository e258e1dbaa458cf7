"""kube-proxy on nodes, as it is in a cluster: what a Service's address is turned into before it reaches a pod.

Owns its start with what it needs (account, configuration) and its end. Services and endpoints are `objects`'s.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lab import programs
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.host import Host
from lab.progress import Silence

NFTABLES, IPTABLES = "nftables", "iptables"
START_SECONDS, STOP_SECONDS = 30, 10
_NAMESPACE, _ACCOUNT, _LOG = "kube-system", "kube-proxy", "kube-proxy"
_RULES = {NFTABLES: ["nft", "list", "table", "ip", "kube-proxy"], IPTABLES: ["iptables-save", "-t", "nat"]}


@contextmanager
def running(control_plane: ControlPlane, nodes: Sequence[Host], mode: str, address: str) -> Iterator[None]:
    """Run it on each node inside the block, which begins when the rules of each know `address`, a Service's.

    What it leaves in the kernels goes with the nodes. Raises LabError where it does not come so far.
    """
    program = programs.find(Silence()).kube_proxy
    control_plane.apply([_account(), _permission()])
    kubeconfig = control_plane.kubeconfig_for_service_account(_NAMESPACE, _ACCOUNT)
    started: list[subprocess.Popen[str]] = []
    try:
        for node in nodes:
            path = node.directory / f"{node.name}-kube-proxy.json"
            path.write_text(json.dumps(_configuration(node, mode, str(kubeconfig))))
            started.append(node.popen([program, f"--config={path}"], log=_LOG))
        for node, process in zip(nodes, started, strict=True):
            _await_rules(node, process, mode, address)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_rules(node: Host, process: subprocess.Popen[str], mode: str, address: str) -> None:
    def known() -> bool:
        if process.poll() is not None:
            raise LabError(f"kube-proxy on {node.name} ended: {node.last_words(_LOG)}")
        return address in node.run(_RULES[mode], check=False).stdout

    Silence().until(f"kube-proxy on {node.name} to know {address}", known, timeout_seconds=START_SECONDS)


def _configuration(node: Host, mode: str, kubeconfig: str) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": node.name,
        "clusterCIDR": "10.244.0.0/16",
        "bindAddress": node.address,
        # The machine's, not the node's: they cannot be set in a namespace.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "syncPeriod": "30s",
    }


def _account() -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"namespace": _NAMESPACE, "name": _ACCOUNT},
    }


def _permission() -> dict[str, object]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": _ACCOUNT},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:node-proxier",
        },
        "subjects": [{"kind": "ServiceAccount", "namespace": _NAMESPACE, "name": _ACCOUNT}],
    }
