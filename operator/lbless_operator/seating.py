"""On which interface each node has its seat on a ClusterIP's segment, and what follows from what is said there.

Owns keeping it, as a thousand ClusterIPs share a segment or two, and how long an accused node has to answer. What
follows is `segment`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from lbless_api.clusterip import Spec
from lbless_operator.agents import Freshness
from lbless_operator.eligibility import Candidate, choose, is_selected
from lbless_operator.segment import SILENT, Life, Reporter, Segment, listen

Seating = tuple[tuple[str, str], ...]
"""(node, interface) of each whose agent is fresh and reports heartbeats there."""

ANSWER_SECONDS = 2.0
"""Where two halves of a segment count each other dead, their reports come so far apart at most: both find it out
within a tick or two, and write at once."""


class Segments:
    """What was concluded from the reports of each seating that a ClusterIP has. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._concluded: dict[Seating, Segment] = {}
        self._unanswered: dict[Life, float] = {}
        """Who has not answered that it counts as dead, and since when."""
        self._outdated: frozenset[Life] = frozenset()

    def of(self, spec: Spec, candidates: Iterable[Candidate], now: float) -> Segment:
        """What is known of the segment of a ClusterIP."""
        seating = _seat(spec, candidates)
        if not seating:
            return SILENT
        if seating not in self._concluded:
            self._concluded[seating] = segment = _conclude(seating, candidates, self._outdated)
            for life in segment.unanswered:
                self._unanswered.setdefault(life, now)
        return self._concluded[seating]

    def change(self, candidates: Iterable[Candidate], now: float) -> bool:
        """Nodes hear or count dead others than before: return whether anything else follows from that."""
        before, self._concluded = self._concluded, {}
        for seating in before:
            self._concluded[seating] = _conclude(seating, candidates, self._outdated)
        self._note_unanswered(now)
        return before != self._concluded

    def tick(self, now: float) -> bool:
        """Find who has had time enough to answer; return whether that is anybody else than before."""
        if self._concluded:
            self._note_unanswered(now)
        late = (life for life, since in self._unanswered.items() if now - since >= ANSWER_SECONDS)
        before, self._outdated = self._outdated, frozenset(late)
        return before != self._outdated

    def forget(self) -> None:
        """Nodes, their agents or interfaces have changed."""
        self._concluded.clear()

    def _note_unanswered(self, now: float) -> None:
        unanswered = {life for segment in self._concluded.values() for life in segment.unanswered}
        self._unanswered = {life: self._unanswered.get(life, now) for life in unanswered}


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


def _conclude(seating: Seating, candidates: Iterable[Candidate], outdated: Set[Life]) -> Segment:
    seats = dict(seating)
    reporters = (
        Reporter(candidate.name, interface.incarnation, interface.segment)
        for candidate in candidates
        if candidate.name in seats and candidate.report
        for interface in candidate.report.interfaces
        if interface.name == seats[candidate.name] and interface.segment
    )
    return listen(reporters, outdated)
