"""What sync counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lbless_edge import metrics

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


def register(read: Callable[[], Mapping[str, float]]) -> None:
    """Serve the numbers that `read` returns, by their names in HELP."""
    metrics.register(HELP, read)
