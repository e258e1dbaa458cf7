"""One pass from the state directory to the kernel: read, decide, act, and say what came of it.

Owns the order of the acts: filter before address, and on removal address before filter. Each part of a
pass is its own module's; when one is due is the loop's.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP
from lbless_api.interfaces import Interface
from lbless_api.node import Drain, EngineReport, Outstanding
from lbless_api.state import APPLIED, DESIRED, DesiredNode
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.addresses import Addresses, Settled
from lbless_nodeagent.dataplane.announce import Announcements
from lbless_nodeagent.dataplane.decide import Decider, Decision, failure, in_force
from lbless_nodeagent.dataplane.desired import Desired, DesiredDirectory, Document
from lbless_nodeagent.dataplane.engine import Engine, EngineError, Vip
from lbless_nodeagent.dataplane.engines import Leftovers
from lbless_nodeagent.dataplane.flows import liberal
from lbless_nodeagent.dataplane.identity import with_interfaces
from lbless_nodeagent.dataplane.journal import Place
from lbless_nodeagent.dataplane.lastgood import LastGood
from lbless_nodeagent.dataplane.latest import Latest
from lbless_nodeagent.dataplane.moving import AT_REST
from lbless_nodeagent.dataplane.network import Address, Link, Network, interfaces, own_addresses, taken
from lbless_nodeagent.dataplane.placing import Placing, Served
from lbless_nodeagent.dataplane.programming import Programming
from lbless_nodeagent.dataplane.rtnetlink import LinkError, Rtnetlink
from lbless_nodeagent.dataplane.shares import Shares
from lbless_nodeagent.dataplane.statefiles import IdentityFile, JournalFile

GO_ON_SECONDS = 0.2
"""The tick process hears that often, at most, that this one does its work."""
PASS_SECONDS = 30.0
"""A pass that takes longer is as good as none: meanwhile no takeover reaches the kernel."""
RETRY_SECONDS = 1.0

MAX_PROBLEMS = 16

LONG_REPAIR_BUCKETS = 10_000
"""More than one transaction takes more than 50 ms: that is said before it is done."""

_LOG = logging.getLogger(__name__)

Vips = Mapping[IPv4Address, Vip]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is in the kernel after a pass, and what is not and why. `retry_at`: pass again then."""

    applied: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Outstanding] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    drains: tuple[Drain, ...] = ()
    retry_at: float | None = None


