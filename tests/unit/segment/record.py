"""What a simulated segment did: its history as lines, and which node served which bucket when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import pairwise

from lbless_api.buckets import BucketSet
from lbless_nodeagent.dataplane.handover import Share


@dataclass(frozen=True)
class Kernel:
    """What one node's kernel does from `at` on. `lease` is the real time at which it stops."""

    at: float
    shares: Mapping[str, Share]
    lease: float
    reached: bool
    side: int


@dataclass(frozen=True)
class Verdict:
    """What clients met from a time on, seconds: how long in all some bucket had two owners that their packets
    reach, and the longest time that a bucket had none; and how long in all a node could answer for another's flows
    by a reset (`reset`), and how often one gave up flows before their time (`abandoned`)."""

    double: float
    unserved: float
    reset: float
    abandoned: int
    details: tuple[str, ...]


@dataclass
class Record:
    """Kept while the simulation runs."""

    lines: list[tuple[float, str, str]] = field(default_factory=list)
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)
    abandoned: list[tuple[float, str]] = field(default_factory=list)
    addresses: dict[IPv4Address, str] = field(default_factory=dict)

    def note(self, at: float, who: str, text: str) -> None:
        """Add a line."""
        self.lines.append((at, who, text))

    def kernel(
        self, at: float, name: str, shares: Mapping[str, Share], lease: float, *, reached: bool, side: int
    ) -> None:
        """Note what a node's kernel does from now on."""
        self.kernels.setdefault(name, []).append(Kernel(at, shares, lease, reached, side))

    def abandon(self, at: float, name: str, uid: str, buckets: BucketSet) -> None:
        """Note that a node gives up flows."""
        self.abandoned.append((at, name))
        self.note(at, name, f"{uid}: gives up the flows of {buckets}")

    def timeline(self, since: float = 0.0) -> str:
        """The history, one line an event."""
        shown = sorted((at, who, text) for at, who, text in self.lines if at >= since)
        return "\n".join(f"{at:9.4f} s  {who:<8} {text}" for at, who, text in shown)

    def judge(self, uids: list[str], buckets: int, since: float, until: float, sides: set[int]) -> Verdict:
        """What clients on `sides` met between two times."""
        moments = {since, until}
        spans: list[tuple[float, float, str, Kernel]] = []
        for name, kernels in self.kernels.items():
            ends = [kernel.at for kernel in kernels[1:]] + [until]
            for kernel, end in zip(kernels, ends, strict=True):
                stop = min(end, kernel.lease, until)
                if stop > max(kernel.at, since) and any(share != Share() for share in kernel.shares.values()):
                    start = max(kernel.at, since)
                    spans.append((start, stop, name, kernel))
                    moments.update((start, stop))
        spans.sort(key=lambda span: span[0])
        times = sorted(moments)
        double, reset, longest, details = 0.0, 0.0, 0.0, []
        clients = {(uid, side): Clients(self.addresses) for uid in uids for side in sides}
        open_since: dict[tuple[str, int], dict[int, float]] = {}
        active: list[tuple[float, float, str, Kernel]] = []
        position = 0
        full = BucketSet.full(buckets)
        for start, stop in pairwise(times):
            active = [span for span in active if span[1] > start]
            while position < len(spans) and spans[position][0] <= start:
                active.append(spans[position])
                position += 1
            twice = cut = False
            for uid in uids:
                for side in sides:
                    reached = {
                        name: share
                        for _, _, name, kernel in active
                        if kernel.side == side and kernel.reached and (share := kernel.shares.get(uid))
                    }
                    served, again, resets = clients[uid, side].meet(reached)
                    for what, met in (("two owners", again), ("flows that another resets", resets)):
                        if met:
                            lasts = (stop - start) * 1000
                            details.append(f"{start:9.4f} s  {uid}: {met} have {what} for {lasts:.1f} ms")
                    twice |= bool(again)
                    cut |= bool(resets)
                    waiting = open_since.setdefault((uid, side), {})
                    for bucket in full - served:
                        waiting.setdefault(bucket, start)
                    for bucket in [one for one in waiting if one in served]:
                        longest = max(longest, start - waiting.pop(bucket))
            double += stop - start if twice else 0.0
            reset += stop - start if cut else 0.0
        for waiting in open_since.values():
            for began in waiting.values():
                longest = max(longest, until - began)
        given_up = sum(since <= at < until for at, _ in self.abandoned)
        return Verdict(double, longest, reset, given_up, tuple(details))


@dataclass
class Clients:
    """What they meet at each moment in turn: with one ClusterIP, on one side. `opened` are the buckets in which each
    node may have flows, by its name."""

    addresses: Mapping[IPv4Address, str]
    opened: dict[str, BucketSet] = field(default_factory=dict)

    def meet(self, shares: Mapping[str, Share]) -> tuple[BucketSet, BucketSet, BucketSet]:
        """The buckets in which new flows are answered, those in which by two nodes, and those in which one node resets
        the flows of another; `shares` are those of the nodes that they reach."""
        served = again = resets = BucketSet()
        for name, share in shares.items():
            again |= served & share.taking
            served |= share.taking
            self._open(name, share.taking)
        sent_on = BucketSet()
        for share in shares.values():
            for address, buckets in share.moving.redirect:
                name = self.addresses.get(address, "")
                taken = buckets & shares.get(name, Share()).moving.standby
                # One that takes already has got the packet itself, and knows it again.
                again |= taken & (served | sent_on)
                sent_on |= taken
                self._open(name, taken)
        for name, share in shares.items():
            for other, its in shares.items():
                if other != name:
                    flows = (its.moving.fresh | its.moving.drain) & self.opened.get(other, BucketSet())
                    resets |= share.owned & flows
        return served | sent_on, again, resets

    def _open(self, name: str, buckets: BucketSet) -> None:
        self.opened[name] = self.opened.get(name, BucketSet()) | buckets
