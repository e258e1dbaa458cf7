"""Who takes the packets of each flow, moment by moment: a stream of datagrams, and what each node has kept of it.

Owns what it comes to. The sending and keeping are `inside/stream.py`'s. Moments are when a node's kernel took a frame
up, so that no process that waits for a processor makes anything longer than it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from lab.background import background
from lab.host import Host

START_SECONDS, END_SECONDS = 15, 20


@dataclass(frozen=True, slots=True, order=True)
class Taken:
    """A node has kept a datagram of a flow, at a time of CLOCK_MONOTONIC in seconds."""

    at: float
    flow: int
    sequence: int
    node: str


@dataclass(frozen=True, slots=True)
class Handoff:
    """So many flows went from one node to another. Of all these flows together, `at_most_seconds` passed from the last
    datagram that the former one kept until the first one that the latter kept, and `at_least_seconds` from the first
    one that neither kept until the last one: 0 where that is none."""

    former: str
    latter: str
    flows: int
    since: float
    at_most_seconds: float
    at_least_seconds: float


@dataclass
class Stream:
    """That of one block; everything is there once it is over. `sent` has when each datagram of each flow left."""

    sent: Sequence[Sequence[float]] = ()
    late_seconds: float = 0.0
    taken: list[Taken] = field(default_factory=list)

    def twice(self) -> list[tuple[int, int]]:
        """The flow and the sequence of each datagram that more than one node has kept."""
        nodes: dict[tuple[int, int], set[str]] = defaultdict(set)
        for one in self.taken:
            nodes[one.flow, one.sequence].add(one.node)
        return sorted(which for which, kept in nodes.items() if len(kept) > 1)

    def lost(self) -> int:
        """How many datagrams no node has kept."""
        return sum(map(len, self.sent)) - len(self._kept())

    def handoffs(self) -> list[Handoff]:
        """All of them in the order of time. Flows that have the same two nodes, and of which each may have changed over
        when the others did, changed over together: as one address's buckets do."""
        changes: dict[tuple[str, str], list[tuple[float, float, int]]] = defaultdict(list)
        by_flow: dict[int, list[Taken]] = defaultdict(list)
        for one in sorted(self.taken):
            by_flow[one.flow].append(one)
        for kept in by_flow.values():
            for last, first in pairwise(kept):
                if last.node != first.node:
                    changes[last.node, first.node].append((last.at, first.at, last.flow))
        seen, found = self._kept(), []
        for (former, latter), spans in changes.items():
            flows: set[int] = set()
            since, until = 0.0, float("-inf")
            for begin, end, flow in [*sorted(spans), (float("inf"), float("inf"), -1)]:
                if begin < until:
                    flows, since, until = flows | {flow}, max(since, begin), min(until, end)
                    continue
                if flows:
                    lost = [
                        at
                        for one in flows
                        for number, at in enumerate(self.sent[one])
                        if since < at < until and (one, number) not in seen
                    ]
                    least = max(lost) - min(lost) if lost else 0.0
                    found.append(Handoff(former, latter, len(flows), since, until - since, least))
                flows, since, until = {flow}, begin, end
        return sorted(found, key=lambda one: one.since)

    def _kept(self) -> set[tuple[int, int]]:
        return {(one.flow, one.sequence) for one in self.taken}


@contextmanager
def streaming(
    client: Host,
    nodes: Sequence[Host],
    address: str,
    port: int,
    flows: Sequence[tuple[str, int]],
    *,
    per_second: int,
) -> Iterator[Stream]:
    """Send `per_second` datagrams in all inside the block, of each flow (the client's address and port) in turn."""
    seen = Stream()
    kept = {}
    with ExitStack() as stack:
        for node in nodes:
            plan: dict[str, object] = {"role": "keep", "address": address, "port": port}
            keeper = background(node, "stream", plan, start_seconds=START_SECONDS, end_seconds=END_SECONDS)
            kept[node.name] = stack.enter_context(keeper)
        plan = {
            "role": "send",
            "address": address,
            "port": port,
            "flows": [list(flow) for flow in flows],
            "per_second": per_second,
        }
        said = stack.enter_context(
            background(client, "stream", plan, start_seconds=START_SECONDS, end_seconds=END_SECONDS)
        )
        yield seen
    ((seen.sent, seen.late_seconds),) = said
    for name, (all_of_it,) in kept.items():
        seen.taken += [Taken(at, flow, sequence, name) for flow, sequence, at in all_of_it]
