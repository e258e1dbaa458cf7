"""A legacy table as the kernel keeps it: one run of bytes, read by getsockopt and taken apart here.

Owns the layout of `struct ipt_entry` (include/uapi/linux/netfilter_ipv4/ip_tables.h) and of its ARP
sister on 64-bit little-endian hosts. What the rules mean is `rules`' and `arp`'s. Nothing here writes:
what has been written is checked by other code than wrote it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lbless_nodeagent.dataplane.engine import EngineError

_NAME_BYTES = 32
_XT_HEADER = struct.Struct("<H29sB")  # size, name, revision: of a match and of a target
_ERROR = "ERROR"
_VERDICTS = {-1: "DROP", -2: "ACCEPT", -5: "RETURN"}
_READ_AGAIN = 5
"""The size is asked for before the entries are: another writer may come in between."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one family: where things stand in an entry, how its table is asked for, and where its names are."""

    selector_bytes: int
    offsets_at: int  # target_offset and next_offset
    counters_at: int
    elements_at: int
    info: int
    info_bytes: int
    entries: int
    names: Path


IP = Layout(84, 88, 96, 112, 64, 84, 65, Path("/proc/net/ip_tables_names"))
ARP = Layout(164, 164, 176, 192, 96, 68, 97, Path("/proc/net/arp_tables_names"))
GOTO = 0x02
"""In the flags of an ip entry: the rule's target is gone to, not called."""


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target: name and data, as the kernel's structure for it has them."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule. `verdict` is what a plain target does: DROP, ACCEPT, RETURN or the name of a chain."""

    selector: bytes
    matches: tuple[Extension, ...]
    target: Extension
    verdict: str | None
    packets: int = 0


Chains = Mapping[str, tuple[Entry, ...]]


def exists(layout: Layout, table: str) -> bool:
    """Whether the network namespace has the table; asking the kernel for it would make it. Raises EngineError."""
    try:
        return table in layout.names.read_text().split()
    except FileNotFoundError:
        return False  # the kernel has no such tables, or has not loaded them
    except OSError as error:
        raise EngineError(f"{layout.names} cannot be read: {error.strerror}.") from error


def read(layout: Layout, table: str) -> bytes | None:
    """The entries of a table; None if there is no such table. Raises EngineError."""
    if not exists(layout, table):
        return None
    with _socket() as opened:
        for _ in range(_READ_AGAIN):
            (size,) = struct.unpack_from(
                "<I", _ask(opened, layout.info, table, layout.info_bytes), layout.info_bytes - 4
            )
            head = _NAME_BYTES + 8
            try:
                answer = _ask(opened, layout.entries, table, head + size, size)
            except BlockingIOError:
                continue
            return answer[head:]
    raise EngineError(f"The {table} table changes too quickly to be read: see which program writes iptables.")


def _socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError as error:
        raise EngineError(f"No socket can be had to read iptables through: {error.strerror}.") from error


def _ask(opened: socket.socket, option: int, table: str, length: int, size: int = 0) -> bytes:
    """One getsockopt, whose answer may be longer than Python's own takes."""
    buffer = ctypes.create_string_buffer(length)
    struct.pack_into("<32sI", buffer, 0, table.encode(), size)
    given = ctypes.c_uint32(length)
    if _LIBC.getsockopt(opened.fileno(), socket.SOL_IP, option, buffer, ctypes.byref(given)) == 0:
        return buffer.raw
    error = ctypes.get_errno()
    if error == 11:  # EAGAIN: it has another size by now
        raise BlockingIOError
    raise EngineError(f"The {table} table cannot be read: {os.strerror(error)}.")


_LIBC = ctypes.CDLL(None, use_errno=True)


def parse(layout: Layout, table: bytes) -> Chains:
    """The chains that a user made, by name; raises EngineError for what cannot be a table.

    Rules of built-in chains are under "", in order: which hook is whose is not looked at.
    """
    try:
        return _parse(layout, table)
    except (struct.error, IndexError) as error:
        raise EngineError(f"The kernel's table cannot be understood: {error}.") from error


