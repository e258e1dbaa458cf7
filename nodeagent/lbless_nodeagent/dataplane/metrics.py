"""Prometheus metrics of a dataplane: what observed.json says, as numbers. Imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from lbless_api.state import Observed
from lbless_nodeagent.dataplane.ports import Ports
from lbless_nodeagent.dataplane.tick.lateness import BOUNDS_MS


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


class SegmentCollector:
    """What the tick process has counted, by interface."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        names = ("interface",)
        heard = GaugeMetricFamily("lbless_peers_heard", "Living nodes whose heartbeats arrive.", labels=names)
        dead = GaugeMetricFamily("lbless_peers_dead", "Incarnations that count as dead.", labels=names)
        states = GaugeMetricFamily(
            "lbless_membership", "1 for each condition that holds.", labels=(*names, "condition")
        )
        sent = CounterMetricFamily("lbless_heartbeats_sent", "Frames sent to the peers.", labels=names)
        unsent = CounterMetricFamily(
            "lbless_heartbeats_unsent", "Frames that could not be sent.", labels=names
        )
        lapses = CounterMetricFamily(
            "lbless_lease_lapses", "Leases that ran out or were given up.", labels=names
        )
        dropped = CounterMetricFamily(
            "lbless_heartbeats_dropped", "Frames that were not taken, by why.", labels=(*names, "reason")
        )
        late = HistogramMetricFamily("lbless_tick_lateness_seconds", "How late ticks came.", labels=names)
        for name, port in self._ports.items():
            if port.segment:
                heard.add_metric((name,), len(port.segment.heard))
                dead.add_metric((name,), len(port.segment.dead))
                for condition in port.segment.conditions:
                    states.add_metric((name, condition), 1)
            figures = port.figures
            if figures:
                sent.add_metric((name,), figures.sent)
                unsent.add_metric((name,), figures.unsent)
                lapses.add_metric((name,), figures.lapses)
                for reason, count in figures.dropped.items():
                    dropped.add_metric((name, reason), count)
                bounds = [*(str(ms / 1000) for ms in BOUNDS_MS), "+Inf"]
                counts = [float(count) for count in figures.late]
                late.add_metric((name,), list(zip(bounds, counts, strict=True)), figures.late_sum_ms / 1000)
        yield from (heard, dead, states, sent, unsent, lapses, dropped, late)


def register(last: Callable[[], Observed], ports: Ports | None) -> None:
    """Make the metrics part of what the process serves."""
    REGISTRY.register(ObservedCollector(last))
    if ports:
        REGISTRY.register(SegmentCollector(ports))
