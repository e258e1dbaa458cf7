"""A client that never stops asking: new TCP connections at a steady pace, and who answered each on the wire.

In, as one line of JSON: {"interface", "address", "port", "per_second", "patience_seconds", "attempts": [[bucket,
source, port], …]}. The attempts are made in turn and over again until standard input ends; each is a connection of
its own, which gets the server's line and is reset. Out, a line for each thing that happens:

    ready                                      nothing is missed any more
    syn NUMBER TIME                            a SYN of that attempt has left; more than one: it was sent again
    ack NUMBER TIME MAC                        a SYN-ACK for that attempt, sent by that hardware address
    end NUMBER BUCKET SOURCE PORT STARTED ENDED NODE ERROR      how it ended; NODE or ERROR is "-"
    late SECONDS                               at the end: by how much it was late at the worst
    missed FRAMES                              at the end: how many SYNs and SYN-ACKs the kernel had no room for

Times are of CLOCK_MONOTONIC, in seconds; those of frames are the kernel's. An attempt that nobody has answered within
the patience is given up. With one below a second, after which the kernel sends a SYN again, what is not answered is
asked anew, from another port of the same bucket, so that an outage is measured at the pace of the attempts and not at
TCP's; with a longer one, SYNs that are sent again are what tells that one was lost. A reset (SO_LINGER 0) leaves
nothing of a connection at either end, so that its port can be used again.
"""

import ctypes
import errno
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

ETH_P_ALL = 3
SO_RCVBUFFORCE, SO_TIMESTAMPNS, SO_ATTACH_FILTER = 33, 35, 26
SOL_PACKET, PACKET_STATISTICS, PACKET_OUTGOING = 263, 6, 4
TIMESPEC, STATISTICS = struct.Struct("@qq"), struct.Struct("@II")
RECEIVE_BUFFER = 16 * 1024 * 1024
HANG_UP = struct.pack("@ii", 1, 0)
# Slots that were missed by more are left out: a burst would measure the burst.
CATCH_UP_SECONDS = 0.1
# An answer to what was given up may still be on its way.
STRAGGLER_SECONDS = 0.2


@dataclass(slots=True)
class Attempt:
    """A connection that is under way."""

    number: int
    bucket: int
    source: str
    port: int
    started: float
    connection: socket.socket
    said: bytes = b""


@dataclass
class Prober:
    """Everything that is open, and what was found out and not yet written."""

    target: tuple[str, int]
    attempts: Iterator[tuple[int, str, int]]
    patience_seconds: float
    poll: select.epoll
    open: dict[int, Attempt] = field(default_factory=dict)
    numbers: dict[tuple[bytes, int], int] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    count: int = 0

    def ask(self) -> None:
        """Begin the next attempt."""
        bucket, source, port = next(self.attempts)
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HANG_UP)
        self.count += 1
        self.numbers[socket.inet_aton(source), port] = self.count
        attempt = Attempt(self.count, bucket, source, port, time.monotonic(), connection)
        try:
            connection.bind((source, port))
            number = connection.connect_ex(self.target)
        except OSError as error:
            number = error.errno or errno.EIO
        if number not in (0, errno.EINPROGRESS):
            self.end(attempt, error=os.strerror(number))
            return
        self.open[connection.fileno()] = attempt
        self.poll.register(connection, select.EPOLLIN)

    def hear(self, attempt: Attempt) -> None:
        """Take what the server says."""
        try:
            more = attempt.connection.recv(2048)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(attempt, error=os.strerror(error.errno or 0))
            return
        attempt.said += more
        if attempt.said.endswith(b"\n"):
            self.end(attempt, node=json.loads(attempt.said)["node"])
        elif not more:
            self.end(attempt, error="closed without an answer")

    def expire(self, now: float) -> None:
        """Give up what nobody has answered in time."""
        while self.open and (first := next(iter(self.open.values()))).started + self.patience_seconds <= now:
            self.end(first, error="timeout")

    def end(self, attempt: Attempt, *, node: str = "-", error: str = "-") -> None:
        """Note how an attempt ended, and leave nothing of it."""
        ended = time.monotonic()
        self.open.pop(attempt.connection.fileno(), None)
        attempt.connection.close()
        what = f"{attempt.number} {attempt.bucket} {attempt.source} {attempt.port}"
        self.found.append(f"end {what} {attempt.started:.6f} {ended:.6f} {node} {error}")

    def see(self, tap: socket.socket) -> None:
        """Note the SYNs that have left and the SYN-ACKs that have come, each of these with its sender."""
        ahead = time.time() - time.monotonic()
        while True:
            try:
                frame, ancillary, _, interface = tap.recvmsg(128, socket.CMSG_SPACE(TIMESPEC.size))
            except BlockingIOError:
                return
            seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
            at = seconds + nanoseconds / 1e9 - ahead
            header = (frame[14] & 0x0F) * 4
            ports = struct.unpack_from("!HH", frame, 14 + header)
            outgoing = interface[2] == PACKET_OUTGOING
            if bool(frame[14 + header + 13] & 0x10) == outgoing:
                continue  # another client's SYN, which the switch has flooded
            own = (frame[26:30], ports[0]) if outgoing else (frame[30:34], ports[1])
            if number := self.numbers.get(own):
                self.found.append(
                    f"syn {number} {at:.6f}" if outgoing else f"ack {number} {at:.6f} {frame[6:12].hex(':')}"
                )

    def write(self) -> None:
        """Tell what was found out."""
        if self.found:
            sys.stdout.write("\n".join(self.found) + "\n")
            sys.stdout.flush()
            self.found.clear()


