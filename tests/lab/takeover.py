"""What the log of a prober says about a fault: who took each bucket over and when, and what must not have happened.

Pure: times are CLOCK_MONOTONIC seconds, owners are a bucket's node before the fault. Nothing here knows lbless.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lab.prober import Probe

Owners = Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Takeover:
    """What became of one bucket of a node that was struck.

    `seconds`: from the fault to the first answer of another node than `former`, None if none came.
    `unserved_seconds`: the longest time from an answered attempt to the next answer, where attempts between them
    were not answered; 0 where there were none. It is an upper bound: attempts are some way apart.
    """

    bucket: int
    former: str
    by: str | None
    seconds: float | None
    unserved_seconds: float


def as_of(probes: Iterable[Probe], until: float) -> list[Probe]:
    """What was known at a time: attempts that had ended, and of their answers those that had come.

    A node whose frames were lost for some seconds keeps what it could not send, and sends it when they pass again.
    """
    return [
        p if p.answered <= until else replace(p, node=None, senders=(), acknowledged=None)
        for p in probes
        if p.ended <= until
    ]


def takeovers(probes: Sequence[Probe], owners: Owners, struck: Collection[str], at: float) -> list[Takeover]:
    """The takeover of every bucket of the nodes that were struck at the time `at`."""
    found = []
    for number, former in sorted(owners.items()):
        if former not in struck:
            continue
        own = [p for p in probes if p.bucket == number]
        others = [p for p in own if p.started >= at and p.answerer not in (None, former)]
        first = min(others, key=lambda p: p.answered, default=None)
        found.append(
            Takeover(
                number,
                former,
                first.answerer if first else None,
                first.answered - at if first else None,
                unserved_seconds(own, at),
            )
        )
    return found


def unserved_seconds(probes: Sequence[Probe], since: float) -> float:
    """The longest time without an answer in one bucket that began after `since` or was under way then.

    It ends with the first answer that comes, to whichever attempt: one client's may be late, because the node must ask
    for its MAC again first. Infinity if it has not ended: the last attempt was not answered.
    """
    longest, begun = 0.0, None
    last = since
    first = float("inf")
    answers = []  # when the first came to each attempt or a later one
    for probe in reversed(probes):
        first = min(first, probe.answered)
        answers.append(first)
    answers.reverse()
    for probe, answered in zip(probes, answers, strict=True):
        if probe.answerer is None:
            if probe.ended >= since and begun is None:
                begun = max(last, since)
        else:
            if begun is not None:
                longest = max(longest, answered - begun)
            begun, last = None, probe.started
    return float("inf") if begun is not None else longest


def doubles(probes: Iterable[Probe]) -> list[str]:
    """A sentence for each SYN that more than one node answered."""
    return [
        f"bucket {p.bucket}: the SYN from {p.source}:{p.port} was answered by {' and '.join(p.senders)}, "
        f"{p.apart_seconds * 1000:.1f} ms apart"
        for p in probes
        if len(p.senders) > 1
    ]


def orphans(probes: Iterable[Probe], buckets: Iterable[int]) -> list[int]:
    """The buckets in which no attempt was answered, or none was made."""
    return sorted(set(buckets) - {p.bucket for p in probes if p.answerer is not None})


def disturbed(probes: Iterable[Probe], owners: Owners, struck: Collection[str]) -> list[str]:
    """A sentence for each attempt in a bucket of a node that was not struck and that went wrong.

    Answered by another than its owner: the bucket moved. Not answered, refused or reset: somebody lost a connection.
    One that was answered too late for its connection is neither: that is a busy machine.
    """
    found = []
    for p in probes:
        owner = owners[p.bucket]
        if owner in struck:
            continue
        if p.answerer not in (None, owner):
            found.append(f"bucket {p.bucket} of {owner} was answered by {p.answerer}")
        elif p.answerer is None:
            found.append(f"bucket {p.bucket} of {owner}: {p.error} from {p.source}:{p.port}")
        elif p.error not in (None, "timeout"):
            found.append(
                f"bucket {p.bucket} of {owner}: {p.error} from {p.source}:{p.port}, which it had taken"
            )
    return found


def asked(probes: Iterable[Probe], buckets: Iterable[int], count: int) -> bool:
    """Whether every bucket was asked for so often."""
    found = dict.fromkeys(buckets, 0)
    for p in probes:
        found[p.bucket] += 1
    return min(found.values()) >= count


def spacing_seconds(probes: Sequence[Probe], buckets: Iterable[int]) -> float:
    """The longest time between two attempts in one bucket: how fine the measure is."""
    longest = 0.0
    for number in buckets:
        starts = [p.started for p in probes if p.bucket == number]
        longest = max([longest, *(after - before for before, after in pairwise(starts))])
    return longest
