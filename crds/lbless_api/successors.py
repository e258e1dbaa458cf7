"""Who takes a bucket when its owner is gone: the same order computed by every node and the operator.

Rendezvous hashing (Thaler and Ravishankar, 1998): each node has a score for each bucket, the highest
takes it, so that removing a node moves only that node's buckets.
"""

from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv4Address


def rank(clusterip_ip: IPv4Address | str, bucket: int, nodes: Iterable[str]) -> list[str]:
    """Return `nodes` by descending SHA-256 of ``"<ip>/<bucket>/<node>"``, each name once."""
    prefix = f"{clusterip_ip}/{bucket}/"
    return sorted(set(nodes), key=lambda node: sha256((prefix + node).encode()).digest(), reverse=True)
