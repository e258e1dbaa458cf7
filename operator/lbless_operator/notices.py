"""What a person would want to know, as values, and which of it is worth an Event.

Owns the limits: the same thing is not said twice within a time, and nobody floods the API server. Posting
is `events`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lbless_operator.restraint import TokenBucket

REPEAT_SECONDS = 600.0
BURST = 10
REFILL_SECONDS = 30.0
"""One more Event an object this often, BURST at once."""
REASON_BURST = 100
REASON_REFILL_SECONDS = 2.0
"""The same for all objects together, of each reason: a thousand with one fault are no thousand Events at once."""
FORGET_SECONDS = 3600.0


class NoticeReason(StrEnum):
    """The reasons of Events."""

    ASSIGNED = "Assigned"
    MOVED = "Moved"
    MOVE_FINISHED = "MoveFinished"
    NO_ELIGIBLE_NODE = "NoEligibleNode"
    CONFLICT = "Conflict"
    WITHDRAWN = "Withdrawn"
    REFUSED = "Refused"
    AGENT_SILENT = "AgentSilent"
    ENGINE_INCAPABLE = "EngineIncapable"
    NODE_DEAD_ON_SEGMENT = "NodeDeadOnSegment"
    NO_PEERS_HEARD = "NoPeersHeard"
    PROGRAMMING_FAILED = "ProgrammingFailed"
    ALL_PORTS_OPEN = "AllPortsOpen"
    SOURCE_MAC_UNSAFE = "SourceMACUnsafe"
    INVALID_WEIGHT = "InvalidWeight"


WARNINGS = frozenset(NoticeReason) - {NoticeReason.ASSIGNED, NoticeReason.MOVED, NoticeReason.MOVE_FINISHED}


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that a notice is about; `namespace` is empty for a Node."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell about an object."""

    subject: Subject
    reason: NoticeReason
    note: str

    @property
    def is_warning(self) -> bool:
        """Whether a person should do something about it."""
        return self.reason in WARNINGS


class Limit:
    """Admits notices: no repetition within REPEAT_SECONDS, a token bucket for each object and for each reason."""

    def __init__(self) -> None:
        self._said: dict[Notice, float] = {}
        self._allowances: dict[str, TokenBucket] = {}
        self._reasons: dict[NoticeReason, TokenBucket] = {}

    def admits(self, notice: Notice, now: float) -> bool:
        """Whether to post it; counts it if so."""
        self._forget(now)
        said = self._said.get(notice)
        if said is not None and now - said < REPEAT_SECONDS:
            return False
        uid, reason = notice.subject.uid, notice.reason
        of_object = self._allowances.setdefault(uid, TokenBucket.full(BURST, REFILL_SECONDS, now))
        of_reason = self._reasons.setdefault(
            reason, TokenBucket.full(REASON_BURST, REASON_REFILL_SECONDS, now)
        )
        if not (of_object.admits(now) and of_reason.admits(now)):
            return False
        self._said[notice] = now
        return True

    def _forget(self, now: float) -> None:
        """Keep neither old sentences nor objects for ever; sentences are kept in the order of their time."""
        for notice, said in list(self._said.items()):
            if now - said < REPEAT_SECONDS:
                break
            del self._said[notice]
        if len(self._allowances) > 4096:
            self._allowances = {
                uid: one for uid, one in self._allowances.items() if now - one.at < FORGET_SECONDS
            }
