"""The next assignment of a ClusterIP: what blocks it, else the plan made complete with incarnations.

Pure. How it is reported is the decision's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Assignment, Spec
from lbless_api.ownership import act, divide
from lbless_api.successors import rank
from lbless_operator.conditions import Reason
from lbless_operator.eligibility import Readiness, Standing, Verdict, describe, explain_none
from lbless_operator.facts import ClusterIPFact
from lbless_operator.phrases import name
from lbless_operator.planner import plan, without_reserved
from lbless_operator.segment import SILENT, Segment
from lbless_operator.status import Status

MAX_NODES = 64
"""Nodes that a segment carries, and entries that status.assignments holds."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why nothing is planned for a ClusterIP."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """The assignments to be in force, sorted by node. `left_out`: eligible nodes beyond MAX_NODES.

    `before` is what each node owned in effect when they were planned; empty where nothing was.
    """

    assignments: tuple[Assignment, ...]
    blocked: Blocked | None = None
    left_out: int = 0
    before: Mapping[str, BucketSet] = field(default_factory=dict)


def assign(
    fact: ClusterIPFact,
    current: Status,
    verdicts: Iterable[Verdict],
    readiness: Readiness,
    *,
    older: str | None,
    refusal: str | None,
    segment: Segment = SILENT,
) -> Assigned:
    """Return the next assignments.

    `current` is what nodes act on now, but for those that the `segment` counts dead; `older` the ClusterIP that
    has the address already, `refusal` why the address may not be shared. Only `older` takes an assignment away
    from a ClusterIP; every other fault leaves in force what was assigned before it. Reserved buckets are taken
    away also where no node is eligible: somebody else is about to answer for them.
    """
    verdicts = list(verdicts)
    assigned = _assign(fact, current, verdicts, readiness, older=older, refusal=refusal, segment=segment)
    return replace(assigned, assignments=_locate(assigned.assignments, current.assignments, verdicts))


def _assign(
    fact: ClusterIPFact,
    current: Status,
    verdicts: list[Verdict],
    readiness: Readiness,
    *,
    older: str | None,
    refusal: str | None,
    segment: Segment,
) -> Assigned:
    if older:
        message = (
            f"Address {fact.address} is already shared by the older ClusterIP {older}: "
            f"delete one of the two, or create this one with another address."
        )
        return Assigned((), Blocked(Reason.CONFLICT, message))
    if fact.spec is None:
        unsupported = fact.fault is not None and fact.fault.reason == Reason.NOT_SUPPORTED
        reason = Reason.NOT_SUPPORTED if unsupported else Reason.INVALID
        return Assigned(current.assignments, Blocked(reason, str(fact.fault)))
    if refusal and not current.assignments:
        return Assigned((), Blocked(Reason.ADDRESS_IN_USE, refusal))
    if not any(v.standing is Standing.ELIGIBLE for v in verdicts):
        message = explain_none(fact.spec, verdicts, readiness, fact.identity.namespace)
        if current.assignments:
            message += " The last assignment stays in force."
        pinned = [v.node for v in verdicts if v.standing is Standing.PINNED]
        left = without_reserved(current.owners(), fact.spec.reserved, pinned)
        kept = tuple(replace(a, buckets=left[a.node]) for a in current.assignments)
        return Assigned(kept, Blocked(Reason.NO_ELIGIBLE_NODE, message))
    return _plan(fact.spec, current, verdicts, segment)


def _plan(spec: Spec, current: Status, verdicts: list[Verdict], segment: Segment) -> Assigned:
    owners = _owners(spec, current, verdicts, segment)
    before = current.owners()
    inherited = BucketSet(chain.from_iterable(had - before[node] for node, had in owners.items()))
    incarnations = {a.node: a.incarnation for a in current.assignments}
    pinned = [v.node for v in verdicts if v.standing is Standing.PINNED and v.node in owners]
    eligible = [v for v in verdicts if v.standing is Standing.ELIGIBLE]
    draw = {node: place for place, node in enumerate(rank(spec.ip, 0, (v.node for v in eligible)))}
    chosen = sorted(eligible, key=lambda v: (v.node not in owners, draw[v.node]))[: MAX_NODES - len(pinned)]
    incarnations |= {v.node: v.incarnation for v in chosen}
    weights = {v.node: v.weight for v in chosen}
    # A dead node that still belongs here stays named, with no buckets: it may come back at once.
    gone = [v.node for v in verdicts if v.standing is Standing.GONE and v.selected and v.node in owners]
    away = [node for node in (*gone, *pinned) if node not in weights and not current.owners()[node]]
    dead = away or any(segment.counts_dead(node, incarnations[node]) for node in gone)
    if segment.speaks and dead and _is_shared_out(spec, owners, weights, pinned):
        shares = without_reserved({node: owners[node] for node in (*weights, *pinned)}, spec.reserved, pinned)
    else:
        shares = plan(
            spec.ip,
            spec.hash.buckets,
            owners,
            weights,
            pinned=pinned,
            reserved=spec.reserved,
            moved=inherited,
        )
    shares |= dict.fromkeys(gone[: MAX_NODES - len(shares)], BucketSet())
    assignments = tuple(Assignment(node, incarnations[node], shares[node]) for node in sorted(shares))
    return Assigned(assignments, left_out=len(eligible) - len(chosen), before=owners)