def main() -> None:
    """Read the plan and ask until standard input ends."""
    plan = json.loads(sys.stdin.readline())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tap = open_tap(plan["interface"], plan["address"], plan["port"])
    poll = select.epoll()
    poll.register(tap, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
    attempts = cycle((bucket, source, port) for bucket, source, port in plan["attempts"])
    target = (plan["address"], plan["port"])
    prober = Prober(target, attempts, plan["patience_seconds"], poll)
    print("ready", flush=True)
    worst = run(prober, tap, 1 / plan["per_second"])
    _, missed = STATISTICS.unpack(tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size))
    print(f"late {worst:.6f}\nmissed {missed}", flush=True)


def run(prober: Prober, tap: socket.socket, interval_seconds: float) -> float:
    """Ask every `interval_seconds` until standard input ends; return by how much that was late at the worst."""
    due = time.monotonic()
    ends: float | None = None
    worst = 0.0
    while True:
        now = time.monotonic()
        prober.expire(now)
        if ends is not None and not prober.open and now >= ends:
            prober.write()
            return worst
        if ends is None and now >= due:
            worst = max(worst, now - due)
            prober.ask()
            due = max(due + interval_seconds, now - CATCH_UP_SECONDS)
        waits = [due if ends is None else ends]
        waits += [
            one.started + prober.patience_seconds for one in [next(iter(prober.open.values()), None)] if one
        ]
        prober.write()
        for descriptor, _ in prober.poll.poll(max(0.0, min(waits) - time.monotonic())):
            if descriptor == tap.fileno():
                prober.see(tap)
            elif descriptor == sys.stdin.fileno():
                prober.poll.unregister(sys.stdin)
                ends = time.monotonic() + STRAGGLER_SECONDS
            elif descriptor in prober.open:
                prober.hear(prober.open[descriptor])


def open_tap(interface: str, address: str, port: int) -> socket.socket:
    """Return a socket that gets the SYNs to the address and port and the SYN-ACKs from there, and nothing else."""
    # Protocol 0 receives nothing until it is bound, so that no frame passes before the filter is in place.
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setblocking(False)
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    (shared,) = struct.unpack("!I", socket.inet_aton(address))
    half, word, byte, equal, both, accept = 0x28, 0x20, 0x30, 0x15, 0x54, 0x06
    length, half_at, byte_at = 0xB1, 0x48, 0x50
    program = [  # (operation, jump if true, jump if false, operand)
        (half, 0, 0, 12),  # ethertype
        (equal, 0, 15, 0x0800),
        (byte, 0, 0, 23),  # protocol
        (equal, 0, 13, socket.IPPROTO_TCP),
        (length, 0, 0, 14),  # of the IPv4 header, into X
        (byte_at, 0, 0, 14 + 13),  # TCP flags
        (both, 0, 0, 0x12),  # SYN and ACK
        (equal, 0, 4, 0x12),
        (word, 0, 0, 26),  # IPv4 source
        (equal, 0, 7, shared),
        (half_at, 0, 0, 14),  # TCP source port
        (equal, 6, 5, port),
        (equal, 0, 4, 0x02),
        (word, 0, 0, 30),  # IPv4 destination
        (equal, 0, 2, shared),
        (half_at, 0, 0, 14 + 2),  # TCP destination port
        (equal, 1, 0, port),
        (accept, 0, 0, 0),
        (accept, 0, 0, 128),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *line) for line in program))
    described = struct.pack("@HP", len(program), ctypes.addressof(code))
    tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
    tap.bind((interface, ETH_P_ALL))
    return tap


if __name__ == "__main__":
    main()
