"""A failover trial: a healthy site, a fault at a known time, and everything that clients and kernels saw of it.

Owns the order of events and the sentences about what was wrong; what the log says is `takeover`'s, the table of many
trials `failovertable`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from lab import takeover
from lab.downloads import Downloads, downloading
from lab.errors import LabError
from lab.faults import Act, Fault
from lab.host import Host
from lab.lan import Lan
from lab.prober import PER_SECOND, Log, Probe, Prober, Sources, await_probes
from lab.servers import STREAM_PORT, TCP_PORT
from lab.takeover import Takeover

STRUCK_WEIGHT = 4
"""How much more often the buckets of a struck node are asked for: the finer is the measure."""
SETTLE_SECONDS = 8.0
"""How long a trial waits for takeovers before it goes on and says what is missing."""
WARM, SETTLED, WATCHED = 2, 4, 10
"""Attempts in every bucket: before the fault, after the takeover, and after the fault has ended by itself."""
STEADY = 20
"""Attempts in a bucket of a struck node that are to be answered one after the other: longer than a lease lasts."""
DOWNLOADS = 2


class Place(Protocol):
    """Where a trial can be made: nodes of a LAN that share an address."""

    @property
    def lan(self) -> Lan: ...
    @property
    def address(self) -> str: ...
    @property
    def sources(self) -> Sources: ...
    @property
    def operated(self) -> bool: ...
    def await_healthy(self) -> None: ...
    def keepers(self) -> dict[int, list[str]]: ...


P = TypeVar("P", bound=Place)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done, in seconds of CLOCK_MONOTONIC."""

    at: float
    what: str
    node: str


@dataclass
class Trial:
    """What came of one fault. Times are CLOCK_MONOTONIC seconds.

    `at`: when it began; `reference`: from when a takeover is timed; `checked`: when it was over as far as takeovers
    go, and kernels were asked (`keepers`); `ended`: when the node was well again.
    """

    fault: Fault[Any]
    struck: tuple[str, ...]
    owners: Mapping[int, str]
    events: list[Event] = field(default_factory=list)
    begun: float = 0.0
    at: float = 0.0
    reference: float = 0.0
    settled: float = 0.0
    checked: float = 0.0
    ended: float = 0.0
    keepers: Mapping[int, list[str]] = field(default_factory=dict)
    probes: Sequence[Probe] = field(default=(), repr=False)
    late_seconds: float = 0.0
    broken_downloads: list[str] = field(default_factory=list)
    operated: bool = False
    """Whether an operator plans."""

    @cached_property
    def takeovers(self) -> list[Takeover]:
        """What became of each bucket of the struck nodes."""
        return takeover.takeovers(self._checked_probes, self.owners, self.struck, self.reference)

    @property
    def seconds(self) -> list[float]:
        """For each of these buckets: fault to the first answer by its new owner, infinity if none came.

        Where a fault may end without a takeover: the longest time unserved after it.
        """
        if self.fault.from_last_act:
            return [t.unserved_seconds for t in self.takeovers]
        return [float("inf") if t.seconds is None else t.seconds for t in self.takeovers]

    @property
    def unserved_seconds(self) -> list[float]:
        """For each of these buckets: the longest time that no attempt was answered, from the fault's beginning."""
        found = takeover.takeovers(self._checked_probes, self.owners, self.struck, self.at)
        return [t.unserved_seconds for t in found]

    @property
    def doubles(self) -> list[str]:
        """SYNs that two nodes answered, from before the fault until the node was well again."""
        return takeover.doubles(self.probes)

    @property
    def orphans(self) -> list[int]:
        """Buckets that clients or kernels found without an owner after the takeover."""
        asked = [p for p in self._checked_probes if p.started >= self.settled]
        unanswered = takeover.orphans(asked, self.owners)
        return sorted({*unanswered, *(b for b, names in self.keepers.items() if not names)})

    @property
    def overlaps(self) -> list[int]:
        """Buckets that two kernels kept after the takeover."""
        return [number for number, names in self.keepers.items() if len(names) > 1]

    @property
    def disturbed(self) -> list[str]:
        """What went wrong in the buckets of nodes that were not struck, until the takeover was over."""
        return takeover.disturbed(self._checked_probes, self.owners, self.struck)

    @property
    def moved(self) -> list[str]:
        """Buckets that another kernel has than before, though their owner was not struck."""
        return [
            f"bucket {number} went from {owner} to {self.keepers[number]}"
            for number, owner in self.owners.items()
            if owner not in self.struck and self.keepers[number] != [owner]
        ]

    @property
    def faults(self) -> list[str]:
        """A sentence for everything that must not be, whatever the fault.

        While a fault comes and goes, an operator takes buckets away and gives some back: what it moves is no fault.
        """
        found = self.doubles
        if not (self.fault.from_last_act and self.operated):
            found += [*self.moved, *self.disturbed, *self.broken_downloads]
        found += [f"bucket {number} has no owner afterwards" for number in self.orphans]
        return found + [f"bucket {number} has two owners afterwards" for number in self.overlaps]

    def __str__(self) -> str:
        times = sorted(self.seconds)
        unserved = max(self.unserved_seconds, default=0.0)
        spacing = takeover.spacing_seconds(
            self._checked_probes, [b for b, name in self.owners.items() if name in self.struck]
        )
        return (
            f"{self.fault.name}, {' and '.join(self.struck)}: {len(times)} buckets taken over, median "
            f"{times[len(times) // 2]:.3f} s, worst {times[-1]:.3f} s, unserved up to {unserved:.3f} s; "
            f"{len(self.probes)} attempts, {spacing * 1000:.0f} ms apart at most, late by up to "
            f"{self.late_seconds * 1000:.0f} ms; well again after {self.ended - self.at:.1f} s; "
            f"{len(self.faults)} wrong"
        )

    @cached_property
    def _checked_probes(self) -> list[Probe]:
        return [p for p in takeover.as_of(self.probes, self.checked) if p.started >= self.begun]


