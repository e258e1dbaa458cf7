"""The nftables engine with a thousand addresses, in a namespace of its own."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Row
from lab import claim
from lab.errors import LabError
from lab.lan import Lan

ADDRESSES, ROUNDS = 1000, 5


def rows() -> Iterator[Row]:
    """Measure loading from nothing, changing one address, memory, and that rules do not grow."""
    if os.geteuid() != 0:
        raise LabError("the engine needs root and a network namespace: run make bench as root")
    with Lan(claim.unique("lbbench"), nodes=1) as lan:
        program = Path(__file__).parent / "engine_inside.py"
        done = lan.nodes[0].run([sys.executable, program, str(ADDRESSES), str(ROUNDS)], timeout=120)
    found = json.loads(done.stdout)
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
