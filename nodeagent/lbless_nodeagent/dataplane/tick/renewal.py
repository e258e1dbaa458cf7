"""The lease of one interface, renewed and ended in the kernel: the datagrams that the rules take for that.

Owns the socket and what sending says. When the lease ends is membership's to say; what the datagrams mean is
`ladder`'s, and which rules take them `nftables.lease`'s.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from enum import Enum, auto

from lbless_nodeagent.dataplane.ladder import GROUP, rung

LATE_SECONDS = 0.01
"""The rules count from when the datagram reaches them. If that may have been this much later than the clock was
read, as the process was not let run, the lease would end so much too late: it is set again."""
_ATTEMPTS = 5
_NAME_BYTES = 16


class Renewal(Enum):
    """What became of a renewal, or of an end."""

    RENEWED = auto()
    ENDED = auto()
    """No lease runs: it was ended, or too little of it was left."""
    RULES_GONE = auto()
    """Nothing took the datagram: somebody flushed the rules, or they have no lease. Program them at once."""
    LINK_DOWN = auto()
    """The interface is administratively down; a cable that is not plugged in does not matter."""
    DEVICE_GONE = auto()
    """No interface has that name, or another one than before: the next call finds it."""
    FAILED = auto()
    """The kernel has no memory or no descriptor for it."""


_MEANING = {
    errno.ENETUNREACH: Renewal.LINK_DOWN,
    errno.ENETDOWN: Renewal.LINK_DOWN,
    errno.ENODEV: Renewal.DEVICE_GONE,
    errno.ENXIO: Renewal.DEVICE_GONE,
}


class Lease:
    """The lease of the interface of that name, in the network namespace of the thread that renews it first.

    Not thread-safe; nothing in it waits. Needs root's user id. Where a datagram is not taken it ends at this
    host all the same: its time to live is 0.
    """

    def __init__(self, interface: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one that ends are told by, in seconds. Opens nothing yet."""
        self.interface = interface
        self._clock = clock
        self._socket: socket.socket | None = None

    def renew(self, ends_at: float) -> Renewal:
        """Let the lease end at that time of the clock, be it later or sooner than it would have.

        It ends never later, and earlier by at most a rung of the ladder and a jiffy.
        """
        for _ in range(_ATTEMPTS):
            before = self._clock()
            port = rung(ends_at - before)
            result = self._send(port)
            if result is not Renewal.RENEWED or self._clock() - before < LATE_SECONDS:
                return result
        return self.end()

    def end(self) -> Renewal:
        """End the lease now."""
        return self._send(rung(0))

    def close(self) -> None:
        """Let go of the socket. The lease runs out as it would."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _send(self, port: int) -> Renewal:
        try:
            self._opened().sendto(b"", (GROUP, port))
        except PermissionError:  # a rule took it
            return Renewal.ENDED if port == rung(0) else Renewal.RENEWED
        except OSError as error:
            result = _MEANING.get(error.errno or 0, Renewal.FAILED)
            if result is Renewal.DEVICE_GONE:
                self.close()
            return result
        return Renewal.RULES_GONE

    def _opened(self) -> socket.socket:
        if self._socket is None:
            opened = socket.socket(
                socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode() + b"\0")
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            except OSError:
                opened.close()
                raise
            self._socket = opened
        # The kernel binds to the device, but the rules go by the name that it has now.
        bound = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _NAME_BYTES)
        if bound.rstrip(b"\0") != self.interface.encode():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self._socket
