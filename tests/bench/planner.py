"""The planner at the size that is promised: a thousand ClusterIPs on fifty nodes when one node is lost."""

from collections.abc import Iterator

from bench.measure import Row, wall_ms
from lbless_operator.planner import plan

CLUSTERIPS, BUCKETS, NODES = 1000, 256, 50


def rows() -> Iterator[Row]:
    """Measure planning anew after the loss of a node, and planning where nothing changes."""
    weights = {f"node-{i}": 100 for i in range(NODES)}
    addresses = [f"10.{i >> 8}.{i & 255}.1" for i in range(CLUSTERIPS)]
    owners = [plan(ip, BUCKETS, {}, weights) for ip in addresses]
    less = {node: weight for node, weight in weights.items() if node != "node-7"}

    def lose_one() -> None:
        for ip, owned in zip(addresses, owners, strict=True):
            plan(ip, BUCKETS, owned, less)

    def nothing_changes() -> None:
        for ip, owned in zip(addresses, owners, strict=True):
            plan(ip, BUCKETS, owned, weights)

    size = f"{CLUSTERIPS} x {BUCKETS} buckets x {NODES} nodes"
    yield Row(f"plan {size}, one node lost", "ms", 1000, wall_ms(lose_one, 5))
    yield Row(f"plan {size}, nothing changes", "ms", 1000, wall_ms(nothing_changes, 5))
