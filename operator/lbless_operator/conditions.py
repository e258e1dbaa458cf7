"""The conditions of a ClusterIP: their types, the closed set of reasons of each, and when they changed.

What holds is decided elsewhere; here nothing can be said that is not in the sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_MESSAGE = 2048


class Type(StrEnum):
    """The aspects, in the order in which they are reported. Ready sums up the others."""

    READY = "Ready"
    ASSIGNED = "Assigned"
    PROGRAMMED = "Programmed"
    DEGRADED = "Degraded"
    CONFLICT = "Conflict"
    SOURCE_MAC_UNSAFE = "SourceMACUnsafe"
    """Only where it holds: a ClusterIP that does not ask for it has no such condition."""


class State(StrEnum):
    """A condition's status."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Every reason that a condition can have."""

    SERVING = "Serving"
    ASSIGNED = "Assigned"
    PROGRAMMED = "Programmed"
    AS_PLANNED = "AsPlanned"
    NO_CONFLICT = "NoConflict"
    INVALID = "Invalid"
    NOT_SUPPORTED = "NotSupported"
    ADDRESS_IN_USE = "AddressInUse"
    CONFLICT = "Conflict"
    NO_ELIGIBLE_NODE = "NoEligibleNode"
    NOT_ASSIGNED = "NotAssigned"
    PROGRAMMING = "Programming"
    PROGRAMMING_FAILED = "ProgrammingFailed"
    AGENT_SILENT = "AgentSilent"
    SHARED_SOURCE_MAC = "SharedSourceMAC"
    ENGINE_INCAPABLE = "EngineIncapable"
    NODE_DEAD_ON_SEGMENT = "NodeDeadOnSegment"
    NO_PEERS_HEARD = "NoPeersHeard"
    NO_FAST_TAKEOVER = "NoFastTakeover"
    NO_DRAIN = "NoDrain"


BLOCKED = frozenset(
    {
        Reason.INVALID,
        Reason.NOT_SUPPORTED,
        Reason.ADDRESS_IN_USE,
        Reason.CONFLICT,
        Reason.NO_ELIGIBLE_NODE,
    }
)
"""Why nothing is planned for a ClusterIP at all."""

REASONS: Mapping[Type, frozenset[Reason]] = {
    Type.READY: BLOCKED
    | {Reason.SERVING, Reason.PROGRAMMING, Reason.PROGRAMMING_FAILED, Reason.AGENT_SILENT},
    Type.ASSIGNED: BLOCKED | {Reason.ASSIGNED},
    Type.PROGRAMMED: frozenset(
        {
            Reason.PROGRAMMED,
            Reason.PROGRAMMING,
            Reason.PROGRAMMING_FAILED,
            Reason.NOT_ASSIGNED,
            Reason.AGENT_SILENT,
        }
    ),
    Type.DEGRADED: frozenset(
        {
            Reason.AS_PLANNED,
            Reason.AGENT_SILENT,
            Reason.PROGRAMMING,
            Reason.PROGRAMMING_FAILED,
            Reason.ADDRESS_IN_USE,
            Reason.ENGINE_INCAPABLE,
            Reason.NODE_DEAD_ON_SEGMENT,
            Reason.NO_PEERS_HEARD,
            Reason.NO_FAST_TAKEOVER,
            Reason.NO_DRAIN,
        }
    ),
    Type.CONFLICT: frozenset({Reason.NO_CONFLICT, Reason.CONFLICT}),
    Type.SOURCE_MAC_UNSAFE: frozenset({Reason.SHARED_SOURCE_MAC}),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What holds now of one aspect. Raises ValueError for a reason outside the aspect's set."""

    type: Type
    state: State
    reason: Reason
    message: str

    def __post_init__(self) -> None:
        if self.reason not in REASONS[self.type]:
            raise ValueError(f"Condition {self.type} cannot have the reason {self.reason}.")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as the API has it. `since` is the RFC 3339 time of its last change of status."""

    type: str
    status: str
    reason: str
    message: str
    since: str
    observed_generation: int


def settle(
    findings: Iterable[Finding], previous: Iterable[Condition], *, generation: int, now: str
) -> tuple[Condition, ...]:
    """Return the conditions to report: `now` where a status changed, else the time that it had."""
    before = {condition.type: condition for condition in previous}
    settled = []
    for finding in findings:
        old = before.get(finding.type)
        settled.append(
            Condition(
                type=finding.type.value,
                status=finding.state.value,
                reason=finding.reason.value,
                message=shorten(finding.message, MAX_MESSAGE),
                since=old.since if old and old.status == finding.state and old.since else now,
                observed_generation=generation,
            )
        )
    return tuple(settled)


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def find(conditions: Iterable[Condition], wanted: Type) -> Condition | None:
    """The condition of a type, or None."""
    return next((condition for condition in conditions if condition.type == wanted), None)
