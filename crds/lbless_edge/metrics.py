"""A program's numbers for Prometheus: read at each scrape, kept nowhere.

Which numbers these are is each program's; serving them is `lbless_edge.process`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector


class NumbersCollector(Collector):
    """Serves the numbers that `read` returns, by their names in `help_texts`."""

    def __init__(self, help_texts: Mapping[str, str], read: Callable[[], Mapping[str, float]]) -> None:
        self._help_texts = help_texts
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One gauge a number."""
        for name, value in self._read().items():
            yield GaugeMetricFamily(name, self._help_texts[name], value=value)


def register(help_texts: Mapping[str, str], read: Callable[[], Mapping[str, float]]) -> None:
    """Serve what `read` returns with the program's metrics."""
    REGISTRY.register(NumbersCollector(help_texts, read))
