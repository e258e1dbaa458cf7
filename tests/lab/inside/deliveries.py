"""Either end of datagrams that are accounted for one by one, and of the ICMP errors about the answers.

`deliveries.py receive ADDRESS PORT` notes every datagram and every error that its socket gets. It takes lines on
standard input: `reply LENGTH` sends so many bytes to every peer so far, not to be fragmented whatever is known of the
path; `report` writes a line of JSON, {"datagrams": [[address, port, length, digest], …], "errors": [[address, port,
errno, type, code, value, offender], …]}.

`deliveries.py send ADDRESS PORT LENGTHS SOURCES`, both lists with commas, sends one datagram of each length from a
socket of its own, writes a line of JSON, [[address, port, length, digest], …], and keeps the sockets until its
standard input ends.
"""

import hashlib
import json
import os
import select
import socket
import struct
import sys
from contextlib import ExitStack
from itertools import cycle

# linux/in.h and linux/errqueue.h; the socket module has no names for them.
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, IP_RECVERR, MSG_ERRQUEUE, SO_RCVBUFFORCE = 10, 3, 11, 0x2000, 33
EXTENDED_ERROR = struct.Struct("@IBBBxII")
BUFFER = 32 * 1024 * 1024

Datagram = tuple[str, int, int, str]
Error = tuple[str, int, int, int, int, int, str]


def receive(address: str, port: int) -> None:
    """Do what standard input says until it ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        bound.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        bound.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        bound.bind((address, port))
        bound.setblocking(False)
        datagrams: list[Datagram] = []
        errors: list[Error] = []
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([sys.stdin, bound], [], [])
            errors += _errors(bound)
            datagrams += _datagrams(bound)
            if sys.stdin in readable:
                # Unbuffered: select knows nothing of what Python has read already.
                lines = os.read(0, 4096).decode().splitlines()
                if not lines:
                    return
                for command, *length in map(str.split, lines):
                    if command == "reply":
                        for peer in {(ip, port) for ip, port, _, _ in datagrams}:
                            _send(bound, bytes(int(length[0])), peer)
                    else:
                        print(json.dumps({"datagrams": datagrams, "errors": errors}), flush=True)


def _send(bound: socket.socket, data: bytes, peer: tuple[str, int]) -> None:
    """Send once. A call may fail for an error about an earlier datagram, which is reported by this way too."""
    for _ in range(100):
        try:
            bound.sendto(data, peer)
        except OSError:
            continue
        return
    raise OSError(f"nothing can be sent to {peer}")


def _datagrams(bound: socket.socket) -> list[Datagram]:
    found: list[Datagram] = []
    while True:
        try:
            data, (address, port) = bound.recvfrom(65535)
        except BlockingIOError:
            return found
        except OSError:
            continue  # an error that waits in the other queue, too
        found.append((address, port, len(data), digest(data)))


def _errors(bound: socket.socket) -> list[Error]:
    found: list[Error] = []
    while True:
        try:
            _, ancillary, _, (address, port) = bound.recvmsg(65535, 512, MSG_ERRQUEUE)
        except BlockingIOError:
            return found
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR):
                number, _, icmp_type, code, value, _ = EXTENDED_ERROR.unpack_from(data)
                offender = socket.inet_ntoa(data[EXTENDED_ERROR.size + 4 :][:4])
                found.append((address, port, number, icmp_type, code, value, offender))


def send(address: str, port: int, lengths: list[int], sources: list[str]) -> None:
    """Send, say what, and wait for the end of standard input."""
    with ExitStack() as sockets:
        sent: list[Datagram] = []
        for length, source in zip(lengths, cycle(sources), strict=False):
            one = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            one.bind((source, 0))
            data = os.urandom(length)
            one.sendto(data, (address, port))
            sent.append((source, one.getsockname()[1], length, digest(data)))
        print(json.dumps(sent), flush=True)
        sys.stdin.read()


def digest(data: bytes) -> str:
    """What tells datagrams from each other."""
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2], int(sys.argv[3]))
    else:
        send(sys.argv[2], int(sys.argv[3]), list(map(int, sys.argv[4].split(","))), sys.argv[5].split(","))
