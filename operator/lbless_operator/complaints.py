"""What is wrong with Nodes and with agents' reports: told when it is found, and again only when it is another fault."""

from __future__ import annotations

import logging

from lbless_operator.events import Events
from lbless_operator.facts import DEFAULT_WEIGHT, AgentFact, Kind, NodeFact, Seen, parse_weight
from lbless_operator.notices import Notice, NoticeReason, Subject
from lbless_operator.restraint import Restraint


class Complaints:
    """Remembers what was told of each node. For one thread."""

    def __init__(self, events: Events, restraint: Restraint) -> None:
        self._events = events
        self._restraint = restraint
        self._weights: dict[str, str] = {}
        self._reports: dict[str, str] = {}

    def about(self, seen: Seen) -> None:
        """Tell what is wrong with an object as it is now."""
        if seen.kind is Kind.NODE:
            self._about_weight(seen.name, seen.fact if isinstance(seen.fact, NodeFact) else None)
        elif seen.kind is Kind.AGENT:
            self._about_report(seen.name, seen.fact.fault if isinstance(seen.fact, AgentFact) else "")

    def _about_weight(self, name: str, node: NodeFact | None) -> None:
        weight = node.weight if node else None
        if node is None or weight is None or parse_weight(weight) is not None:
            self._weights.pop(name, None)
        elif self._weights.get(name) != weight:
            self._weights[name] = weight
            note = (
                f"The annotation lbless.dev/weight {weight[:40]!r} is not an integer from 0 to 1000: "
                f"the node counts with the default, {DEFAULT_WEIGHT}. Correct or remove it."
            )
            subject = Subject("v1", "Node", "", name, node.uid)
            self._events.post(Notice(subject, NoticeReason.INVALID_WEIGHT, note))

    def _about_report(self, node: str, fault: str) -> None:
        if not fault:
            self._reports.pop(node, None)
        elif self._reports.get(node) != fault:
            self._reports[node] = fault
            self._restraint.log(
                logging.WARNING,
                "garbled report",
                f"The report of node {node} is not used ({fault}): is its lbless-sync of another version?",
            )
