"""ClusterIP.status: both directions of its JSON. The operator is the only one that writes it.

What is in it is decided in `decision`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import intern

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Assignment, Move
from lbless_api.fields import MAX_INTEGER, Invalid, integer, ipv4, items, mapping, text
from lbless_api.heartbeat import MAX_NUMBER
from lbless_operator.conditions import Condition

JSON = dict[str, object]


@dataclass(frozen=True, slots=True)
class Status:
    """ClusterIP.status. `assignments` are sorted by node; `nodes` is serving / eligible, as "2/3".

    `moving` is the number of buckets of `moves`, empty where there are none.
    """

    observed_generation: int = 0
    mac: str = ""
    nodes: str = ""
    epoch: int = 0
    assignments: tuple[Assignment, ...] = ()
    moves: tuple[Move, ...] = ()
    moving: str = ""
    conditions: tuple[Condition, ...] = ()

    def owners(self) -> dict[str, BucketSet]:
        """Node → the buckets that it owns, for all nodes that are named."""
        return {assignment.node: assignment.buckets for assignment in self.assignments}


def ownership(assignments: Iterable[Assignment]) -> tuple[tuple[str, int, BucketSet], ...]:
    """All that an epoch stands for: where a node can be reached may change within it."""
    return tuple((a.node, a.incarnation, a.buckets) for a in assignments)


def parse_status(value: object) -> Status:
    """Read ClusterIP.status; raises Invalid where somebody else has written nonsense into it."""
    status = mapping(value or {}, "status")
    assignments = sorted((_assignment(entry) for entry in _list(status, "assignments")), key=lambda a: a.node)
    _check_exclusive(assignments)
    return Status(
        observed_generation=integer(
            status.get("observedGeneration", 0), "status.observedGeneration", 0, MAX_INTEGER
        ),
        mac=text(status.get("mac", ""), "status.mac"),
        nodes=text(status.get("nodes", ""), "status.nodes"),
        epoch=parse_epoch(status),
        assignments=tuple(assignments),
        moves=tuple(_move(entry) for entry in _list(status, "moves")),
        moving=text(status.get("moving", ""), "status.moving"),
        conditions=tuple(_condition(entry) for entry in _list(status, "conditions")),
    )


def parse_epoch(value: object) -> int:
    """The epoch of a status whose other parts may be unreadable; raises Invalid."""
    return integer(mapping(value or {}, "status").get("epoch", 0), "status.epoch", 0, MAX_NUMBER)


def render_status(status: Status) -> JSON:
    """The JSON of a status, complete: what is not in it is taken away by server-side apply."""
    rendered: JSON = {
        "observedGeneration": status.observed_generation,
        "nodes": status.nodes,
        "epoch": status.epoch,
        "assignments": [
            {
                "node": a.node,
                "incarnation": a.incarnation,
                "buckets": str(a.buckets),
                "share": len(a.buckets),
                **({"address": str(a.address)} if a.address else {}),
            }
            for a in status.assignments
        ],
        "moves": [{"buckets": str(m.buckets), "from": m.source, "to": m.destination} for m in status.moves],
        "conditions": [
            {
                "type": c.type,
                "status": c.status,
                "reason": c.reason,
                "message": c.message,
                "lastTransitionTime": c.since,
                "observedGeneration": c.observed_generation,
            }
            for c in status.conditions
        ],
    }
    for field, value in (("mac", status.mac), ("moving", status.moving)):
        if value:
            rendered[field] = value
    return rendered


def _assignment(value: object) -> Assignment:
    entry = mapping(value, "status.assignments")
    return Assignment(
        # The same few names in every ClusterIP.
        node=intern(text(entry.get("node"), "status.assignments.node")),
        incarnation=integer(entry.get("incarnation", 0), "status.assignments.incarnation", 0, MAX_NUMBER),
        buckets=_buckets(entry, "status.assignments.buckets"),
        address=ipv4(entry["address"], "status.assignments.address") if entry.get("address") else None,
    )


def _move(value: object) -> Move:
    entry = mapping(value, "status.moves")
    return Move(
        buckets=_buckets(entry, "status.moves.buckets"),
        source=intern(text(entry.get("from"), "status.moves.from")),
        destination=intern(text(entry.get("to"), "status.moves.to")),
    )


def _condition(value: object) -> Condition:
    entry = mapping(value, "status.conditions")
    field = "status.conditions"
    return Condition(
        type=text(entry.get("type"), f"{field}.type"),
        status=text(entry.get("status"), f"{field}.status"),
        reason=text(entry.get("reason", ""), f"{field}.reason"),
        message=text(entry.get("message", ""), f"{field}.message"),
        since=text(entry.get("lastTransitionTime", ""), f"{field}.lastTransitionTime"),
        observed_generation=integer(
            entry.get("observedGeneration", 0), f"{field}.observedGeneration", 0, MAX_INTEGER
        ),
    )


def _check_exclusive(assignments: Sequence[Assignment]) -> None:
    taken, seen = BucketSet(), set()
    for assignment in assignments:
        if assignment.node in seen or not taken.isdisjoint(assignment.buckets):
            raise Invalid(f"status.assignments names {assignment.node} or one of its buckets twice.")
        seen.add(assignment.node)
        taken |= assignment.buckets


def _buckets(entry: Mapping[str, object], where: str) -> BucketSet:
    try:
        return BucketSet.parse(text(entry.get("buckets", ""), where, limit=32768))
    except Invalid:
        raise
    except ValueError as error:
        raise Invalid(f"{where}: {error}") from None


def _list(status: Mapping[str, object], field: str) -> Sequence[object]:
    return items(status.get(field) or [], f"status.{field}")