def run(
    site: P, fault: Fault[P], victims: Sequence[Host], *, settle_seconds: float = SETTLE_SECONDS
) -> Trial:
    """Strike, measure, repair, and wait until the site is healthy. Raises LabError where it does not get so.

    What is not taken over after `settle_seconds` is taken for lost.
    """
    site.await_healthy()
    struck = tuple(node.name for node in victims)
    owners = {number: names[0] for number, names in site.keepers().items()}
    own = [number for number, name in owners.items() if name in struck]
    trial = Trial(fault, struck, owners, begun=time.monotonic(), operated=site.operated)
    prober = Prober(
        site.lan.client,
        site.address,
        TCP_PORT,
        site.sources,
        site.lan.owner_of,
        weights=dict.fromkeys(own, STRUCK_WEIGHT),
        # As fine a measure where twice as many buckets are asked for more often.
        per_second=PER_SECOND * (1 + len(victims)) // 2,
    )
    with ExitStack() as stack:
        stack.enter_context(_repaired_on_failure(site, fault, victims))
        log = stack.enter_context(prober)
        sources = _sources(site, owners, struck)
        with downloading(site.lan.client, site.address, STREAM_PORT, sources) as downloads:
            _asked(log, trial.begun, owners, WARM)
            _act(trial, site, victims, fault.acts if fault.from_last_act else fault.acts[:1])
            trial.reference = trial.events[-1].at if fault.from_last_act else trial.at
            _settle(trial, log, own, settle_seconds)
            trial.settled = time.monotonic()
            _asked(log, trial.settled, owners, SETTLED)
            trial.keepers = site.keepers()
            trial.checked = time.monotonic()
        trial.broken_downloads = _broken(downloads, struck)
        if not fault.from_last_act and fault.acts[1:]:
            _act(trial, site, victims, fault.acts[1:])
            _asked(log, time.monotonic(), owners, WATCHED)
        for node in victims:
            fault.repair(site, node)
        trial.events.append(Event(time.monotonic(), "repaired", ""))
        site.await_healthy()
        trial.ended = time.monotonic()
        trial.events.append(Event(trial.ended, "well again", ""))
    trial.probes = log.probes()
    trial.late_seconds = log.late_seconds
    return trial


@contextmanager
def _repaired_on_failure(site: P, fault: Fault[P], victims: Sequence[Host]) -> Iterator[None]:
    """Whatever breaks a trial off must not be the next one's fault: do all that undoes it, and go on unwinding."""
    try:
        yield
    except BaseException:
        for node in victims:
            for undo in (*(act.do for act in fault.acts[1:]), fault.repair):
                with suppress(LabError):
                    undo(site, node)
        raise


def _sources(site: Place, owners: Mapping[int, str], struck: Sequence[str]) -> list[tuple[str, int]]:
    """Where downloads come from: some through each node that is not struck."""
    buckets: list[int] = []
    for node in site.lan.nodes:
        if node.name not in struck:
            buckets += [number for number, name in owners.items() if name == node.name][:DOWNLOADS]
    return [(address, port) for _, address, port in site.sources.take(buckets)]


def _broken(downloads: Downloads, struck: Sequence[str]) -> list[str]:
    return downloads.broken([name for name in {*downloads.nodes} if name not in struck])


def _act(trial: Trial, site: P, victims: Sequence[Host], acts: Sequence[Act[P]]) -> None:
    """Do what the fault says, at its times; the first act of all sets the trial's time."""
    for act in acts:
        trial.at = trial.at or time.monotonic()
        time.sleep(max(0.0, trial.at + act.after_seconds - time.monotonic()))
        for node in victims:
            trial.events.append(Event(time.monotonic(), act.what, node.name))
            act.do(site, node)


def _settle(trial: Trial, log: Log, own: Sequence[int], seconds: float) -> None:
    """Wait until each bucket of the struck nodes is answered by another node, or again: or until it is too late."""

    def settled() -> bool:
        probes = log.probes(trial.reference)
        if trial.fault.from_last_act:
            return all(_answered_again([p for p in probes if p.bucket == b]) for b in own)
        taken = {p.bucket for p in probes if p.answerer not in (None, trial.owners[p.bucket])}
        return taken >= set(own)

    deadline = time.monotonic() + seconds
    while not settled() and time.monotonic() < deadline:
        time.sleep(0.05)


def _answered_again(probes: Sequence[Probe]) -> bool:
    """Whether the last attempts in a bucket were all answered."""
    return len(probes) >= STEADY and all(p.answerer is not None for p in probes[-STEADY:])


def _asked(log: Log, since: float, owners: Mapping[int, str], count: int) -> None:
    """Wait until every bucket was asked for so often since then: the prober is the clock."""
    await_probes(
        log,
        f"{count} attempts in each bucket",
        lambda probes: takeover.asked(probes, owners, count),
        since=since,
        seconds=30,
    )
