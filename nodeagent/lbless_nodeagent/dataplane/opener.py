"""Sends the datagrams that open buckets at their new owners (`opening`). Owns the socket."""

from __future__ import annotations

import logging
import socket
import struct
from ipaddress import IPv4Address

from lbless_nodeagent.dataplane.ladder import GROUP
from lbless_nodeagent.dataplane.opening import PORT, datagram

_LOG = logging.getLogger(__name__)
_ANY = b"\0\0\0\0"


class Opener:
    """Not thread-safe; nothing in it waits. Opens nothing before it is used."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, index: int, ip: IPv4Address, token: bytes) -> bool:
        """Send the token on the interface of that index; returns whether it went.

        It does not where the interface has no lease: this node's rules see to that. Nothing is lost by it but time.
        """
        try:
            opened = self._opened()
            interface = struct.pack("=4s4si", _ANY, _ANY, index)  # struct ip_mreqn
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            opened.sendto(datagram(ip, token), (GROUP, PORT))
        except OSError as error:
            _LOG.debug("What moves of %s is not opened at once: %s", ip, error)
            return False
        return True

    def _opened(self) -> socket.socket:
        if self._socket is None:
            made = socket.socket(
                socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            self._socket = made
        return self._socket
