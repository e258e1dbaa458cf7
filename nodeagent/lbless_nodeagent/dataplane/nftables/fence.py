"""The lease beside an engine that is not nftables: a table that drops what comes in without one.

Owns that table alone. It stands before the other engine's rules, and what it lets through they still judge.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ipaddress import IPv4Address

from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.nftables import lease, readback, transactions
from lbless_nodeagent.dataplane.nftables.library import Library
from lbless_nodeagent.dataplane.nftables.names import SEAL, VIPS, Family
from lbless_nodeagent.dataplane.nftables.netlink import AF_IPV4, GETTABLE, Reader, name_attribute

TABLE = "lbless_lease"
FORMAT = "lbless lease 1"
"""The table's comment: raise the number with any change of the text below."""
_NAME = f"{Family.IP} {TABLE}"

TEXT = f"""add table {_NAME}
delete table {_NAME}
table {_NAME} {{ comment "{FORMAT}";
 set {SEAL} {{ type ipv6_addr; }}
 set {VIPS} {{ type ifname . ipv4_addr; }}
}}
{lease.structure(TABLE)}table {_NAME} {{
 chain prerouting {{ type filter hook prerouting priority -350; policy accept;
  iifname . ip daddr @{VIPS} {lease.UNLEASED}
 }}
}}
"""

Place = tuple[str, IPv4Address]
"""An interface, and an address that is shared there."""


class Fence:
    """What the table holds, and what it is to hold. Opens nothing before it is used; all but `close` may raise
    EngineError."""

    def __init__(self) -> None:
        self._reader: Reader | None = None
        self._library: Library | None = None
        self._generation: int | None = None
        self._held: frozenset[bytes] | None = None  # at that generation of nftables; None: no whole table

    def cover(self, places: Collection[Place]) -> None:
        """Fence at least these."""
        held = self._read()
        if held is None:
            self._run(TEXT + _adding(places))
            self._seal()
        elif missing := [place for place in places if _key(place) not in held]:
            self._run(_adding(missing))

    def fence(self, places: Collection[Place]) -> None:
        """Fence exactly these."""
        self.cover(places)
        if not self.is_of(places):
            self._run(f"flush set {_NAME} {VIPS}\n{_adding(places)}")

    def is_of(self, places: Collection[Place]) -> bool:
        """Whether exactly these are fenced; quick where nobody changed nftables since it was last asked."""
        return self._read() == frozenset(map(_key, places))

    def lease_left(self, interface: str) -> float | None:
        """How many seconds the interface's lease still runs; None if none does."""
        return readback.lease_left(self._connect(), TABLE, interface)

    def unleased(self) -> int:
        """How many packets were dropped for lack of a lease."""
        return readback.read_counters(self._connect(), TABLE).get("unleased", 0)

    def remove(self) -> None:
        """Let everything through; does nothing where nothing is, or no nftables at all."""
        try:
            there = self._connect().one(GETTABLE, AF_IPV4, name_attribute(1, TABLE))
        except EngineError:
            return
        if there is not None:
            self._run(f"delete table {_NAME}\n")

    def close(self) -> None:
        """Let go of descriptors."""
        if self._reader:
            self._reader.close()
        self._reader = self._library = self._generation = None

    def _connect(self) -> Reader:
        if self._reader is None:
            self._reader = Reader()
        return self._reader

    def _read(self) -> frozenset[bytes] | None:
        reader = self._connect()
        generation = reader.generation()
        if generation != self._generation:
            found = readback.read_structure(reader, Family.IP, TABLE)
            whole = found and found.comment == FORMAT and readback.is_sealed(reader, Family.IP, found, TABLE)
            keys = frozenset(e.key for e in reader.elements(AF_IPV4, TABLE, VIPS)) if whole else None
            self._generation, self._held = generation, keys
        return self._held

    def _run(self, text: str) -> None:
        self._generation = None
        if self._library is None:
            self._library = Library()
        self._library.run(text)

    def _seal(self) -> None:
        found = readback.read_structure(self._connect(), Family.IP, TABLE)
        if found:
            self._run(transactions.seal(Family.IP, found.digest, TABLE))


def _key(place: Place) -> bytes:
    interface, ip = place
    return struct.pack("16s4s", interface.encode(), ip.packed)


def _adding(places: Collection[Place]) -> str:
    elements = ", ".join(f'"{interface}" . {ip}' for interface, ip in sorted(places))
    return f"add element {_NAME} {VIPS} {{ {elements} }}\n" if elements else ""
