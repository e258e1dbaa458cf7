"""From what the kernel holds to what is wanted, as transactions. Pure.

A change that fits is one transaction, so that nobody sees a part of it. A bigger one is cut, and then
its order is what keeps it harmless: between two pieces each address keeps no bucket that it had neither
before nor is to have, nor in another state, and no packet of an address that the node holds goes past the filter.
What can be seen is less: an address that is dropped for some milliseconds.

    1  structure that is missing           5  ports and buckets that are gained, in whatever state
    2  buckets that are given up           6  entries that lead to them
    3  entries that change or go           7  what stopped answers for those that left, addresses that are gone
    4  addresses that are new: closed      8  structure that nothing uses any more

A change that does not fit is cut between addresses where only buckets change, so that each of these still goes
from one state to another at once; within an address only if it does not fit by itself.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from lbless_api.clusterip import HashParameters
from lbless_nodeagent.dataplane.engine import NOTHING, Wanted
from lbless_nodeagent.dataplane.nftables import rules
from lbless_nodeagent.dataplane.nftables.changes import Changes, Elements
from lbless_nodeagent.dataplane.nftables.footprint import ABSENT, Footprint, SetName, footprint
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.names import (
    LOCAL_SOURCES,
    REDIRECT_SUFFIX,
    SEAL,
    TABLE,
    TOKENS,
    Family,
)
from lbless_nodeagent.dataplane.opening import TOKEN_BYTES

MAX_ELEMENTS = 10_000
"""Elements at most in a transaction: 20,000 block everybody else for 34 ms, 85,000 for 167 ms."""

_STATEMENT_ELEMENTS = 1_000
_LOCAL_SOURCES = SetName(Family.IP, LOCAL_SOURCES)
_KEY = struct.Struct("=4sL")
"""A bucket as the kernel has it: the address in network order, the bucket in the host's."""
_TOKEN_KEY_BYTES = 4 + TOKEN_BYTES


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
    """Buckets that a set or map of them gains (``add``) or loses (``delete``), each as its packed key, and the
    values that a map gains, if it is one; or addresses of which some buckets move; or tokens."""

    verb: str
    name: str
    keys: tuple[bytes, ...]
    values: tuple[bytes, ...] = ()

    @property
    def text(self) -> str:
        """The same as nft writes it."""
        written = [_written(key) for key in self.keys]
        if self.values:
            # An address in network order is no mark, which is a number in the host's.
            as_text = socket.inet_ntoa if self.name.endswith(REDIRECT_SUFFIX) else _as_number
            values = map(as_text, self.values)
            written = [f"{key} : {value}" for key, value in zip(written, values, strict=True)]
        return f"{self.verb} element {Family.IP} {TABLE} {self.name} {{ {', '.join(written)} }}\n"


def _written(key: bytes) -> str:
    if len(key) < _KEY.size:
        return socket.inet_ntoa(key)
    if len(key) > _KEY.size:
        return f"0x{key.hex()}"
    ip, bucket = _KEY.unpack(key)
    return f"{socket.inet_ntoa(ip)} . {bucket}"


def _as_number(value: bytes) -> str:
    return f"{int.from_bytes(value, sys.byteorder):#010x}"


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


def target(
    wanted: Wanted, before: Wanted = NOTHING, goal_before: Held | None = None, *, redirect: bool = True
) -> Held:
    """What the kernel holds when it holds `wanted`. `redirect`: whether it can send packets on.

    `goal_before` is the same for `before`: the footprints of Vips that did not change are taken over.
    """
    known = goal_before.footprints if goal_before else {}
    prints = {}
    for ip, vip in wanted.vips.items():
        former = before.vips.get(ip)
        same = former is vip or former == vip  # mostly it is, and to compare all of a thousand takes 2 ms
        prints[ip] = (known.get(ip) if same else None) or footprint(vip, redirect=redirect)
    return Held(
        tables=frozenset(Family),
        groups=frozenset(vip.hash for vip in wanted.vips.values()),
        egress=frozenset(vip.interface for vip in wanted.vips.values()),
        local_sources=frozenset(collapse_addresses(wanted.local_sources)),  # the kernel refuses overlaps
        footprints=prints,
    )


