"""Traffic: what a client sends to an address and who answers; the sending itself is `inside/traffic.py`'s.

Every attempt says which source address and port it used, so that who should have answered can be computed.
"""

import itertools
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from lab.errors import LabError
from lab.host import Host

PARALLEL = 128
TIMEOUT_SECONDS = 3.0
# What starting the program and a busy machine may add to the time of the attempts themselves.
GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """One TCP connection or UDP datagram: who answered it, or what went wrong ("timeout", "Connection refused")."""

    source: str
    source_port: int
    node: str | None
    error: str | None


@dataclass(frozen=True)
class Echo:
    """One ICMP echo request and the number of replies; who sent them is for a capture to see."""

    source: str
    identifier: int
    sequence: int
    replies: int
    error: str | None


def tcp(
    host: Host,
    address: str,
    port: int,
    *,
    connections: int = 1000,
    sources: Sequence[str] = (),
    source_ports: Sequence[int] = (),
    parallel: int = PARALLEL,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Answer]:
    """Make TCP connections from `sources` (default: all of the host's) in turn and return how each ended.

    Without `source_ports` the kernel chooses a free one; with them, connection i uses number i of them.
    """
    return begin(
        "tcp", host, address, port, connections, sources, source_ports, parallel, timeout_seconds
    ).answers()


def udp(
    host: Host,
    address: str,
    port: int,
    *,
    datagrams: int = 1000,
    sources: Sequence[str] = (),
    source_ports: Sequence[int] = (),
    parallel: int = PARALLEL,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Answer]:
    """Send datagrams, each from a socket of its own, and return how each was answered; none is sent twice."""
    return begin(
        "udp", host, address, port, datagrams, sources, source_ports, parallel, timeout_seconds
    ).answers()


def ping(
    host: Host,
    address: str,
    *,
    requests: int = 1000,
    sources: Sequence[str] = (),
    parallel: int = PARALLEL,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Echo]:
    """Send ICMP echo requests, each with an identifier of its own, and return how each was answered."""
    return begin("icmp", host, address, 0, requests, sources, (), parallel, timeout_seconds).echoes()


@dataclass(frozen=True)
class Running:
    """Traffic that is under way."""

    host: Host
    process: subprocess.Popen[str]
    count: int
    limit_seconds: float

    def answers(self) -> list[Answer]:
        """Wait for the end and return what became of each connection or datagram."""
        return [Answer(source, port, node, error) for source, port, _, node, _, error in self._outcomes()]

    def echoes(self) -> list[Echo]:
        """Wait for the end and return what became of each echo request."""
        return [
            Echo(source, identifier, sequence, count, error)
            for source, identifier, sequence, _, count, error in self._outcomes()
        ]

    def _outcomes(self) -> list[tuple[str, int, int, str | None, int, str | None]]:
        try:
            written, _ = self.process.communicate(timeout=self.limit_seconds)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        outcomes = [tuple(json.loads(line)) for line in written.splitlines()]
        if self.process.returncode != 0 or len(outcomes) != self.count:
            raise LabError(
                f"traffic from {self.host.namespace} broke off after {len(outcomes)} of {self.count}: "
                f"{self.host.last_words('traffic')}"
            )
        return outcomes


def begin(
    protocol: str,
    host: Host,
    address: str,
    port: int,
    count: int,
    sources: Sequence[str] = (),
    source_ports: Sequence[int] = (),
    parallel: int = PARALLEL,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Running:
    """Start "tcp", "udp" or "icmp" traffic and return at once. Raises LabError for a plan that cannot be."""
    sources = sources or host.addresses or (host.address,)
    if source_ports and len(source_ports) != count:
        raise LabError(f"{count} attempts need as many source ports, not {len(source_ports)}")
    if protocol == "icmp":
        # Identifier and sequence together number the requests: 65,535 of each.
        attempts = [
            (source, 1 + index % 0xFFFF, 1 + index // 0xFFFF)
            for index, source in zip(range(count), itertools.cycle(sources), strict=False)
        ]
    else:
        ports = source_ports or [0] * count
        attempts = [
            (source, source_port, index)
            for index, source, source_port in zip(range(count), itertools.cycle(sources), ports, strict=False)
        ]
    plan = {
        "protocol": protocol,
        "address": address,
        "port": port,
        "attempts": attempts,
        "parallel": parallel,
        "timeout_seconds": timeout_seconds,
    }
    process = host.popen(host.inside("traffic"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="traffic")
    assert process.stdin is not None
    json.dump(plan, process.stdin)
    process.stdin.close()
    process.stdin = None  # or communicate() would flush it once more
    return Running(host, process, count, GRACE_SECONDS + timeout_seconds * (1 + count / parallel))
