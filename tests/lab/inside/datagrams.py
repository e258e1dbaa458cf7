"""Datagrams and ICMP echo requests at a steady pace, each of its own kind, and who answered each on the wire.

In, as one line of JSON: {"interface", "address", "port", "sources": [address, …], "first_port", "identifier",
"per_second"}. That many of either kind leave each second, until standard input ends. No datagram has the source
address and port of another, no echo request its address, identifier and sequence. Writes `ready` when nothing is missed
any more, and at the end, as lines of JSON,

    [kind, source, source port or identifier, sequence, when it left, [[when, MAC], …], error or null]

for each, with its answers in their order, and then [by how much it was late at the worst, frames that the kernel had
no room for, its share of a processor]. Times are of CLOCK_MONOTONIC, in seconds; those of answers are the kernel's.
"""

import ctypes
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

ECHO_REQUEST, ECHO_REPLY = 8, 0
SOL_RAW, ICMP_FILTER = 255, 1
ETH_P_ALL = 3
SO_RCVBUFFORCE, SO_TIMESTAMPNS, SO_ATTACH_FILTER = 33, 35, 26
SOL_PACKET, PACKET_STATISTICS, PACKET_HOST = 263, 6, 0
TIMESPEC, STATISTICS = struct.Struct("@qq"), struct.Struct("@II")
RECEIVE_BUFFER = 16 * 1024 * 1024
# So long a datagram's port stays open, lest its answer be refused, and so long what was sent last is waited for.
HOLD_SECONDS = 2.0
CATCH_UP_SECONDS = 0.1
PORTS = 30000

Key = tuple[str, bytes, int, int]


@dataclass(slots=True)
class Sent:
    """One that is on its way, or was answered."""

    kind: str
    source: str
    port: int
    sequence: int
    at: float
    answers: list[tuple[float, str]] = field(default_factory=list)
    error: str | None = None


class Sender:
    """Everything that was sent, by what its answer is known by."""

    def __init__(self, plan: dict[str, object], sources: list[str]) -> None:
        self._address, self._port = str(plan["address"]), int(str(plan["port"]))
        self._first_port, self._identifier = int(str(plan["first_port"])), int(str(plan["identifier"]))
        self._sources = sources
        self._raw = {source: _raw_socket(source) for source in sources}
        self._held: deque[tuple[float, socket.socket]] = deque()
        self.sent: dict[Key, Sent] = {}
        self._count = 0

    def send(self) -> None:
        """Send one datagram and one echo request."""
        turn, index = divmod(self._count, len(self._sources))
        source = self._sources[index]
        if turn >= PORTS:
            raise SystemExit("every port was used: give more addresses")
        self._datagram(source, self._first_port + turn)
        high, sequence = divmod(self._count, 0x10000)
        self._request(source, self._identifier + high, sequence)
        self._count += 1

    def answered(self, key: Key, at: float, mac: str) -> None:
        """Note an answer; one that is to nothing of this is somebody else's."""
        if sent := self.sent.get(key):
            sent.answers.append((at, mac))

    def _datagram(self, source: str, port: int) -> None:
        now = time.monotonic()
        sent = self.sent["udp", socket.inet_aton(source), port, 0] = Sent("udp", source, port, 0, now)
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._held.append((now + HOLD_SECONDS, own))
        try:
            own.bind((source, port))
            own.sendto(b"?\n", (self._address, self._port))
        except OSError as error:
            sent.error = os.strerror(error.errno or 0)
        while self._held and self._held[0][0] <= now:
            self._held.popleft()[1].close()

    def _request(self, source: str, identifier: int, sequence: int) -> None:
        sent = Sent("icmp", source, identifier, sequence, time.monotonic())
        self.sent["icmp", socket.inet_aton(source), identifier, sequence] = sent
        total = (ECHO_REQUEST << 8) + identifier + sequence
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        request = struct.pack("!HHHH", ECHO_REQUEST << 8, checksum, identifier, sequence)
        try:
            self._raw[source].sendto(request, (self._address, 0))
        except OSError as error:
            sent.error = os.strerror(error.errno or 0)


def main() -> None:
    """Read the plan, send until standard input ends, tell what came back."""
    plan = json.loads(sys.stdin.readline())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tap = open_tap(plan["interface"], plan["address"])
    sender = Sender(plan, plan["sources"])
    start = time.monotonic()
    print("ready", flush=True)
    late_seconds = run(sender, tap, plan["port"], 1 / plan["per_second"])
    _, missed = STATISTICS.unpack(tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size))
    for s in sender.sent.values():
        print(json.dumps([s.kind, s.source, s.port, s.sequence, s.at, s.answers, s.error]))
    print(json.dumps([late_seconds, missed, time.process_time() / (time.monotonic() - start)]))


def run(sender: Sender, tap: socket.socket, port: int, interval_seconds: float) -> float:
    """Send one of either kind every `interval_seconds`; return by how much that was late at the worst."""
    poll = select.epoll()
    poll.register(tap, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
    due = time.monotonic()
    ends: float | None = None
    worst = 0.0
    while ends is None or time.monotonic() < ends:
        now = time.monotonic()
        if ends is None and now >= due:
            worst = max(worst, now - due)
            sender.send()
            due = max(due + interval_seconds, now - CATCH_UP_SECONDS)
        wait = (due if ends is None else ends) - time.monotonic()
        for descriptor, _ in poll.poll(max(0.0, wait)):
            if descriptor == tap.fileno():
                see(sender, tap, port)
            else:
                poll.unregister(sys.stdin)
                ends = time.monotonic() + HOLD_SECONDS
    return worst


def see(sender: Sender, tap: socket.socket, port: int) -> None:
    """Note the answers that have come, each with its sender."""
    ahead = time.time() - time.monotonic()
    while True:
        try:
            frame, ancillary, _, interface = tap.recvmsg(128, socket.CMSG_SPACE(TIMESPEC.size))
        except BlockingIOError:
            return
        if interface[2] != PACKET_HOST:
            continue  # another client's answer, which the switch has flooded
        seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
        at, mac = seconds + nanoseconds / 1e9 - ahead, frame[6:12].hex(":")
        content = 14 + (frame[14] & 0x0F) * 4
        if frame[23] == socket.IPPROTO_UDP:
            here, there = struct.unpack_from("!HH", frame, content)
            if here == port:
                sender.answered(("udp", frame[30:34], there, 0), at, mac)
        elif frame[content] == ECHO_REPLY:
            identifier, sequence = struct.unpack_from("!HH", frame, content + 4)
            sender.answered(("icmp", frame[30:34], identifier, sequence), at, mac)


def _raw_socket(source: str) -> socket.socket:
    """A socket to send from; the replies are the tap's."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("@I", 0xFFFFFFFF))
    raw.bind((source, 0))
    return raw


def open_tap(interface: str, address: str) -> socket.socket:
    """Return a socket that gets UDP and ICMP from the address, and nothing else."""
    # Protocol 0 receives nothing until it is bound, so that no frame passes before the filter is in place.
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setblocking(False)
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    (source,) = struct.unpack("!I", socket.inet_aton(address))
    half, word, byte, equal, accept = 0x28, 0x20, 0x30, 0x15, 0x06
    program = [  # (operation, jump if true, jump if false, operand)
        (half, 0, 0, 12),  # ethertype
        (equal, 0, 5, 0x0800),
        (word, 0, 0, 26),  # IPv4 source
        (equal, 0, 3, source),
        (byte, 0, 0, 23),  # protocol
        (equal, 2, 0, socket.IPPROTO_UDP),
        (equal, 1, 0, socket.IPPROTO_ICMP),
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
