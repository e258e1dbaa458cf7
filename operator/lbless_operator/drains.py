"""Which nodes still drain buckets of which ClusterIP, as they report it.

Owns the look-up by ClusterIP. What follows from it is `moves`'s.
"""

from __future__ import annotations

from collections.abc import Callable

from lbless_api.digest import MAX_MARKS, mark
from lbless_api.node import NodeStatus


class Drains:
    """All nodes' reports, by the UID of a ClusterIP."""

    def __init__(self, marked: Callable[[frozenset[bytes]], set[str]]) -> None:
        """`marked` returns the UIDs that have one of these marks."""
        self._marked = marked
        self._flows: dict[str, dict[str, int]] = {}
        self._listed: dict[str, frozenset[str]] = {}
        self._marks: dict[str, frozenset[bytes]] = {}

    def report(self, node: str, report: NodeStatus | None) -> set[str]:
        """A node reported, or None: its report is gone. Return the UIDs of which it began or ceased to drain buckets.

        How many flows are left changes all the time, and concerns nobody at once.
        """
        flows = {drain.uid: drain.flows for drain in report.drains} if report else {}
        marks = report.unlisted_drains if report else frozenset()
        before, marks_before = self._listed.pop(node, frozenset()), self._marks.pop(node, frozenset())
        for uid in before - flows.keys():
            del self._flows[uid][node]
            if not self._flows[uid]:
                del self._flows[uid]
        for uid, left in flows.items():
            self._flows.setdefault(uid, {})[node] = left
        if flows:
            self._listed[node] = frozenset(flows)
        if marks:
            self._marks[node] = marks
        changed = marks ^ marks_before
        return set(before ^ flows.keys()) | (self._marked(changed) if changed else set())

    def of(self, uid: str) -> dict[str, int | None]:
        """Node → the flows that it has left in buckets of a ClusterIP that it has given up.

        None where it has no room to say; where it has none for all marks either, it may have some of each.
        """
        flows: dict[str, int | None] = {}
        if self._marks:
            its = mark(uid)
            flows = {n: None for n, marks in self._marks.items() if its in marks or len(marks) >= MAX_MARKS}
        return flows | self._flows.get(uid, {})
