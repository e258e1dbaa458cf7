"""One interface's raw socket: heartbeats sent and heard, and the signs that the segment reaches this node at all.

Owns sending, draining and what the interface does meanwhile. Which of the frames are authentic is `inbox`'s.

A flood costs little. The kernel's filter refuses what cannot be a heartbeat without waking anybody; what is
left costs 2 µs to read and 4 µs to refuse. A draining ends with the first frame that came after it had begun,
so that no flood holds it up for longer than the buffer is deep: some 5,000 small frames, 40 ms. Nothing is
limited by source address: an attacker who can send anything could send it in a node's name, and a limit would
silence that node.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from lbless_api.heartbeat_frame import MAX_BYTES
from lbless_nodeagent.dataplane.tick.arrivals import Arrivals, read_clocks
from lbless_nodeagent.dataplane.tick.filters import (
    ETHERTYPE,
    ETHERTYPE_IPV4,
    GROUP,
    HEARTBEATS,
    NO_HEARTBEATS,
    URGENT,
    VIP_TRAFFIC,
)
from lbless_nodeagent.dataplane.tick.packetsocket import Bell, PacketSocket, Tally

BUFFER_BYTES = 2 * 1024 * 1024
"""Half a second of 10,000 forged frames a second, or two seconds of 63 peers that fill their frames."""
FRAMES_AT_ONCE = 8192
"""More than the buffer holds."""

_STAMP = struct.Struct("=qq")
_STAMP_TYPE = 64  # SCM_TIMESTAMPNS_NEW
_CONTROL_BYTES = socket.CMSG_SPACE(_STAMP.size)


class Arrived(NamedTuple):
    """A payload and when it arrived (`time.monotonic_ns`)."""

    payload: bytes
    at_ns: int


class Drained(NamedTuple):
    """What had arrived by `at_ns`. With `lost` frames, or if `behind`, the silence of a peer says nothing."""

    at_ns: int
    frames: list[Arrived]
    lost: int
    behind: bool


class Wire:
    """Heartbeats on one interface.

    - Down, or without a carrier: nothing comes, and sending says ENETDOWN, or nothing at all. When it is up
      again, so is this.
    - Removed or renamed: `gone`, and sending says ENODEV; what has its name later needs a Wire of its own.
    """

    def __init__(
        self, interface: str, index: int, clocks: Callable[[], tuple[int, int]] = read_clocks
    ) -> None:
        """Raises WireError."""
        self.interface = interface
        self.gone = False
        self._address = (interface, ETHERTYPE, 0, 0, GROUP)
        with ExitStack() as opened:
            # Of two sockets the kernel serves the newer one first: what rings is to be there already.
            self._bell = Bell(interface, index, ETHERTYPE, URGENT)
            opened.callback(self._bell.close)
            self._packets = PacketSocket(
                interface, index, ETHERTYPE, HEARTBEATS, buffer_bytes=BUFFER_BYTES, group=GROUP
            )
            opened.callback(self._packets.close)
            self._tallies: list[Tally] = []
            for ethertype, program in ((ETHERTYPE, NO_HEARTBEATS), (ETHERTYPE_IPV4, VIP_TRAFFIC)):
                self._tallies.append(Tally(interface, index, ethertype, program))
                opened.callback(self._tallies[-1].close)
            self._opened = opened.pop_all()
        self._arrivals = Arrivals(clocks)

    def fileno(self) -> int:
        """For poll(): readable when something may be a heartbeat, and when the interface went."""
        return self._packets.socket.fileno()

    @property
    def bell(self) -> int:
        """For poll(): readable when something urgent may have come since the last draining, or the interface went."""
        return self._bell.fileno()

    def close(self) -> None:
        """Close the sockets; the kernel may take some 10 ms."""
        self._opened.close()

    def send(self, payload: bytes) -> int:
        """Send a frame; return 0 or the error's number: ENETDOWN, ENODEV, ENOBUFS, EAGAIN."""
        if self.gone:
            return errno.ENODEV
        try:
            self._packets.socket.sendto(payload, self._address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def drain(self) -> Drained:
        """Take what has arrived. `lost` counts what found the buffer full since the last time."""
        self._bell.silence()  # before: what comes from here on rings again
        frames: list[Arrived] = []
        arrivals, receive = self._arrivals, self._packets.socket.recvmsg
        at_ns = arrivals.begin()
        behind = True
        for _ in range(FRAMES_AT_ONCE):
            try:
                payload, control, _, _ = receive(MAX_BYTES, _CONTROL_BYTES)
            except BlockingIOError:
                behind = False
                break
            except OSError:  # ENETDOWN, once each time that it goes down
                self.gone = not self._packets.bound()
                continue
            stamp = _stamp_ns(control)
            frames.append(Arrived(payload, arrivals.at(stamp)))
            if arrivals.is_later(stamp):
                behind = False
                break
        if not behind:
            arrivals.end()
        return Drained(at_ns, frames, self._packets.counts()[1], behind)

    def refused(self) -> int:
        """How many frames of heartbeats' ethertype the kernel's filter refused since the last call."""
        return self._tallies[0].count()

    def vip_traffic(self) -> int:
        """How many packets for shared addresses came in since the last call, for this node or another."""
        return self._tallies[1].count()


def _stamp_ns(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, _STAMP_TYPE):
            seconds, nanoseconds = _STAMP.unpack(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0  # the kernel has no stamp: as early as can be
