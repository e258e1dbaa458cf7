"""Reading nf_tables from the kernel: the request socket, attributes, dumps. Writes nothing.

libnftables writes (all but buckets: `batch`) and this reads, because reading back through libnftables is
slower (85,000 elements: 0.6 s and 27 MB of JSON), omits what is needed (a table's comment) and can kill
the process (listing some sets). Formats: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lbless_nodeagent.dataplane.engine import EngineError

GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETGEN, GETOBJ = 1, 4, 7, 10, 13, 16, 19
AF_UNSPEC, AF_IPV4, AF_ARP, AF_NETDEV = 0, 2, 3, 5

NFNL_SUBSYS_NFTABLES = 10
MESSAGE = struct.Struct("=LHHLLBBH")  # nlmsghdr, nfgenmsg; the last field is in network order
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_ERROR_AT = 16
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NETLINK_NETFILTER = 12
_RECEIVE_BYTES = 1 << 18
ATTEMPTS = 20
_ANSWER_SECONDS = 10

Attributes = dict[int, memoryview]


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map: keys as the kernel packs them, `value` a map's data attribute."""

    key: bytes
    key_end: bytes | None
    value: memoryview | None
    flags: int


def open_socket() -> socket.socket:
    """A socket of nfnetlink in this network namespace; raises EngineError where there is none."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        opened.bind((0, 0))
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            raise EngineError(
                "This kernel has no nfnetlink: use one with CONFIG_NETFILTER_NETLINK, or load that module."
            ) from None
        raise EngineError(f"Cannot open a netfilter socket: {error.strerror}.") from error
    return opened


def attribute(kind: int, value: bytes) -> bytes:
    """Pack one attribute."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def name_attribute(kind: int, name: str) -> bytes:
    """Pack a name as an attribute."""
    return attribute(kind, name.encode("ascii") + b"\0")


def attributes(data: memoryview) -> Attributes:
    """Unpack a run of attributes; of several of a kind the last."""
    return dict(each_attribute(data))


