"""lbless-dataplane, and its nftables engine alone, with a thousand addresses, in a namespace of their own."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.measure import Row
from lab import claim
from lab.errors import LabError
from lab.lan import Lan

ADDRESSES, ROUNDS, IDLE_SECONDS = 1000, 5, 30
SIZE = f"{ADDRESSES} ClusterIPs x 85 buckets"


def rows() -> Iterator[Row]:
    """Measure the process first, then the engine alone."""
    if os.geteuid() != 0:
        raise LabError("dataplane needs root and a network namespace: run make bench as root")
    yield from _process()
    yield from _engine()


def _process() -> Iterator[Row]:
    """Starting from nothing, what it takes, changing, repairing, and resting, thorough passes included."""
    with Lan(claim.unique("lbbench"), nodes=1) as lan:
        state = lan.directory / "state"
        arguments = [state, str(ADDRESSES), str(ROUNDS), str(IDLE_SECONDS)]
        found = _run(lan, "dataplane_inside.py", *arguments)
    (few,) = found["few"]
    for what, unit, limit, figures in (
        (f"{SIZE}, start to all in the kernel", "ms", 3000, found["start"]),
        ("memory at rest", "MiB", 80, found["rss"]),
        ("peak memory", "MiB", 130, found["peak"]),
        ("one ClusterIP changes", "ms", 10, found["change"]),
        ("a deleted address is back", "ms", 200, found["address"]),
        ("flushed rules: said", "ms", 200, found["said"]),
        ("flushed rules: all are back", "ms", 1000, found["rules"]),
        ("a pass that believes nothing of files and links", "ms", 200, found["thorough"]),
        ("a pass that believes nothing of the rules", "ms", 200, found["audit"]),
        (f"idle for {IDLE_SECONDS} s, with such passes", "% of a core", 1, found["idle"]),
        ("rules, beside those with a few ClusterIPs", "", few, found["rule_count"]),
    ):
        yield Row(f"dataplane: {what}", unit, limit, tuple(figures))


def _engine() -> Iterator[Row]:
    """Measure loading from nothing, changing one address, memory, and that rules do not grow."""
    with Lan(claim.unique("lbbench"), nodes=1) as lan:
        found = _run(lan, "engine_inside.py", str(ADDRESSES), str(ROUNDS))
    size = f"{ADDRESSES} addresses x 85 buckets"
    yield Row(f"nftables engine: {size}, from nothing", "ms", 3000, tuple(found["load_ms"]))
    yield Row("nftables engine: one bucket of one of them changes", "ms", 10, tuple(found["flip_ms"]))
    yield Row("nftables engine: peak memory of the process", "MiB", 130, (found["peak_mib"],))
    yield Row(
        f"nftables engine: rules with {ADDRESSES}, beside those with 5",
        "",
        found["rules_few"],
        (found["rules_many"],),
    )


def _run(lan: Lan, program: str, *arguments: str | Path) -> Mapping[str, list[float]]:
    command = [sys.executable, Path(__file__).parent / program, *arguments]
    figures: Mapping[str, list[float]] = json.loads(lan.nodes[0].run(command, timeout=300).stdout)
    return figures
