"""What a ClusterIP's status is to be, and what to tell about it: from everything known, purely.

Every write of the operator to a ClusterIP is a value that was returned here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from lbless_api import API_VERSION
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Move, SourceMAC
from lbless_api.mac import unicast_mac
from lbless_operator.assignment import Assigned, assign, print_moves, print_shares
from lbless_operator.conditions import Finding, Reason, State, Type, find, settle, shorten
from lbless_operator.confirmations import Confirmation
from lbless_operator.eligibility import (
    Cause,
    Readiness,
    Standing,
    Verdict,
    explain_incapable,
    explain_undrained,
    explain_unfenced,
)
from lbless_operator.facts import ClusterIPFact
from lbless_operator.moves import Underway, count, follow, part, print_begun, print_ended, print_running
from lbless_operator.notices import Notice, NoticeReason, Subject
from lbless_operator.phrases import name, name_nodes
from lbless_operator.progress import Progress, assess
from lbless_operator.segment import SILENT, Segment
from lbless_operator.status import Status, ownership
from lbless_operator.takeover import explain_takeover

PROGRAMMING_SECONDS = 10.0
"""How long nodes may take to apply an epoch before that is worth a complaint."""
ALL_PORTS_OPEN = (
    "All ports are open: the nodes' own services (ssh, kubelet) answer on the address too; "
    "list the wanted ones in spec.ports."
)
SOURCE_MAC_MOVES = (
    "a switch sees it move from port to port with the answers, and may log that, slow down, or block the ports. "
    "Keep it only where the switch is known to allow it; else set spec.sourceMAC to Node."
)


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that decides about one ClusterIP.

    `current` is what nodes act on: status as last read or written, whichever is newer. `tampered`: the
    API server holds something else, so nodes need a new epoch to believe. `confirmations` by node, of all
    that report; `fresh` are the nodes that can be told. `epoch_age_seconds`: how long the epoch is known.
    """

    fact: ClusterIPFact
    current: Status
    tampered: bool
    older: str | None
    refusal: str | None
    verdicts: tuple[Verdict, ...]
    readiness: Readiness
    confirmations: Mapping[str, Confirmation]
    fresh: frozenset[str]
    epoch_age_seconds: float
    now: str
    segment: Segment = SILENT
    underway: Underway = field(default_factory=Underway)


@dataclass(frozen=True, slots=True)
class Decision:
    """`recheck_seconds`: when to look again though nothing may have changed by then, None: no need."""

    status: Status
    notices: tuple[Notice, ...] = ()
    recheck_seconds: float | None = None


def decide(situation: Situation) -> Decision:
    """Return the status to be, equal to the present one where nothing is to be written."""
    fact, current = situation.fact, situation.current
    assigned = assign(
        fact,
        current,
        situation.verdicts,
        situation.readiness,
        older=situation.older,
        refusal=situation.refusal,
        segment=situation.segment,
    )
    is_new = ownership(assigned.assignments) != ownership(current.assignments) or situation.tampered
    epoch = current.epoch + is_new
    # Who is dead on the segment is not waited for: that would take until its Lease is stale.
    dead = {v.node for v in situation.verdicts if v.cause is Cause.DEAD_ON_SEGMENT}
    progress = assess(assigned.assignments, epoch, situation.confirmations, situation.fresh - dead)
    late = bool(progress.waiting) and not is_new and situation.epoch_age_seconds >= PROGRAMMING_SECONDS
    lost = {v.node for v in situation.verdicts if not v.lives}
    after = {a.node: a.buckets for a in assigned.assignments}
    moves = follow(current.moves, assigned.before if is_new else {}, after, lost)
    moves, ended = part(moves, epoch, situation.confirmations, situation.underway.drains)
    findings = _find(situation, assigned, progress, epoch, moves, late=late)
    wanted = Status(
        observed_generation=fact.identity.generation,
        mac=fact.spec.mac if fact.spec else current.mac,
        nodes=_count_nodes(situation, assigned, progress),
        epoch=epoch,
        assignments=assigned.assignments,
        moves=moves,
        moving=str(count(moves)) if moves else "",
        conditions=settle(
            findings, current.conditions, generation=fact.identity.generation, now=situation.now
        ),
    )
    status = _paced(wanted, situation)
    rechecks = [PROGRAMMING_SECONDS] if progress.waiting and not late else []
    if moves and not progress.waiting:
        said_seconds = situation.underway.said_seconds if status is not wanted else 0
        rechecks.append(situation.underway.pace_seconds - said_seconds)
    return Decision(
        status=status,
        notices=tuple(_tell(situation, assigned, findings, moves, ended)),
        recheck_seconds=min(rechecks, default=None),
    )


