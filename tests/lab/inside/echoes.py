"""Long-lived connections: each sends a line at a steady pace and wants it back, byte for byte.

In, as one line of JSON: {"address", "port", "sources": [[source, port], …], "interval_seconds", "patience_seconds"}.
Writes `ready` once each connection has had its first line back; one that has not within the patience is the end, with
a sentence instead. When standard input ends, no more is sent, what is still to come is awaited, and two kinds of lines
of JSON say how it was: for each connection

    [source, port, node, lines sent, lines back, longest wait in seconds, when it began, how it broke or null, when]

and at last [by how much this program was late at the worst, its share of a processor]. Times are of CLOCK_MONOTONIC, in
seconds. The protocol is `--echo` of `servers.py`.
"""

import errno
import hashlib
import json
import os
import resource
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

RESET, TIMEOUT, WRONG, CLOSED = "reset", "timeout", "wrong bytes", "closed"


@dataclass(slots=True)
class Connection:
    """One of them: what it was told and what it still waits for. Knows no clock and no socket's readiness."""

    number: int
    source: str
    port: int
    socket: socket.socket
    began: float
    node: str = "-"
    sent: int = 0
    back: int = 0
    longest_seconds: float = 0.0
    longest_began: float = 0.0
    broken: str | None = None
    broken_at: float | None = None
    said: bytes = b""
    waiting: deque[tuple[bytes, float]] = field(default_factory=deque)

    def line(self, now: float) -> bytes:
        """The next line to send: no two of a run are the same, in whatever connection."""
        self.sent += 1
        content = hashlib.sha256(f"{self.number} {self.sent}".encode()).hexdigest()
        line = f"{self.number} {self.sent} {content}\n".encode()
        self.waiting.append((line, now))
        return line

    def hear(self, data: bytes, now: float) -> None:
        """Take what has come: first the server's own line, then what was sent, in its order and nothing else."""
        self.said += data
        if self.node == "-":
            greeting, newline, rest = self.said.partition(b"\n")
            if not newline:
                return
            self.node, self.said = json.loads(greeting)["node"], rest
        while self.said:
            line, sent = self.waiting[0] if self.waiting else (b"", now)
            if self.said[: len(line)] != line[: len(self.said)] or not line:
                self.breaks(WRONG, now)
                return
            if len(self.said) < len(line):
                return
            self.said = self.said[len(line) :]
            self.waiting.popleft()
            self.back += 1
            self.waited(sent, now)

    def waited(self, since: float, now: float) -> None:
        """Note how long a line took, or has taken until now."""
        if now - since > self.longest_seconds:
            self.longest_seconds, self.longest_began = now - since, since

    def expire(self, now: float, patience_seconds: float) -> None:
        """Give it up if what it waits for has not come in time."""
        since = self.waiting[0][1] if self.waiting else self.began
        if (self.waiting or self.node == "-") and now - since > patience_seconds:
            self.breaks(TIMEOUT, now)

    def breaks(self, how: str, now: float) -> None:
        """Note how it broke; the first way counts."""
        if self.broken is None:
            self.broken, self.broken_at = how, now
            if self.waiting:
                self.waited(self.waiting[0][1], now)


