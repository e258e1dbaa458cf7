"""How long this node has been draining what, and what of it still has flows: time's part in a handover.

Owns the times, and when connection tracking is asked. What follows for a bucket is `handover`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP, HashParameters
from lbless_api.node import Drain
from lbless_nodeagent.dataplane.flows import FlowsError
from lbless_nodeagent.dataplane.handover import Elapsed
from lbless_nodeagent.dataplane.moving import Moving

ENDING_SECONDS = 0.02
"""A packet is on its way between the two stages for less."""
POLL_SECONDS = 1.0
POLL_SHARE = 20
"""Asking takes at most one part in so many of the time: a big table takes long."""
ANSWER_SECONDS = 0.1
SPARE_SECONDS = 2.0
"""How much later than its former owner a new one takes a drain to be over that nobody says is over."""

END = float("inf")
NOTHING = BucketSet()
CountFlows = Callable[[Mapping[IPv4Address, tuple[HashParameters, BucketSet]]], Mapping[IPv4Address, int]]
"""How many flows are left in these buckets of each address."""


@dataclass(slots=True)
class _Since:
    """Since when buckets have been in a state, in the order in which they came."""

    batches: list[tuple[float, BucketSet]] = field(default_factory=list)

    def update(self, buckets: BucketSet, now: float) -> None:
        known = NOTHING
        kept = []
        for since, had in self.batches:
            if left := had & buckets:
                kept.append((since, left))
                known |= left
        if new := buckets - known:
            kept.append((now, new))
        self.batches = kept

    def before(self, at: float) -> BucketSet:
        """Those that came by then."""
        found = NOTHING
        for since, had in self.batches:
            if since <= at:
                found |= had
        return found

    def next_after(self, now: float, seconds: float) -> float | None:
        """When the first of them will have been there for so long that were not yet."""
        return min((s + seconds for s, _ in self.batches if s + seconds > now), default=None)


@dataclass(slots=True)
class _Times:
    """One ClusterIP's."""

    clusterip: ClusterIP
    drain: _Since = field(default_factory=_Since)
    ending: _Since = field(default_factory=_Since)
    fresh: _Since = field(default_factory=_Since)
    asked_at: float = float("-inf")
    flows: int | None = None
    """How many were left when it was last asked, at `asked_at`; None: never."""

    @property
    def timeout_seconds(self) -> float:
        return self.clusterip.spec.drain_timeout_seconds


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question under way, and since when."""

    at: float
    uids: tuple[str, ...]
    answer: Future[Mapping[IPv4Address, int]]


class Drains:
    """All ClusterIPs of which something drains, ends or is fresh."""

    def __init__(self, count_flows: CountFlows) -> None:
        self._count_flows = count_flows
        self._times: dict[str, _Times] = {}
        self._ask_at = 0.0
        self._asked: _Asked | None = None
        # Beside the passes: to count a hundred thousand flows takes seconds, and a takeover cannot wait for that.
        self._thread = ThreadPoolExecutor(1, "flows")
        self.problem = ""
        """Why it is not known what is left, a sentence, or nothing."""

    def note(self, uid: str, clusterip: ClusterIP, moving: Moving) -> None:
        """The kernel does this with a ClusterIP's buckets by now."""
        if not moving.buckets:
            self._times.pop(uid, None)
            return
        now = time.monotonic()
        times = self._times.setdefault(uid, _Times(clusterip))
        times.clusterip = clusterip
        times.drain.update(moving.drain, now)
        times.ending.update(moving.ending, now)
        times.fresh.update(moving.fresh, now)

    def elapsed(self, uid: str) -> Elapsed:
        """What time has decided about what the kernel does of a ClusterIP."""
        times, now = self._times.get(uid), time.monotonic()
        if times is None:
            return NOTHING_ELAPSED
        drained = times.drain.before(now - times.timeout_seconds)
        if times.flows == 0:
            drained |= times.drain.before(times.asked_at - POLL_SECONDS)
        return Elapsed(
            drained,
            ended=times.ending.before(now - ENDING_SECONDS),
            awaited=times.fresh.before(now - times.timeout_seconds - SPARE_SECONDS),
        )

    def forget(self, uid: str) -> None:
        """A ClusterIP is gone."""
        self._times.pop(uid, None)

    def ask(self) -> None:
        """Ask connection tracking for all that drains, if it is time, or take in its answer."""
        now = time.monotonic()
        if self._asked is not None:
            if self._asked.answer.done():
                self._take(self._asked, now)
                self._asked = None
            else:
                self._ask_at = now + ANSWER_SECONDS
            return
        asked = {uid: times.drain.before(now) for uid, times in self._times.items() if times.drain.batches}
        if now < self._ask_at or not asked:
            return
        specs = {uid: self._times[uid].clusterip.spec for uid in asked}
        question = {specs[uid].ip: (specs[uid].hash, buckets) for uid, buckets in asked.items()}
        self._asked = _Asked(now, tuple(asked), self._thread.submit(self._count_flows, question))
        self._ask_at = now + ANSWER_SECONDS

    def _take(self, asked: _Asked, now: float) -> None:
        self._ask_at = max(asked.at + POLL_SECONDS, now + POLL_SHARE * (now - asked.at))
        try:
            found = asked.answer.result()
        except FlowsError as error:
            self.problem = str(error)
            return
        self.problem = ""
        for uid in asked.uids:
            if times := self._times.get(uid):
                times.asked_at, times.flows = asked.at, found.get(times.clusterip.spec.ip, 0)

    def draining(self) -> tuple[Drain, ...]:
        """What drains, by UID; where nobody was asked yet how many flows are left, none."""
        return tuple(
            Drain(
                uid,
                times.clusterip.identity.key,
                times.drain.before(END) | times.ending.before(END),
                times.flows or 0,
            )
            for uid, times in sorted(self._times.items())
            if times.drain.batches or times.ending.batches
        )

    @property
    def next_at(self) -> float | None:
        """When something of it may be otherwise, by `time.monotonic`; None if nothing moves."""
        now = time.monotonic()
        at: list[float | None] = []
        for times in self._times.values():
            at += (
                times.ending.next_after(now, ENDING_SECONDS),
                times.drain.next_after(now, times.timeout_seconds),
                times.fresh.next_after(now, times.timeout_seconds + SPARE_SECONDS),
                self._ask_at if times.drain.batches else None,
            )
        return min((one for one in at if one is not None), default=None)


NOTHING_ELAPSED = Elapsed()
