"""How many ready pods or endpoints each ClusterIP has on each node, kept current pod by pod.

A change that alters no count of any ClusterIP names none, and so causes no reconcile. Which namespaces'
pods and slices are kept at all is the state's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lbless_api.clusterip import PodWorkload, ServiceWorkload
from lbless_operator.eligibility import Readiness
from lbless_operator.facts import Kind, PodFact, Scope, SliceFact
from lbless_operator.interest import Asked, Interest, Workload

FOLLOWED = frozenset({Kind.POD, Kind.SLICE})
"""The kinds of which only what ClusterIPs ask for matters."""
MAX_NAMESPACES = 64
"""In more namespaces than this one watch of the whole cluster costs less than one each."""


class _Counts:
    """One ClusterIP's matching pods: all of them, and the ready ones by node."""

    def __init__(self, selector: PodWorkload) -> None:
        self.workload = selector
        self.matching = 0
        self.ready: Counter[str] = Counter()

    def add(self, pod: PodFact, sign: int) -> str:
        """Count a pod in or out; return the node that it is ready on, empty if it is not or does not match."""
        if not self.workload.selector.matches(pod.labels):
            return ""
        self.matching += sign
        if not pod.ready:
            return ""
        self.ready[pod.node] += sign
        if not self.ready[pod.node]:
            del self.ready[pod.node]
        return pod.node

    def clear(self) -> None:
        """Count no pod any more."""
        self.matching = 0
        self.ready.clear()


class Workloads:
    """The workloads of all ClusterIPs, by their keys ``namespace/name``."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[str, PodFact]] = {}
        self._slices: dict[str, dict[str, SliceFact]] = {}
        self._counts: dict[str, dict[str, _Counts]] = {}
        self._of: dict[str, Asked] = {}
        self._asking: dict[Asked, set[str]] = {}
        self._clusterwide: set[Kind] = set()
        self._scopes: frozenset[Scope] | None = None

    def follow(self, key: str, namespace: str, workload: Workload | None) -> None:
        """Count for a ClusterIP from now on; None: no longer."""
        if self._of.get(key) == (namespace, workload):
            return
        self._forget(key)
        if workload is None:
            return
        if isinstance(workload, PodWorkload):
            counts = _Counts(workload)
            for pod in self._pods.get(namespace, {}).values():
                counts.add(pod, 1)
            self._counts.setdefault(namespace, {})[key] = counts
        asked = self._of[key] = (namespace, workload)
        if asked not in self._asking:
            self._asking[asked] = set()
            self._scopes = None
        self._asking[asked].add(key)

    def asked_by(self, key: str) -> Asked | None:
        """What a ClusterIP asks for, None if nothing."""
        return self._of.get(key)

    def asking(self, asked: Iterable[Asked]) -> set[str]:
        """The ClusterIPs that ask for one of these."""
        return set().union(*(self._asking.get(one, ()) for one in asked))

    def scopes(self) -> frozenset[Scope]:
        """The collections to follow for all of them."""
        if self._scopes is None:
            pods = {asked for asked in self._asking if isinstance(asked[1], PodWorkload)}
            found = [self._divide(Kind.POD, pods), self._divide(Kind.SLICE, self._asking.keys() - pods)]
            self._scopes = frozenset().union(*found)
        return self._scopes

    def _divide(self, kind: Kind, asked: Iterable[Asked]) -> frozenset[Scope]:
        whole = Interest(asked)
        # Not back and forth with every ClusterIP: each turn lists everything anew.
        bound = MAX_NAMESPACES // 2 if kind in self._clusterwide else MAX_NAMESPACES
        if len(whole.namespaces) > bound:
            self._clusterwide.add(kind)
            return frozenset({Scope(kind, "", whole)})
        self._clusterwide.discard(kind)
        by_namespace: dict[str, list[Asked]] = {}
        for one in whole.asked:
            by_namespace.setdefault(one[0], []).append(one)
        return frozenset(Scope(kind, namespace, Interest(ones)) for namespace, ones in by_namespace.items())

    def pod(self, namespace: str, name: str, fact: PodFact | None) -> set[str]:
        """A pod is now so, or None: gone. Return the ClusterIPs for which that matters."""
        pods = self._pods.setdefault(namespace, {})
        old = pods.pop(name, None)
        if fact:
            pods[name] = fact
        affected = set()
        for key, counts in self._counts.get(namespace, {}).items():
            existed = counts.matching > 0
            before = counts.add(old, -1) if old else ""
            after = counts.add(fact, 1) if fact else ""
            # Whether any pod matches at all is part of a message.
            if before != after or existed != (counts.matching > 0):
                affected.add(key)
        return affected

    def slice(self, namespace: str, name: str, fact: SliceFact | None) -> set[str]:
        """An EndpointSlice is now so, or None: gone. Return the ClusterIPs for which that matters."""
        slices = self._slices.setdefault(namespace, {})
        old = slices.pop(name, None)
        if fact:
            slices[name] = fact
        affected: set[str] = set()
        for one in (old, fact):
            if one and old != fact:
                affected |= self._asking.get((namespace, ServiceWorkload(one.service)), set())
        return affected

    def drop_namespace(self, kind: Kind, namespace: str) -> None:
        """Forget pods or slices of a namespace, or (empty) of all: they are no longer followed."""
        kept: dict[str, dict[str, PodFact]] | dict[str, dict[str, SliceFact]]
        kept = self._pods if kind is Kind.POD else self._slices
        for one in [namespace] if namespace else list(kept):
            kept.pop(one, None)
            if kind is Kind.POD:
                for counts in self._counts.get(one, {}).values():
                    counts.clear()

    def readiness(self, key: str) -> Readiness:
        """What is ready for a ClusterIP."""
        followed = self._of.get(key)
        if followed is None:
            return Readiness()
        namespace, workload = followed
        if isinstance(workload, PodWorkload):
            counts = self._counts[namespace][key]
            return Readiness(dict(counts.ready), counts.matching > 0)
        slices = [s for s in self._slices.get(namespace, {}).values() if s.service == workload.name]
        return Readiness(_count_endpoints(slices), bool(slices))

    def _forget(self, key: str) -> None:
        followed = self._of.pop(key, None)
        if followed is None:
            return
        namespace, workload = followed
        if isinstance(workload, PodWorkload):
            self._counts[namespace].pop(key, None)
            if not self._counts[namespace]:
                del self._counts[namespace]
        self._asking[followed].discard(key)
        if not self._asking[followed]:
            del self._asking[followed]
            self._scopes = None


def _count_endpoints(slices: Iterable[SliceFact]) -> dict[str, int]:
    """Ready endpoints by node; one that is in two slices of a dual-stack Service counts once.

    Where there is none at all, those that end and still serve count, as for kube-proxy: the last pods of a Service get
    connections until they are gone.
    """
    known = list(slices)
    ready = frozenset().union(*(s.ready for s in known))
    endpoints = ready or frozenset().union(*(s.ending for s in known))
    return dict(Counter(node for node, _ in endpoints))
