"""A thousand files that are no ClusterIPs: each is refused with a sentence, and the good ones never notice."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.dataplane import Dataplane, interface, wait_for
from lab.host import Host
from lab.kernelstate import owned_buckets
from lab.lan import Lan
from unit.stateobjects import desired_json

pytestmark = pytest.mark.root

MALFORMED = 1000
VIPS = [Lan.vip(n) for n in range(1, 21)]
MEBIBYTE = 1 << 20
CPU_SECONDS_A_CHANGE = 0.05


Maker = Callable[[random.Random, Path, dict[str, Any]], object]


def truncated(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    text = json.dumps(good)
    path.write_text(text[: random.randrange(len(text) - 1)])


def wrong_type(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    where = good if random.random() < 0.3 else good[random.choice(["metadata", "spec", "status"])]
    key = random.choice([k for k in where if k not in ("apiVersion", "kind", "generation")])
    where[key] = random.choice([1.5, True, -7, ["x"], {"epoch": "x"}, "\N{SNOWMAN}" * 3000])
    path.write_text(json.dumps(good))


def absurd_number(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    number = random.choice(["1e999", "-1", "9" * 5000, "9" * 400, "NaN", "0.5"])
    field = random.choice(['"buckets"', '"hashSeed"', '"sourcePrefixLength"'])
    path.write_text(json.dumps(good).replace('"spec": {', f'"spec": {{{field}: {number}, '))


def deep(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    depth = random.choice([500, 5000, 100_000])
    path.write_text('{"spec":' * depth + "1" + "}" * depth)


def not_text(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    text = bytearray(json.dumps(good).encode())
    text[random.randrange(len(text))] = random.choice([0x00, 0x80, 0xFF])
    path.write_bytes(bytes(text))


def noise(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    path.write_bytes(random.randbytes(random.randrange(4000)))


def someone_else(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    path.write_text(json.dumps({**good, "metadata": {**good["metadata"], "uid": "someone-else"}}))


def directory(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    path.mkdir()


def fifo(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    os.mkfifo(path)


def loop(random: random.Random, path: Path, good: dict[str, Any]) -> None:
    path.symlink_to(path.name)


MAKERS: list[Maker] = [
    truncated, wrong_type, absurd_number, deep, not_text, noise, someone_else, directory, fifo, loop,
]  # fmt: skip


def huge(path: Path) -> None:
    """Larger than anything that is read."""
    with path.open("wb") as file:
        file.truncate(64 * MEBIBYTE)


def cpu_seconds(dataplane: Dataplane) -> float:
    assert dataplane.process is not None
    fields = Path(f"/proc/{dataplane.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def change_all(dataplane: Dataplane, node: Host, epoch: int, buckets: str) -> float:
    """Change each good one and see it take effect; return the CPU seconds that one cost on average."""
    before = cpu_seconds(dataplane)
    for number, ip in enumerate(VIPS):
        dataplane.desire(f"good-{number}", ip, buckets, epoch=epoch)
        dataplane.wait_applied(f"good-{number}", epoch)
    spent = (cpu_seconds(dataplane) - before) / len(VIPS)
    for ip in VIPS:
        assert str(owned_buckets(node, ip)) == buckets
    return spent


def test_a_thousand_malformed_files_are_each_refused_and_the_good_ones_are_served(
    dataplane: Dataplane, node: Host
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chosen = random.Random(seed)
    dataplane.complete()
    for number, ip in enumerate(VIPS):
        dataplane.desire(f"good-{number}", ip, "0-9")
    dataplane.start()
    wait_for(lambda: len(dataplane.observed().applied) == len(VIPS))
    alone = change_all(dataplane, node, 2, "0-19")

    malformed = {f"bad-{number}" for number in range(MALFORMED)}
    for number in range(MALFORMED):
        uid = f"bad-{number}"
        good = desired_json(uid, f"10.80.{100 + number // 250}.{number % 250 + 1}", {"n1": "0-255"})
        path = dataplane.desired / f"{uid}.json"
        if number < 2:
            huge(path)
        else:
            MAKERS[number % len(MAKERS)](chosen, path, good)

    def refused() -> set[str]:
        return {f.uid for f in dataplane.observed().failures}

    wait_for(lambda: dataplane.running() and refused() == malformed, 60)
    for failure in dataplane.observed().failures:
        assert failure.reason
        assert failure.message.rstrip(".").count(" ") > 2, failure
    assert (dataplane.directory / "observed.json").stat().st_size < MEBIBYTE
    assert dataplane.observed().applied.keys() == {f"good-{n}" for n in range(len(VIPS))}

    among = change_all(dataplane, node, 3, "0-29")
    print(f"CPU time of a change: {alone * 1000:.1f} ms alone, {among * 1000:.1f} ms among the malformed")
    assert among < CPU_SECONDS_A_CHANGE
    on_link = {a for a in interface(node, "eth0").addresses if a.endswith("/32")}
    assert on_link == {f"{ip}/32" for ip in VIPS}
    lines = dataplane.log.splitlines()
    assert len(lines) < 60, "\n".join(lines)
