"""Notifications of changes of nf_tables: whether somebody else touched our tables. Reads only.

The kernel tells every listener of every change in the network namespace, our own included. A message
names the table and carries the low half of the number of its transaction, and that is how our own are
told from others': process ids are not the same inside a container and outside.
"""

import errno
import socket
from collections.abc import Collection

from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.nftables.names import TABLE
from lbless_nodeagent.dataplane.nftables.netlink import (
    AF_ARP,
    AF_IPV4,
    AF_NETDEV,
    MESSAGE,
    NFNL_SUBSYS_NFTABLES,
    messages,
    name_attribute,
    open_socket,
)

_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES = 270, 1, 7
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 8 << 20  # a transaction of 10,000 elements takes about 2 MB
_RECEIVE_BYTES = 1 << 18
_FAMILIES = (AF_IPV4, AF_ARP, AF_NETDEV)
# Each message about a table, or about something in one, begins with the table's name (attribute 1).
_TABLE_NAME = name_attribute(1, TABLE)
_NEWGEN = 15


class Monitor:
    """A listener. What happened before it was made it does not know."""

    def __init__(self) -> None:
        """Raises EngineError where that is not possible."""
        self._socket = open_socket()
        try:
            self._socket.setblocking(False)
            self._enlarge()
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError as error:
            self._socket.close()
            raise EngineError(f"Cannot listen to changes of nftables: {error.strerror}.") from error

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # in a user namespace: as much as an unprivileged socket may have
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)

    def fileno(self) -> int:
        """Readable when there are notifications."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def drain(self, own: Collection[int] = ()) -> tuple[bool, bool]:
        """Read all there is. Return whether a transaction that is not among `own` (by their generation)
        touched a table of ours, and whether notifications were lost, so that nobody knows."""
        own_halves = {generation & 0xFFFF for generation in own}
        touched = lost = False
        while True:
            try:
                received = memoryview(self._socket.recv(_RECEIVE_BYTES))
            except BlockingIOError:
                return touched, lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            touched = touched or _touches(received, own_halves)


def _touches(received: memoryview, own_halves: set[int]) -> bool:
    """Whether somebody else's transaction is told of that touched a table of ours."""
    for _, kind, _, whole in messages(received):
        if kind >> 8 != NFNL_SUBSYS_NFTABLES or kind & 0xFF == _NEWGEN or len(whole) < MESSAGE.size:
            continue
        if int.from_bytes(whole[18:20], "big") in own_halves:
            # The kernel gathers messages of one transaction only (nft_commit_notify): all of these are ours.
            return False
        name = bytes(whole[MESSAGE.size : MESSAGE.size + len(_TABLE_NAME)])
        if whole[16] in _FAMILIES and name == _TABLE_NAME:
            return True
    return False
