"""What rtnetlink lists at length, read by hand: IPv4 addresses, link-layer groups, gateways.

Owns the requests and the layout of the answers; changes nothing. pyroute2 takes 90 µs for each message,
and with a thousand shared addresses there are three thousand of them. Formats: include/uapi/linux/
rtnetlink.h, if_addr.h and neighbour.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

from lbless_nodeagent.dataplane.network import Address, GroupKey

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, …, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_NEXT_HOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, hops, index
_ATTRIBUTE = struct.Struct("=HH")

_RTM_GETADDR, _RTM_GETROUTE, _RTM_GETNEIGH = 22, 26, 30
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH = 4, 5, 9
_NDA_LLADDR = 2
_IFA_F_DEPRECATED = 0x20
_UNICAST, _MAIN_TABLE = 1, 254
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_TYPE_MASK = 0x3FFF
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_RECEIVE_BYTES = 1 << 18
_ANSWER_SECONDS = 10
_ATTEMPTS = 5


class Dumps:
    """Asks, and reads the whole answer. Each method raises OSError where the kernel gives none."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.settimeout(_ANSWER_SECONDS)
        # So that the kernel leaves out other tables' routes: each shared address has one in table local.
        self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def addresses(self) -> tuple[Address, ...]:
        """All IPv4 addresses."""
        found = []
        for body in self._dump(_RTM_GETADDR, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)):
            _, prefix_length, flags, _, index = _ADDRESS.unpack_from(body)
            packed = b""
            for kind, value in _attributes(body, _ADDRESS.size):
                # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is always ours.
                if kind == _IFA_LOCAL or (kind == _IFA_ADDRESS and not packed):
                    packed = value
                elif kind == _IFA_FLAGS:
                    (flags,) = struct.unpack("=I", value)
            if len(packed) == 4:
                deprecated = bool(flags & _IFA_F_DEPRECATED)
                found.append(Address(index, IPv4Address(packed), prefix_length, deprecated))
        return tuple(found)

    def groups(self) -> frozenset[GroupKey]:
        """The link-layer groups that links have joined; lower-case MACs."""
        found = set()
        for body in self._dump(_RTM_GETNEIGH, _NEIGHBOUR.pack(socket.AF_BRIDGE, 0, 0, 0, 0)):
            _, index, _, _, _ = _NEIGHBOUR.unpack_from(body)
            for kind, value in _attributes(body, _NEIGHBOUR.size):
                # Not by the entry's flags: a bridge keeps its own groups among those of its ports.
                if kind == _NDA_LLADDR and value and value[0] & 1:
                    found.add((index, value.hex(":")))
        return frozenset(found)

    def gateways(self) -> frozenset[tuple[int, IPv4Address]]:
        """The next hops of the main table's unicast routes, with the index of their link."""
        found = set()
        request = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0)
        try:
            for body in self._dump(_RTM_GETROUTE, request):
                _, _, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
                if kind == _UNICAST:
                    found |= {(index, IPv4Address(packed)) for index, packed in _next_hops(body)}
        except FileNotFoundError:
            return frozenset()  # there is no such table before its first route
        return frozenset(found)

    def _dump(self, kind: int, request: bytes) -> list[bytes]:
        """A dump during which something changed may be incomplete: the kernel says so, and it is repeated."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return list(self._answers(kind, request))
            except InterruptedError:
                continue
        return list(self._answers(kind, request))

    def _answers(self, kind: int, request: bytes) -> Iterator[bytes]:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        length = _HEADER.size + len(request)
        self._socket.send(_HEADER.pack(length, kind, _REQUEST | _DUMP, self._sequence, 0) + request)
        interrupted = False
        while True:
            received, at = self._socket.recv(_RECEIVE_BYTES), 0
            while at + _HEADER.size <= len(received):
                length, answer, flags, sequence, _ = _HEADER.unpack_from(received, at)
                body = received[at + _HEADER.size : at + length]
                at += max(_HEADER.size, (length + 3) & ~3)
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                interrupted |= bool(flags & _INTERRUPTED)
                if answer in (_ERROR, _DONE):
                    # DONE carries a code too: that of a dump that broke off.
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    if interrupted:
                        raise InterruptedError
                    return
                yield body


def _attributes(body: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    at = start
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        yield kind & _TYPE_MASK, body[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)


def _next_hops(route: bytes) -> Iterator[tuple[int, bytes]]:
    """Link and packed IPv4 address of each gateway, also where a route has several."""
    found = dict(_attributes(route, _ROUTE.size))
    if _RTA_OIF in found and _RTA_GATEWAY in found:
        yield struct.unpack("=i", found[_RTA_OIF])[0], found[_RTA_GATEWAY]
    hops, at = found.get(_RTA_MULTIPATH, b""), 0
    while at + _NEXT_HOP.size <= len(hops):
        length, _, _, index = _NEXT_HOP.unpack_from(hops, at)
        gateway = dict(_attributes(hops[at : at + length], _NEXT_HOP.size)).get(_RTA_GATEWAY)
        if gateway:
            yield index, gateway
        at += max(_NEXT_HOP.size, (length + 3) & ~3)