def _paced(wanted: Status, situation: Situation) -> Status:
    """The present status, where what is wanted says no more than how much is left to drain, and it is too soon."""
    current, underway = situation.current, situation.underway
    old, new = (find(status.conditions, Type.PROGRAMMED) for status in (current, wanted))
    if not wanted.moves or old is None or new is None or new.reason != Reason.PROGRAMMED:
        return wanted
    if underway.said_seconds >= underway.pace_seconds:
        return wanted
    as_said = (replace(c, message=old.message) if c is new else c for c in wanted.conditions)
    return current if replace(wanted, conditions=tuple(as_said)) == current else wanted


def _count_nodes(situation: Situation, assigned: Assigned, progress: Progress) -> str:
    """Serving / eligible; a silent owner counts as eligible, since it keeps its buckets."""
    if situation.fact.spec is None:
        return f"{len(progress.serving)}/{sum(bool(a.buckets) for a in assigned.assignments)}"
    if situation.older:
        return "0/0"
    owners = {a.node for a in assigned.assignments if a.buckets}
    able = sum(
        v.standing is Standing.ELIGIBLE or (v.standing is Standing.PINNED and v.node in owners)
        for v in situation.verdicts
    )
    return f"{len(progress.serving)}/{able}"


def _find(
    situation: Situation,
    assigned: Assigned,
    progress: Progress,
    epoch: int,
    moves: tuple[Move, ...],
    *,
    late: bool,
) -> tuple[Finding, ...]:
    running = print_running(moves, situation.underway.drains)
    programmed = _find_programmed(progress, epoch, _not_given_up(situation.fact, assigned), running)
    degraded = _find_degraded(situation, assigned, progress, programmed, late=late)
    ready = _find_ready(situation, assigned, progress, programmed, late=late)
    if assigned.blocked:
        is_assigned = Finding(Type.ASSIGNED, State.FALSE, assigned.blocked.reason, assigned.blocked.message)
    else:
        count = sum(len(a.buckets) for a in assigned.assignments)
        message = f"{count} buckets: {print_shares(assigned.assignments)}.{_print_reserved(situation.fact)}"
        if assigned.left_out:
            message += f" {assigned.left_out} more nodes are eligible: 64 at most can share one address."
        is_assigned = Finding(Type.ASSIGNED, State.TRUE, Reason.ASSIGNED, message)
    if assigned.blocked and assigned.blocked.reason is Reason.CONFLICT:
        conflict = Finding(Type.CONFLICT, State.TRUE, Reason.CONFLICT, assigned.blocked.message)
    else:
        message = "No older ClusterIP has the same address."
        conflict = Finding(Type.CONFLICT, State.FALSE, Reason.NO_CONFLICT, message)
    return ready, is_assigned, programmed, degraded, conflict, *_find_unsafe(situation.fact)


def _find_unsafe(fact: ClusterIPFact) -> tuple[Finding, ...]:
    """What the object asks for and may regret."""
    if fact.spec is None or fact.spec.source_mac is SourceMAC.NODE:
        return ()
    message = f"Every node answers with the Ethernet source {unicast_mac(fact.spec.mac)}: {SOURCE_MAC_MOVES}"
    return (Finding(Type.SOURCE_MAC_UNSAFE, State.TRUE, Reason.SHARED_SOURCE_MAC, message),)


def _print_reserved(fact: ClusterIPFact) -> str:
    """A sentence to add about reserved buckets, if there are any."""
    if fact.spec is None or not fact.spec.reserved:
        return ""
    count, whole, which = (
        len(fact.spec.reserved),
        fact.spec.hash.buckets,
        shorten(str(fact.spec.reserved), 80),
    )
    verb = "is" if count == 1 else "are"
    return f" {count} of {whole} buckets ({which}) {verb} reserved for machines outside lbless."


def _not_given_up(fact: ClusterIPFact, assigned: Assigned) -> dict[str, BucketSet]:
    """The nodes that keep reserved buckets, since they cannot be told."""
    reserved = fact.spec.reserved if fact.spec else BucketSet()
    kept = {a.node: a.buckets & reserved for a in assigned.assignments}
    return {node: buckets for node, buckets in kept.items() if buckets}


