"""A client's traffic: makes the attempts listed on standard input and writes how each ended.

In: one JSON object, {"protocol", "address", "port", "attempts": [[source, port or identifier, sequence], …],
"parallel", "timeout_seconds"}. Out: a JSON list for each attempt, [source, port or identifier, sequence, node,
answers, error], in the order in which they ended.
"""

import asyncio
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from select import select

ECHO_REQUEST, ECHO_REPLY = 8, 0
SOL_RAW, ICMP_FILTER = 255, 1
RECEIVE_BUFFER = 8 * 1024 * 1024

Attempt = tuple[str, int, int]


@dataclass(frozen=True)
class Plan:
    """What to do; `port` is 0 for ICMP."""

    protocol: str
    address: str
    port: int
    attempts: list[Attempt]
    parallel: int
    timeout_seconds: float


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: who answered, how many answers there were, or what went wrong."""

    source: str
    port: int
    sequence: int
    node: str | None
    answers: int
    error: str | None


def main() -> None:
    """Read the plan, carry it out, write the outcomes."""
    fields = json.load(sys.stdin)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    plan = Plan(**{**fields, "attempts": [tuple(attempt) for attempt in fields["attempts"]]})
    outcomes = echo(plan) if plan.protocol == "icmp" else asyncio.run(ask(plan))
    for outcome in outcomes:
        print(json.dumps(list(vars(outcome).values())))


async def ask(plan: Plan) -> list[Outcome]:
    """Make TCP connections or send datagrams, `parallel` at a time."""
    waiting = iter(plan.attempts)
    outcomes: list[Outcome] = []
    converse = _connect if plan.protocol == "tcp" else _send
    # Sockets stay open to the end, so that no port is used twice and a second answer finds no closed one.
    with ExitStack() as sockets:

        async def work() -> None:
            for attempt in waiting:
                kind = socket.SOCK_STREAM if plan.protocol == "tcp" else socket.SOCK_DGRAM
                connection = sockets.enter_context(socket.socket(socket.AF_INET, kind))
                outcomes.append(await _ask_once(plan, attempt, connection, converse))

        await asyncio.gather(*(work() for _ in range(plan.parallel)))
    return outcomes


async def _ask_once(
    plan: Plan,
    attempt: Attempt,
    connection: socket.socket,
    converse: Callable[[socket.socket, Plan, bytearray], Awaitable[None]],
) -> Outcome:
    source, port, sequence = attempt
    said, error = bytearray(), None
    connection.setblocking(False)
    try:
        connection.bind((source, port))
        port = connection.getsockname()[1]
        async with asyncio.timeout(plan.timeout_seconds):
            await converse(connection, plan, said)
    except TimeoutError:
        error = "timeout"
    except OSError as failure:
        error = os.strerror(failure.errno or 0)
    node = json.loads(said)["node"] if said.endswith(b"\n") else None
    if node is None and error is None:
        error = "closed without an answer"
    return Outcome(source, port, sequence, node, int(node is not None), error)


async def _connect(connection: socket.socket, plan: Plan, said: bytearray) -> None:
    """Take what the server says; end when both sides have closed, so that nothing is left in flight."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (plan.address, plan.port))
    while more := await loop.sock_recv(connection, 2048):
        said += more
        if said.endswith(b"\n"):
            connection.shutdown(socket.SHUT_WR)


async def _send(connection: socket.socket, plan: Plan, said: bytearray) -> None:
    """Send one datagram and take the first answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (plan.address, plan.port))
    await loop.sock_sendall(connection, b"?\n")
    said += await loop.sock_recv(connection, 2048)


def echo(plan: Plan) -> list[Outcome]:
    """Send ICMP echo requests, at most `parallel` unanswered at a time, and count the replies to each.

    A second reply counts while this runs; one that comes later is for a capture to see.
    """
    sockets = {source: _raw_socket(source) for source, _, _ in plan.attempts}
    sources = {raw: source for source, raw in sockets.items()}
    replies = dict.fromkeys(plan.attempts, 0)
    pending: dict[Attempt, float] = {}
    waiting = iter(plan.attempts)
    errors: dict[Attempt, str] = {}
    while True:
        for attempt in islice(waiting, plan.parallel - len(pending)):
            try:
                sockets[attempt[0]].sendto(_echo_request(attempt), (plan.address, 0))
                pending[attempt] = time.monotonic() + plan.timeout_seconds
            except OSError as failure:
                errors[attempt] = os.strerror(failure.errno or 0)
        if not pending:
            break
        # The first in order of sending is the first to be given up.
        first, deadline = next(iter(pending.items()))
        readable, _, _ = select(list(sources), [], [], max(0.0, deadline - time.monotonic()))
        for raw in readable:
            reply = _echo_reply(sources[raw], raw.recv(2048), plan.address)
            if reply in replies:
                replies[reply] += 1
                pending.pop(reply, None)
        if not readable and time.monotonic() >= deadline:
            errors[first] = "timeout"
            del pending[first]
    return [Outcome(*attempt, None, count, errors.get(attempt)) for attempt, count in replies.items()]


def _raw_socket(source: str) -> socket.socket:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("@I", 0xFFFFFFFF & ~(1 << ECHO_REPLY)))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    raw.bind((source, 0))
    return raw


def _echo_request(attempt: Attempt) -> bytes:
    _, identifier, sequence = attempt
    words = (ECHO_REQUEST << 8, identifier, sequence)
    total = sum(words)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!HHHH", words[0], checksum, identifier, sequence)


def _echo_reply(own: str, packet: bytes, peer: str) -> Attempt | None:
    """Return the attempt that a packet answers, None if it comes from someone else."""
    header = (packet[0] & 0x0F) * 4
    if packet[12:16] != socket.inet_aton(peer) or packet[header] != ECHO_REPLY:
        return None
    identifier, sequence = struct.unpack_from("!HH", packet, header + 4)
    return own, identifier, sequence


if __name__ == "__main__":
    main()