class Seen:
    """A table as it was read, to be compared with later readings: counters, and what the kernel notes, aside.

    By one operation over all of its bytes: it is done ten times a second, also with hundreds of rules.
    """

    def __init__(self, layout: Layout, table: bytes) -> None:
        """Raises EngineError for what cannot be a table."""
        kept = bytearray(b"\xff" * len(table))
        changing = slice(layout.offsets_at + 4, layout.counters_at + 16)
        nothing = bytes(changing.stop - changing.start)
        for at in _starts(layout, table):
            kept[at + changing.start : at + changing.stop] = nothing
        self._bytes = len(table)
        self._kept = int.from_bytes(kept)
        self._value = int.from_bytes(table) & self._kept

    def is_in(self, table: bytes | None) -> bool:
        """Whether that reading is of the same rules."""
        if table is None or len(table) != self._bytes:
            return False
        return int.from_bytes(table) & self._kept == self._value


def _starts(layout: Layout, table: bytes) -> Iterator[int]:
    at = 0
    try:
        while at < len(table):
            (following,) = struct.unpack_from("<H", table, at + layout.offsets_at + 2)
            if following < layout.elements_at or at + following > len(table):
                raise IndexError(f"an entry at {at} ends at {at + following}")
            yield at
            at += following
    except (struct.error, IndexError) as error:
        raise EngineError(f"The kernel's table cannot be understood: {error}.") from error


def _parse(layout: Layout, table: bytes) -> Chains:
    heads: dict[int, str] = {}  # where the first rule of a chain is → its name
    raw: list[tuple[int, str, Entry, int]] = []
    chain = ""
    for at in _starts(layout, table):
        target_at, following = struct.unpack_from("<HH", table, at + layout.offsets_at)
        target = _extension(table, at + target_at, at + following)
        if target.name == _ERROR:
            chain = _name(target.data)
            heads[at + following] = chain
        else:
            jump = struct.unpack_from("<i", target.data)[0] if not target.name else 0
            raw.append((at, chain, _entry(layout, table, at, at + target_at, target), jump))
    chains: dict[str, list[Entry]] = {name: [] for name in heads.values()}
    chains.setdefault("", [])
    for _, name, entry, jump in raw:
        verdict = entry.verdict
        if not entry.target.name:
            verdict = _VERDICTS.get(jump, f"verdict {jump}") if jump < 0 else heads.get(jump, "")
        chains[name].append(
            Entry(entry.selector, entry.matches, Extension(entry.target.name, b""), verdict, entry.packets)
            if not entry.target.name
            else entry
        )
    # The last entry of a user's chain is the kernel's own return to its caller; the last chain is none.
    return {name: tuple(rules[:-1] if name else rules) for name, rules in chains.items() if name != _ERROR}


def _entry(layout: Layout, table: bytes, at: int, target_at: int, target: Extension) -> Entry:
    matches = []
    match_at = at + layout.elements_at
    while match_at < target_at:
        matches.append(_extension(table, match_at, target_at))
        match_at += _XT_HEADER.size + len(matches[-1].data)
    (packets,) = struct.unpack_from("<Q", table, at + layout.counters_at)
    return Entry(table[at : at + layout.selector_bytes], tuple(matches), target, None, packets)


def _extension(table: bytes, at: int, end: int) -> Extension:
    size, name, _ = _XT_HEADER.unpack_from(table, at)
    if size < _XT_HEADER.size or at + size > end:
        raise IndexError(f"an extension at {at} has {size} bytes")
    return Extension(_name(name), table[at + _XT_HEADER.size : at + size])


def _name(data: bytes) -> str:
    # Somebody else's chain may be named in any bytes.
    return data.split(b"\0")[0].decode(errors="surrogateescape")
