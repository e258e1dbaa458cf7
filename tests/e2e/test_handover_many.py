"""Everything of a hundred ClusterIPs moves at once, and a client of one of them notices nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.moving import NAMES, weigh
from lab import claim, clients, usage
from lab.installation import Installation
from lab.kernelstate import shares
from lab.progress import Silence
from lbless_api.clusterip import ClusterIP

pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.soak]

COUNT = 100
SYNS_PER_SECOND, DATAGRAMS_PER_SECOND = 200, 400
CALM_SECONDS = 3
MOVE_SECONDS = 60


@pytest.fixture
def hundred(lbless: Installation, vip: str) -> Iterator[list[ClusterIP]]:
    """A hundred ClusterIPs, all of whose buckets are n1's; the first has the client's services."""
    for name in NAMES[1:]:
        weigh(lbless, name, 0)
    names = [f"many-{number}" for number in range(COUNT)]
    for number, name in enumerate(names):
        lbless.create(name, {"ip": f"10.80.6.{number}" if number else vip})
    yield [lbless.wait_ready(name, timeout_seconds=MOVE_SECONDS) for name in names]
    for name in names:
        lbless.delete(name)
    for name in NAMES:
        weigh(lbless, name, None)


def cpu_seconds(lbless: Installation) -> float:
    """What all processes of the dataplanes have used so far."""
    used = 0.0
    for pid in claim.processes(lbless.lan.prefix):
        if "dataplane" in Path(f"/proc/{pid}/cmdline").read_text():
            used += usage.cpu_seconds(pid)
    return used


def test_25600_buckets_move_to_another_node_and_no_packet_of_a_stream_is_misjudged(
    lbless: Installation, hundred: list[ClusterIP]
) -> None:
    lan, first = lbless.lan, hundred[0]
    source, target = lan.nodes[:2]
    addresses = [str(one.spec.ip) for one in hundred]

    def taken(index: int) -> int:
        found = shares(lan.nodes[index])
        return sum(len(found[ip].buckets) for ip in addresses if ip in found)

    every = sum(one.spec.hash.buckets for one in hundred)
    assert taken(0) == every
    with clients.asking(
        lan.client,
        addresses[0],
        first.spec.hash,
        lan.owner_of,
        per_second=SYNS_PER_SECOND,
        datagrams_per_second=DATAGRAMS_PER_SECOND,
    ) as seen:
        time.sleep(CALM_SECONDS)  # a span, for connections to last
        cpu, slab, began = cpu_seconds(lbless), usage.slab_kib(), time.monotonic()
        weigh(lbless, target.name, 100)
        weigh(lbless, source.name, 0)
        Silence().until(
            "everything to be taken by n2",
            lambda: taken(1) == every and taken(0) == 0,
            timeout_seconds=MOVE_SECONDS,
        )
        took, spent = time.monotonic() - began, cpu_seconds(lbless) - cpu
        grown = usage.slab_kib() - slab
        time.sleep(CALM_SECONDS)  # a span, for what it may have harmed
    print(
        f"{every} buckets of {COUNT} ClusterIPs moved from n1 to n2 in {took:.1f} s, from the weights to the kernels;"
    )
    print(f"{spent:.1f} s of a core in all dataplanes, {grown} KiB more in the kernel's caches meanwhile.")
    found = seen.impact()
    print(found)
    assert [fault for row in found.rows for fault in row.faults] == []
