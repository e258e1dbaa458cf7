"""ClusterIPs as desired/ holds them, for the tests of dataplane."""

from collections.abc import Mapping, Sequence
from typing import Any

from lbless_api.clusterip import ClusterIP, parse_clusterip


def desired_json(
    uid: str,
    ip: str,
    shares: Mapping[str, str],
    *,
    epoch: int = 1,
    created: str = "2026-01-01T00:00:00Z",
    incarnations: Mapping[str, int] | None = None,
    moves: Sequence[Mapping[str, str]] = (),
    **spec: Any,
) -> dict[str, Any]:
    """A ClusterIP whose assignments give each node of `shares` its buckets ("0-84"), by default to incarnation 0;
    `moves` are those of its status."""
    lives = incarnations or {}
    return {
        "apiVersion": "lbless.dev/v1alpha1",
        "kind": "ClusterIP",
        "metadata": {
            "namespace": "default",
            "name": f"vip-{uid}",
            "uid": uid,
            "creationTimestamp": created,
            "generation": 1,
        },
        "spec": {"ip": ip, **spec},
        "status": {
            "epoch": epoch,
            "assignments": [
                {"node": node, "incarnation": lives.get(node, 0), "buckets": buckets}
                for node, buckets in shares.items()
            ],
            "moves": list(moves),
        },
    }


def clusterip(uid: str, ip: str, shares: Mapping[str, str], **further: Any) -> ClusterIP:
    """The same, parsed."""
    return parse_clusterip(desired_json(uid, ip, shares, **further))
