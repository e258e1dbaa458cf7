"""What the kernel holds of ours, read back: each table's structure with its seal, and all elements.

A table is kept only if its structure is exactly what was sealed; otherwise it counts as absent, and
whoever applies replaces it. Opens nothing, writes nothing.
"""

import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, summarize_address_range

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange
from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.nftables.footprint import PROTOCOL_NUMBERS, Footprint, Openings, Redirects
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.names import (
    ANSWERS,
    JUDGED,
    LEASE,
    LOCAL_SOURCES,
    MACS,
    MOVING,
    PORT_RANGES,
    PORTS,
    SEAL,
    SHARED,
    SOURCE_MACS,
    TABLE,
    TOKENS,
    VIPS,
    Family,
    Role,
    bucket_set,
    group_of_answers,
    group_of_entry,
    group_of_judged,
    group_of_set,
    interface_of_egress,
    opening_map,
    redirect_map,
    valid_interface,
)
from lbless_nodeagent.dataplane.nftables.netlink import (
    AF_ARP,
    AF_IPV4,
    AF_NETDEV,
    ATTEMPTS,
    GETCHAIN,
    GETOBJ,
    GETRULE,
    GETSET,
    GETSETELEM,
    GETTABLE,
    Attributes,
    Element,
    Reader,
    attribute,
    attributes,
    name_attribute,
    name_of,
    unsteady,
)
from lbless_nodeagent.dataplane.nftables.transactions import Held

_AF = {Family.IP: AF_IPV4, Family.ARP: AF_ARP, Family.NETDEV: AF_NETDEV}
_FAMILY_NAMES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}

# Attributes that only a change of structure changes; counts of references and of elements are others.
_TABLE_PARTS = (2, 4, 6)  # flags, handle, userdata
_CHAIN_PARTS = (2, 3, 4, 5, 7, 10)  # handle, name, hook, policy, type, flags
_SET_PARTS = (2, 3, 4, 5, 6, 7, 16)  # name, flags, key type and length, data type and length, handle
_RULE_PARTS = (2, 3, 4)  # chain, handle, expressions

_NESTED = 0x8000
_EXPIRATION = 5
_INTERVAL_END = 0x1
_GOTO = -4
_COUNTER_OBJECT = 1


class _Damaged(Exception):
    """An element that this version never writes."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A table without its elements. `digest` tells this very instance from any other."""

    comment: str
    digest: bytes
    chains: tuple[str, ...]
    sets: tuple[str, ...]


def read_structure(reader: Reader, family: Family, name: str = TABLE) -> Structure | None:
    """Return the structure of a table of ours, or None if there is none."""
    table = reader.one(GETTABLE, _AF[family], name_attribute(1, name))
    if table is None:
        return None
    chains = _of(name, reader.dump(GETCHAIN, _AF[family]))
    rules = _of(name, reader.dump(GETRULE, _AF[family], name_attribute(1, name)))
    sets = _of(name, reader.dump(GETSET, _AF[family], name_attribute(1, name)))
    digest = sha256()
    digest.update(b"".join(_parts(table, _TABLE_PARTS)))
    for objects, parts in ((chains, _CHAIN_PARTS), (rules, _RULE_PARTS), (sets, _SET_PARTS)):
        digest.update(b"\0|\0")
        for one in objects:
            digest.update(b"".join(_parts(one, parts)))
    return Structure(
        comment=_comment(table),
        digest=digest.digest()[:16],
        chains=tuple(name_of(c[3]) for c in chains),
        sets=tuple(name_of(s[2]) for s in sets),
    )


def is_sealed(reader: Reader, family: Family, structure: Structure, table: str = TABLE) -> bool:
    """Whether that structure of a table is the one that was recorded in it."""
    return [e.key for e in reader.elements(_AF[family], table, SEAL)] == [structure.digest]