def _find_programmed(
    progress: Progress, epoch: int, not_given_up: Mapping[str, BucketSet], running: str
) -> Finding:
    """`running`: sentences on the moves that do."""
    if progress.failed:
        return Finding(Type.PROGRAMMED, State.FALSE, Reason.PROGRAMMING_FAILED, progress.print_failures())
    if progress.waiting:
        message = f"Epoch {epoch} is not confirmed yet by {name_nodes(progress.waiting)}."
        return Finding(Type.PROGRAMMED, State.FALSE, Reason.PROGRAMMING, message)
    if not_given_up:
        which = shorten(str(BucketSet(chain.from_iterable(not_given_up.values()))), 80)
        message = (
            f"Reserved buckets {which} are still with {name_nodes(not_given_up)}, whose silent agent cannot be "
            f"told: no other machine may answer for them yet."
        )
        return Finding(Type.PROGRAMMED, State.FALSE, Reason.AGENT_SILENT, message)
    if progress.confirmed:
        message = f"Epoch {epoch} is in the kernel of {name_nodes(progress.confirmed)}. {running}".rstrip()
        return Finding(Type.PROGRAMMED, State.TRUE, Reason.PROGRAMMED, message)
    if progress.unheard:
        message = (
            f"The agent of {name_nodes(progress.unheard)} is silent: what is in the kernel is not known."
        )
        return Finding(Type.PROGRAMMED, State.UNKNOWN, Reason.AGENT_SILENT, message)
    return Finding(Type.PROGRAMMED, State.FALSE, Reason.NOT_ASSIGNED, "No node is to serve the address.")


def _find_degraded(
    situation: Situation, assigned: Assigned, progress: Progress, programmed: Finding, *, late: bool
) -> Finding:
    for reason, message in _troubles(situation, assigned, progress, programmed, late=late):
        return Finding(Type.DEGRADED, State.TRUE, reason, message)
    return Finding(Type.DEGRADED, State.FALSE, Reason.AS_PLANNED, "No node works otherwise than planned.")


def _troubles(
    situation: Situation, assigned: Assigned, progress: Progress, programmed: Finding, *, late: bool
) -> Iterator[tuple[Reason, str]]:
    """Everything that works otherwise than planned, the most important first."""
    planned = assigned.blocked is None
    frozen = _frozen(situation, assigned)
    incapable = explain_incapable(situation.verdicts) if planned else ""
    besides = f" {incapable}" if incapable else ""
    if situation.refusal and planned:
        yield (
            Reason.ADDRESS_IN_USE,
            f"{situation.refusal} It was assigned before that was known, and stays so.",
        )
    if frozen:
        parts = (f"{node} keeps its {len(buckets)} buckets" for node, buckets in frozen.items())
        message = (
            f"The lbless agent is silent and cannot be told, but the node may be serving: {name(parts)}. "
            f"Look after lbless's pod there, or delete the Node if it is gone.{_heard(situation, frozen)}{besides}"
        )
        yield Reason.AGENT_SILENT, message
    if progress.serving and (progress.failed or late):
        yield programmed.reason, programmed.message + besides
    named = {a.node for a in assigned.assignments}
    takeover = explain_takeover(situation.verdicts, named, situation.fresh) if planned else None
    if takeover:
        yield takeover[0], takeover[1] + besides
    if incapable:
        yield Reason.ENGINE_INCAPABLE, incapable
    unfenced = explain_unfenced(situation.verdicts) if planned else ""
    if unfenced:
        yield Reason.NO_FAST_TAKEOVER, unfenced
    drains = situation.fact.spec is not None and situation.fact.spec.drain_timeout_seconds > 0
    undrained = explain_undrained(situation.verdicts, named) if planned and drains else ""
    if undrained:
        yield Reason.NO_DRAIN, undrained


def _find_ready(
    situation: Situation, assigned: Assigned, progress: Progress, programmed: Finding, *, late: bool
) -> Finding:
    if assigned.blocked:
        return Finding(Type.READY, State.FALSE, assigned.blocked.reason, assigned.blocked.message)
    if programmed.state is State.UNKNOWN:
        return Finding(Type.READY, State.UNKNOWN, programmed.reason, programmed.message)
    before = find(situation.current.conditions, Type.READY)
    was_ready = before is not None and before.status == State.TRUE
    # A rebalance takes a moment on every node, without a gap in service: Ready does not blink for it.
    if progress.failed or late or (progress.waiting and not was_ready):
        return Finding(Type.READY, State.FALSE, programmed.reason, programmed.message)
    owners = sum(bool(a.buckets) for a in assigned.assignments)
    message = f"{owners} node{' serves' if owners == 1 else 's share'} {situation.fact.address}."
    if situation.fact.spec and situation.fact.spec.ports is None:
        message += f" {ALL_PORTS_OPEN}"
    return Finding(Type.READY, State.TRUE, Reason.SERVING, message)


def _frozen(situation: Situation, assigned: Assigned) -> dict[str, BucketSet]:
    """The silent nodes that keep buckets."""
    pinned = {v.node for v in situation.verdicts if v.standing is Standing.PINNED}
    return {
        a.node: a.buckets
        for a in assigned.assignments
        if a.buckets and a.node in pinned and a.node not in situation.fresh
    }


