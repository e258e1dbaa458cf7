"""What dataplane wants of a netfilter engine: the values it is given and the interface each engine has.

Owns no rule. How a packet is filtered is the engine's; which buckets are wanted is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, SourceMAC
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.node import EngineReport


class EngineError(Exception):
    """The kernel or the engine's library refused; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Vip:
    """One shared address on one interface of this node.

    `ports` are sorted and merged, None means all; `owned` are the buckets that this node is to keep: none
    is a Vip like any other, whose packets are all dropped. `source_mac` is whose MAC the address's own frames
    come from.
    """

    ip: IPv4Address
    interface: str
    mac: str
    hash: HashParameters
    ports: tuple[PortRange, ...] | None
    owned: BucketSet
    source_mac: SourceMAC = SourceMAC.NODE


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that netfilter is to hold: the shared addresses, and the sources that are served locally."""

    vips: Mapping[IPv4Address, Vip]
    local_sources: frozenset[IPv4Network]


NOTHING = Wanted(vips={}, local_sources=frozenset())


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, as data, so that a Vip is refused before the kernel is touched."""

    functions: frozenset[HashFunction]
    modes: frozenset[HashMode]
    max_buckets: int
    min_prefix_length: int
    ports: bool

    def refusal(self, engine: str, vip: Vip) -> str | None:
        """Return one sentence why the engine named `engine` cannot do `vip`, or None."""
        wanted = vip.hash
        if wanted.function not in self.functions:
            return _sentence(
                vip, engine, f"hashFunction {wanted.function}", ", ".join(sorted(self.functions))
            )
        if wanted.mode not in self.modes:
            return _sentence(vip, engine, f"hashMode {wanted.mode}", ", ".join(sorted(self.modes)))
        if not 1 <= wanted.buckets <= self.max_buckets:
            return _sentence(vip, engine, f"{wanted.buckets} buckets", f"1 to {self.max_buckets}")
        if not self.min_prefix_length <= wanted.prefix_length <= 32:
            lengths = f"{self.min_prefix_length} to 32"
            return _sentence(vip, engine, f"sourcePrefixLength {wanted.prefix_length}", lengths)
        if vip.ports is not None and not self.ports:
            return _sentence(vip, engine, "ports", "a ClusterIP without ports, or another engine")
        return None


def _sentence(vip: Vip, engine: str, cannot: str, can: str) -> str:
    return f"{vip.ip}: the {engine} engine cannot do {cannot}: use {can}."


class Engine(Protocol):
    """A way to make the kernel keep exactly the wanted packets. Every method but `refusal` may raise
    EngineError. Not thread-safe: one thread calls it."""

    name: str

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def refusal(self, vip: Vip) -> str | None:
        """Return one sentence why `vip` cannot be had here, or None. Touches no kernel."""
        ...

    def probe(self) -> EngineReport:
        """Try everything that is needed, leave nothing behind, and say what is missing. Never raises."""
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
        """Leave nothing of the engine's in the kernel, also of other versions of it."""
        ...

    def installed(self) -> Wanted | None:
        """What the kernel holds, read back; None if there is nothing of this version of the engine.

        For the start after a crash. An address of which only a part is there is left out.
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
