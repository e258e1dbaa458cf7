"""What a simulated segment did: its history as lines, and which node served which bucket when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from lbless_api.buckets import BucketSet


@dataclass(frozen=True)
class Kernel:
    """What one node's kernel does from `at` on. `lease` is the real time at which it stops."""

    at: float
    sets: Mapping[str, BucketSet]
    lease: float
    reached: bool
    side: int


@dataclass(frozen=True)
class Verdict:
    """What clients met from a time on, seconds: how long in all some bucket had two owners that their packets
    reach, and the longest time that a bucket had none."""

    double: float
    unserved: float
    details: tuple[str, ...]


@dataclass
class Record:
    """Kept while the simulation runs."""

    lines: list[tuple[float, str, str]] = field(default_factory=list)
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)

    def note(self, at: float, who: str, text: str) -> None:
        """Add a line."""
        self.lines.append((at, who, text))

    def kernel(
        self, at: float, name: str, sets: Mapping[str, BucketSet], lease: float, *, reached: bool, side: int
    ) -> None:
        """Note what a node's kernel does from now on."""
        self.kernels.setdefault(name, []).append(Kernel(at, sets, lease, reached, side))

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
                if stop > max(kernel.at, since) and any(kernel.sets.values()):
                    start = max(kernel.at, since)
                    spans.append((start, stop, name, kernel))
                    moments.update((start, stop))
        spans.sort(key=lambda span: span[0])
        times = sorted(moments)
        double, longest, details = 0.0, 0.0, []
        open_since: dict[tuple[str, int], dict[int, float]] = {}
        active: list[tuple[float, float, str, Kernel]] = []
        position = 0
        full = BucketSet.full(buckets)
        for start, stop in pairwise(times):
            active = [span for span in active if span[1] > start]
            while position < len(spans) and spans[position][0] <= start:
                active.append(spans[position])
                position += 1
            twice = False
            for uid in uids:
                for side in sides:
                    seen, served = BucketSet(), BucketSet()
                    for _, _, name, kernel in active:
                        mine = kernel.sets.get(uid)
                        if not mine or kernel.side != side or not kernel.reached:
                            continue
                        if not seen.isdisjoint(mine):
                            twice = True
                            details.append(
                                f"{start:9.4f} s  {uid}: buckets {seen & mine} have two owners for "
                                f"{(stop - start) * 1000:.1f} ms, {name} and another"
                            )
                        seen |= mine
                        served |= mine
                    waiting = open_since.setdefault((uid, side), {})
                    for bucket in full - served:
                        waiting.setdefault(bucket, start)
                    for bucket in [one for one in waiting if one in served]:
                        longest = max(longest, start - waiting.pop(bucket))
            double += stop - start if twice else 0.0
        for waiting in open_since.values():
            for began in waiting.values():
                longest = max(longest, until - began)
        return Verdict(double, longest, tuple(details))
