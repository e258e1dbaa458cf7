"""What a node reports: a pure function of what the API wants, what dataplane did, and whether it lives.

Owns the content of ClusterIPNode.status, within the bounds of its schema and of 32 KiB. Writing it is
`reporter`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum

from lbless_api import MAX_LISTED
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import is_uid
from lbless_api.digest import MAX_MARKS, MAX_MARKS_LENGTH, applied_digest, mark
from lbless_api.interfaces import Interface
from lbless_api.node import (
    Drain,
    EngineReport,
    NodeStatus,
    Outstanding,
    render_drains,
    render_engines,
    render_interfaces,
    render_node_status,
    render_outstanding,
)
from lbless_api.segment import SegmentReport, by_id, render_segment
from lbless_api.state import Observed
from lbless_nodeagent.sync.room import STATUS_BYTES, fitting, shorten, size

PROGRAMMING = "Programming"
STATE_UNWRITABLE = "StateUnwritable"
MAX_INTERFACES = 64
ADDRESSES = (256, 64, 16, 4, 1)
"""Addresses of an interface: the first of these with which all interfaces fit, or else the last.

Of gateways there may be a quarter of that."""
MAX_ENGINES = 8
MAX_CAPABILITIES = 4
"""Ways of filtering that are listed of an engine."""

CONDITION_BYTES = 2048
EXAMPLE_BYTES = 1024
"""Of a condition's message at most so much is one ClusterIP's: there must be room for how many there are."""
ENGINES_BYTES = 2048
LEAST_ENGINE_MESSAGE_BYTES = 64
INTERFACES_BYTES = 12 * 1024
PEERS_BYTES = 8 * 1024
"""Of that, what peers may take: two interfaces with 64 nodes each, where names are as long as ids."""
MESSAGE_BYTES = (2048, 1024, 512, 256)
"""What a listed ClusterIP's message may take: the first of these with which all fit, or else the last."""


class Reason(StrEnum):
    """Why Ready is what it is; the first that applies, in this order.

    A state directory that is not as it should be is a NodeProblem that comes before all others, as it may
    be why dataplane is silent.
    """

    DATAPLANE_SILENT = "DataplaneSilent"
    ENGINE_UNAVAILABLE = "EngineUnavailable"
    NODE_PROBLEM = "NodeProblem"
    FAILED = "Failed"
    PROGRAMMING = PROGRAMMING
    APPLIED = "Applied"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ClusterIP as the API wants it: its namespace/name and its epoch, 0 while nothing is assigned."""

    key: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a report depends on. `silence` says why dataplane counts as silent, empty if it does not.

    `trouble` says what the state directory lacks, empty if nothing; `unstored` for each ClusterIP whose
    file is not what the API wants it to be why that is so.
    """

    wanted: Mapping[str, Wanted]
    observed: Observed | None
    silence: str = ""
    trouble: str = ""
    unstored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """How far the kernel is: what waits, what was refused, and the epochs of all the rest."""

    pending: tuple[Outstanding, ...]
    failures: tuple[Outstanding, ...]
    applied: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """All that ClusterIPNode.status says, but for the times. Equal reports need no second writing."""

    status: NodeStatus
    ready: bool
    reason: Reason
    message: str


def settle(situation: Situation) -> Settled:
    """Sort every ClusterIP into applied, pending or failed; none is in two of them.

    Epoch 0 is left out everywhere. What is refused shows the wanted epoch, as it stands in the way of that.
    Also applied is what is in the kernel and no longer wanted, until dataplane has removed it, and epochs
    newer than this sync has heard of. What dataplane cannot know for lack of its file has failed, even where
    the wanted epoch is applied: its spec may be another one; and so has a deletion that the disk holds up.
    """
    wanted, observed = situation.wanted, situation.observed
    applied = observed.applied if observed else {}
    assigned = {uid: w for uid, w in wanted.items() if w.epoch > 0}
    failures = {}
    for failure in observed.failures if observed else ():
        if failure.uid in assigned:
            w = assigned[failure.uid]
            failures[failure.uid] = replace(failure, clusterip=w.key, epoch=w.epoch)
        elif failure.uid not in wanted and is_uid(failure.uid):
            failures[failure.uid] = failure  # of what was deleted: it may need a hand to be cleaned up
    for uid, sentence in situation.unstored.items():
        if uid in assigned:
            w = assigned[uid]
            failures[uid] = Outstanding(uid, w.key, w.epoch, STATE_UNWRITABLE, sentence)
    if situation.trouble:
        for uid in applied.keys() - wanted.keys() - failures.keys():
            failures[uid] = Outstanding(uid, "", applied[uid], STATE_UNWRITABLE, situation.trouble)
    pending = {
        uid: Outstanding(uid, w.key, w.epoch, PROGRAMMING, f"Epoch {w.epoch} is not in the kernel yet.")
        for uid, w in assigned.items()
        if uid not in failures and applied.get(uid, 0) < w.epoch
    }
    done = {
        uid: epoch
        for uid, epoch in applied.items()
        if epoch > 0 and uid not in failures and uid not in pending and (uid in assigned or uid not in wanted)
    }
    return Settled(_sorted(pending), _sorted(failures), done)