class Reconciler:
    """The state directory and the kernel of one node."""

    def __init__(
        self,
        node: str,
        directory: Path,
        engine: Engine,
        boot_id: str,
        *,
        report: EngineReport | None = None,
        leftovers: Leftovers | None = None,
        identity: IdentityFile | None = None,
        shares: Shares | None = None,
    ) -> None:
        """Read what an earlier process left; raises EngineError, LinkError.

        `report` is the engine's, if it was probed already; `leftovers` are those of the other engines. `shares`
        with heartbeats; without, each ClusterIP is followed as its file has it.
        """
        self._boot_id = boot_id
        self._directory = directory
        self.shares = shares
        self._began, self._went_on = time.monotonic(), 0.0
        self.desired = DesiredDirectory(directory / DESIRED, boot_id, self._go_on)
        self._last_good = LastGood(directory / APPLIED, self._go_on)
        self._journal = JournalFile(directory, boot_id)
        self._identity = identity or IdentityFile(directory)
        self.programming = Programming(engine, report)  # first, as it may fail and leaves nothing open
        self.links = Rtnetlink()
        self._addresses = Addresses(self.links, self._journal, self._go_on)
        self._announcements = Announcements()
        self._leftovers = leftovers or Leftovers({})
        moving = shares.moving if shares else lambda _: AT_REST
        self._decider = Decider(node, self.programming.refusal, moving)
        self._own = Latest(own_addresses)
        self._interfaces_of = Latest(interfaces)
        self._taken = Latest(taken)
        self._pod_cidrs_of = Latest(_pod_cidrs)
        self._wanted_places, self._held_places = Placing(), Placing()
        self._served = Served()
        self._repairs: Counter[str] = Counter()
        # Of the tables' addresses those that no file explains; see _unexplained.
        self._orphans: Vips = self.programming.installed
        if shares:  # no membership knows whose their buckets are by now
            self._orphans = {
                ip: replace(vip, owned=BucketSet(), moving=AT_REST) for ip, vip in self._orphans.items()
            }
        self._outcome = Outcome()
        self._opens = False
        """Whether the last pass has sent tokens, so that the next one can write what they have closed as given up."""
        self._liberal: str | None = None
        """What is wrong with connection tracking, so that nothing can be drained; None before it was looked at."""
        for fault in (*self._last_good.problems, self._journal.fault, self._identity.fault):
            if fault:
                _LOG.warning("%s", fault)
        self._addresses.refresh()
        self._addresses.adopt(self._held_places(self._orphans, self._addresses.network.links))

    @property
    def report(self) -> EngineReport:
        """The engine's, without what the node's settings forbid it."""
        report = self.programming.report
        if not self._liberal:
            return report
        unable = tuple(replace(one, moves=False, redirect=False) for one in report.capabilities)
        return replace(report, message=report.message or self._liberal, capabilities=unable)

    @property
    def repairs(self) -> Mapping[str, int]:
        """How often what was done had to be done again, because somebody else undid it, by what it was."""
        return {**self._repairs, "rules": self.programming.repairs}

    def run_pass(self, *, thorough: bool = False, audit: bool = False) -> Outcome:
        """Bring the kernel to the desired state, believing nothing that was read before: with `thorough` of
        the files and the links, with `audit` of the rules."""
        if thorough:
            self.desired.forget()
        if thorough or not self.desired.is_watched:
            self._check_files()
        if thorough or self._liberal is None:
            self._liberal = (liberal() if self.shares else None) or ""
        self.programming.check(audit=audit)
        try:
            self._addresses.refresh(thorough=thorough)
            self._outcome = self._pass()
        except LinkError as error:
            # What was found last is truer than "nothing is applied, and there is no interface".
            retry_at = time.monotonic() + (0.0 if self._opens else RETRY_SECONDS)
            self._outcome = replace(self._outcome, problems=(str(error),), retry_at=retry_at)
        return self._outcome

    def damaged(self) -> Outcome | None:
        """What is to be said before the next pass, where that has so many rules to apply that it takes long."""
        if self.programming.is_intact:
            return None
        if sum(len(vip.owned) for vip in self.programming.installed.values()) <= LONG_REPAIR_BUCKETS:
            return None
        return replace(
            self._outcome, applied={}, problems=("Somebody changed the rules: they are being applied again.",)
        )

    def remove(self) -> tuple[str, ...]:
        """Take all of ours out of the kernel, and return a sentence for each thing that stayed."""
        problems: list[str] = []
        try:
            self._addresses.refresh()
            settled = self._addresses.settle(())
            problems += settled.problems
        except LinkError as error:
            problems.append(str(error))
        try:
            # An address that stayed must keep its rules: without them it would answer every packet.
            if not problems:
                self.programming.remove()
                problems += self._leftovers.remove()
        except EngineError as error:
            problems.append(str(error))
        try:
            for uid in list(self._last_good.clusterips()):
                self._last_good.drop(uid)
            if not problems:
                self._journal.remove()
        except files.UnwritableError as error:
            problems.append(str(error))
        return tuple(problems)

    def close(self) -> None:
        """Let go of descriptors; the kernel keeps what it holds."""
        self.desired.close()
        self._announcements.close()
        self.links.close()

    def _pass(self) -> Outcome:
        self._began, self._opens = time.monotonic(), False
        desired = self.desired.read()
        network = self._addresses.network
        own = self._own(network, self._addresses.shared)
        found = self._interfaces(own)
        counted = self._counted(desired, found)
        self._go_on()
        pod_cidrs = self._pod_cidrs_of(desired.node) if desired.node else self.programming.local_sources
        decision = self._decider.decide(counted, found, self._taken(network, own, pod_cidrs))
        orphans = self._unexplained(desired, counted)
        wanted = {**self._decider.wanted, **orphans} if orphans else self._decider.wanted
        problems = self._keep(decision, desired)
        self._go_on()
        settled, refused = self._act(wanted, pod_cidrs)
        self._go_on()
        self._count_repairs(settled, decision, counted)
        failures = self._failures(decision, desired, counted, settled, refused)
        problems += self._drop(decision, desired, counted)
        problems += self._succeed(wanted)
        if self.shares:
            self.shares.confirm(self.programming.installed, decision.vips, self.programming.applications)
            problems += [
                *self.shares.ports.problems,
                *filter(None, (self._liberal, self.shares.drains.problem)),
            ]
        problems += [p for p in (self._journal.problem, self._identity.problem) if p]
        if orphans:
            problems.append(
                f"{len(orphans)} addresses that no state file names are kept as an earlier run left them, "
                f"until sync has listed all ClusterIPs."
            )
        troubled = problems or settled.problems or settled.faults or not self.desired.is_watched
        outdated = self._is_outdated(network, own, settled)
        return Outcome(
            applied=self._applied(decision, counted, failures),
            failures=failures,
            problems=_few([*desired.problems, *problems, *settled.problems]),
            interfaces=self._described(found),
            drains=self.shares.drains.draining() if self.shares else (),
            retry_at=time.monotonic() if outdated or self._opens else self._retry_at(troubled=bool(troubled)),
        )

    def _go_on(self) -> None:
        """Tell the tick process that this one does its work: on a busy machine the first pass of a thousand addresses
        takes ten seconds. Cheap enough to call for each of them."""
        now = time.monotonic()
        if self.shares and self._went_on + GO_ON_SECONDS <= now <= self._began + PASS_SECONDS:
            self._went_on = now
            self.shares.ports.alive()

    def _counted(self, desired: Desired, found: tuple[Interface, ...]) -> Mapping[str, ClusterIP]:
        """The ClusterIPs that count, each as it is to be followed now."""
        shares, former = self.shares, self._last_good.clusterips()
        documents = (
            shares.documents(desired.documents, complete=desired.complete) if shares else desired.documents
        )
        newest = {uid: document.clusterip for uid, document in documents.items()}
        counted = in_force(newest, former, unusable=desired.faults, complete=desired.complete)
        if shares is None:
            return counted
        moves = any(capability.moves for capability in self.programming.report.capabilities)
        shares.can_move = moves and not self._liberal
        shares.can_redirect = any(one.redirect for one in self.programming.report.capabilities)
        shares.drains.ask()
        indexes = {link.name: link.index for link in self._addresses.network.links.values()}
        return shares.follow(counted, documents, former, found, indexes, self.programming.installed)

    def _described(self, found: tuple[Interface, ...]) -> tuple[Interface, ...]:
        """The interfaces with what membership says of each. Without heartbeats no incarnation of this node can be
        told from another: it says 0, so that no peer takes its silence for its death."""
        if self.shares is None:
            return tuple(replace(interface, incarnation=0) for interface in found)
        ports = self.shares.ports
        return tuple(ports.described(interface) for interface in found)

    def _document(self, uid: str, desired: Desired) -> Document | None:
        """That by which a ClusterIP is served."""
        return self.shares.document(uid) if self.shares else desired.documents.get(uid)

    def _check_files(self) -> None:
        """Make again what somebody removed of the state directory, as far as its disk allows."""
        for needed in (self._directory, self._directory / DESIRED, self._directory / APPLIED):
            try:
                files.make_directory(needed)
            except files.UnwritableError as error:
                _LOG.debug("%s", error)  # who needs it says so, each time
        self._journal.check()
        self._identity.check()
        self._last_good.check(self.desired.documents)

    def _act(
        self, wanted: Vips, local_sources: frozenset[IPv4Network]
    ) -> tuple[Settled, dict[IPv4Address, str]]:
        now = time.monotonic()
        self._addresses.intend(self._places(wanted), self._held(wanted))
        stuck = self._addresses.withdraw(wanted)
        kept = {ip: vip for ip, vip in self.programming.installed.items() if ip in stuck} if stuck else {}
        refused = self.programming.program({**wanted, **kept} if kept else wanted, local_sources, now)
        if self.shares:
            self._opens = self.shares.open_elsewhere(self.programming.installed)
        self._go_on()
        # Only an address that has its rules may be on a link: without them it would answer every packet.
        places = self._held(wanted)
        settled = self._addresses.settle(places)
        self._announcements.begin(settled.new, now)
        self._announcements.send(places, self._addresses.network, now)
        return settled, refused

    def _succeed(self, wanted: Vips) -> tuple[str, ...]:
        """Remove what another engine left, once this one's rules cover every address that is on a link.

        Until then the rules of both apply, and what either drops is dropped.
        """
        if not self._leftovers or self._addresses.shared - {place.address for place in self._held(wanted)}:
            return ()
        return self._leftovers.remove()

    def _places(self, wanted: Vips) -> tuple[Place, ...]:
        return self._wanted_places(wanted, self._addresses.network.links)

    def _held(self, wanted: Vips) -> tuple[Place, ...]:
        """Where those of `wanted` are to be that the engine holds, as it holds them."""
        held = self.programming.installed
        if held is not wanted and not held.keys() <= wanted.keys():
            held = {ip: vip for ip, vip in held.items() if ip in wanted}
        return self._held_places(held, self._addresses.network.links)

    def _interfaces(self, own: tuple[Address, ...]) -> tuple[Interface, ...]:
        found = self._interfaces_of(self._addresses.network, own)
        unix_ms = time.time_ns() // 1_000_000
        names = [interface.name for interface in found]
        self._identity.write(with_interfaces(self._identity.identity, names, self._boot_id, unix_ms))
        numbers = self._identity.identity.numbers()
        return tuple(replace(interface, incarnation=numbers[interface.name]) for interface in found)

    def _count_repairs(self, settled: Settled, decision: Decision, counted: Mapping[str, ClusterIP]) -> None:
        self._repairs.update(settled.repaired)
        moved = self._served.moved(decision.vips, counted, self._addresses.network.links)
        if moved:
            self._repairs["interface"] += moved

    def _unexplained(self, desired: Desired, counted: Mapping[str, ClusterIP]) -> Vips:
        """The Vips of the tables that no file explains, as long as a file may be missing.

        So a state directory that was lost disturbs nothing until sync has written all of it again.
        """
        explained = desired.faults.keys() <= counted.keys()
        if desired.complete and explained:
            self._orphans = {}
        known = {clusterip.spec.ip for clusterip in counted.values()}
        return {ip: vip for ip, vip in self._orphans.items() if ip not in known}

    def _keep(self, decision: Decision, desired: Desired) -> list[str]:
        """Write down the last good states before the kernel is touched; return what was not possible."""
        for uid, vip in decision.vips.items():
            document = self._document(uid, desired)
            if document and document.content:  # else it is the last good state
                self._last_good.keep(document, vip.interface)
        try:
            self._last_good.write()
        except files.UnwritableError as error:
            return [str(error)]
        return []

    def _drop(self, decision: Decision, desired: Desired, counted: Mapping[str, ClusterIP]) -> list[str]:
        """Forget the last good states of which nothing is left in the kernel."""
        problems = []
        for uid, clusterip in self._last_good.clusterips().items():
            # One that is in force without a good file is all that is known of it: it stays.
            if uid in decision.vips or (uid in counted and uid not in desired.documents):
                continue
            ip = clusterip.spec.ip
            if ip in self._decider.wanted or not (
                self._addresses.left(ip) or ip in self.programming.installed
            ):
                try:
                    self._last_good.drop(uid)
                except files.UnwritableError as error:
                    problems.append(str(error))
            else:
                problems.append(f"{ip} of the former ClusterIP {clusterip.identity.key} is not removed yet.")
        return problems

    def _failures(
        self,
        decision: Decision,
        desired: Desired,
        counted: Mapping[str, ClusterIP],
        settled: Settled,
        refused: Mapping[IPv4Address, str],
    ) -> dict[str, Outstanding]:
        """Each ClusterIP's first fault: its file's, the decision's, the engine's, the link's."""
        failures: dict[str, Outstanding] = {}
        # To ask for each of a thousand takes a while, and mostly there is nothing to ask for.
        for uid, vip in decision.vips.items() if refused or settled.faults else ():
            for reason, sentence in (
                ("EngineFailed", refused.get(vip.ip)),
                ("LinkFailed", settled.faults.get(vip.ip)),
            ):
                if sentence:
                    failures.setdefault(uid, failure(counted[uid], reason, sentence))
        failures |= decision.failures
        for uid, fault in desired.faults.items():
            known = counted.get(uid)
            failures[uid] = Outstanding(
                uid,
                fault.clusterip or (known.identity.key if known else ""),
                fault.epoch or (known.epoch if known else 0),
                fault.reason,
                fault.message + (" Its last good state stays in force." if known else ""),
            )
        return failures

    def _applied(
        self, decision: Decision, counted: Mapping[str, ClusterIP], failures: Mapping[str, Outstanding]
    ) -> dict[str, int]:
        """The epochs that the kernel has, also those that want nothing here and left nothing here."""
        absent = self._absent()
        left = self._last_good.clusterips()
        applied = {}
        for uid, clusterip in counted.items():
            vip = decision.vips.get(uid)
            nothing = vip is None and clusterip.epoch > 0 and uid not in left
            there = vip is not None and (not absent or vip.ip not in absent)
            epoch = self.shares.epoch(clusterip) if self.shares else clusterip.epoch
            if (nothing or there) and uid not in failures and epoch:
                applied[uid] = epoch
        return applied

    def _absent(self) -> set[IPv4Address]:
        """The addresses that are wanted, and not in the kernel as they are wanted."""
        wanted, installed = self._decider.wanted, self.programming.installed
        places = self._places(wanted)
        absent = set(self._addresses.missing(places))
        if installed is not wanted:
            absent |= {ip for ip, vip in wanted.items() if installed.get(ip) != vip}
        if len(places) < len(wanted):
            absent |= wanted.keys() - {place.ip for place in places}
        return absent

    def _is_outdated(self, network: Network, own: tuple[Address, ...], settled: Settled) -> bool:
        """Whether the links, when the pass read them after its changes, had changed otherwise too.

        The notification of that is gone with the reading: nothing else would bring the next pass.
        """
        now = self._addresses.network
        failed = settled.faults or settled.problems  # which is tried again, after a rest
        return now is not network and (
            self._own(now, self._addresses.shared) != own
            or now.gateways != network.gateways
            or _as_others_see(now.links) != _as_others_see(network.links)
            or (not failed and self._addresses.undone(self._held(self._decider.wanted)))
        )

    def _retry_at(self, *, troubled: bool) -> float | None:
        times = [self.programming.retry_at, self._announcements.next_at]
        times += [self.shares.ports.retry_at, self.shares.drains.next_at] if self.shares else []
        if troubled:
            times.append(time.monotonic() + RETRY_SECONDS)
        return min((t for t in times if t is not None), default=None)


def _pod_cidrs(node: DesiredNode) -> frozenset[IPv4Network]:
    return frozenset(node.pod_cidrs)


def _few(problems: list[str]) -> tuple[str, ...]:
    """The first ones and the number of the others: a thousand may have one cause."""
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    return (*problems[: MAX_PROBLEMS - 1], f"There are {len(problems) - MAX_PROBLEMS + 1} more problems.")


def _as_others_see(links: Mapping[int, Link]) -> list[Link]:
    """The links without the setting that a pass changes itself."""
    return [replace(link, arp_announce=0) for link in links.values()]
