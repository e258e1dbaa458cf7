"""Long downloads from a shared address: connections that last as long as a test's block, and how each came out.

The two ends are `inside/downloads.py`'s and `inside/servers.py`'s; which node a source reaches is the caller's to know.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lab.errors import LabError
from lab.host import Host

PATIENCE_SECONDS = 10.0
END_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Download:
    """One that is over: from which node, how much, its longest pause, and what broke it, if anything did."""

    source: str
    source_port: int
    node: str
    bytes: int
    longest_pause_seconds: float
    error: str | None


@dataclass
class Downloads:
    """Those of one block: the node of each, in their order. `ended` has them all once the block is over."""

    nodes: Sequence[str]
    ended: list[Download] = field(default_factory=list)

    def broken(self, nodes: Sequence[str]) -> list[str]:
        """A sentence for each from one of `nodes` that did not come to its end with all its data."""
        return [
            f"a download from {d.node} ({d.source}:{d.source_port}) after {d.bytes} bytes: {d.error}"
            for d in self.ended
            if d.node in nodes and d.error is not None
        ]


@contextmanager
def downloading(
    client: Host,
    address: str,
    port: int,
    sources: Sequence[tuple[str, int]],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[Downloads]:
    """Download from each source inside the block; all have begun when it begins, or it is a LabError.

    At its end each has `patience_seconds` for what is still to come.
    """
    plan = {"address": address, "port": port, "sources": list(sources), "patience_seconds": patience_seconds}
    process = client.popen(
        client.inside("downloads"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="downloads"
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(plan) + "\n")
        process.stdin.flush()
        # The program gives each up after some seconds, so a line comes for each.
        lines = [process.stdout.readline().split() for _ in sources]
        begun = {(line[0], int(line[1])): line[2] for line in lines if len(line) == 3 and line[2] != "-"}
        if begun.keys() != {*sources}:
            raise LabError(f"not every download from {address} begins: {lines}")
        running = Downloads([begun[source] for source in sources])
        yield running
        output, _ = process.communicate(timeout=END_SECONDS)
        running.ended += [Download(*json.loads(line)) for line in output.splitlines()]
        if process.returncode != 0 or len(running.ended) != len(sources):
            raise LabError(f"the downloads on {client.namespace} broke off: {client.last_words('downloads')}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
