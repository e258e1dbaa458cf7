"""From what the kernel holds to what is wanted, as transactions. Pure.

A change that fits is one transaction, so that nobody sees a part of it. A bigger one is cut, and then
its order is what keeps it harmless: between two pieces each address keeps no bucket that it had neither
before nor is to have, and no packet of an address that the node holds goes past the filter. What can be
seen is less: an address that is dropped for some milliseconds.

    1  structure that is missing           5  ports and buckets that are gained
    2  buckets that are given up           6  entries that lead to them
    3  entries that change or go           7  addresses that are gone
    4  addresses that are new: closed      8  structure that nothing uses any more
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_nodeagent.dataplane.engine import NOTHING, Wanted
from lbless_nodeagent.dataplane.nftables import rules
from lbless_nodeagent.dataplane.nftables.footprint import ABSENT, Footprint, SetName, elements, footprint
from lbless_nodeagent.dataplane.nftables.names import (
    LOCAL_SOURCES,
    MACS,
    PORT_RANGES,
    PORTS,
    SEAL,
    SHARED,
    SOURCE_MACS,
    TABLE,
    VIPS,
    Family,
    owned_set,
)

MAX_ELEMENTS = 10_000
"""Elements at most in a transaction: 20,000 block everybody else for 34 ms, 85,000 for 167 ms."""

_STATEMENT_ELEMENTS = 1_000
_LOCAL_SOURCES = SetName(Family.IP, LOCAL_SOURCES)
_EMPTY = BucketSet()
_KEY = struct.Struct("=4sL")
"""An owned bucket as the kernel has it: the address in network order, the bucket in the host's."""
_NUMBERS = [struct.pack("=L", bucket) for bucket in range(BucketSet.LIMIT)]


@dataclass(frozen=True, slots=True)
class Held:
    """All that the tables hold. A family that is not among `tables` has none that could be kept."""

    tables: frozenset[Family] = frozenset()
    groups: frozenset[HashParameters] = frozenset()
    egress: frozenset[str] = frozenset()
    local_sources: frozenset[IPv4Network] = frozenset()
    footprints: Mapping[IPv4Address, Footprint] = field(default_factory=dict)


NOTHING_HELD = Held()


@dataclass(frozen=True, slots=True)
class BucketChange:
    """Buckets that a set of owned ones gains (``add``) or loses (``delete``), each as its packed key."""

    verb: str
    name: str
    keys: tuple[bytes, ...]

    @property
    def text(self) -> str:
        """The same as nft writes it."""
        unpacked = map(_KEY.unpack, self.keys)
        written = ", ".join(f"{socket.inet_ntoa(ip)} . {bucket}" for ip, bucket in unpacked)
        return f"{self.verb} element {Family.IP} {TABLE} {self.name} {{ {written} }}\n"


@dataclass(frozen=True, slots=True)
class Transaction:
    """What takes effect as a whole. `restructured` are the tables whose rules or sets it changes."""

    statements: tuple[str | BucketChange, ...]
    elements: int
    restructured: frozenset[Family]

    @property
    def text(self) -> str:
        """All of it for nft."""
        return "".join(s if isinstance(s, str) else s.text for s in self.statements)

    @property
    def buckets(self) -> tuple[BucketChange, ...] | None:
        """All of it, if it changes nothing but buckets; else None."""
        changes = tuple(s for s in self.statements if isinstance(s, BucketChange))
        return changes if len(changes) == len(self.statements) else None


def target(wanted: Wanted, before: Wanted = NOTHING, goal_before: Held | None = None) -> Held:
    """What the kernel holds when it holds `wanted`.

    `goal_before` is the same for `before`: the footprints of Vips that did not change are taken over.
    """
    known = goal_before.footprints if goal_before else {}
    prints = {}
    for ip, vip in wanted.vips.items():
        former = before.vips.get(ip)
        same = former is vip or former == vip  # mostly it is, and to compare all of a thousand takes 2 ms
        prints[ip] = (known.get(ip) if same else None) or footprint(vip)
    return Held(
        tables=frozenset(Family),
        groups=frozenset(vip.hash for vip in wanted.vips.values()),
        egress=frozenset(vip.interface for vip in wanted.vips.values()),
        local_sources=frozenset(collapse_addresses(wanted.local_sources)),  # the kernel refuses overlaps
        footprints=prints,
    )


