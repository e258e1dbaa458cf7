"""What ClusterIPs ask for in a namespace: which pods by their labels, and whose EndpointSlices.

Pure and immutable, so that every thread that reads pods may hold one. What is asked for by whom is `workloads`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbless_api.clusterip import PodWorkload, ServiceWorkload
from lbless_api.selectors import LabelSelector

Workload = PodWorkload | ServiceWorkload
Asked = tuple[str, Workload]
"""A namespace, and what is asked for in it."""


class Interest:
    """A set of workloads in namespaces; equal ones cover the same."""

    __slots__ = ("_by_label", "_others", "_services", "asked", "namespaces")

    def __init__(self, asked: Iterable[Asked] = ()) -> None:
        self.asked = frozenset(asked)
        self.namespaces = frozenset(namespace for namespace, _ in self.asked)
        # By the first label that a selector wants: of a thousand, a pod is compared with the few that may match.
        self._by_label: dict[tuple[str, str, str], list[LabelSelector]] = {}
        self._others: dict[str, list[LabelSelector]] = {}
        self._services: set[tuple[str, str]] = set()
        for namespace, workload in self.asked:
            if isinstance(workload, ServiceWorkload):
                self._services.add((namespace, workload.name))
            elif workload.selector.labels:
                self._by_label.setdefault((namespace, *workload.selector.labels[0]), []).append(
                    workload.selector
                )
            else:
                self._others.setdefault(namespace, []).append(workload.selector)

    def covers_pod(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a selector matches a pod with these labels."""
        if namespace not in self.namespaces:
            return False
        if any(selector.matches(labels) for selector in self._others.get(namespace, ())):
            return True
        return any(
            selector.matches(labels)
            for label in labels.items()
            for selector in self._by_label.get((namespace, *label), ())
        )

    def covers_service(self, namespace: str, service: str) -> bool:
        """Whether the slices of a Service are asked for."""
        return (namespace, service) in self._services

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interest) and self.asked == other.asked

    def __hash__(self) -> int:
        return hash(self.asked)

    def __repr__(self) -> str:
        return f"Interest({sorted(self.asked, key=str)!r})"


NOTHING = Interest()
