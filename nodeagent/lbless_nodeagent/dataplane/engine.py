"""What dataplane wants of a netfilter engine: the values it is given and the interface each engine has.

Owns no rule. How a packet is filtered is the engine's; which buckets are wanted is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability, Demand
from lbless_api.clusterip import HashParameters, PortRange, SourceMAC
from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.moving import AT_REST, Moving


class EngineError(Exception):
    """The kernel or the engine's library refused; the message is one sentence that says what to do."""


class EngineBusyError(EngineError):
    """Nothing was even tried, whatever was wanted: no Vip is at fault, and another try now waits as long again."""


@dataclass(frozen=True, slots=True)
class Vip:
    """One shared address on one interface of this node.

    `ports` are sorted and merged, None means all; `owned` are the buckets that this node is to keep: none
    is a Vip like any other, whose packets are all dropped. `source_mac` is whose MAC the address's own frames
    come from. `moving` are the buckets between two owners.
    """

    ip: IPv4Address
    interface: str
    mac: str
    hash: HashParameters
    ports: tuple[PortRange, ...] | None
    owned: BucketSet
    source_mac: SourceMAC = SourceMAC.NODE
    moving: Moving = AT_REST

    @property
    def demand(self) -> Demand:
        """What it asks of an engine's capabilities."""
        return Demand(self.hash, self.ports is not None, self.source_mac)


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that netfilter is to hold: the shared addresses, and the sources that are served locally."""

    vips: Mapping[IPv4Address, Vip]
    local_sources: frozenset[IPv4Network]


NOTHING = Wanted(vips={}, local_sources=frozenset())


class Engine(Protocol):
    """A way to make the kernel keep exactly the wanted packets. Every method but `refusal` may raise
    EngineError. Not thread-safe: one thread calls it."""

    name: str

    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do, never nothing. Where that depends on the kernel: as the last `probe` found it."""
        ...

    def refusal(self, vip: Vip) -> str | None:
        """Return one sentence why `vip` cannot be had here, or None: at least what `capabilities.refusal`
        has to say. Touches no kernel."""
        ...

    def probe(self) -> EngineReport:
        """Try everything that is needed, leave nothing behind, and say what is missing, and what the engine
        can do here. Never raises."""
        ...

    def apply(self, wanted: Wanted) -> None:
        """Bring the kernel from whatever it holds to `wanted`; does nothing where it holds that already.

        A Vip that `refusal` has a sentence for raises EngineError before anything is touched. When it
        raises, the kernel holds for each address what it held before, what was wanted, or less than
        either: never a bucket that neither had. Call it again when the cause is gone.
        """
        ...

    def verify(self) -> bool:
        """Whether the kernel still holds what was last applied; False before the first `apply`.

        Cheap enough to be called at each notification. After False call `apply`.
        """
        ...

    def audit(self) -> bool:
        """As `verify`, but reads everything back from the kernel: for a slow timer."""
        ...

    def remove(self) -> None:
        """Leave nothing of the engine's in the kernel, also of other versions of it.

        Also called at each start where another engine is used: where there is nothing it is cheap and
        loads no kernel module.
        """
        ...

    def installed(self) -> Wanted | None:
        """What the kernel holds, read back; None if there is nothing of this version of the engine.

        For the start after a crash. An address of which only a part is there is left out.
        """
        ...

    def lease_left(self, interface: str) -> float | None:
        """How many seconds the interface's lease still runs in the kernel; None if none does, or if the engine
        was made without.

        For a process that succeeds another. An engine that was made with a lease keeps no packet on an interface
        that has none, and never gives one itself: where `apply` had to build the rules anew no lease is left, so
        whoever renews them (`tick.renewal`) does that at once after it.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """How many packets met each end since the rules were built, by name."""
        ...

    def fileno(self) -> int | None:
        """A descriptor that becomes readable when the rules may have changed: call `verify` then, which
        also reads it empty. None: this engine has none. The same until `close`."""
        ...

    def close(self) -> None:
        """Let go of descriptors; the kernel keeps what it holds."""
        ...
