"""Kubernetes objects that a lab writes in place of kubelets and users: nodes, pods, services and their readiness.

Every method is one or two requests; what controllers make of them is for the caller to wait for.
"""

import datetime
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.progress import Silence
from lab.rest import APPLY_PATCH, STRATEGIC_MERGE_PATCH

Object = dict[str, Any]

# Nothing pulls it: there is no kubelet.
IMAGE = "lab.invalid/none:1"


@dataclass(frozen=True)
class Endpoint:
    """One address of an EndpointSlice and the node that it is on. `ending`: its pod is, and serves until then."""

    address: str
    node: str
    ready: bool = True
    ending: bool = False


def await_later_creation() -> None:
    """Return when what is created from now on is younger than what is there: creation times have whole seconds."""
    second = int(time.time())
    Silence().until("the next second", lambda: int(time.time()) > second, timeout_seconds=5)


class Objects(ABC):
    """What can be written through `api`."""

    def __init__(self) -> None:
        self._pod_addresses = (f"10.245.{high}.{low}" for high in range(256) for low in range(1, 255))

    @abstractmethod
    def api(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str | None = None,
    ) -> Object:
        """Make one request; see `rest.Api.request`."""

    def make_namespace(self, name: str) -> Object:
        """Create a namespace."""
        return self.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def make_service_account(self, namespace: str, name: str) -> Object:
        """Create a service account."""
        return self.api(
            "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}}
        )

    def make_node(
        self,
        name: str,
        address: str,
        *,
        ready: bool = True,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        pod_cidr: str | None = None,
    ) -> Object:
        """Create a Node with its internal address and Ready condition, as a kubelet would."""
        spec: Object = {"taints": list(taints)}
        if pod_cidr is not None:
            spec |= {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]}
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})}
        metadata = {"name": name, "labels": labels, "annotations": dict(annotations or {})}
        self.api("POST", "/api/v1/nodes", {"metadata": metadata, "spec": spec})
        status = {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [_condition("Ready", ready)],
        }
        return self._patch_status(f"/api/v1/nodes/{name}", status)

    def set_node_ready(self, name: str, ready: bool) -> Object:
        """Set a Node's Ready condition to True or False."""
        return self._patch_status(f"/api/v1/nodes/{name}", {"conditions": [_condition("Ready", ready)]})

    def patch_node(self, name: str, patch: Mapping[str, Any]) -> Object:
        """Merge into a Node, e.g. {"metadata": {"annotations": {…}}} or {"spec": {"taints": […]}}; None removes."""
        return self.api("PATCH", f"/api/v1/nodes/{name}", patch)

    def delete_node(self, name: str) -> None:
        """Delete a Node; its pods stay, as nobody collects them here."""
        self.api("DELETE", f"/api/v1/nodes/{name}")

    def make_pod(
        self,
        namespace: str,
        name: str,
        node: str,
        *,
        labels: Mapping[str, str] | None = None,
        ready: bool = True,
        ip: str | None = None,
    ) -> Object:
        """Create a running Pod on a node with an address (by default one that no other pod has).

        It becomes an endpoint of Services only where the Node object exists.
        """
        body = {
            "metadata": {"name": name, "labels": dict(labels or {})},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": IMAGE}]},
        }
        self.api("POST", f"/api/v1/namespaces/{namespace}/pods", body)
        address = ip or next(self._pod_addresses)
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            **_pod_readiness(ready),
        }
        return self._patch_status(f"/api/v1/namespaces/{namespace}/pods/{name}", status)

    def set_pod_ready(self, namespace: str, name: str, ready: bool) -> Object:
        """Set a Pod's readiness, as its probe would."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        return self._patch_status(path, _pod_readiness(ready))

    def delete_pod(self, namespace: str, name: str) -> None:
        """Delete a Pod at once: with a grace period it would wait for a kubelet."""
        self.api("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    def make_clusterip(self, name: str, spec: Mapping[str, Any], namespace: str = "default") -> Object:
        """Create a ClusterIP of lbless, whose CRDs must be there."""
        body = {
            "apiVersion": "lbless.dev/v1alpha1",
            "kind": "ClusterIP",
            "metadata": {"name": name},
            "spec": dict(spec),
        }
        return self.api("POST", f"/apis/lbless.dev/v1alpha1/namespaces/{namespace}/clusterips", body)

    def make_service(
        self, namespace: str, name: str, *, selector: Mapping[str, str] | None = None, port: int = 80
    ) -> Object:
        """Create a Service; with a selector, the controllers make its EndpointSlices from pods."""
        spec: Object = {"ports": [{"name": "main", "port": port}]}
        if selector is not None:
            spec["selector"] = dict(selector)
        body = {"metadata": {"name": name}, "spec": spec}
        return self.api("POST", f"/api/v1/namespaces/{namespace}/services", body)

    def make_load_balancer(self, namespace: str, name: str, address: str, ports: Sequence[Object]) -> Object:
        """Create a Service without a selector: at an address from outside pods of the receiving node alone answer."""
        path = f"/api/v1/namespaces/{namespace}/services"
        spec = {"type": "LoadBalancer", "ports": list(ports), "externalTrafficPolicy": "Local"}
        self.api("POST", path, {"metadata": {"name": name}, "spec": spec})
        return self._patch_status(f"{path}/{name}", {"loadBalancer": {"ingress": [{"ip": address}]}})

    def write_endpointslice(
        self,
        namespace: str,
        name: str,
        service: str,
        endpoints: Sequence[Endpoint],
        *,
        port: int = 80,
        ports: Sequence[Object] = (),
    ) -> Object:
        """Create or replace an EndpointSlice of a Service without a selector; it has the one port, or `ports`."""
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": list(ports) or [{"name": "main", "port": port, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": [endpoint.address],
                    "nodeName": endpoint.node,
                    "conditions": {
                        "ready": endpoint.ready and not endpoint.ending,
                        "serving": endpoint.ready,
                        "terminating": endpoint.ending,
                    },
                }
                for endpoint in endpoints
            ],
        }
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}"
        return self.api("PATCH", f"{path}?fieldManager=lab&force=true", body, content_type=APPLY_PATCH)

    def _patch_status(self, path: str, status: Mapping[str, Any]) -> Object:
        # Strategic: conditions merge by type instead of being replaced as a list.
        return self.api("PATCH", f"{path}/status", {"status": status}, content_type=STRATEGIC_MERGE_PATCH)


def _pod_readiness(ready: bool) -> Object:
    container = {"name": "main", "image": IMAGE, "imageID": IMAGE, "ready": ready, "restartCount": 0}
    return {
        "conditions": [_condition(kind, ready) for kind in ("Ready", "ContainersReady")],
        "containerStatuses": [{**container, "state": {"running": {}}}],
    }


def _condition(kind: str, true: bool) -> Object:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": kind,
        "status": str(true),
        "reason": "Lab",
        "message": "written by the lab",
        "lastTransitionTime": now,
    }
