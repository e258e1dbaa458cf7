"""The iptables engine: what the kernel holds is read here, and written by a child that ends at once.

For kernels whose nftables is too old, and beside machines that still run the CLUSTERIP target: where the kernel
has that, it does all modes of LegacyClusterIP up to 16 buckets; xt_cluster does SourceIP of JHash up to 32.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from lbless_api import capabilities
from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import parse_mac
from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.engine import EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.iptables import arp, entries, procfs, rules, wire
from lbless_nodeagent.dataplane.iptables.writer import Writer
from lbless_nodeagent.dataplane.moving import AT_REST
from lbless_nodeagent.dataplane.nftables import probe
from lbless_nodeagent.dataplane.nftables.fence import Fence, Place

LOOK_SECONDS = 0.1
"""The kernel tells nobody that these tables changed, so they are looked at this often."""
_INTERFACE = re.compile(r"[0-9A-Za-z_.:@-]{1,15}", re.ASCII)
"""At the end of a name, iptables takes + for any interface that begins so."""

_LEGACY = Capability(
    frozenset({HashFunction.LEGACY_CLUSTERIP}), frozenset(HashMode), rules.MAX_LEGACY_BUCKETS, ports=True
)
_CLUSTER = Capability(
    frozenset({HashFunction.JHASH}),
    frozenset({HashMode.SOURCE_IP}),
    rules.MAX_CLUSTER_BUCKETS,
    ports=True,
)


@dataclass(frozen=True, slots=True)
class _Held:
    """The kernel's tables as read, and the nodes of each address of the CLUSTERIP target."""

    mangle: bytes | None
    arp: bytes | None
    nodes: Mapping[IPv4Address, BucketSet]


class _Applied:
    """What was read right after the last `apply`."""

    def __init__(self, held: _Held) -> None:
        self._mangle = entries.Seen(entries.IP, held.mangle or b"")
        self._arp = entries.Seen(entries.ARP, held.arp or b"")
        self._nodes = held.nodes

    def is_in(self, held: _Held) -> bool:
        return (
            self._mangle.is_in(held.mangle or b"")
            and self._arp.is_in(held.arp or b"")
            and self._nodes == held.nodes
        )


