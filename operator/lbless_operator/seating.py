"""On which interface each node has its seat on a ClusterIP's segment, and what follows from what is said there.

Owns keeping it: a thousand ClusterIPs share a segment or two. What follows is `segment`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable

from lbless_api.clusterip import Spec
from lbless_operator.agents import Freshness
from lbless_operator.eligibility import Candidate, choose, is_selected
from lbless_operator.segment import SILENT, Reporter, Segment, listen

Seating = tuple[tuple[str, str], ...]
"""(node, interface) of each whose agent is fresh and reports heartbeats there."""


class Segments:
    """What was concluded from the reports of each seating that a ClusterIP has."""

    def __init__(self) -> None:
        self._concluded: dict[Seating, Segment] = {}

    def of(self, spec: Spec, candidates: Iterable[Candidate]) -> Segment:
        """What is known of the segment of a ClusterIP."""
        seating = _seat(spec, candidates)
        if not seating:
            return SILENT
        if seating not in self._concluded:
            self._concluded[seating] = _conclude(seating, candidates)
        return self._concluded[seating]

    def change(self, candidates: Iterable[Candidate]) -> bool:
        """Nodes hear or count dead others than before: return whether anything else follows from that."""
        before = self._concluded
        self._concluded = {seating: _conclude(seating, candidates) for seating in before}
        return before != self._concluded

    def forget(self) -> None:
        """Nodes, their agents or interfaces have changed."""
        self._concluded.clear()


def _seat(spec: Spec, candidates: Iterable[Candidate]) -> Seating:
    """Only of nodes that nodeSelector matches: others may be on another segment, whatever its interfaces' names."""
    seats = []
    for candidate in candidates:
        node, report = candidate.node, candidate.report
        if candidate.freshness is not Freshness.FRESH or node is None or report is None:
            continue
        if any(i.segment for i in report.interfaces) and is_selected(spec, node):
            interface = choose(spec, report)
            if interface and interface.segment:
                seats.append((candidate.name, interface.name))
    return tuple(seats)


def _conclude(seating: Seating, candidates: Iterable[Candidate]) -> Segment:
    seats = dict(seating)
    return listen(
        Reporter(candidate.name, interface.incarnation, interface.segment)
        for candidate in candidates
        if candidate.name in seats and candidate.report
        for interface in candidate.report.interfaces
        if interface.name == seats[candidate.name] and interface.segment
    )
