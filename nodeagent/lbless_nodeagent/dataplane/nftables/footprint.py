"""What one shared address has in the kernel: set elements only. Pure.

A Footprint can also say what a Vip cannot: the half of one that an interrupted change left. How a Vip
is laid out is decided here, in both directions; in which order a change is made is `transactions`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from operator import attrgetter, itemgetter
from typing import Any

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol, SourceMAC
from lbless_api.mac import unicast_mac
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.moving import AT_REST, Moving
from lbless_nodeagent.dataplane.nftables.names import (
    ANSWERS,
    JUDGED,
    MACS,
    PORT_RANGES,
    PORTS,
    SHARED,
    SOURCE_MACS,
    VIPS,
    Family,
    Role,
    answers_chain,
    entry_chain,
    group_of_entry,
    judged_chain,
)
from lbless_nodeagent.dataplane.opening import mark

PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}


@dataclass(frozen=True, slots=True, order=True)
class SetName:
    """A named set or map of one of the tables."""

    family: Family
    name: str


Redirects = tuple[tuple[IPv4Address, BucketSet], ...]
"""As in `Moving`."""
Openings = tuple[tuple[int, BucketSet], ...]
"""The mark of each token, sorted, with the buckets that it opens, or closes."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The elements of one address.

    `entries` are pairs of the interface and the chain that its packets go to, `judged` the chains of the second
    stage, `answers` those for its answers to SYNs; `arp_interfaces` the interfaces on which ARP for it is
    answered. An address that is `shared` without an entry is dropped everywhere. No set of `buckets` and none of
    `redirects` and `openings` is empty; where `moving` is false, only those that are owned count.
    """

    shared: bool = False
    entries: frozenset[tuple[str, str]] = frozenset()
    judged: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()
    ports: frozenset[PortRange] = frozenset()
    buckets: Mapping[tuple[Role, HashParameters], BucketSet] = field(default_factory=dict)
    moving: bool = False
    redirects: Mapping[HashParameters, Redirects] = field(default_factory=dict)
    openings: Mapping[HashParameters, Openings] = field(default_factory=dict)
    tokens: frozenset[bytes] = frozenset()
    arp_shared: bool = False
    arp_interfaces: frozenset[str] = frozenset()
    mac: str | None = None
    source_mac: str | None = None

    def differs_in_buckets_only(self, other: Footprint) -> bool:
        """Whether the other is the same but for buckets, their states included."""
        same = replace(
            self,
            buckets=other.buckets,
            moving=other.moving,
            redirects=other.redirects,
            openings=other.openings,
            tokens=other.tokens,
        )
        return same == other


ABSENT = Footprint()


def footprint(vip: Vip, *, redirect: bool = True) -> Footprint:
    """What `vip` has in the kernel when it is complete. `redirect`: whether that can send packets on."""
    moving = vip.moving is not AT_REST and vip.moving != AT_REST
    return Footprint(
        shared=True,
        entries=frozenset({(vip.interface, entry_chain(vip.hash, with_ports=vip.ports is not None))}),
        judged=frozenset({judged_chain(vip.hash)}),
        answers=frozenset({answers_chain(vip.hash)}),
        ports=frozenset(vip.ports or ()),
        buckets=_buckets(vip, redirect=redirect),
        moving=moving,
        redirects={vip.hash: vip.moving.redirect} if redirect and vip.moving.redirect else {},
        openings={vip.hash: _openings(vip.moving)} if vip.moving.openings else {},
        tokens=frozenset(token for token, _ in vip.moving.openings),
        arp_shared=True,
        arp_interfaces=frozenset({vip.interface}),
        mac=vip.mac,
        source_mac=unicast_mac(vip.mac) if vip.source_mac is SourceMAC.CLUSTER else None,
    )


def _buckets(vip: Vip, *, redirect: bool) -> dict[tuple[Role, HashParameters], BucketSet]:
    if vip.moving is AT_REST:
        return {(Role.OWNED, vip.hash): vip.owned} if vip.owned else {}
    sent_on = BucketSet(b for _, buckets in vip.moving.redirect for b in buckets) if redirect else BucketSet()
    given_up = vip.moving.drain - vip.moving.uncertain - sent_on
    all_of_them = {
        Role.OWNED: vip.owned,
        Role.STANDBY: vip.moving.standby,
        Role.FRESH: vip.moving.fresh,
        Role.DRAIN: vip.moving.drain,
        Role.LEAVING: given_up | vip.moving.ending,
    }
    return {(role, vip.hash): buckets for role, buckets in all_of_them.items() if buckets}


def _openings(moving: Moving) -> Openings:
    return tuple(sorted(((mark(token), buckets) for token, buckets in moving.openings), key=itemgetter(0)))


def vip(ip: IPv4Address, found: Footprint) -> Vip | None:
    """The Vip of which `found` is the footprint; None if it is that of none, as after an interruption."""
    if len(found.entries) != 1 or found.mac is None:
        return None
    ((interface, chain),) = found.entries
    entry = group_of_entry(chain)
    if entry is None:
        return None
    group, with_ports = entry
    ports = tuple(sorted(found.ports)) if with_ports else None
    source_mac = SourceMAC.CLUSTER if found.source_mac else SourceMAC.NODE
    owned, standby, fresh, drain, leaving = (found.buckets.get((role, group), BucketSet()) for role in Role)
    by_mark = {mark(token): token for token in found.tokens}
    openings = ((by_mark.get(one, b""), buckets) for one, buckets in found.openings.get(group, ()))
    moving = Moving(
        standby,
        fresh,
        drain,
        leaving - drain,
        found.redirects.get(group, ()),
        tuple(sorted(openings, key=itemgetter(0))),
    )
    complete = Vip(ip, interface, found.mac, group, ports, owned, source_mac, moving)
    try:
        return complete if footprint(complete) == found else None
    except ValueError:  # somebody's element: lbless gives no source to a MAC that has none
        return None


def changed_elements(
    ip: IPv4Address, old: Footprint, new: Footprint
) -> list[tuple[SetName, frozenset[str], frozenset[str]]]:
    """What is different: a set or map, the elements of the one and those of the other, each as nft writes it, maps with
    their values. All but the buckets and what says that some move."""
    text = str(ip)  # once: it takes a microsecond
    found = []
    for name, part, written in _PARTS:
        before, after = part(old), part(new)
        if before != after:
            found.append((name, written(text, before), written(text, after)))
    return found


def _itself(text: str, present: bool) -> frozenset[str]:
    return frozenset({text} if present else ())


def _value(text: str, value: str | None) -> frozenset[str]:
    return frozenset({f"{text} : {value}"} if value else ())


def _chains(text: str, chains: frozenset[str]) -> frozenset[str]:
    return frozenset(f"{text} : goto {chain}" for chain in chains)


def _entries(text: str, entries: frozenset[tuple[str, str]]) -> frozenset[str]:
    return frozenset(f'"{interface}" . {text} : goto {chain}' for interface, chain in entries)


def _interfaces(text: str, interfaces: frozenset[str]) -> frozenset[str]:
    return frozenset(f'"{interface}" . {text}' for interface in interfaces)


def _single_ports(text: str, ports: frozenset[PortRange]) -> frozenset[str]:
    single = (p for p in ports if p.first == p.last)
    return frozenset(f"{text} . {PROTOCOL_NUMBERS[p.protocol]} . {p.first}" for p in single)


def _port_ranges(text: str, ports: frozenset[PortRange]) -> frozenset[str]:
    ranges = (p for p in ports if p.first < p.last)
    return frozenset(f"{text} . {PROTOCOL_NUMBERS[p.protocol]} . {p.first}-{p.last}" for p in ranges)


_Part = tuple[SetName, Callable[[Footprint], Any], Callable[[str, Any], frozenset[str]]]
_PARTS: tuple[_Part, ...] = (
    (SetName(Family.IP, SHARED), attrgetter("shared"), _itself),
    (SetName(Family.IP, VIPS), attrgetter("entries"), _entries),
    (SetName(Family.IP, JUDGED), attrgetter("judged"), _chains),
    (SetName(Family.IP, ANSWERS), attrgetter("answers"), _chains),
    (SetName(Family.IP, PORTS), attrgetter("ports"), _single_ports),
    (SetName(Family.IP, PORT_RANGES), attrgetter("ports"), _port_ranges),
    (SetName(Family.ARP, SHARED), attrgetter("arp_shared"), _itself),
    (SetName(Family.ARP, VIPS), attrgetter("arp_interfaces"), _interfaces),
    (SetName(Family.NETDEV, MACS), attrgetter("mac"), _value),
    (SetName(Family.NETDEV, SOURCE_MACS), attrgetter("source_mac"), _value),
)
"""Each set or map, of what of a footprint it has elements, and how these are written."""
