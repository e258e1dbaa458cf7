"""What sync counts, for Prometheus; read at each scrape, kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

HELP = {
    "lbless_sync_clusterips": "ClusterIPs in the API.",
    "lbless_sync_pending": "ClusterIPs listed as not in the kernel yet.",
    "lbless_sync_failures": "ClusterIPs listed as failed here.",
    "lbless_sync_dataplane_silent": "1 while dataplane does not say that it lives.",
    "lbless_sync_disk_troubled": "1 while the state directory is not as it should be.",
    "lbless_sync_waiting": "Collections of the API that cannot be followed just now.",
    "lbless_sync_status_writes": "Reports written since the start.",
    "lbless_sync_lease_renewals": "Renewals of the node's Lease since the start.",
}


class SyncCollector(Collector):
    """Serves the numbers that `read` returns, by their names in HELP."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One gauge a number."""
        for name, value in self._read().items():
            yield GaugeMetricFamily(name, HELP[name], value=value)


def register(read: Callable[[], Mapping[str, float]]) -> None:
    """Serve what `read` returns with the program's metrics."""
    REGISTRY.register(SyncCollector(read))
