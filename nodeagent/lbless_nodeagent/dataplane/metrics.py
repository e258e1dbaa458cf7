"""Prometheus metrics of a dataplane: what observed.json says, as numbers. Imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lbless_api.state import Observed


class ObservedCollector:
    """Reads the last report whenever somebody asks; a report is immutable, so that no lock is needed."""

    def __init__(self, last: Callable[[], Observed]) -> None:
        self._last = last

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        observed = self._last()
        yield GaugeMetricFamily(
            "lbless_clusterips_applied", "ClusterIPs that are as desired here.", value=len(observed.applied)
        )
        yield GaugeMetricFamily(
            "lbless_clusterips_failed",
            "ClusterIPs that are not as desired here.",
            value=len(observed.failures),
        )
        yield GaugeMetricFamily(
            "lbless_node_problems", "Troubles of the node as a whole.", value=len(observed.problems)
        )
        yield GaugeMetricFamily(
            "lbless_observed_boottime_seconds",
            "CLOCK_BOOTTIME of the last report.",
            value=observed.boottime_seconds,
        )
        packets = CounterMetricFamily("lbless_packets", "Packets by how they ended.", labels=("end",))
        for name, count in observed.counters.items():
            packets.add_metric((name,), count)
        yield packets
        repairs = CounterMetricFamily(
            "lbless_repairs", "What somebody else undid and was done again, by what it was.", labels=("what",)
        )
        for what, count in observed.repairs.items():
            repairs.add_metric((what,), count)
        yield repairs


def register(last: Callable[[], Observed]) -> None:
    """Make the metrics part of what the process serves."""
    REGISTRY.register(ObservedCollector(last))
