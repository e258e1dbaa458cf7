"""Echoes: hundreds of connections that last as long as a test's block and notice whatever happens to one of them.

The two ends are `inside/echoes.py`'s and `--echo` of `inside/servers.py`; what it all comes to is `impact`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lab.background import background
from lab.errors import LabError
from lab.host import Host

CONNECTIONS, ADDRESSES = 500, 50
INTERVAL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0
START_SECONDS = 15
END_SECONDS = 15
# Above what the prober uses of an address's ports, below what the kernel gives to connections without one of their own.
FIRST_PORT = 30000


@dataclass(frozen=True, slots=True)
class Conversation:
    """One connection that is over. `broken` is how, if it broke before its time, and `broken_at` when.

    `longest_seconds` is the longest that one line was on its way, from `longest_began` on; times are CLOCK_MONOTONIC.
    """

    source: str
    source_port: int
    node: str
    sent: int
    back: int
    longest_seconds: float
    longest_began: float
    broken: str | None
    broken_at: float | None


@dataclass
class Echoes:
    """Those of one block; everything is there once it is over. `load` is the program's share of a processor."""

    ended: list[Conversation] = field(default_factory=list)
    late_seconds: float = 0.0
    load: float = 0.0


def sources(addresses: Sequence[str], connections: int = CONNECTIONS) -> list[tuple[str, int]]:
    """So many different ones, evenly spread over the addresses."""
    return [
        (addresses[number % len(addresses)], FIRST_PORT + number // len(addresses))
        for number in range(connections)
    ]


@contextmanager
def echoing(
    client: Host,
    address: str,
    port: int,
    own: Sequence[tuple[str, int]],
    *,
    interval_seconds: float = INTERVAL_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[Echoes]:
    """Keep a connection from each of `own` inside the block; each has had its first echo when that begins.

    One whose echo does not come within the patience counts as broken. Raises LabError where they do not begin.
    """
    plan = {
        "address": address,
        "port": port,
        "sources": list(own),
        "interval_seconds": interval_seconds,
        "patience_seconds": patience_seconds,
    }
    seen = Echoes()
    with background(
        client,
        "echoes",
        plan,
        start_seconds=START_SECONDS + patience_seconds,
        end_seconds=END_SECONDS + patience_seconds,
    ) as said:
        yield seen
    *stories, last = said
    if len(stories) != len(own):
        raise LabError(f"the echoes on {client.namespace} told of {len(stories)} connections, not {len(own)}")
    seen.ended += [Conversation(*story) for story in stories]
    seen.late_seconds, seen.load = last