@dataclass
class Echoes:
    """All of them, and when each is due; one pace for all, so that the order never changes."""

    interval_seconds: float
    patience_seconds: float
    poll: select.epoll
    living: dict[int, Connection] = field(default_factory=dict)
    due: deque[tuple[float, Connection]] = field(default_factory=deque)
    late_seconds: float = 0.0

    def begin(self, connection: Connection, target: tuple[str, int]) -> None:
        """Connect; its first line follows as soon as its turn comes and it has been greeted."""
        connection.socket.setblocking(False)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.socket.bind((connection.source, connection.port))
            code = connection.socket.connect_ex(target)
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            connection.breaks(os.strerror(code), time.monotonic())
            return
        self.living[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)

    def send(self, now: float) -> None:
        """Send all lines that are due."""
        while self.due and self.due[0][0] <= now:
            at, connection = self.due.popleft()
            if connection.broken is not None:
                continue
            self.late_seconds = max(self.late_seconds, now - at)
            connection.expire(now, self.patience_seconds)
            if connection.node != "-" and connection.broken is None:
                line = connection.line(now)
                try:
                    if connection.socket.send(line) != len(line):
                        connection.breaks("no room in the socket's buffer", now)
                except OSError as error:
                    connection.breaks(_how(error), now)
            self._forget_broken(connection)
            # Those that were missed are left out: a burst would measure the burst.
            self.due.append((max(at + self.interval_seconds, now), connection))

    def receive(self, descriptor: int) -> None:
        """Take what one of them has got."""
        connection = self.living[descriptor]
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            connection.breaks(_how(error), time.monotonic())
        else:
            if data:
                connection.hear(data, time.monotonic())
            else:
                connection.breaks(CLOSED, time.monotonic())
        self._forget_broken(connection)

    def expire(self) -> None:
        """Give up all whose patience has ended."""
        now = time.monotonic()
        for connection in list(self.living.values()):
            connection.expire(now, self.patience_seconds)
            self._forget_broken(connection)

    def _forget_broken(self, connection: Connection) -> None:
        if connection.broken is not None and connection.socket.fileno() in self.living:
            del self.living[connection.socket.fileno()]
            connection.socket.close()


def main() -> None:
    """Connect, converse until standard input ends, and tell how it was."""
    plan = json.loads(sys.stdin.readline())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    poll = select.epoll()
    poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
    echoes = Echoes(plan["interval_seconds"], plan["patience_seconds"], poll)
    start = time.monotonic()
    connections = []
    for number, (source, port) in enumerate(plan["sources"]):
        # Spread over one interval, so that no two lines leave together.
        turn = start + plan["interval_seconds"] * number / len(plan["sources"])
        time.sleep(max(0.0, turn - time.monotonic()))
        connection = Connection(number, source, port, socket.socket(), time.monotonic())
        connections.append(connection)
        echoes.begin(connection, (plan["address"], plan["port"]))
        echoes.due.append((turn + plan["interval_seconds"], connection))
    if fault := run(echoes, connections):
        print(fault, flush=True)
        return
    for c in connections:
        story = [c.source, c.port, c.node, c.sent, c.back, c.longest_seconds, c.longest_began]
        print(json.dumps([*story, c.broken, c.broken_at]))
    print(json.dumps([echoes.late_seconds, time.process_time() / (time.monotonic() - start)]))


def run(echoes: Echoes, connections: list[Connection]) -> str | None:
    """Converse until standard input ends and nothing is awaited; return why it has not begun, if it has not."""
    ready = False
    ending = False
    while True:
        now = time.monotonic()
        if not ending:
            echoes.send(now)
        for descriptor, _ in echoes.poll.poll(_pause(echoes, ending)):
            if descriptor == sys.stdin.fileno():
                echoes.poll.unregister(sys.stdin)
                ending = True
            elif descriptor in echoes.living:
                echoes.receive(descriptor)
        if not ready:
            failed = [c for c in connections if c.broken is not None]
            if failed:
                return (
                    f"{len(failed)} do not begin, {failed[0].source}:{failed[0].port} with {failed[0].broken}"
                )
            if all(c.back for c in connections):
                ready = True
                print("ready", flush=True)
        if ending:
            echoes.expire()
            if not any(c.waiting for c in echoes.living.values()):
                return None


def _pause(echoes: Echoes, ending: bool) -> float:
    if ending or not echoes.due:
        return 0.05
    return max(0.0, echoes.due[0][0] - time.monotonic())


def _how(error: OSError) -> str:
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return RESET
    return os.strerror(error.errno or 0)


if __name__ == "__main__":
    main()