def transactions(
    held: Held, goal: Held, layout: rules.Layout, limit: int = MAX_ELEMENTS
) -> list[Transaction]:
    """What brings the kernel from `held` to `goal`, in order; empty if that is the same.

    Both are of `layout`. `held` has nothing of a family that is not among its tables.
    """
    structure, changed = _missing_structure(held, goal, layout)
    element_changes = list(_element_changes(held, goal))
    piece = _Piece(limit, whole=sum(len(elements) for _, _, elements in element_changes) <= limit)
    piece.structure(structure, changed)
    for verb, name, changed_elements in element_changes:
        piece.add(verb, name, changed_elements)
    if held.local_sources != goal.local_sources:
        # Whole: they are few, and the kernel can take "delete" and "add" of touching ranges amiss.
        piece.structure(f"flush set {_where(_LOCAL_SOURCES)}\n", frozenset())
        piece.add("add", _LOCAL_SOURCES, [str(n) for n in sorted(goal.local_sources)])
    piece.structure(*_unused_structure(held, goal))
    return piece.finish()


def seal(family: Family, digest: bytes, table: str = TABLE) -> str:
    """Record the digest of a table's structure, 16 bytes, in the table itself."""
    name = f"{family} {table} {SEAL}"
    words = ":".join(digest[i : i + 2].hex() for i in range(0, 16, 2))
    return f"flush set {name}\nadd element {name} {{ {words} }}\n"


def _missing_structure(held: Held, goal: Held, layout: rules.Layout) -> tuple[str, frozenset[Family]]:
    tables = sorted(goal.tables - held.tables)
    groups = sorted(goal.groups - held.groups)
    egress = sorted(goal.egress - held.egress)
    made = (rules.table(family, layout) for family in tables)
    text = "".join((*made, *map(rules.add_group, groups), *map(rules.add_egress, egress)))
    return text, _families(tables, groups, egress)


def _unused_structure(held: Held, goal: Held) -> tuple[str, frozenset[Family]]:
    groups = sorted(held.groups - goal.groups)
    egress = sorted(held.egress - goal.egress)
    text = "".join((*map(rules.remove_group, groups), *map(rules.remove_egress, egress)))
    return text, _families((), groups, egress)


def _families(tables: Iterable[Family], groups: list[HashParameters], egress: list[str]) -> frozenset[Family]:
    touched = set(tables)
    if groups:
        touched.add(Family.IP)
    if egress:
        touched.add(Family.NETDEV)
    return frozenset(touched)


_Change = tuple[str, SetName, list[str] | list[bytes]]
"""``add`` or ``delete``, where, and elements as nft writes them or buckets as `_KEY` packs them."""


