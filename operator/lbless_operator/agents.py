"""Which nodes' agents are alive, by when each Lease was last seen to change.

Pure: every time is handed in, in seconds of a clock that also counts suspension. Clocks of nodes are
trusted for one thing only: at first sight, to take a Lease for fresh that says that it was renewed lately.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from lbless_api import AGENT_LEASE_STALE_SECONDS


class Freshness(Enum):
    """Whether an agent hears the API server, and so can be told."""

    FRESH = "fresh"
    UNKNOWN = "unknown"
    """Not watched for long enough to know: it may be alive."""
    SILENT = "silent"
    ABSENT = "absent"
    """It has no Lease, and had time to make one."""


@dataclass(slots=True)
class _Renewal:
    text: str
    at: float
    seen: bool
    """Whether `at` is when it was renewed, and not just when this process saw it first."""


class Agents:
    """The Leases of all nodes. Silence is never concluded from a watch that may be broken: only from a
    LIST that began after the Lease had run out and found it unchanged."""

    def __init__(self, started: float) -> None:
        self._renewals: dict[str, _Renewal] = {}
        self._missing_since: dict[str, float] = {}
        self._started = started
        self._listed = started
        self._told: dict[str, Freshness] = {}

    def renewed(self, node: str, text: str, age_seconds: float | None, now: float) -> None:
        """A Lease was seen. `age_seconds`: how long ago it says that it was renewed, None if it does not."""
        self._missing_since.pop(node, None)
        known = self._renewals.get(node)
        if known and known.text == text:
            return
        if known:
            self._renewals[node] = _Renewal(text, now, seen=True)
        elif age_seconds is not None and age_seconds < AGENT_LEASE_STALE_SECONDS:
            self._renewals[node] = _Renewal(text, now - max(0.0, age_seconds), seen=True)
        else:
            # Old by the node's clock, which may be wrong: wait for one period before believing it.
            self._renewals[node] = _Renewal(text, now, seen=False)

    def removed(self, node: str, now: float) -> None:
        """A Lease was deleted; a living agent makes it anew within its renewal period."""
        if self._renewals.pop(node, None):
            self._missing_since[node] = now

    def unread(self, node: str, now: float) -> None:
        """A Lease is there and cannot be read: whatever was known of it, its agent may be alive."""
        self._missing_since.pop(node, None)
        self._renewals[node] = _Renewal("", now, seen=False)

    def listed(self, began: float) -> None:
        """A complete LIST of the Leases, asked for at `began`, has been told by the other methods."""
        self._listed = max(self._listed, began)

    def freshness(self, node: str) -> Freshness:
        """What is known of a node's agent; changes only with `tick`, or for nodes not seen before."""
        return self._told.get(node, Freshness.UNKNOWN)

    def tick(self, nodes: Iterable[str], now: float) -> tuple[set[str], bool]:
        """Judge anew; return the nodes whose freshness changed, and whether a LIST is needed to be sure."""
        changed, unsure = set(), False
        told: dict[str, Freshness] = {}
        for node in nodes:
            told[node], needs_list = self._judge(node, now)
            unsure |= needs_list
            if self._told.get(node, Freshness.UNKNOWN) is not told[node]:
                changed.add(node)
        self._told = told
        return changed, unsure

    def _judge(self, node: str, now: float) -> tuple[Freshness, bool]:
        renewal = self._renewals.get(node)
        since = renewal.at if renewal else self._missing_since.get(node, self._started)
        runs_out = since + AGENT_LEASE_STALE_SECONDS
        if self._listed >= runs_out:
            return (Freshness.SILENT if renewal else Freshness.ABSENT), False
        alive = Freshness.FRESH if renewal and renewal.seen else Freshness.UNKNOWN
        return alive, now >= runs_out