def read(reader: Reader, layout: Layout) -> Held:
    """Return what the tables hold that could be kept, where they are to be of that layout."""
    found = _Found()
    tables, groups, egress = set(), set(), set()
    for family in Family:
        structure = read_structure(reader, family)
        if (
            structure is None
            or structure.comment != layout.comment
            or not is_sealed(reader, family, structure)
        ):
            continue
        part = _Found()
        try:
            _read_elements(reader, family, structure, part)
        except _Damaged:
            continue
        found.update(part)
        tables.add(family)
        groups |= _groups(structure)
        egress |= {i for i in map(interface_of_egress, structure.chains) if i}
    return Held(
        tables=frozenset(tables),
        groups=frozenset(groups),
        egress=frozenset(egress),
        local_sources=frozenset(found.local_sources),
        footprints=found.footprints(),
    )


def tables_of_ours(reader: Reader) -> list[str]:
    """Tables of our name in any family, as nft writes them: ``ip lbless``."""
    found = []
    for family, name in _FAMILY_NAMES.items():
        if reader.one(GETTABLE, family, name_attribute(1, TABLE)) is not None:
            found.append(f"{name} {TABLE}")
    return found


def read_counters(reader: Reader, table: str = TABLE) -> dict[str, int]:
    """Packets counted by each named counter of our tables; those of other tables than `ip` with its name."""
    packets = {}
    for family in Family:
        prefix = "" if family is Family.IP else f"{family}_"
        for one in _of(table, reader.dump(GETOBJ, _AF[family], name_attribute(1, table))):
            if int.from_bytes(one[3], "big") == _COUNTER_OBJECT:
                packets[prefix + name_of(one[2])] = int.from_bytes(attributes(one[4])[2], "big")
    return packets


def lease_left(reader: Reader, table: str, interface: str) -> float | None:
    """How many seconds an interface's lease of that table still runs; None if none does."""
    # NFTA_LIST_ELEM of NFTA_SET_ELEM_KEY of NFTA_DATA_VALUE
    key = attribute(_NESTED | 1, attribute(1, struct.pack("16s", interface.encode())))
    request = name_attribute(1, table) + name_attribute(2, LEASE)
    found = reader.one(GETSETELEM, AF_IPV4, request + attribute(_NESTED | 3, attribute(_NESTED | 1, key)))
    if found is None:
        return None
    expiration = attributes(attributes(found[3])[1]).get(_EXPIRATION)
    return int.from_bytes(expiration, "big") / 1_000 if expiration else None


