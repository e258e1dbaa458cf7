"""Gratuitous ARP: the segment hears which MAC a shared address has from now on.

Owns the frames, and sending them twice. Which address is new is decided elsewhere.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address

from lbless_nodeagent.dataplane.journal import Place
from lbless_nodeagent.dataplane.network import Network

TIMES = 2
INTERVAL_SECONDS = 1.0
"""Once at once, and once more for a switch port that was not forwarding yet."""

ETHERTYPE_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_REQUEST = 1
_REPLY = 2

_LOG = logging.getLogger(__name__)


class Announcements:
    """What is still to be announced. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._due: dict[Place, tuple[int, float]] = {}
        # One for all, protocol 0: it receives nothing. To close one takes the kernel some 15 ms.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    @property
    def next_at(self) -> float | None:
        """When the next one is due, or None."""
        return min((at for _, at in self._due.values()), default=None)

    def begin(self, places: Iterable[Place], now: float) -> None:
        """Announce these from now on."""
        self._due.update(dict.fromkeys(places, (TIMES, now)))

    def send(self, present: Iterable[Place], network: Network, now: float) -> None:
        """Send what is due; what is no longer present is forgotten."""
        if not self._due:
            return
        there = set(present)
        for place, (left, at) in list(self._due.items()):
            link = network.links.get(place.index)
            if link is None or place not in there:
                del self._due[place]
            elif at <= now:
                try:
                    for frame in frames(place.ip, place.mac, link.mac):
                        self._socket.sendto(frame, (link.name, 0))
                except OSError as error:
                    # Typically a link that is down: nobody hears it then, and nobody asks either.
                    _LOG.debug("%s is not announced on %s: %s", place.ip, link.name, error)
                if left > 1:
                    self._due[place] = (left - 1, now + INTERVAL_SECONDS)
                else:
                    del self._due[place]


def frames(ip: IPv4Address, cluster_mac: str, node_mac: str) -> tuple[bytes, bytes]:
    """Return both forms, a request and a reply, because hosts differ in which one they learn from.

    The Ethernet source is the node's own MAC: a switch must never learn the cluster MAC on a port, and
    drops frames whose source is a group.
    """
    sender = _octets(cluster_mac) + ip.packed
    header = _BROADCAST + _octets(node_mac) + struct.pack("!H", ETHERTYPE_ARP)

    def packet(operation: int, target_mac: bytes) -> bytes:
        return header + struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender + target_mac + ip.packed

    return packet(_REQUEST, bytes(6)), packet(_REPLY, _BROADCAST)


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
