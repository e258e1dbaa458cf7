"""What clients noticed: probes, conversations and datagrams summed up in a table, and a sentence for each harm.

Pure but for the clock that tells a time of day. Who made the traffic is `clients`', and what is harm of a test's own
kind (a wait that is too long) is the test's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.datagrams import Datagram
from lab.echoes import Conversation
from lab.prober import Probe

SHOWN = 10
_HEADS = ("", "asked", "unanswered", "sent again", "twice", "broken", "median ms", "p99 ms", "worst ms")


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of traffic.

    `asked`: connections, lines, datagrams or requests; of these `unanswered` got no answer and `twice` more than one
    (connections: from two nodes, however often from one). `again`: SYNs on the wire beyond the first, None where
    nothing is sent again. `broken`: connections, or sendings, that failed. `seconds`: how long answers took; for
    conversations the longest of each.
    """

    what: str
    asked: int
    unanswered: int
    again: int | None
    twice: int
    broken: int
    seconds: tuple[float, ...]
    faults: tuple[str, ...]

    @property
    def worst_seconds(self) -> float:
        """The longest of them; 0 if there is none."""
        return max(self.seconds, default=0.0)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as it is printed."""
        counts = (self.asked, self.unanswered, self.again, self.twice, self.broken)
        times = (quantile(self.seconds, part) for part in (0.5, 0.99, 1.0))
        return (
            self.what,
            *("-" if number is None else str(number) for number in counts),
            *("-" if one is None else f"{one * 1000:.2f}" for one in times),
        )


@dataclass(frozen=True, slots=True)
class Impact:
    """All kinds of traffic of one test; printed as a table with the first of the faults below it."""

    rows: tuple[Row, ...]

    @property
    def faults(self) -> list[str]:
        """A sentence for everything that a client should not have noticed."""
        return [fault for row in self.rows for fault in row.faults]

    def row(self, what: str) -> Row:
        """The row of one kind of traffic."""
        return next(row for row in self.rows if row.what == what)

    def __str__(self) -> str:
        table = [_HEADS, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            for cells in table
        ]
        lines += self.faults[:SHOWN]
        if len(self.faults) > SHOWN:
            lines.append(f"and {len(self.faults) - SHOWN} more")
        return "\n".join(lines)


CONNECTIONS, LINES, DATAGRAMS, REQUESTS = "new connections", "echoed lines", "datagrams", "echo requests"


def impact(
    probes: Sequence[Probe] = (),
    conversations: Sequence[Conversation] = (),
    datagrams: Sequence[Datagram] = (),
) -> Impact:
    """Sum everything up; what there was nothing of has no row."""
    rows = (
        of_connections(probes),
        of_conversations(conversations),
        of_datagrams(DATAGRAMS, [d for d in datagrams if d.kind == "udp"]),
        of_datagrams(REQUESTS, [d for d in datagrams if d.kind == "icmp"]),
    )
    return Impact(tuple(row for row in rows if row.asked))


def of_connections(probes: Sequence[Probe]) -> Row:
    """New connections; a SYN-ACK is the answer, and whether the connection then came to its end is `broken`'s."""
    faults = []
    unanswered, twice, broken = [], [], []
    for p in probes:
        name = f"a connection from {p.source}:{p.port} in bucket {p.bucket} at {time_of_day(p.started)}"
        if not p.senders:
            unanswered.append(p)
            faults.append(f"{name} was not answered: {p.error}")
        elif p.node is None:
            broken.append(p)
            faults.append(f"{name} broke: {p.error}")
        if len(p.senders) > 1:
            twice.append(p)
            faults.append(f"{name} was answered by {_names(p.senders)}, {p.apart_seconds:.3f} s apart")
        if len(p.syns) > 1:
            after = ", ".join(f"{at - p.syns[0]:.3f}" for at in p.syns[1:])
            faults.append(f"{name} had its SYN sent again after {after} s")
    return Row(
        CONNECTIONS,
        len(probes),
        len(unanswered),
        sum(max(0, len(p.syns) - 1) for p in probes),
        len(twice),
        len(broken),
        tuple(p.acknowledged - p.syns[0] for p in probes if p.acknowledged is not None and p.syns),
        tuple(faults),
    )


def of_conversations(conversations: Sequence[Conversation]) -> Row:
    """Lines of long-lived connections, and the longest that each had to wait."""
    broken = [c for c in conversations if c.broken is not None]
    faults = [
        f"the connection from {c.source}:{c.source_port} to {c.node} broke after {c.back} of {c.sent} lines: {c.broken}"
        for c in broken
    ]
    return Row(
        LINES,
        sum(c.sent for c in conversations),
        sum(c.sent - c.back for c in conversations),
        None,
        0,
        len(broken),
        tuple(c.longest_seconds for c in conversations),
        tuple(faults),
    )


def of_datagrams(what: str, datagrams: Sequence[Datagram]) -> Row:
    """Datagrams, or echo requests; a fault for each that was not answered exactly once."""
    faults = []
    for d in datagrams:
        name = f"{d.kind} {d.source}:{d.source_port}" + (f" ({d.sequence})" if d.kind == "icmp" else "")
        name += f" at {time_of_day(d.sent)}"
        if d.error is not None:
            faults.append(f"{name} could not be sent: {d.error}")
        elif len(d.senders) != 1:
            faults.append(f"{name} was answered by {_names(d.senders)}")
    return Row(
        what,
        len(datagrams),
        sum(not d.senders for d in datagrams),
        None,
        sum(len(d.senders) > 1 for d in datagrams),
        sum(d.error is not None for d in datagrams),
        tuple(d.seconds for d in datagrams if d.seconds is not None),
        tuple(faults),
    )


def time_of_day(monotonic: float) -> str:
    """When it was by the wall clock at a moment of CLOCK_MONOTONIC: as logs tell it."""
    at = time.time() - time.monotonic() + monotonic
    return f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03}"


def quantile(values: Iterable[float], part: float) -> float | None:
    """The smallest of the values that `part` of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def _names(names: Sequence[str]) -> str:
    return " and ".join(names) or "nobody"