@dataclass(slots=True)
class _Found:
    """Elements by address, gathered set by set."""

    shared: set[IPv4Address] = field(default_factory=set)
    entries: dict[IPv4Address, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    judged: dict[IPv4Address, str] = field(default_factory=dict)
    answers: dict[IPv4Address, str] = field(default_factory=dict)
    ports: dict[IPv4Address, set[PortRange]] = field(default_factory=lambda: defaultdict(set))
    buckets: dict[IPv4Address, dict[tuple[Role, HashParameters], BucketSet]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    moving: set[IPv4Address] = field(default_factory=set)
    redirects: dict[IPv4Address, dict[HashParameters, Redirects]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    openings: dict[IPv4Address, dict[HashParameters, Openings]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    tokens: dict[IPv4Address, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    arp_shared: set[IPv4Address] = field(default_factory=set)
    arp_interfaces: dict[IPv4Address, set[str]] = field(default_factory=lambda: defaultdict(set))
    macs: dict[IPv4Address, str] = field(default_factory=dict)
    source_macs: dict[IPv4Address, str] = field(default_factory=dict)
    local_sources: list[IPv4Network] = field(default_factory=list)

    def update(self, other: "_Found") -> None:
        """Take over what another family's table holds; no part is in two families."""
        self.shared |= other.shared
        self.entries.update(other.entries)
        self.judged.update(other.judged)
        self.answers.update(other.answers)
        self.ports.update(other.ports)
        self.buckets.update(other.buckets)
        self.moving |= other.moving
        self.redirects.update(other.redirects)
        self.openings.update(other.openings)
        self.tokens.update(other.tokens)
        self.arp_shared |= other.arp_shared
        self.arp_interfaces.update(other.arp_interfaces)
        self.macs.update(other.macs)
        self.source_macs.update(other.source_macs)
        self.local_sources += other.local_sources

    def footprints(self) -> dict[IPv4Address, Footprint]:
        everywhere: tuple[Iterable[IPv4Address], ...] = (
            self.shared, self.entries, self.judged, self.answers, self.ports, self.buckets, self.moving,
            self.redirects, self.openings, self.tokens, self.arp_shared, self.arp_interfaces, self.macs,
            self.source_macs,
        )  # fmt: skip
        return {
            ip: Footprint(
                shared=ip in self.shared,
                entries=frozenset(self.entries.get(ip, ())),
                judged=frozenset({self.judged[ip]} if ip in self.judged else ()),
                answers=frozenset({self.answers[ip]} if ip in self.answers else ()),
                ports=frozenset(self.ports.get(ip, ())),
                buckets=self.buckets.get(ip, {}),
                moving=ip in self.moving,
                redirects=self.redirects.get(ip, {}),
                openings=self.openings.get(ip, {}),
                tokens=frozenset(self.tokens.get(ip, ())),
                arp_shared=ip in self.arp_shared,
                arp_interfaces=frozenset(self.arp_interfaces.get(ip, ())),
                mac=self.macs.get(ip),
                source_mac=self.source_macs.get(ip),
            )
            for ip in set().union(*everywhere)
        }


def _read_elements(reader: Reader, family: Family, structure: Structure, found: _Found) -> None:
    def each(name: str) -> Iterator[Element]:
        try:
            yield from reader.elements(_AF[family], TABLE, name)
        except EngineError:
            raise
        except (KeyError, ValueError, IndexError):
            raise _Damaged from None

    if family is Family.IP:
        found.shared |= {IPv4Address(e.key) for e in each(SHARED)}
        for e in each(VIPS):
            found.entries[IPv4Address(e.key[16:20])].add((_interface(e.key[:16]), _goto(e, group_of_entry)))
        found.judged |= {IPv4Address(e.key): _goto(e, group_of_judged) for e in each(JUDGED)}
        found.answers |= {IPv4Address(e.key): _goto(e, group_of_answers) for e in each(ANSWERS)}
        found.moving |= {IPv4Address(e.key) for e in each(MOVING)}
        for e in (*each(PORTS), *each(PORT_RANGES)):
            found.ports[IPv4Address(e.key[:4])].add(_port_range(e))
        for group in _groups(structure):
            for role in Role:
                _read_buckets(reader, role, group, found)
            _read_redirects(each(redirect_map(group)), group, found)
            _read_openings(each(opening_map(group)), group, found)
        for e in each(TOKENS):
            found.tokens[IPv4Address(e.key[:4])].add(bytes(e.key[4:20]))
        found.local_sources += _networks(each(LOCAL_SOURCES))
    elif family is Family.ARP:
        found.arp_shared |= {IPv4Address(e.key) for e in each(SHARED)}
        for e in each(VIPS):
            found.arp_interfaces[IPv4Address(e.key[16:20])].add(_interface(e.key[:16]))
    else:
        for name, macs in ((MACS, found.macs), (SOURCE_MACS, found.source_macs)):
            macs.update((IPv4Address(e.key), bytes(_value(e)[1])[:6].hex(":")) for e in each(name))


def _read_buckets(reader: Reader, role: Role, group: HashParameters, found: _Found) -> None:
    """By far the largest sets."""
    name = bucket_set(group, role)
    for _ in range(ATTEMPTS):
        listed: dict[bytes, list[int]] = defaultdict(list)
        try:
            for ip, bucket in reader.plain_keys(_AF[Family.IP], TABLE, name, "4sL"):
                listed[ip].append(bucket)
        except ValueError:
            raise _Damaged from None
        if any(max(members) >= group.buckets for members in listed.values()):
            raise _Damaged
        buckets = {ip: BucketSet(members) for ip, members in listed.items()}
        if all(len(buckets[ip]) == len(members) for ip, members in listed.items()):
            break
    else:
        raise unsteady(name)
    for ip, members in buckets.items():
        found.buckets[IPv4Address(ip)][role, group] = members


def _read_redirects(listed: Iterator[Element], group: HashParameters, found: _Found) -> None:
    ways: dict[bytes, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for e in listed:
        ways[e.key[:4]][bytes(_value(e)[1])].append(int.from_bytes(e.key[4:], sys.byteorder))
    for ip, to in ways.items():
        if any(max(members) >= group.buckets for members in to.values()):
            raise _Damaged
        found.redirects[IPv4Address(ip)][group] = tuple(
            sorted((IPv4Address(address), BucketSet(members)) for address, members in to.items())
        )


def _read_openings(listed: Iterator[Element], group: HashParameters, found: _Found) -> None:
    opened: dict[bytes, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for e in listed:
        mark = int.from_bytes(bytes(_value(e)[1]), sys.byteorder)
        opened[e.key[:4]][mark].append(int.from_bytes(e.key[4:], sys.byteorder))
    for ip, by_mark in opened.items():
        if any(max(members) >= group.buckets for members in by_mark.values()):
            raise _Damaged
        found.openings[IPv4Address(ip)][group] = tuple(
            (mark, BucketSet(by_mark[mark])) for mark in sorted(by_mark)
        )


def _value(element: Element) -> Attributes:
    if element.value is None:
        raise _Damaged
    return attributes(element.value)


def _goto(element: Element, group_of: Callable[[str], object]) -> str:
    """The chain that an element leads to; `group_of` says whether its name is one of those."""
    verdict = attributes(_value(element).get(2, memoryview(b"")))
    if 1 not in verdict or int.from_bytes(verdict[1], "big", signed=True) != _GOTO:
        raise _Damaged
    chain = name_of(verdict[2])
    if group_of(chain) is None:
        raise _Damaged
    return chain


def _interface(key: bytes) -> str:
    name = key.rstrip(b"\0").decode("ascii", "replace")
    if not valid_interface(name):  # it may come to stand in a text that deletes the element
        raise _Damaged
    return name


def _port_range(element: Element) -> PortRange:
    end = element.key_end or element.key
    protocol = _PROTOCOLS.get(element.key[4])
    if protocol is None or end[:5] != element.key[:5]:
        raise _Damaged
    return PortRange(protocol, int.from_bytes(element.key[8:10], "big"), int.from_bytes(end[8:10], "big"))


def _networks(listed: Iterator[Element]) -> list[IPv4Network]:
    """Half-open intervals as networks. One that reaches the last address has no end element."""
    networks: list[IPv4Network] = []
    start: int | None = None
    # An end sorts before a beginning at the same place.
    marks = sorted((int.from_bytes(e.key[:4], "big"), not e.flags & _INTERVAL_END) for e in listed)
    for position, begins in marks:
        if start is not None:
            networks += summarize_address_range(IPv4Address(start), IPv4Address(position - 1))
        start = position if begins else None
    if start is not None:
        networks += summarize_address_range(IPv4Address(start), IPv4Address("255.255.255.255"))
    return networks


def _groups(structure: Structure) -> set[HashParameters]:
    return {group for group in map(group_of_set, structure.sets) if group}


def _of(table: str, dumped: list[memoryview]) -> list[Attributes]:
    name = table.encode() + b"\0"
    return [one for one in map(attributes, dumped) if bytes(one.get(1, b"")) == name]


def _parts(one: Attributes, kinds: tuple[int, ...]) -> Iterator[bytes]:
    for kind in kinds:
        value = bytes(one.get(kind, b""))
        yield bytes((kind,)) + len(value).to_bytes(4, "big") + value


def _comment(table: Attributes) -> str:
    """The comment in a table's userdata, which is a run of type, length, value, a byte each."""
    data, at = bytes(table.get(6, b"")), 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == 0:
            return data[at + 2 : at + 2 + length].rstrip(b"\0").decode("utf-8", "replace")
        at += 2 + length
    return ""