def transactions(held: Held, goal: Held, layout: Layout, limit: int = MAX_ELEMENTS) -> list[Transaction]:
    """What brings the kernel from `held` to `goal`, in order; empty if that is the same.

    Both are of `layout`. `held` has nothing of a family that is not among its tables.
    """
    portions = _portions(held, goal, limit)
    piece = _Piece(limit, whole=sum(portion.size for portion in portions) <= limit)
    piece.structure(*_missing_structure(held, goal, layout))
    for number, portion in enumerate(portions):
        if number:
            piece.close()
        for change in portion:
            piece.add(*change)
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


def _missing_structure(held: Held, goal: Held, layout: Layout) -> tuple[str, frozenset[Family]]:
    tables = sorted(goal.tables - held.tables)
    groups = sorted(goal.groups - held.groups)
    egress = sorted(goal.egress - held.egress)
    made = (rules.table(family, layout) for family in tables)
    grouped = (rules.add_group(group, layout) for group in groups)
    text = "".join((*made, *grouped, *map(rules.add_egress, egress)))
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


def _portions(held: Held, goal: Held, limit: int) -> list[Changes]:
    """Changes of elements, each to be made as a whole where it fits: everything, if that does; if not, the
    addresses of which only buckets change, as many at once as fit, and then all others step by step."""
    before, after = held.footprints, goal.footprints
    ips = {ip for ip, wanted in after.items() if before.get(ip) is not wanted}
    if len(before) + sum(ip not in before for ip in ips) > len(after):
        ips |= before.keys() - after.keys()
    changed = [(ip, before.get(ip, ABSENT), after.get(ip, ABSENT)) for ip in sorted(ips)]
    everything = _gathered(changed)
    buckets_only = {ip for ip, old, wanted in changed if old.differs_in_buckets_only(wanted)}
    if everything.size <= limit or not buckets_only:
        return [everything]
    portions = [Changes()]
    alone = [_gathered([one]) for one in changed if one[0] in buckets_only]
    for one in sorted(alone, key=lambda one: not one.gives_up):  # who is to have them waits for that
        if portions[-1].size + one.size > limit:
            portions.append(Changes())
        portions[-1].merge(one)
    return [*portions, _gathered(one for one in changed if one[0] not in buckets_only)]


def _gathered(changed: Iterable[tuple[IPv4Address, Footprint, Footprint]]) -> Changes:
    found = Changes()
    for one in changed:
        found.gather(*one)
    return found


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

    def add(self, verb: str, name: SetName, changed: Elements) -> None:
        """Append the adding or deletion of elements, as texts or as keys of buckets, cut where a
        transaction is full."""
        if changed and self._statements and not self._whole:
            last = isinstance(self._statements[-1], BucketChange)
            if last != isinstance(changed[0], bytes):
                self.close()
        position = 0
        while position < len(changed):
            if self._count >= self._limit:
                self.close()
            room = min(self._limit - self._count, _STATEMENT_ELEMENTS)
            part = changed[position : position + room]
            self._statements.append(_statement(verb, name, part))
            self._count += len(part)
            position += len(part)

    def finish(self) -> list[Transaction]:
        """Return all transactions."""
        self.close()
        return self._done

    def close(self) -> None:
        """What is appended next is of another transaction."""
        if self._statements:
            self._done.append(Transaction(tuple(self._statements), self._count, self._restructured))
            self._statements, self._count, self._restructured = [], 0, frozenset()


def _statement(verb: str, name: SetName, part: Elements) -> str | BucketChange:
    texts = [element for element in part if isinstance(element, str)]
    if texts:
        return f"{verb} element {_where(name)} {{ {', '.join(texts)} }}\n"
    packed = tuple(element for element in part if isinstance(element, bytes))
    size = _TOKEN_KEY_BYTES if name.name == TOKENS else _KEY.size
    if len(packed[0]) <= size:
        return BucketChange(verb, name.name, packed)
    keys, values = zip(*((element[:size], element[size:]) for element in packed), strict=True)
    return BucketChange(verb, name.name, keys, values)
