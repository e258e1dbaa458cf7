"""Buckets of sets and maps written as one nf_tables transaction over netlink, packed by hand.

Owns the messages and what the kernel's answer means. Nothing but elements of plain sets and of maps to plain values
is written here: structure, verdicts and intervals are libnftables' to lay out. It takes 80 ms for a change of a
single bucket beside a proxy with 5,000 services, because it reads every chain of the host first, and three times as
long as this for 10,000 buckets. Formats: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.nftables.names import TABLE
from lbless_nodeagent.dataplane.nftables.netlink import (
    AF_IPV4,
    AF_UNSPEC,
    MESSAGE,
    NFNL_SUBSYS_NFTABLES,
    attribute,
    messages,
    name_attribute,
    open_socket,
)

Change = tuple[str, str, Sequence[bytes], Sequence[bytes]]
"""``add`` or ``delete``, the set's name, the keys, and the value of each that a map gains, or nothing: keys are
of one length, values of one, and both are multiples of 4."""

_KINDS = {"add": 12, "delete": 14}  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, _END
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400
_NESTED = 0x8000
_MESSAGE_ELEMENTS = 2_000  # an attribute has 16 bits for its length: 2,340 elements of 28 bytes
_ERROR, _ERROR_AT = 2, 16
_CODE = struct.Struct("=i")
_SOL_NETLINK, _CAP_ACK, _SO_SNDBUFFORCE = 270, 10, 32
_BUFFER_BYTES = 4 << 20
_RECEIVE_BYTES = 1 << 16
_ANSWER_SECONDS = 10


class Batch:
    """A socket for such transactions, one at a time."""

    def __init__(self) -> None:
        """Raises EngineError where there is no nfnetlink."""
        self._socket = open_socket()
        self._socket.settimeout(_ANSWER_SECONDS)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # an error does not repeat what was sent
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # in a user namespace: as much as an unprivileged socket may have
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, changes: Iterable[Change]) -> None:
        """Make the changes as one transaction, as a whole or not at all; raises EngineError.

        Where the kernel refused, nothing took effect; where its answer did not come, nobody knows.
        """
        bodies = [body for change in changes for body in _bodies(change)]
        if not bodies:
            return
        first = self._sequence = self._sequence + 1 & 0xFFFF
        last = first + len(bodies)
        parts = [_message(_BEGIN, _REQUEST, first, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, b"")]
        for sequence, (kind, body) in enumerate(bodies, first + 1):
            flags = _REQUEST | (_CREATE if kind == _KINDS["add"] else 0) | (_ACK if sequence == last else 0)
            parts.append(_message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, sequence, AF_IPV4, 0, body))
        parts.append(_message(_END, _REQUEST, last + 1, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, b""))
        self._sequence = last + 1
        try:
            self._socket.send(b"".join(parts))
            self._await(first, last)
        except OSError as error:
            raise EngineError(_sentence(error)) from None

    def _await(self, first: int, last: int) -> None:
        """Read until the last change is acknowledged, or the transaction as a whole (`first`) is refused."""
        refused: OSError | None = None
        while True:
            for _, kind, sequence, whole in messages(memoryview(self._socket.recv(_RECEIVE_BYTES))):
                if kind != _ERROR or not first <= sequence <= last:
                    continue  # what is left of an earlier one
                code = -_CODE.unpack_from(whole, _ERROR_AT)[0]
                refused = refused or (OSError(code, os.strerror(code)) if code else None)
                if sequence in (first, last):
                    if refused:
                        raise refused
                    return


def _bodies(change: Change) -> Iterator[tuple[int, bytes]]:
    """The type and content of a message for each part of a change that fits in one."""
    verb, name, keys, values = change
    where = name_attribute(1, TABLE) + name_attribute(2, name)
    for start in range(0, len(keys), _MESSAGE_ELEMENTS):
        part = keys[start : start + _MESSAGE_ELEMENTS]
        size, value_size = len(part[0]), 8 + len(values[0]) if values else 0
        # NFTA_LIST_ELEM of NFTA_SET_ELEM_KEY of NFTA_DATA_VALUE
        head = struct.pack("=HHHHHH", size + 12 + value_size, _NESTED | 1, size + 8, _NESTED | 1, size + 4, 1)
        if values:  # and NFTA_SET_ELEM_DATA of NFTA_DATA_VALUE
            middle = struct.pack("=HHHH", value_size, _NESTED | 2, value_size - 4, 1)
            pairs = zip(part, values[start : start + _MESSAGE_ELEMENTS], strict=True)
            part = [key + middle + value for key, value in pairs]
        yield _KINDS[verb], where + attribute(_NESTED | 3, head + head.join(part))


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    length = MESSAGE.size + len(body)
    return MESSAGE.pack(length, kind, flags, sequence, 0, family, 0, socket.htons(resource)) + body


def _sentence(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "No permission to change nftables: run as root, or with the capability CAP_NET_ADMIN."
    if isinstance(error, TimeoutError):
        return f"The kernel did not answer to a change of lbless's sets within {_ANSWER_SECONDS} s."
    return (
        f"The kernel refused a change of lbless's sets ({error.strerror}): "
        f"look for another program that edits them."
    )