def report(situation: Situation) -> Report:
    """The node's report.

    While dataplane is silent it shows what was true last, with a condition that says so.
    """
    seen = situation.observed or Observed(boot_id="", boottime_seconds=0)
    settled = settle(situation)
    status = NodeStatus(
        kernel=shorten(seen.kernel, 130),
        engines=_engines(seen.engines),
        interfaces=_interfaces(seen.interfaces),
        applied_digest=applied_digest({}),
        pending=(),
        failures=(),
    )
    outstanding = {o.uid for o in (*settled.failures, *settled.pending)}
    draining = {drain.uid: drain for drain in seen.drains if is_uid(drain.uid)}
    marks_room = _marks_room(len(outstanding)) + _marks_room(len(draining))
    room = STATUS_BYTES - CONDITION_BYTES - size(render_node_status(status)) - marks_room
    failures, room = _listed(settled.failures, room)
    pending, room = _listed(settled.pending, room)
    drains = _drains(draining, room)
    unlisted = outstanding - {o.uid for o in (*failures, *pending)}
    marks = {mark(uid) for uid in unlisted}
    shown = _shown(marks)
    # What has a mark by chance is left out as well: the operator cannot tell it from what has it by right.
    digested = {uid: epoch for uid, epoch in settled.applied.items() if not shown or mark(uid) not in shown}
    assigned = sum(w.epoch > 0 for w in situation.wanted.values())
    reason, message = next(_reasons(settled, situation, assigned))
    tail = _unlisted(len(unlisted), all_shown=len(shown) == len(marks))
    return Report(
        status=replace(
            status,
            applied_digest=applied_digest(digested),
            pending=pending,
            failures=failures,
            unlisted=shown,
            drains=drains,
            unlisted_drains=_shown({mark(uid) for uid in draining.keys() - {d.uid for d in drains}}),
        ),
        ready=reason is Reason.APPLIED,
        reason=reason,
        message=shorten(message, CONDITION_BYTES - size(tail)) + tail,
    )


def without_figures(said: Report) -> Report:
    """A report but for how much is left to drain, which changes with every connection that ends: whether anything is
    counts."""
    drains = tuple(replace(one, buckets=BucketSet(), flows=min(one.flows, 1)) for one in said.status.drains)
    return replace(said, status=replace(said.status, drains=drains))


def _reasons(settled: Settled, situation: Situation, assigned: int) -> Iterator[tuple[Reason, str]]:
    """Each reason that applies with its message, the one that counts first."""
    silence, observed = situation.silence, situation.observed
    unrenewed = "The node's Lease is not renewed meanwhile"
    if situation.trouble:
        yield Reason.NODE_PROBLEM, situation.trouble + (f" {silence} {unrenewed}." if silence else "")
    if silence:
        yield Reason.DATAPLANE_SILENT, f"{silence} {unrenewed}: look at the log of lbless-dataplane."
    if observed and observed.engines and not any(engine.available for engine in observed.engines):
        why = " ".join(f"{engine.name}: {engine.message}" for engine in observed.engines)
        yield Reason.ENGINE_UNAVAILABLE, f"No engine works on this node. {why}"
    if observed and observed.problems:
        yield Reason.NODE_PROBLEM, " ".join(observed.problems)
    if settled.failures:
        first = settled.failures[0]
        example = shorten(f"{first.clusterip or first.uid}: {first.message}", EXAMPLE_BYTES)
        yield Reason.FAILED, f"{_of(len(settled.failures), assigned)} cannot be served here; {example}"
    if settled.pending:
        first = settled.pending[0]
        waiting = _of(len(settled.pending), assigned)
        yield Reason.PROGRAMMING, f"{waiting} wait to be programmed, first {first.clusterip}."
    yield Reason.APPLIED, f"All {assigned} assigned ClusterIPs are in the kernel."


