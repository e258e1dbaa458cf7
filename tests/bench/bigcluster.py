"""A cluster of the promised size in a real API server: objects as large as real ones, written by several threads.

Owns what is in it. The agents that live in it are `leanagents`'s, what is measured is `operator`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from lab.controlplane import ControlPlane
from lab.objects import IMAGE, Endpoint
from lab.rest import STRATEGIC_MERGE_PATCH

THREADS = 6
NODES, CLUSTERIPS, PODS = 50, 1000, 5000
ASKED_FOR = [f"team-{number}" for number in range(10)]
"""Namespaces with ClusterIPs; pods are in the others as well."""
OTHERS = [f"batch-{number}" for number in range(10)]
PODS_A_SELECTOR, NODES_A_SERVICE = 4, 25


@dataclass(frozen=True)
class Selected:
    """A ClusterIP that pods decide about, and these pods: each is the only one of them on its node."""

    namespace: str
    name: str
    pods: tuple[str, ...]


def node_name(number: int) -> str:
    """The nodes are numbered from 0."""
    return f"node-{number % NODES:02}"


def node_address(number: int) -> str:
    """A node's address; the shared addresses are in the same subnet, a /16."""
    return f"10.80.250.{number + 1}"


def fill(control_plane: ControlPlane) -> list[Selected]:
    """Create everything but the ClusterIPs' statuses; return those that pods decide about."""
    for namespace in (*ASKED_FOR, *OTHERS):
        control_plane.make_namespace(namespace)
    in_parallel(
        lambda number: control_plane.make_node(
            node_name(number), node_address(number), pod_cidr=f"10.244.{number}.0/24"
        ),
        range(NODES),
    )
    selected = [
        Selected(
            ASKED_FOR[number % len(ASKED_FOR)],
            f"pods-{number}",
            tuple(f"app-{number}-{replica}" for replica in range(PODS_A_SELECTOR)),
        )
        for number in range(CLUSTERIPS // 2)
    ]
    in_parallel(lambda one: _make_pod(control_plane, *one), _pods(selected))
    in_parallel(lambda number: _make_clusterip(control_plane, number), range(CLUSTERIPS))
    return selected


def in_parallel(work: Callable[[Any], object], arguments: Iterable[Any]) -> None:
    """Call `work` for each argument from several threads; raises what the first failing one raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(work, arguments):
            pass


def _pods(selected: list[Selected]) -> Iterator[tuple[str, str, str, str]]:
    """Namespace, name, app and node of every pod: those selected first, then as many others as there are to be."""
    for number, one in enumerate(selected):
        for replica, name in enumerate(one.pods):
            yield one.namespace, name, f"app-{number}", node_name(number * 7 + replica * 12)
    namespaces = (*ASKED_FOR, *OTHERS, *OTHERS)
    for number in range(PODS - len(selected) * PODS_A_SELECTOR):
        namespace = namespaces[number % len(namespaces)]
        yield namespace, f"other-{number}", f"other-{number // 20}", node_name(number)


def _make_pod(control_plane: ControlPlane, namespace: str, name: str, app: str, node: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    control_plane.api("POST", path, _pod(name, app, node))
    control_plane.api(
        "PATCH", f"{path}/{name}/status", {"status": _pod_status()}, content_type=STRATEGIC_MERGE_PATCH
    )


def _make_clusterip(control_plane: ControlPlane, number: int) -> None:
    """Half of them by pods, a quarter by a Service, a quarter by readiness of nodes alone."""
    spec: dict[str, Any] = {
        "ip": f"10.80.{number // 200}.{number % 200 + 1}",
        "ports": [{"port": 80}, {"port": 443}],
    }
    half = CLUSTERIPS // 2
    if number < half:
        name = f"pods-{number}"
        spec["workload"] = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": f"app-{number}"}}}
    elif number < half + half // 2:
        name = f"service-{number}"
        spec["workload"] = {"serviceRef": {"name": name}}
        endpoints = [
            Endpoint(f"10.244.{place}.{number % 250 + 1}", node_name(number + place * 2))
            for place in range(NODES_A_SERVICE)
        ]
        control_plane.write_endpointslice(ASKED_FOR[number % len(ASKED_FOR)], name, name, endpoints)
    else:
        name = f"plain-{number}"
    control_plane.make_clusterip(name, spec, ASKED_FOR[number % len(ASKED_FOR)])


def _pod(name: str, app: str, node: str) -> dict[str, Any]:
    """A pod as a chart of today makes it: two containers, probes, environment, mounts, annotations."""
    container = {
        "image": IMAGE,
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": f"SETTING_{key}", "value": f"value-{key}-of-{app}"} for key in range(12)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
        "livenessProbe": {"httpGet": {"path": "/alive", "port": "http"}, "periodSeconds": 10},
        "volumeMounts": [{"name": f"volume-{key}", "mountPath": f"/mnt/{key}"} for key in range(3)],
        "securityContext": {"runAsNonRoot": True, "readOnlyRootFilesystem": True},
    }
    labels = {
        "app.kubernetes.io/name": app,
        "app.kubernetes.io/instance": "production",
        "app.kubernetes.io/version": "1.2.3",
        "app.kubernetes.io/managed-by": "Helm",
        "pod-template-hash": f"{crc32(app.encode()):x}",
    }
    return {
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {"checksum/config": "0" * 64, "prometheus.io/scrape": "true"},
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", **container}, {"name": "proxy", **container}],
            "volumes": [
                {"name": f"volume-{key}", "configMap": {"name": f"config-{key}"}} for key in range(3)
            ],
        },
    }


def _pod_status() -> dict[str, Any]:
    now = "2026-01-01T00:00:00Z"
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "hostIP": "10.80.250.1",
        "startTime": now,
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds],
        "containerStatuses": [
            {
                "name": name,
                "image": IMAGE,
                "imageID": f"{IMAGE}@sha256:{'0' * 64}",
                "containerID": f"containerd://{'1' * 64}",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for name in ("main", "proxy")
        ],
    }