def _locate(
    assignments: Iterable[Assignment], current: Iterable[Assignment], verdicts: Iterable[Verdict]
) -> tuple[Assignment, ...]:
    """Say where each node is reached: as it reported last, or else as it was."""
    former = {a.node: a.address for a in current}
    reported = {v.node: v.address for v in verdicts}
    return tuple(
        Assignment(a.node, a.incarnation, a.buckets, reported.get(a.node) or former.get(a.node))
        for a in assignments
    )


def _is_shared_out(
    spec: Spec, owners: Mapping[str, BucketSet], nodes: Iterable[str], pinned: Iterable[str]
) -> bool:
    """Whether these nodes have all buckets already, and each that is not pinned some.

    After a takeover successors have uneven shares. Levelling them would take buckets from nodes that did not fail,
    with their connections, and the dead node takes its share back from the same ones when it returns.
    """
    had = [owners.get(node, BucketSet()) for node in nodes]
    kept = [owners[node] for node in pinned]
    wanted = BucketSet.full(spec.hash.buckets) - spec.reserved
    return all(had) and wanted.issubset(BucketSet(chain.from_iterable([*had, *kept])))


def _owners(spec: Spec, current: Status, verdicts: list[Verdict], segment: Segment) -> dict[str, BucketSet]:
    """What each named node owns in effect: on the segment, successors have what dead ones leave.

    What a node had that began a new life, and nobody else knows, is with nobody: it stays its own.
    """
    owners, named = current.owners(), current.assignments
    known = {v.node for v in verdicts if v.standing is not Standing.GONE}
    gone = {a.node for a in named if a.node not in known and not segment.hears(a.node)}
    over = {a.node for a in named if segment.counts_dead(a.node, a.incarnation)}
    living = owners.keys() - over - (gone if segment.speaks else set())
    if len(living) == len(owners):
        return owners
    unshared = {a.node for a in named if a.node in over and not segment.has_successors(a.node, a.incarnation)}
    division = divide(
        {node: had for node, had in owners.items() if node not in unshared},
        living=living,
        held=segment.held,
        reserved=spec.reserved,
    )
    if not living:
        acting = [node for node in owners if node in segment.acting]
        division, unshared = act(spec.hash.buckets, acting, reserved=spec.reserved), set()
    kept = {node: had if node in unshared else BucketSet() for node, had in owners.items()}
    return kept | division.owners(spec.ip)


def print_shares(assignments: Iterable[Assignment]) -> str:
    """Return "n1 86, n2 85 and n3 85": the nodes that own something."""
    return name(f"{a.node} {len(a.buckets)}" for a in assignments if a.buckets)


def print_moves(
    before: Mapping[str, BucketSet], after: Mapping[str, BucketSet], verdicts: Iterable[Verdict], spec: Spec
) -> str | None:
    """What moved from where to where and why, None if no bucket has changed its owner."""
    causes = {v.node: v.cause for v in verdicts}
    parts, total = [], 0
    for source in sorted(before):
        lost = before[source] - after.get(source, BucketSet())
        gains = {node: len(lost & buckets) for node, buckets in sorted(after.items())} if lost else {}
        count = sum(gains.values())
        if count:
            cause = causes.get(source)
            why = f"which {describe(cause, spec)}" if cause else "for balance"
            parts.append(f"{count} from {source}, {why}, to {_print_gains(gains)}")
        given_up = len(lost & spec.reserved)
        if given_up:
            parts.append(f"{given_up} from {source}, reserved for machines outside lbless")
        total += count + given_up
    vacant = BucketSet.full(spec.hash.buckets)
    for had in before.values():
        vacant -= had
    gains = {node: len(vacant & buckets) for node, buckets in sorted(after.items())} if vacant else {}
    found = sum(gains.values())
    if found:
        parts.append(f"{found} that no node had, to {_print_gains(gains)}")
    total += found
    if not total:
        return None
    return f"{total} bucket{'' if total == 1 else 's'} moved: {name(parts)}."


def _print_gains(gains: Mapping[str, int]) -> str:
    return name(f"{node} ({number})" for node, number in gains.items() if number)