def _unlisted(count: int, *, all_shown: bool) -> str:
    """How a condition's message ends where not everything outstanding is listed."""
    if not count:
        return ""
    tail = f" Beside what is listed {count} more are pending or failed"
    if all_shown:
        return f"{tail}."
    return f"{tail}: too many to be told from the others, so that none is confirmed until they are fewer."


def _engines(engines: Sequence[EngineReport]) -> tuple[EngineReport, ...]:
    """The one in use first, so that it is there whatever has no room."""
    first = sorted(engines, key=lambda e: not e.active)[:MAX_ENGINES]
    bare = [
        replace(
            e,
            name=shorten(e.name, 40)[:32],
            message="",
            capabilities=e.capabilities[:MAX_CAPABILITIES],
            unfenced=shorten(e.unfenced, LEAST_ENGINE_MESSAGE_BYTES),
        )
        for e in first
    ]
    room = max(LEAST_ENGINE_MESSAGE_BYTES, (ENGINES_BYTES - size(render_engines(bare))) // max(1, len(bare)))
    short = (replace(b, message=shorten(e.message, room)) for b, e in zip(bare, first, strict=True))
    return tuple(fitting(short, ENGINES_BYTES, lambda e: render_engines([e])))


def _interfaces(interfaces: Sequence[Interface]) -> tuple[Interface, ...]:
    """Of more than can be listed those that may carry an address: with peers, the way out, whatever has a subnet."""
    ranked = _segments(
        sorted(interfaces, key=lambda i: (not i.segment, not i.gateways, not i.addresses, i.name))
    )[:MAX_INTERFACES]
    kept: list[Interface] = []
    for limit in ADDRESSES:
        short = (
            replace(i, addresses=i.addresses[:limit], gateways=i.gateways[: max(1, limit // 4)])
            for i in ranked
        )
        kept = fitting(short, INTERFACES_BYTES, lambda i: render_interfaces([i]))
        if len(kept) == len(ranked):
            break
    return tuple(sorted(kept, key=lambda i: i.name))


def _segments(interfaces: Sequence[Interface]) -> list[Interface]:
    """Peers by name if all have room, else by id; where not even these have, the interface says nothing of its
    segment, as half of its peers would say that the others are not heard."""
    room = PEERS_BYTES
    if sum(size(render_segment(i.segment)) for i in interfaces) > room:
        interfaces = [replace(i, segment=i.segment and _with_ids(i.segment)) for i in interfaces]
    kept = []
    for interface in interfaces:
        room -= size(render_segment(interface.segment))
        kept.append(interface if room >= 0 else replace(interface, segment=None))
    return kept


def _with_ids(segment: SegmentReport) -> SegmentReport:
    return replace(segment, heard=tuple(map(by_id, segment.heard)), dead=tuple(map(by_id, segment.dead)))


def _listed(outstanding: Sequence[Outstanding], room: int) -> tuple[tuple[Outstanding, ...], int]:
    """As many as fit, their messages as short as they must be for that, and the room that is left."""
    first = outstanding[:MAX_LISTED]
    listed: list[Outstanding] = []
    for message_bytes in MESSAGE_BYTES:
        short = (_shortened(o, message_bytes) for o in first)
        listed = fitting(short, room, lambda o: render_outstanding([o]))
        if len(listed) == len(first):
            break
    return tuple(listed), room - size(render_outstanding(listed))


def _drains(draining: Mapping[str, Drain], room: int) -> tuple[Drain, ...]:
    """As many as fit, by UID."""
    first = (draining[uid] for uid in sorted(draining)[:MAX_LISTED])
    short = (replace(d, clusterip=shorten(d.clusterip, 320)) for d in first)
    return tuple(fitting(short, room, lambda d: render_drains([d])))


def _marks_room(count: int) -> int:
    """Bytes that the marks of so many ClusterIPs take at most."""
    return min(MAX_MARKS_LENGTH, 6 * count + 4)


def _shown(marks: Set[bytes]) -> frozenset[bytes]:
    return frozenset(sorted(marks)[:MAX_MARKS])


def _shortened(outstanding: Outstanding, message_bytes: int) -> Outstanding:
    return replace(
        outstanding,
        clusterip=shorten(outstanding.clusterip, 320),
        reason=shorten(outstanding.reason, 65),
        message=shorten(outstanding.message, message_bytes),
    )


def _of(count: int, assigned: int) -> str:
    return f"{count} of {max(count, assigned)} assigned ClusterIPs"


def _sorted(outstanding: Mapping[str, Outstanding]) -> tuple[Outstanding, ...]:
    """By name, then UID: of more than can be listed, always the same ones are."""
    return tuple(sorted(outstanding.values(), key=lambda o: (o.clusterip, o.uid)))
