"""Somebody on the segment without a key: records each heartbeat that passes, and sends whatever it likes."""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from types import TracebackType

from kernel.rawpackets import ethernet, ipv4
from lab.claim import NAMESPACES
from lab.host import Host
from lbless_api.hashing import UDP
from lbless_api.heartbeat import node_id
from lbless_api.heartbeat_frame import MAX_BYTES
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.tick.filters import ETHERTYPE, GROUP

HEAD_BYTES = 14
NODE = slice(2, 10)
"""The sender's id in a frame: version and kind are before it."""
_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def network_of(host: Host) -> Iterator[None]:
    """This thread in a host's network: what it opens there stays there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(NAMESPACES / host.namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(there)
        os.close(home)


class Forger:
    """`with Forger(lan.client) as forger:` records from now on."""

    def __init__(self, host: Host) -> None:
        with network_of(host):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 * 1024 * 1024)
            self._socket.bind((host.interface, ETHERTYPE))
        self._socket.setblocking(False)
        self._source = bytes.fromhex("024c42ff0666")
        self._seen: list[bytes] = []
        self._stop = threading.Event()
        self._traffic: threading.Thread | None = None

    def __enter__(self) -> "Forger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._traffic:
            self._traffic.join()
        self._socket.close()

    def begin_traffic(self, address: str) -> None:
        """Send a packet to a shared address every 50 ms, until the end."""
        packet = ipv4(IPv4Address("10.80.0.2"), IPv4Address(address), UDP, bytes(20))
        to = default_mac(IPv4Address(address))

        def run() -> None:
            while not self._stop.wait(0.05):
                self._socket.send(ethernet(packet, to=to))

        self._traffic = threading.Thread(target=run, daemon=True)
        self._traffic.start()

    def forget(self) -> None:
        """Record anew from now on."""
        self.recorded()
        self._seen.clear()

    def recorded(self, node: str | None = None) -> list[bytes]:
        """The payloads that have passed so far, all or one node's, in their order; never this forger's own."""
        while True:
            try:
                frame, origin = self._socket.recvfrom(HEAD_BYTES + MAX_BYTES + 1)
            except BlockingIOError:
                break
            if origin[2] != socket.PACKET_OUTGOING:
                self._seen.append(frame[HEAD_BYTES:])
        return [one for one in self._seen if node is None or one[NODE] == node_id(node)]

    def send(self, payloads: Iterable[bytes]) -> int:
        """Send them to heartbeats' group; returns how many they were."""
        head = GROUP + self._source + struct.pack("!H", ETHERTYPE)
        count = 0
        for payload in payloads:
            self._socket.send(head + payload)
            count += 1
        return count


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
