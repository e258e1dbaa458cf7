"""Who takes new flows of each bucket, moment by moment, as the nodes' kernels tell of every change of their sets.

Owns reading `nft monitor` on each node. A moment is when the line was read: a little late, and later on a busy machine.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lab.errors import LabError
from lab.host import Host
from lab.kernelstate import owned_buckets

START_SECONDS = 5.0
_CHANGE = re.compile(r"(add|delete) element ip lbless \w+_(owned|fresh) \{ (.*) \}")
_END_OF_TRANSACTION = "# new generation"
_PROBE = "lbless_lab_probe"


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction on a node at a time (seconds of CLOCK_MONOTONIC): the buckets that it takes flows in since then."""

    at: float
    node: str
    takes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Gap:
    """Nobody took new flows of a bucket, from a time on (CLOCK_MONOTONIC) for so many seconds."""

    bucket: int
    since: float
    seconds: float


@dataclass
class Takers:
    """All changes of one block, which can be read once it is over."""

    began: dict[str, frozenset[int]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def gaps(self) -> list[Gap]:
        """Each time in which a bucket that had a taker had none, up to when it had one again."""
        takes = dict(self.began)
        bare: dict[int, float] = {}
        found = []
        for change in sorted(self.changes, key=lambda one: one.at):
            before = frozenset().union(*takes.values())
            takes[change.node] = change.takes
            after = frozenset().union(*takes.values())
            bare.update((bucket, change.at) for bucket in before - after)
            found += [Gap(b, bare[b], change.at - bare[b]) for b in sorted(after - before) if b in bare]
        return found


@contextmanager
def watching(nodes: Sequence[Host], address: str) -> Iterator[Takers]:
    """Note every change inside the block. Raises LabError where some were missed."""
    seen = Takers()
    seen.began = {node.name: frozenset(owned_buckets(node, address)) for node in nodes}
    with ExitStack() as stack:
        for node in nodes:
            stack.enter_context(_following(node, address, seen))
        if seen.began != {node.name: frozenset(owned_buckets(node, address)) for node in nodes}:
            raise LabError("buckets moved before anybody looked: begin when all is at rest")
        yield seen


@contextmanager
def _following(node: Host, address: str, seen: Takers) -> Iterator[None]:
    process = node.popen(["nft", "monitor"], stdout=subprocess.PIPE, log="nft-monitor")
    reading = threading.Event()
    reader = threading.Thread(target=_read, args=(process, node.name, address, seen, reading), daemon=True)
    reader.start()
    try:
        _await_reading(node, reading)
        yield
        if process.poll() is not None:
            raise LabError(f"nft monitor on {node.namespace} broke off: {node.last_words('nft-monitor')}")
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        reader.join(START_SECONDS)


def _await_reading(node: Host, reading: threading.Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not reading.is_set():
        if time.monotonic() > deadline:
            raise LabError(f"nft monitor on {node.namespace} tells nothing: {node.last_words('nft-monitor')}")
        node.run(["nft", f"add table ip {_PROBE}; delete table ip {_PROBE}"])
        reading.wait(0.1)


def _read(
    process: subprocess.Popen[str], node: str, address: str, seen: Takers, reading: threading.Event
) -> None:
    """Follow what one node tells, a transaction at a time."""
    assert process.stdout is not None
    # Whether a bucket was fresh or owned at the beginning is not known: what is deleted goes from both.
    states: dict[str, set[int]] = {"owned": set(), "fresh": set(), "began": set(seen.began[node])}
    taken = seen.began[node]
    for line in process.stdout:
        reading.set()
        if found := _CHANGE.match(line):
            verb, state, elements = found.groups()
            pairs = (element.split(" . ") for element in elements.split(", "))
            buckets = {int(bucket) for ip, bucket in pairs if ip == address}
            if verb == "add":
                states[state] |= buckets
            else:
                states[state] -= buckets
                states["began"] -= buckets
        elif line.startswith(_END_OF_TRANSACTION) and taken != (now := frozenset().union(*states.values())):
            taken = now
            seen.changes.append(Change(time.monotonic(), node, taken))