class IptablesEngine:
    """The `Engine` of legacy iptables. Opens nothing before it is used."""

    name = "iptables"

    def __init__(self, *, lease: bool = False) -> None:
        """`lease`: an interface needs one, if nftables works here as well."""
        self._fence = Fence()
        self._lease = lease
        self._unfenced = ""
        self._capabilities: tuple[Capability, ...] = (_LEGACY, _CLUSTER)
        self._applied: _Applied | None = None
        self._fenced: frozenset[Place] = frozenset()  # with what was applied
        self._writer = Writer()
        self._ticks = -1

    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do, never nothing; as the last `probe` found it."""
        return self._capabilities

    def refusal(self, vip: Vip) -> str | None:
        """Return one sentence why `vip` cannot be had here, or None. Touches no kernel."""
        if not _INTERFACE.fullmatch(vip.interface):
            return (
                f"{vip.ip}: interface {vip.interface!r} cannot be written in a rule: "
                f"rename it to letters, digits and _ . : @ - only."
            )
        try:
            if parse_mac(vip.mac) != vip.mac:
                return f"{vip.ip}: MAC address {vip.mac} is not written in lower case with colons."
        except ValueError as error:
            return f"{vip.ip}: {error}"
        refused = capabilities.refusal(self.name, self._capabilities, vip.demand)
        if refused:
            return f"{vip.ip}: {refused}"
        buckets = vip.owned | vip.moving.buckets
        if not buckets.issubset(BucketSet.full(vip.hash.buckets)):
            return (
                f"{vip.ip}: buckets {buckets} are not all below {vip.hash.buckets}: correct the assignment."
            )
        return None if vip.moving == AT_REST else _unmovable(vip)

    def probe(self) -> EngineReport:
        """Try everything that is needed, leave nothing behind, and say what is missing. Never raises."""
        try:
            found = self._writer.do({"do": "probe"})
        except EngineError as error:
            return EngineReport(self.name, False, str(error), capabilities=self._capabilities)
        if found["arp"]:
            message = f"The cluster's MAC cannot be told without arptables: {found['arp']}"
            return EngineReport(self.name, False, message, capabilities=self._capabilities)
        missing = {
            _LEGACY: found["legacy"] and f"The target CLUSTERIP does not work here: {found['legacy']}",
            _CLUSTER: found["cluster"] and f"The match cluster does not work here: {found['cluster']}",
        }
        self._unfenced = (probe.trial(probe.FENCE).missing or "") if self._lease else ""
        able = tuple(way for way, why in missing.items() if not why)
        message = " ".join(why for why in missing.values() if why)
        self._capabilities = able or (_LEGACY, _CLUSTER)
        return EngineReport(
            self.name, bool(able), message, capabilities=self._capabilities, unfenced=self._unfenced
        )

    def apply(self, wanted: Wanted) -> None:
        """Bring the kernel from whatever it holds to `wanted`; see `Engine.apply`."""
        for ip, vip in wanted.vips.items():
            refused = self.refusal(vip)
            if refused or vip.ip != ip:
                raise EngineError(refused or f"{ip} is wanted with the rules of {vip.ip}.")
        held, places = _read(), _places(wanted)
        if self._is_fenced:
            self._fence.cover(places)  # before any rule of theirs keeps a packet
        else:
            self._fence.remove()
        if not _is(held, wanted):
            self._applied = None
            self._writer.do({"do": "apply", "wanted": wire.render(wanted)})
            held = _read()
            if not _is(held, wanted):
                raise EngineError(
                    "The kernel holds other iptables rules than were just written: see which program changes them."
                )
        if self._is_fenced:
            self._fence.fence(places)
        self._applied, self._fenced = _Applied(held), places
        self._writer.prepare()

    def verify(self) -> bool:
        """Whether the kernel still holds what was last applied."""
        if self._ticks >= 0:
            _drain(self._ticks)
        if self._applied is None or (self._is_fenced and not self._fence.is_of(self._fenced)):
            return False
        return self._applied.is_in(_read())

    def audit(self) -> bool:
        """As `verify`, which reads everything already."""
        return self.verify()

    def remove(self) -> None:
        """Leave nothing of the engine's in the kernel, also of other versions of it."""
        self._applied = None
        self._fence.remove()  # first: with nobody to renew it, it would drop what the next engine keeps
        found = entries.read(entries.IP, rules.TABLE)
        ours = found is not None and any(map(rules.is_ours, entries.parse(entries.IP, found)))
        if ours or not arp.is_held((), arp.read()):
            self._writer.do({"do": "apply"})

    def installed(self) -> Wanted | None:
        """What the kernel holds, read back; see `Engine.installed`."""
        held = _read()
        found = entries.parse(entries.IP, held.mangle) if held.mangle else {}
        if rules.CHAIN not in found:
            return None
        # Rules that no packet comes to hold nothing, whatever they say.
        chains = rules.decode(found) if rules.is_led_to(found) else {}
        return rules.understand(chains, held.nodes)

    def lease_left(self, interface: str) -> float | None:
        """How many seconds the interface's lease still runs, None without one; see `Engine.lease_left`."""
        return self._fence.lease_left(interface) if self._is_fenced else None

    def counters(self) -> Mapping[str, int]:
        """How many packets met each end since the rules were made, by name."""
        found = entries.read(entries.IP, rules.TABLE)
        counted = rules.count(entries.parse(entries.IP, found)) if found else {}
        return {**counted, "unleased": self._fence.unleased()} if self._is_fenced else counted

    @property
    def _is_fenced(self) -> bool:
        return self._lease and not self._unfenced

    def fileno(self) -> int | None:
        """A timer that becomes readable every `LOOK_SECONDS`, as the kernel has no notification of changes."""
        if self._ticks < 0:
            self._ticks = _timer(LOOK_SECONDS)
        return self._ticks

    def close(self) -> None:
        """Let go of descriptors; the kernel keeps what it holds."""
        self._writer.close()
        self._fence.close()
        if self._ticks >= 0:
            os.close(self._ticks)
            self._ticks = -1


def _unmovable(vip: Vip) -> str:
    return (
        f"{vip.ip}: the iptables engine cannot let a bucket move and keep its flows: give it buckets that are owned "
        f"only, or use the nftables engine."
    )


def _places(wanted: Wanted) -> frozenset[Place]:
    return frozenset((vip.interface, vip.ip) for vip in wanted.vips.values())


def _read() -> _Held:
    return _Held(entries.read(entries.IP, rules.TABLE), arp.read(), procfs.read())


def _is(held: _Held, wanted: Wanted) -> bool:
    """Whether this is just what `wanted` comes to."""
    if held.mangle is None:
        return False
    found = entries.parse(entries.IP, held.mangle)
    if not rules.is_entered(found):
        return False
    complete = rules.is_held(wanted, rules.decode(found), held.nodes)
    return complete and arp.is_held(wanted.vips.values(), held.arp)


_LIBC = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC = 1, os.O_NONBLOCK | os.O_CLOEXEC


def _timer(seconds: float) -> int:
    """A timerfd, which Python has only from 3.13 on; raises EngineError."""
    made: int = _LIBC.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
    if made < 0:
        raise EngineError(f"No timer can be had to look at iptables by: {os.strerror(ctypes.get_errno())}.")
    whole, rest = divmod(int(seconds * 1e9), 10**9)
    times = struct.pack("<qqqq", whole, rest, whole, rest)
    if _LIBC.timerfd_settime(made, 0, times, None):
        os.close(made)
        raise EngineError("The timer to look at iptables by cannot be set.")
    return made


def _drain(descriptor: int) -> None:
    with suppress(BlockingIOError):
        os.read(descriptor, 8)