def _element_changes(held: Held, goal: Held) -> Iterator[_Change]:
    """Changes of elements in the order of the steps 2 to 7."""
    before, after = held.footprints, goal.footprints
    ips = {ip for ip, wanted in after.items() if before.get(ip) is not wanted}
    if len(before) + sum(ip not in before for ip in ips) > len(after):
        ips |= before.keys() - after.keys()
    changed = [(ip, before.get(ip, ABSENT), after.get(ip, ABSENT)) for ip in sorted(ips)]
    gone: dict[SetName, list[str]] = {}
    new: dict[SetName, list[str]] = {}
    for ip, old, wanted in changed:
        old_elements, new_elements = elements(ip, old), elements(ip, wanted)
        for name, present in old_elements.items():
            if present == new_elements[name]:
                continue
            gone.setdefault(name, []).extend(sorted(present - new_elements[name]))
            new.setdefault(name, []).extend(sorted(new_elements[name] - present))

    def change(verb: str, where: dict[SetName, list[str]], family: Family, name: str) -> _Change:
        return verb, SetName(family, name), where.get(SetName(family, name), [])

    yield from _buckets("delete", changed, lambda old, wanted: old - wanted)
    yield change("delete", gone, Family.IP, VIPS)
    yield change("delete", gone, Family.IP, PORTS)
    yield change("delete", gone, Family.IP, PORT_RANGES)
    yield change("delete", gone, Family.NETDEV, MACS)  # also one that gets another value: the key goes first
    yield change("delete", gone, Family.NETDEV, SOURCE_MACS)
    yield change("add", new, Family.NETDEV, MACS)
    yield change("add", new, Family.NETDEV, SOURCE_MACS)
    yield change("add", new, Family.ARP, SHARED)
    yield change("add", new, Family.ARP, VIPS)
    yield change("add", new, Family.IP, SHARED)
    yield change("add", new, Family.IP, PORTS)
    yield change("add", new, Family.IP, PORT_RANGES)
    yield from _buckets("add", changed, lambda old, wanted: wanted - old)
    yield change("add", new, Family.IP, VIPS)
    yield change("delete", gone, Family.ARP, VIPS)
    yield change("delete", gone, Family.ARP, SHARED)
    yield change("delete", gone, Family.IP, SHARED)


def _buckets(
    verb: str,
    changed: list[tuple[IPv4Address, Footprint, Footprint]],
    difference: Callable[[BucketSet, BucketSet], BucketSet],
) -> Iterator[_Change]:
    by_group: dict[HashParameters, list[bytes]] = {}
    for ip, old, wanted in changed:
        packed = ip.packed
        for group in old.owned.keys() | wanted.owned.keys():
            buckets = difference(old.owned.get(group, _EMPTY), wanted.owned.get(group, _EMPTY))
            by_group.setdefault(group, []).extend([packed + _NUMBERS[bucket] for bucket in buckets])
    for group in sorted(by_group):
        yield verb, SetName(Family.IP, owned_set(group)), by_group[group]


def _where(name: SetName) -> str:
    return f"{name.family} {TABLE} {name.name}"


class _Piece:
    """Statements gathered into transactions, a new one whenever the elements of the last are enough.

    What does not fit in one transaction, as a `whole`, has its buckets in transactions of their own: those
    are written the quick way.
    """

    def __init__(self, limit: int, *, whole: bool) -> None:
        self._limit = limit
        self._whole = whole
        self._done: list[Transaction] = []
        self._statements: list[str | BucketChange] = []
        self._count = 0
        self._restructured: frozenset[Family] = frozenset()

    def structure(self, text: str, restructured: frozenset[Family]) -> None:
        """Append statements without elements; they stay in the transaction at hand."""
        if text:
            self._statements.append(text)
            self._restructured |= restructured

    def add(self, verb: str, name: SetName, changed: list[str] | list[bytes]) -> None:
        """Append the adding or deletion of elements, as texts or as keys of buckets, cut where a
        transaction is full."""
        if changed and self._statements and not self._whole:
            last = isinstance(self._statements[-1], BucketChange)
            if last != isinstance(changed[0], bytes):
                self._close()
        position = 0
        while position < len(changed):
            if self._count >= self._limit:
                self._close()
            room = min(self._limit - self._count, _STATEMENT_ELEMENTS)
            part = changed[position : position + room]
            self._statements.append(_statement(verb, name, part))
            self._count += len(part)
            position += len(part)

    def finish(self) -> list[Transaction]:
        """Return all transactions."""
        if self._statements:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(Transaction(tuple(self._statements), self._count, self._restructured))
        self._statements, self._count, self._restructured = [], 0, frozenset()


def _statement(verb: str, name: SetName, part: list[str] | list[bytes]) -> str | BucketChange:
    texts = [element for element in part if isinstance(element, str)]
    if texts:
        return f"{verb} element {_where(name)} {{ {', '.join(texts)} }}\n"
    return BucketChange(verb, name.name, tuple(element for element in part if isinstance(element, bytes)))
