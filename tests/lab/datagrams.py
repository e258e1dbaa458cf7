"""Datagrams: UDP and ICMP echo requests all the time, and how often and by whom each was answered.

The sending is `inside/datagrams.py`'s; what it all comes to is `impact`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lab.background import background
from lab.errors import LabError
from lab.host import Host

PER_SECOND = 200
FIRST_PORT = 1024
IDENTIFIER = 0x4C42
START_SECONDS = 15
END_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Datagram:
    """One that was sent, in seconds of CLOCK_MONOTONIC, and the node of each of its answers in their order.

    `kind` is "udp" or "icmp"; `seconds` is how long the first answer took, None if none came.
    """

    kind: str
    source: str
    source_port: int
    sequence: int
    sent: float
    senders: tuple[str, ...]
    seconds: float | None
    error: str | None


@dataclass
class Datagrams:
    """Those of one block; everything is there once it is over. `load` is the program's share of a processor."""

    sent: list[Datagram] = field(default_factory=list)
    late_seconds: float = 0.0
    load: float = 0.0


@contextmanager
def sending(
    client: Host,
    address: str,
    port: int,
    sources: Sequence[str],
    node_of: Callable[[str], str],
    *,
    per_second: int = PER_SECOND,
) -> Iterator[Datagrams]:
    """Send `per_second` of either kind inside the block, from the addresses in turn, each datagram from a new port.

    `node_of` tells which node has a hardware address. Raises LabError where answers were missed: they prove nothing.
    """
    plan = {
        "interface": client.interface,
        "address": address,
        "port": port,
        "sources": list(sources),
        "first_port": FIRST_PORT,
        "identifier": IDENTIFIER,
        "per_second": per_second,
    }
    seen = Datagrams()
    with background(client, "datagrams", plan, start_seconds=START_SECONDS, end_seconds=END_SECONDS) as said:
        yield seen
    *stories, (seen.late_seconds, missed, seen.load) = said
    if missed:
        raise LabError(
            f"the datagrams on {client.namespace} missed {missed} frames, so they prove nothing: "
            f"try again on a calmer machine"
        )
    for kind, source, source_port, sequence, sent, answers, error in stories:
        senders = tuple(node_of(mac) for _, mac in answers)
        seconds = answers[0][0] - sent if answers else None
        seen.sent.append(Datagram(kind, source, source_port, sequence, sent, senders, seconds, error))
