"""What a node reports: a pure function of what the API wants, what dataplane did, and whether it lives.

Owns the content of ClusterIPNode.status, within the bounds of its schema. Writing it is `reporter`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lbless_api import MAX_LISTED
from lbless_api.digest import applied_digest
from lbless_api.interfaces import Interface
from lbless_api.node import EngineReport, NodeStatus, Outstanding
from lbless_api.state import Observed

PROGRAMMING = "Programming"
MAX_MESSAGE = 2048
MAX_INTERFACES = 64
MAX_ADDRESSES = 256
MAX_GATEWAYS = 64
MAX_ENGINES = 8


class Reason(StrEnum):
    """Why Ready is what it is; the first that applies, in this order."""

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
class Settled:
    """How far the kernel is: what waits, what was refused, and one word over all the rest."""

    pending: tuple[Outstanding, ...]
    failures: tuple[Outstanding, ...]
    applied_digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that ClusterIPNode.status says, but for the times. Equal reports need no second writing."""

    status: NodeStatus
    ready: bool
    reason: Reason
    message: str


def settle(
    wanted: Mapping[str, Wanted], applied: Mapping[str, int], refused: Sequence[Outstanding]
) -> Settled:
    """Sort every ClusterIP into applied, pending or failed; none is in two of them.

    `applied` and `refused` are dataplane's. Epoch 0 is left out everywhere. What is refused shows the
    wanted epoch, as it stands in the way of that. The digest also covers what is applied and no longer
    wanted, until dataplane has removed it, and epochs newer than this sync has heard of.
    """
    assigned = {uid: w for uid, w in wanted.items() if w.epoch > 0}
    failures = {}
    for failure in refused:
        if failure.uid in assigned:
            w = assigned[failure.uid]
            failures[failure.uid] = replace(failure, clusterip=w.key, epoch=w.epoch)
        elif failure.uid not in wanted:
            failures[failure.uid] = failure  # of what was deleted: it may need a hand to be cleaned up
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
    return Settled(_sorted(pending), _sorted(failures), applied_digest(done))


def report(wanted: Mapping[str, Wanted], observed: Observed | None, silence: str) -> Report:
    """The node's report. `silence` says why dataplane counts as silent, empty if it does not.

    While it is silent the report shows what was true last, with a condition that says so.
    """
    seen = observed or Observed(boot_id="", boottime_seconds=0)
    settled = settle(wanted, seen.applied, seen.failures)
    ready, reason, message = _ready(settled, seen, silence, sum(w.epoch > 0 for w in wanted.values()))
    return Report(
        status=NodeStatus(
            kernel=seen.kernel[:128],
            engines=tuple(
                EngineReport(e.name[:32], e.available, _short(e.message)) for e in seen.engines[:MAX_ENGINES]
            ),
            interfaces=tuple(
                replace(i, addresses=i.addresses[:MAX_ADDRESSES], gateways=i.gateways[:MAX_GATEWAYS])
                for i in _most_useful(seen.interfaces)
            ),
            applied_digest=settled.applied_digest,
            pending=settled.pending[:MAX_LISTED],
            failures=tuple(
                replace(f, reason=f.reason[:63], message=_short(f.message))
                for f in settled.failures[:MAX_LISTED]
            ),
        ),
        ready=ready,
        reason=reason,
        message=_short(message),
    )


def _ready(settled: Settled, observed: Observed, silence: str, assigned: int) -> tuple[bool, Reason, str]:
    if silence:
        return (
            False,
            Reason.DATAPLANE_SILENT,
            f"{silence} The node's Lease is not renewed meanwhile: look at the log of lbless-dataplane.",
        )
    if observed.engines and not any(engine.available for engine in observed.engines):
        why = " ".join(f"{engine.name}: {engine.message}" for engine in observed.engines)
        return False, Reason.ENGINE_UNAVAILABLE, f"No engine works on this node. {why}"
    if observed.problems:
        return False, Reason.NODE_PROBLEM, " ".join(observed.problems)
    if settled.failures:
        first = settled.failures[0]
        return (
            False,
            Reason.FAILED,
            f"{_of(len(settled.failures), assigned)} cannot be served here; "
            f"{first.clusterip or first.uid}: {first.message}",
        )
    if settled.pending:
        first = settled.pending[0]
        return (
            False,
            Reason.PROGRAMMING,
            f"{_of(len(settled.pending), assigned)} wait to be programmed, first {first.clusterip}.",
        )
    return True, Reason.APPLIED, f"All {assigned} assigned ClusterIPs are in the kernel."


def _most_useful(interfaces: Sequence[Interface]) -> list[Interface]:
    """Of more than can be listed those that may carry an address: the way out, then whatever has a subnet."""
    ranked = sorted(interfaces, key=lambda i: (not i.gateways, not i.addresses, i.name))
    return sorted(ranked[:MAX_INTERFACES], key=lambda i: i.name)


def _of(count: int, assigned: int) -> str:
    return f"{count} of {max(count, assigned)} assigned ClusterIPs"


def _sorted(outstanding: Mapping[str, Outstanding]) -> tuple[Outstanding, ...]:
    """By name, then UID: of more than can be listed, always the same ones are."""
    return tuple(sorted(outstanding.values(), key=lambda o: (o.clusterip, o.uid)))


def _short(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
