"""The node's memberships as the programming process has them: one on each interface, in the tick process.

Owns the conversation with that process: which interfaces have a membership and as which incarnation, what each
of them says last, and what of it is written down. What follows for the buckets is `shares`'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lbless_api.interfaces import Interface
from lbless_api.segment import Condition, SegmentReport, name_peers
from lbless_nodeagent.dataplane.identity import with_new, with_number
from lbless_nodeagent.dataplane.membership import Intent, Kept, Use, View
from lbless_nodeagent.dataplane.memoryfile import MemoryFile
from lbless_nodeagent.dataplane.statefiles import IdentityFile
from lbless_nodeagent.dataplane.tick.messages import (
    Alive,
    Attach,
    Attached,
    Carrier,
    Detach,
    Ended,
    Figures,
    Happened,
    Keys,
    Learnt,
    Refused,
    RulesGone,
    Seen,
    Segment,
    Stop,
    Told,
    ToTick,
)
from lbless_nodeagent.dataplane.tickprocess import TickEndedError, TickProcess
from lbless_nodeagent.dataplane.watch import HUNG_SECONDS, Watch
from lbless_nodeagent.files import boottime_seconds

RETRY_SECONDS = 1.0

_LOG = logging.getLogger("lbless.dataplane.membership")


@dataclass(slots=True)
class Port:
    """What is known of one interface's membership."""

    index: int
    incarnation: int
    """That of the `Attach`."""
    attached: bool = False
    """Whether what the tick process says of the interface is of this membership."""
    begun: bool = False
    """Whether the tick process was `Told`."""
    carrier: bool = True
    view: View = field(default_factory=View)
    """Without `use`; of version 0 until the first one has come."""
    use: dict[str, Use] = field(default_factory=dict)
    told: set[tuple[str, int]] = field(default_factory=set)
    """The epochs (UID, number) of which the tick process has been told."""
    confirmed: dict[str, tuple[int, Kept]] = field(default_factory=dict)
    """By UID: the incarnation, and what it was told last that the kernel does."""
    followed: int = 0
    """The version of the view of which it was told last that the kernel follows it."""
    segment: Segment | None = None
    figures: Figures | None = None
    refused: str = ""
    retry_at: float = 0.0
    ended: bool = False

    def see(self, seen: Seen) -> bool:
        """Take in a view; returns whether it is another."""
        changed = seen.view.version != self.view.version
        self.use.update(seen.view.use)
        for uid in seen.unused:
            self.use.pop(uid, None)
        former, view = self.view, seen.view
        # Equal ones stay the same objects, so that what was computed from them can be told apart at once.
        living = former.living if former.living == view.living else view.living
        held = former.held if former.held == view.held else view.held
        self.view = View(view.version, view.incarnation, living, held)
        return changed

    def forget(self, uid: str) -> None:
        """A ClusterIP is none of this interface."""
        self.use.pop(uid, None)
        self.confirmed.pop(uid, None)
        self.told = {one for one in self.told if one[0] != uid}


