"""Objects as the API server sends them to the operator, as short as tests want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lbless_api.segment import SegmentReport, render_segment
from lbless_operator.facts import Kind, Seen, parse

Object = dict[str, Any]


def metadata(name: str, version: int, namespace: str = "", **more: Any) -> Object:
    made = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), **more}
    return {**made, "namespace": namespace} if namespace else made


def clusterip(
    name: str = "web",
    version: int = 1,
    *,
    spec: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    created: str = "2026-01-01T00:00:00Z",
    **more: Any,
) -> Seen:
    made = metadata(name, version, "shop", creationTimestamp=created, generation=1, **more)
    body: Object = {"metadata": made, "spec": {"ip": "192.0.2.10", "buckets": 16, **(spec or {})}}
    if status is not None:
        body["status"] = dict(status)
    return parse(Kind.CLUSTERIP, body)


def node(
    name: str,
    version: int = 1,
    *,
    ready: bool = True,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    taints: list[Object] | None = None,
    addresses: tuple[str, ...] = (),
    pod_ranges: tuple[str, ...] = (),
    **status: Any,
) -> Seen:
    return parse(
        Kind.NODE,
        {
            "metadata": metadata(
                name, version, labels=dict(labels or {}), annotations=dict(annotations or {})
            ),
            "spec": {"taints": taints or [], "podCIDRs": list(pod_ranges)},
            "status": {
                "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
                "addresses": [{"type": "InternalIP", "address": a} for a in addresses],
                **status,
            },
        },
    )


def agent(
    name: str,
    version: int = 1,
    *,
    address: str = "",
    digest: str = "",
    incarnation: int = 1,
    segment: SegmentReport | None = None,
    **status: Any,
) -> Seen:
    interface = {
        "name": "eth0",
        "mac": "02:00:00:00:00:01",
        "addresses": [address or f"192.0.2.{100 + sum(name.encode()) % 100}/24"],
        "incarnation": incarnation,
        **render_segment(segment),
    }
    return parse(
        Kind.AGENT,
        {
            "metadata": metadata(name, version),
            "status": {"kernel": "6.1", "interfaces": [interface], "appliedDigest": digest, **status},
        },
    )


def lease(name: str, version: int = 1, renewed: str = "2026-01-01T00:00:00.000000Z") -> Seen:
    return parse(
        Kind.LEASE,
        {
            "metadata": metadata(f"lbless-node-{name}", version, "lbless-system"),
            "spec": {"renewTime": renewed},
        },
    )


def pod(
    name: str,
    on: str,
    version: int = 1,
    *,
    ready: bool = True,
    labels: Mapping[str, str] | None = None,
    **more: Any,
) -> Seen:
    return parse(
        Kind.POD,
        {
            "metadata": metadata(name, version, "shop", labels=dict(labels or {"app": "web"}), **more),
            "spec": {"nodeName": on} if on else {},
            "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
        },
    )


def endpoints(
    name: str,
    nodes: Mapping[str, bool | None],
    version: int = 1,
    *,
    service: str = "web",
    ending: str = "",
) -> Seen:
    """An EndpointSlice; of the nodes `ending`, each a letter, the endpoints terminate and still serve."""
    return parse(
        Kind.SLICE,
        {
            "metadata": metadata(name, version, "shop", labels={"kubernetes.io/service-name": service}),
            "endpoints": [
                {
                    "nodeName": on,
                    "addresses": [f"10.0.0.{number}"],
                    "conditions": {
                        **({} if ready is None else {"ready": ready}),
                        **({"serving": True, "terminating": True} if on in ending else {}),
                    },
                    "targetRef": {"uid": f"pod-{on}"},
                }
                for number, (on, ready) in enumerate(nodes.items())
            ],
        },
    )


def gone(seen: Seen, version: int) -> Seen:
    """The same object, deleted at a version."""
    return Seen(seen.kind, seen.namespace, seen.name, version, None)
