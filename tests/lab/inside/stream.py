"""A stream of datagrams at a steady pace, or a socket that keeps what a node's rules let through of it.

In, as one line of JSON: {"role": "send", "address", "port", "flows": [[address, port], …], "per_second"}, or
{"role": "keep", "address", "port"}. Works from when it writes `ready` until standard input ends. At the end it writes
one line of JSON. Of a sender: [when each datagram left, a list for each flow, by how many seconds it was late at the
worst]. Of the other: [[flow, sequence, when], …], where the time is when the kernel took the frame up. Times are in
seconds of CLOCK_MONOTONIC. A sender has real-time priority: a pause of its own would pass for one of the nodes.
"""

import json
import os
import select
import socket
import struct
import sys
import time

PAYLOAD = struct.Struct("!HI")
TIMESPEC = struct.Struct("@qq")
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33
RECEIVE_BUFFER = 16 * 1024 * 1024
PRIORITY = 10
LAST_SECONDS = 0.5


def send(plan: dict[str, object], flows: list[list[object]]) -> None:
    """One datagram of each flow in turn."""
    sockets = []
    for source, port in flows:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((source, port))
        made.connect((plan["address"], plan["port"]))
        sockets.append(made)
    sent: list[list[float]] = [[] for _ in sockets]
    interval, count, worst = 1 / float(str(plan["per_second"])), 0, 0.0
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    print("ready", flush=True)
    due = time.monotonic()
    while not _ended(due):
        now = time.monotonic()
        worst = max(worst, now - due)
        sequence, flow = divmod(count, len(sockets))
        sockets[flow].send(PAYLOAD.pack(flow, sequence))
        sent[flow].append(now)
        count += 1
        due = max(due + interval, now)  # what was missed is not made up for
    print(json.dumps([sent, worst]))


def _ended(until: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], max(0.0, until - time.monotonic()))
    return bool(readable)


def keep(plan: dict[str, object]) -> None:
    """Note what arrives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        bound.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        bound.bind((plan["address"], plan["port"]))
        bound.setblocking(False)
        print("ready", flush=True)
        kept: list[tuple[int, int, float]] = []
        ends: float | None = None
        while ends is None or time.monotonic() < ends:
            wait = None if ends is None else max(0.0, ends - time.monotonic())
            readable, _, _ = select.select([bound] if ends else [bound, sys.stdin], [], [], wait)
            if sys.stdin in readable:
                ends = time.monotonic() + LAST_SECONDS
            kept += _received(bound)
    print(json.dumps(kept))


def _received(bound: socket.socket) -> list[tuple[int, int, float]]:
    ahead = time.time() - time.monotonic()
    found: list[tuple[int, int, float]] = []
    while True:
        try:
            payload, ancillary, _, _ = bound.recvmsg(64, socket.CMSG_SPACE(TIMESPEC.size))
        except BlockingIOError:
            return found
        seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
        found.append((*PAYLOAD.unpack(payload), seconds + nanoseconds / 1e9 - ahead))


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    if given["role"] == "send":
        send(given, given["flows"])
    else:
        keep(given)