class Ports:
    """All of them, by interface."""

    def __init__(
        self,
        tick: TickProcess,
        identity: IdentityFile,
        memories: MemoryFile,
        boot_id: str,
        *,
        fenced: bool,
        lease_left: Callable[[str], float | None],
    ) -> None:
        """Find where a former process can be succeeded: before the engine writes anything, which may end a lease.
        Elsewhere its incarnations have ended with it. `lease_left` is the engine's; `fenced`: whether it has leases.
        """
        self._tick, self._identity, self._memories = tick, identity, memories
        self._boot_id, self._fenced, self._lease_left = boot_id, fenced, lease_left
        self._ports: dict[str, Port] = {}
        self._stopping = self._gone = False
        self._watch = Watch(boottime_seconds(), HUNG_SECONDS)
        ends = {name: self._lease_end(name) for name in memories.former}
        numbers = identity.identity.numbers()
        self._resumed = {
            name: end
            for name, end in ends.items()
            # One with a newer number has begun since, whose memory could not be written.
            if end is not None and numbers.get(name, 0) <= memories.former[name].incarnation
        }
        for name, last in identity.identity.interfaces.items():
            if last.boot_id == boot_id and name not in self._resumed:
                self._number_anew(name)
        self._spoken: set[str] = set()
        """The interfaces whose present incarnation has spoken: another membership needs another one."""
        self.learnt: list[Learnt] = []
        """Documents that peers have sent; whoever looks at them takes them out."""

    def __getitem__(self, interface: str) -> Port:
        return self._ports[interface]

    def get(self, interface: str | None) -> Port | None:
        """The port of an interface, None where there is none."""
        return self._ports.get(interface) if interface else None

    def items(self) -> list[tuple[str, Port]]:
        """All of them."""
        return list(self._ports.items())

    def fileno(self) -> int:
        """For poll()."""
        return self._tick.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether to poll for writing, too."""
        return self._tick.is_blocked

    def send(self, message: ToTick) -> None:
        """Tell the tick process."""
        self._tick.send(message)

    def alive(self) -> None:
        """Tell the tick process that this one does its work."""
        self._tick.send(Alive())

    def rekey(self, keys: tuple[bytes, ...]) -> None:
        """The keys have changed."""
        self._tick.send(Keys(keys))

    def stop(self, intent: Intent) -> None:
        """This dataplane is to end: go on with passes until `ended`."""
        self._stopping = True
        self._tick.send(Stop(intent))

    @property
    def ended(self) -> bool:
        """Whether all has been told that `stop` was to tell."""
        return self._gone or all(port.ended or port.refused for port in self._ports.values())

    def close(self) -> None:
        """End the tick process; the leases run out as they would."""
        self._tick.close()

    def receive(self) -> bool:
        """Take in what the tick process says; returns whether a pass is needed. Raises TickEndedError."""
        needed = False
        try:
            for message in self._tick.receive():
                self._watch.heard(boottime_seconds())
                needed |= not isinstance(message, Alive) and self._take(message)
        except TickEndedError:
            self._gone = True
            if not self._stopping:
                raise
        return needed

    def check(self) -> None:
        """Raises TickEndedError where the tick process hangs: it says once a second that it does not. To be called
        once after each wait."""
        if self._watch.is_stuck(boottime_seconds()) and not self._stopping:
            raise TickEndedError(
                f"The tick process has said nothing for {HUNG_SECONDS:.0f} s: this node no longer serves."
            )

    @property
    def retry_at(self) -> float | None:
        """When an interface that could not be used is tried again, or None."""
        return min((port.retry_at for port in self._ports.values() if port.refused), default=None)

    @property
    def problems(self) -> list[str]:
        """A sentence for each interface on which there are no heartbeats, and for the file."""
        found = [port.refused for port in self._ports.values() if port.refused]
        return [*found, *([self._memories.problem] if self._memories.problem else [])]

    def attach(
        self, interfaces: Sequence[Interface], indexes: Mapping[str, int], used: Container[str]
    ) -> None:
        """Have a membership on each of the interfaces that is `used`, until it is gone."""
        present = {interface.name for interface in interfaces}
        for name in [name for name in self._ports if name not in present]:
            del self._ports[name]
            self._memories.drop(name)
            self.send(Detach(name))
        for interface in interfaces:
            name, index = interface.name, indexes[interface.name]
            port = self._ports.get(name)
            if port is None and name not in used:
                continue
            if port is None or port.index != index or (port.refused and time.monotonic() >= port.retry_at):
                attachment = self._attachment(name, index)
                port = self._ports[name] = Port(index, attachment.incarnation)
                self.send(attachment)
            if port.carrier != interface.carrier:
                port.carrier = interface.carrier
                self.send(Carrier(name, interface.carrier))

    def begin(self) -> None:
        """Have the new memberships begin: all that is known of their ClusterIPs has been told."""
        for name, port in self._ports.items():
            if not port.begun:
                port.begun = True
                self.send(Told(name))

    def described(self, interface: Interface) -> Interface:
        """The interface with its present incarnation, and with what its membership says where it has one."""
        port, identity = self._ports.get(interface.name), self._identity.identity
        if port is None or port.refused:
            return replace(interface, incarnation=identity.numbers()[interface.name])
        said = port.segment
        if said is None:
            return replace(interface, segment=SegmentReport(frozenset({Condition.LISTENING})))
        report = SegmentReport(
            frozenset(Condition(str(condition)) for condition in said.conditions),
            name_peers(said.heard, said.names),
            name_peers(said.dead, said.names),
        )
        return replace(interface, incarnation=said.incarnation, segment=report)

    def _lease_end(self, name: str) -> float | None:
        """When the lease ends under which the former process' membership can go on; None if it cannot."""
        if not self._fenced:
            return None
        now = boottime_seconds()  # before it is read: it must not seem to reach further
        left = self._lease_left(name)
        return None if left is None else now + left

    def _attachment(self, name: str, index: int) -> Attach:
        end, newest = self._resumed.pop(name, None), self._memories.newest.get(name, ())
        if end is not None and end > boottime_seconds():
            memory = self._memories.former[name]
            _LOG.info("%s: goes on as incarnation %d.", name, memory.incarnation)
            self._number(name, memory.incarnation)
            self._spoken.add(name)
            return Attach(name, index, memory.incarnation, self._fenced, memory, end, newest)
        if end is not None or name in self._spoken or name not in self._identity.identity.interfaces:
            self._number_anew(name)
        self._spoken.add(name)
        number = self._identity.identity.interfaces[name].number
        return Attach(name, index, number, self._fenced, newest=newest)

    def _number_anew(self, name: str) -> None:
        unix_ms = time.time_ns() // 1_000_000
        self._identity.write(with_new(self._identity.identity, name, self._boot_id, unix_ms))

    def _number(self, name: str, number: int) -> None:
        self._identity.write(with_number(self._identity.identity, name, self._boot_id, number))

    def _take(self, message: object) -> bool:
        """Take in one message; returns whether it needs a pass."""
        if not isinstance(
            message, Attached | Seen | Refused | RulesGone | Learnt | Happened | Segment | Figures | Ended
        ):
            raise TypeError(f"The tick process sent a {type(message).__name__}.")
        name, port = message.interface, self._ports.get(message.interface)
        if isinstance(message, Happened):
            _LOG.info("%s: %s", name or "tick process", message.sentence)
            return False
        if port is None:
            return False
        if isinstance(message, Seen) and message.view.incarnation != port.view.incarnation:
            self._number(name, message.view.incarnation)
        if isinstance(message, Attached):
            port.attached = message.incarnation == port.incarnation
            return False
        return port.attached and self._heed(port, message)

    def _heed(
        self, port: Port, message: Seen | Refused | RulesGone | Learnt | Segment | Figures | Ended
    ) -> bool:
        if isinstance(message, Seen | Ended):
            # Before the kernel follows it, and so before any peer hears that: see Memory.
            self._memories.keep(message.interface, message.memory)
        if isinstance(message, Seen):
            return port.see(message)
        if isinstance(message, Figures):
            port.figures = message
        elif isinstance(message, Ended):
            port.ended = True
        elif isinstance(message, Refused):
            port.refused, port.retry_at = message.sentence, time.monotonic() + RETRY_SECONDS
        elif isinstance(message, Segment):
            port.segment = message
        elif isinstance(message, Learnt):
            self.learnt.append(message)
        return not isinstance(message, Figures | Ended)
