"""Writes the frames that pass an interface to standard output until standard input is closed.

Run as `capture.py INTERFACE [ADDRESS]`; with an IPv4 address only IP packets from and to it and ARP about it. The
output is a row of records: time in ns (8 bytes), kind (1), length (2), that many bytes. Kinds are the kernel's packet
types, READY (once, when nothing is missed any more), and END (packets and drops, 4 bytes each, by the kernel's count).
"""

import ctypes
import os
import select
import socket
import struct
import sys
import time

RECORD = struct.Struct("!QBH")
READY, END = 254, 255
# Headers are what counts; an ICMP error's embedded packet fits as well.
SNAP_LENGTH = 256
# Holds some 50,000 small frames while the reader is busy.
RECEIVE_BUFFER = 128 * 1024 * 1024
# After the end is asked for: a straggler's answer may still be on its way through a busy machine.
QUIET_SECONDS, LONGEST_SECONDS = 0.05, 2.0

ETH_P_ALL = 3
SO_RCVBUFFORCE, SO_TIMESTAMPNS, SO_ATTACH_FILTER = 33, 35, 26
SOL_PACKET, PACKET_STATISTICS = 263, 6
TIMESPEC = struct.Struct("@qq")


def main() -> None:
    """Capture until standard input ends."""
    tap = open_tap(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    write(time.time_ns(), READY, b"")
    sys.stdout.buffer.flush()
    while True:
        readable, _, _ = select.select([tap, sys.stdin], [], [])
        if tap in readable:
            drain(tap)
        if sys.stdin in readable and not os.read(sys.stdin.fileno(), 1024):
            break
    latest = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < latest and select.select([tap], [], [], QUIET_SECONDS)[0]:
        drain(tap)
    write(time.time_ns(), END, tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    sys.stdout.buffer.flush()


def open_tap(interface: str, address: str | None) -> socket.socket:
    """Return a socket that gets every frame of the interface, in both directions, from now on."""
    # Protocol 0 receives nothing until it is bound, so that no frame passes before the filter is in place.
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setblocking(False)
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    if address is not None:
        attach_filter(tap, address)
    tap.bind((interface, ETH_P_ALL))
    return tap


def attach_filter(tap: socket.socket, address: str) -> None:
    """Let the kernel pass IPv4 from and to the address and ARP whose sender or target it is, and drop the rest."""
    (wanted,) = struct.unpack("!I", socket.inet_aton(address))
    load_half, load_word, equal, accept = 0x28, 0x20, 0x15, 0x06
    program = [  # (operation, jump if true, jump if false, operand)
        (load_half, 0, 0, 12),  # ethertype
        (equal, 0, 4, 0x0800),
        (load_word, 0, 0, 26),  # IPv4 source
        (equal, 7, 0, wanted),
        (load_word, 0, 0, 30),  # IPv4 destination
        (equal, 5, 6, wanted),
        (equal, 0, 5, 0x0806),
        (load_word, 0, 0, 28),  # ARP sender
        (equal, 2, 0, wanted),
        (load_word, 0, 0, 38),  # ARP target
        (equal, 0, 1, wanted),
        (accept, 0, 0, 0x40000),
        (accept, 0, 0, 0),  # nothing of it
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *line) for line in program))
    tap.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
    )


def drain(tap: socket.socket) -> None:
    """Write all frames that have arrived."""
    while True:
        try:
            frame, ancillary, _, address = tap.recvmsg(SNAP_LENGTH, socket.CMSG_SPACE(TIMESPEC.size))
        except BlockingIOError:
            sys.stdout.buffer.flush()
            return
        arrived = time.time_ns()
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = TIMESPEC.unpack(data)
                arrived = seconds * 1_000_000_000 + nanoseconds
        write(arrived, address[2], frame)


def write(arrived: int, kind: int, content: bytes) -> None:
    """Write one record."""
    sys.stdout.buffer.write(RECORD.pack(arrived, kind, len(content)) + content)


if __name__ == "__main__":
    main()
