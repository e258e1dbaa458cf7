"""What the operator counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lbless_edge import metrics

HELP = {
    "lbless_operator_leading": "1 while this replica may write.",
    "lbless_operator_clusterips": "ClusterIPs in the API.",
    "lbless_operator_waiting": "ClusterIPs that wait to be looked at.",
    "lbless_operator_reconciles": "ClusterIPs looked at since the start.",
    "lbless_operator_writes": "Statuses written since the start.",
    "lbless_operator_awaited_lists": "LISTs that are due and not completed.",
    "lbless_operator_view_age_seconds": "Time since the last complete round of LISTs began; infinite before it.",
    "lbless_operator_beat_age_seconds": "Time since the reconciler came round last.",
}


def register(read: Callable[[], Mapping[str, float]]) -> None:
    """Serve the numbers that `read` returns, by their names in HELP."""
    metrics.register(HELP, read)
