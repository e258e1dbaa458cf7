"""Packet sockets of one interface and one ethertype, with a filter that the kernel runs.

Owns opening, filtering and counting. What is sent and heard over one is `wire`'s, which filters there are
`filters`'s.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

from lbless_nodeagent.dataplane.tick.filters import Instruction

SOL_PACKET = 263
_ADD_MEMBERSHIP, _STATISTICS = 1, 6
_MULTICAST = 0
_SO_PRIORITY, _SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 12, 26, 33, 64
# The highest that every process may use; pfifo_fast sends it before bulk traffic.
_TC_PRIO_INTERACTIVE = 6

_RINGS = 16
"""More than the smallest buffer holds; what comes meanwhile may ring again."""

_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
_MEMBERSHIP = struct.Struct("=iHH8s")
_COUNTS = struct.Struct("=II")


class WireError(Exception):
    """An interface cannot be used; the message is one sentence."""


class PacketSocket:
    """A socket that hears, of the frames that come in by one interface, those of one ethertype that pass a filter.

    It gives and takes payloads, without the Ethernet header, and never hears what this machine sends: the
    kernel shows outgoing frames only to sockets of all ethertypes. An interface that goes down and comes up
    is heard again by the same socket; one that is removed or renamed is gone for good, whatever has its
    name then.
    """

    def __init__(
        self,
        interface: str,
        index: int,
        ethertype: int,
        program: Sequence[Instruction],
        *,
        buffer_bytes: int,
        group: bytes | None = None,
    ) -> None:
        """Hear `ethertype` on the interface of that name and index, and join `group` there.

        The kernel counts some 500 bytes more for each frame that waits in the buffer, and allows twice
        `buffer_bytes` for that. Raises WireError.
        """
        self.interface = interface
        self.ethertype = ethertype
        # No ethertype before the filter is there: nothing passes unfiltered.
        self.socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        try:
            self._prepare(program, buffer_bytes)
            self.socket.bind((interface, ethertype))
            if socket.if_nametoindex(interface) != index or not self.bound():
                raise WireError(f"Interface {interface} is no longer the one with index {index}.")
            if group is not None:
                joined = _MEMBERSHIP.pack(index, _MULTICAST, len(group), group)
                self.socket.setsockopt(SOL_PACKET, _ADD_MEMBERSHIP, joined)
        except OSError as error:
            self.close()
            raise WireError(
                f"Heartbeats cannot use interface {interface} ({error.strerror}): it needs to exist, and the "
                f"process the capabilities CAP_NET_RAW and CAP_NET_ADMIN."
            ) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it, and leave the group. The kernel may take some milliseconds for it."""
        self.socket.close()

    def bound(self) -> bool:
        """Whether the interface is still there, under its name."""
        return bool(self.socket.getsockname()[0] == self.interface)

    def counts(self) -> tuple[int, int]:
        """How many frames passed the filter since the last call, and how many of them found the buffer full."""
        passed, lost = _COUNTS.unpack(self.socket.getsockopt(SOL_PACKET, _STATISTICS, _COUNTS.size))
        return passed, lost

    def _prepare(self, program: Sequence[Instruction], buffer_bytes: int) -> None:
        code = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
        held = ctypes.create_string_buffer(code, len(code))
        attached = _PROGRAM.pack(len(program), ctypes.addressof(held))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_PRIORITY, _TC_PRIO_INTERACTIVE)


class Bell:
    """Is readable once a frame has passed a filter, until it is silenced. It keeps a frame or a few, and reads none."""

    def __init__(self, interface: str, index: int, ethertype: int, program: Sequence[Instruction]) -> None:
        """Ring for the interface of that name and index; raises WireError."""
        self._socket = PacketSocket(interface, index, ethertype, program, buffer_bytes=0)

    def fileno(self) -> int:
        """For poll()."""
        return self._socket.socket.fileno()

    def silence(self) -> None:
        """Drop what has rung; 1 µs if nothing has."""
        for _ in range(_RINGS):
            try:
                self._socket.socket.recv(1)
            except BlockingIOError:
                return
            except OSError:  # ENETDOWN, once each time that it goes down
                continue

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Tally:
    """Counts the frames that pass a filter without ever reading one: its buffer stays full.

    A frame that passes costs the kernel some 100 ns, asking for the count 0.3 µs.
    """

    def __init__(self, interface: str, index: int, ethertype: int, program: Sequence[Instruction]) -> None:
        """Count on the interface of that name and index; raises WireError."""
        self._socket = PacketSocket(interface, index, ethertype, program, buffer_bytes=0)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def count(self) -> int:
        """How many frames passed since the last call."""
        return self._socket.counts()[0]
