"""What the operator counts, for Prometheus; read at each scrape, kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

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


class OperatorCollector(Collector):
    """Serves the numbers that `read` returns, by their names in HELP."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One gauge a number."""
        for name, value in self._read().items():
            yield GaugeMetricFamily(name, HELP[name], value=value)


def register(read: Callable[[], Mapping[str, float]]) -> None:
    """Serve what `read` returns with the program's metrics."""
    REGISTRY.register(OperatorCollector(read))