def _heard(situation: Situation, frozen: Mapping[str, BucketSet]) -> str:
    """A sentence on those of the frozen nodes that Kubernetes takes for dead, and other nodes do not."""
    heard = [v.node for v in situation.verdicts if v.cause is Cause.SILENT_YET_HEARD and v.node in frozen]
    verb = "is" if len(heard) == 1 else "are"
    return f" N{name_nodes(heard)[1:]} {verb} NotReady, and yet others hear the heartbeats." if heard else ""


def _tell(
    situation: Situation,
    assigned: Assigned,
    findings: tuple[Finding, ...],
    moves: tuple[Move, ...],
    ended: tuple[Move, ...],
) -> list[Notice]:
    """What changed that a person would want to know."""
    fact, current = situation.fact, situation.current
    identity = fact.identity
    subject = Subject(API_VERSION, "ClusterIP", identity.namespace, identity.name, identity.uid)
    told: list[tuple[NoticeReason, str]] = []
    after = {a.node: a.buckets for a in assigned.assignments}
    if assigned.blocked is None and fact.spec and not current.assignments:
        count = sum(map(len, after.values()))
        told.append((NoticeReason.ASSIGNED, f"{count} buckets: {print_shares(assigned.assignments)}."))
        if fact.spec.ports is None:
            told.append((NoticeReason.ALL_PORTS_OPEN, ALL_PORTS_OPEN))
    elif fact.spec and after:
        moved = print_moves(current.owners(), after, situation.verdicts, fact.spec)
        if moved:
            told.append((NoticeReason.MOVED, f"{moved} {_keep(situation, assigned, after)}".rstrip()))
    elif current.assignments and not after:
        told.append(
            (NoticeReason.WITHDRAWN, "The nodes stop serving the address: an older ClusterIP has it.")
        )
    if fact.spec is None or fact.spec.drain_timeout_seconds:
        finished = print_ended(ended, None if moves else situation.underway.since_seconds)
        if finished:
            told.append((NoticeReason.MOVE_FINISHED, finished))
    for finding in findings:
        old = find(current.conditions, finding.type)
        if old is None or old.reason != finding.reason or _names_others(finding, old.message):
            reason = _NOTEWORTHY.get((finding.type, finding.reason))
            if reason:
                told.append((reason, finding.message))
    return [Notice(subject, reason, note) for reason, note in told]


def _keep(situation: Situation, assigned: Assigned, after: Mapping[str, BucketSet]) -> str:
    """What becomes of the established connections in the buckets that move now."""
    begun = follow((), assigned.before, after, {v.node for v in situation.verdicts if not v.lives})
    # Nodes tell each other by heartbeat how far they are with a move.
    unable = {v.node for v in situation.verdicts if v.undrained or v.seat is None}
    given_up = (had - after.get(node, BucketSet()) for node, had in situation.current.owners().items())
    timeout_seconds = situation.fact.spec.drain_timeout_seconds if situation.fact.spec else 0
    return print_begun(begun, unable, sum(map(len, given_up)), timeout_seconds)


def _names_others(finding: Finding, old_message: str) -> bool:
    """Whether the same reason holds for other nodes than before."""
    return (
        finding.reason
        in {
            Reason.AGENT_SILENT,
            Reason.PROGRAMMING_FAILED,
            Reason.NODE_DEAD_ON_SEGMENT,
            Reason.NO_PEERS_HEARD,
        }
        and finding.message != old_message
    )


_NOTEWORTHY: Mapping[tuple[Type, Reason], NoticeReason] = dict(
    chain(
        {
            (Type.READY, Reason.NO_ELIGIBLE_NODE): NoticeReason.NO_ELIGIBLE_NODE,
            (Type.CONFLICT, Reason.CONFLICT): NoticeReason.CONFLICT,
            (Type.DEGRADED, Reason.AGENT_SILENT): NoticeReason.AGENT_SILENT,
            (Type.DEGRADED, Reason.ENGINE_INCAPABLE): NoticeReason.ENGINE_INCAPABLE,
            (Type.DEGRADED, Reason.NODE_DEAD_ON_SEGMENT): NoticeReason.NODE_DEAD_ON_SEGMENT,
            (Type.DEGRADED, Reason.NO_PEERS_HEARD): NoticeReason.NO_PEERS_HEARD,
            (Type.DEGRADED, Reason.ADDRESS_IN_USE): NoticeReason.REFUSED,
            (Type.PROGRAMMED, Reason.PROGRAMMING_FAILED): NoticeReason.PROGRAMMING_FAILED,
            (Type.SOURCE_MAC_UNSAFE, Reason.SHARED_SOURCE_MAC): NoticeReason.SOURCE_MAC_UNSAFE,
        }.items(),
        (
            ((Type.READY, reason), NoticeReason.REFUSED)
            for reason in (Reason.INVALID, Reason.NOT_SUPPORTED, Reason.ADDRESS_IN_USE)
        ),
    )
)
