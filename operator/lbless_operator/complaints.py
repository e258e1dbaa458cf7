"""What is wrong with Nodes and with agents' reports: told when it is found, and again only when it is another fault."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from lbless_operator.events import Events
from lbless_operator.facts import DEFAULT_WEIGHT, AgentFact, NodeFact, parse_weight
from lbless_operator.notices import Notice, NoticeReason, Subject
from lbless_operator.restraint import Restraint


class Complaints:
    """Remembers what was told of each node. For one thread."""

    def __init__(self, events: Events, restraint: Restraint) -> None:
        self._events = events
        self._restraint = restraint
        self._weights: dict[str, str] = {}
        self._reports: dict[str, str] = {}

    def about_weights(self, nodes: Iterable[NodeFact]) -> None:
        """Tell of annotations that are no weight; `nodes` are all that there are."""
        wrong = {
            node.name: node for node in nodes if node.weight is not None and parse_weight(node.weight) is None
        }
        self._weights = {name: told for name, told in self._weights.items() if name in wrong}
        for node in wrong.values():
            weight = node.weight or ""
            if self._weights.get(node.name) == weight:
                continue
            self._weights[node.name] = weight
            note = (
                f"The annotation lbless.dev/weight {weight[:40]!r} is not an integer from 0 to 1000: "
                f"the node counts with the default, {DEFAULT_WEIGHT}. Correct or remove it."
            )
            subject = Subject("v1", "Node", "", node.name, node.uid)
            self._events.post(Notice(subject, NoticeReason.INVALID_WEIGHT, note))

    def about_reports(self, agents: Iterable[AgentFact]) -> None:
        """Tell of reports that cannot be read; `agents` are all that there are."""
        garbled = {agent.node: agent.fault for agent in agents if agent.fault}
        for node, fault in garbled.items():
            if self._reports.get(node) != fault:
                self._restraint.log(
                    logging.WARNING,
                    "garbled report",
                    f"The report of node {node} is not used ({fault}): is its lbless-sync of another version?",
                )
        self._reports = garbled