def each_attribute(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Unpack a run of attributes one by one."""
    at, end = 0, len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            raise EngineError("The kernel's answer about nf_tables is malformed: an attribute has no length.")
        yield kind & _TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3


def name_of(value: memoryview) -> str:
    """A name attribute's text."""
    return bytes(value).rstrip(b"\0").decode("ascii", "replace")


class Reader:
    """Questions to nf_tables, each answered before the next is asked."""

    def __init__(self) -> None:
        """Raises EngineError where there is no nf_tables or no permission."""
        self._socket = open_socket()
        self._socket.settimeout(_ANSWER_SECONDS)
        self._sequence = 0
        try:
            self.generation()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def generation(self) -> int:
        """The number of the last transaction of this network namespace, whoever's it was."""
        for answer in self._ask(GETGEN, AF_UNSPEC, b"", dump=False):
            return int.from_bytes(attributes(answer)[1], "big")
        raise EngineError("The kernel did not say its nf_tables generation.")

    def one(self, kind: int, family: int, request: bytes) -> Attributes | None:
        """Return one object's attributes, or None if it is not there."""
        try:
            for answer in self._ask(kind, family, request, dump=False):
                return attributes(answer)
        except FileNotFoundError:
            pass
        return None

    def dump(self, kind: int, family: int, request: bytes = b"") -> list[memoryview]:
        """Return all objects of a kind, each its attributes; empty if what `request` names is absent.

        A dump during which somebody else committed may be inconsistent, and is repeated.
        """
        for _ in range(ATTEMPTS):
            try:
                return list(self._ask(kind, family, request, dump=True))
            except FileNotFoundError:
                return []
            except InterruptedError:
                continue
        raise EngineError(
            f"Other programs change nftables so fast that it cannot be read ({ATTEMPTS} attempts): "
            f"see with `nft monitor` which it is."
        )

    def elements(self, family: int, table: str, name: str) -> list[Element]:
        """The elements of a set or map; none if it is absent. Raises EngineError for a catch-all one.

        While the kernel enlarges a set's hash table, for some milliseconds after a large change, a dump has
        some elements twice and as many others not at all, without a word: it is repeated.
        """
        for _ in range(ATTEMPTS):
            found = []
            for answer in self.dump(GETSETELEM, family, name_attribute(1, table) + name_attribute(2, name)):
                listed = attributes(answer).get(3)
                for _, packed in each_attribute(listed) if listed is not None else ():
                    found.append(_element(attributes(packed), name))
            if len({(element.key, element.flags) for element in found}) == len(found):
                return found
        raise unsteady(name)

    def plain_keys(self, family: int, table: str, name: str, key: str) -> Iterator[tuple[Any, ...]]:
        """The keys, as `struct` unpacks them by `key`, of a set whose elements have nothing but a key.

        Some five times as fast as `elements`: for a set that may have hundreds of thousands. Raises
        ValueError where an element has more. One that comes twice says that others are missing: the
        caller, who sees it for free, repeats the dump then (see `elements`).
        """
        size = struct.calcsize(f"={key}")
        # NFTA_LIST_ELEM of NFTA_SET_ELEM_KEY of NFTA_DATA_VALUE, and nothing else in any of them.
        head = struct.pack("=HHHHHH", size + 12, 1, size + 8, 1, size + 4, 1)
        layout = struct.Struct(f"={len(head)}s{key}")
        for answer in self.dump(GETSETELEM, family, name_attribute(1, table) + name_attribute(2, name)):
            listed = attributes(answer).get(3, memoryview(b""))
            if len(listed) % layout.size:
                raise ValueError("an element has another layout")
            for found, *fields in layout.iter_unpack(listed):
                if found != head:
                    raise ValueError("an element has another layout")
                yield tuple(fields)

    def _ask(self, kind: int, family: int, request: bytes, *, dump: bool) -> Iterator[memoryview]:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        flags = _REQUEST | (_DUMP if dump else 0)
        length = MESSAGE.size + len(request)
        head = MESSAGE.pack(length, NFNL_SUBSYS_NFTABLES << 8 | kind, flags, self._sequence, 0, family, 0, 0)
        try:
            self._socket.send(head + request)
            yield from self._answers(dump)
        except PermissionError:
            raise EngineError(
                "No permission to use nftables: run as root, or with the capability CAP_NET_ADMIN."
            ) from None
        except TimeoutError:
            raise EngineError(
                f"The kernel did not answer about nf_tables within {_ANSWER_SECONDS} s."
            ) from None
        except (FileNotFoundError, InterruptedError):
            raise
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise EngineError(
                    "This kernel has no nf_tables for a family that is needed: use one with CONFIG_NF_TABLES, "
                    "CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_ARP and CONFIG_NF_TABLES_NETDEV."
                ) from None
            raise EngineError(f"Cannot read nf_tables: {error.strerror}.") from error

    def _answers(self, dump: bool) -> Iterator[memoryview]:
        interrupted = False
        while True:
            received = memoryview(self._socket.recv(_RECEIVE_BYTES))
            for flags, kind, sequence, whole in messages(received):
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if kind == _NLMSG_ERROR:
                    code = -_ERROR.unpack_from(whole, _ERROR_AT)[0]
                    raise OSError(code, os.strerror(code))
                if kind == _NLMSG_DONE:
                    if interrupted:
                        raise InterruptedError
                    return
                yield whole[MESSAGE.size :]
                if not dump:
                    return


def unsteady(name: str) -> EngineError:
    """What a set that cannot be read, because it keeps growing, is told with."""
    return EngineError(
        f"Set {name} changes so fast that it cannot be read ({ATTEMPTS} attempts): see with `nft monitor` why."
    )


def messages(received: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """The messages of one datagram: flags, type, sequence and the whole message."""
    at = 0
    while at + 16 <= len(received):
        length, kind, flags, sequence = struct.unpack_from("=LHHL", received, at)
        yield flags, kind, sequence, received[at : at + max(length, 16)]
        at += max((length + 3) & ~3, 16)


def _element(packed: Attributes, where: str) -> Element:
    if 1 not in packed:
        raise EngineError(f"Set {where} has a catch-all element, which is not of lbless's making.")
    key_end = packed.get(10)
    return Element(
        key=bytes(attributes(packed[1])[1]),
        key_end=bytes(attributes(key_end)[1]) if key_end is not None else None,
        value=packed.get(2),
        flags=int.from_bytes(packed[3], "big") if 3 in packed else 0,
    )
