"""The prober finds what it is for: outages bucket by bucket, who took over, double answers, buckets that moved."""

import time
from collections.abc import Iterator

import pytest

from kernel.plainsharing import BUCKETS, PlainSharing
from lab import claim, servers, takeover
from lab.downloads import downloading
from lab.lan import Lan
from lab.prober import Log, Prober, await_probes
from lab.servers import STREAM_PORT, TCP_PORT

pytestmark = pytest.mark.root

TURNS = 4


@pytest.fixture(scope="module")
def sharing() -> Iterator[PlainSharing]:
    with Lan(claim.unique("prober"), nodes=3) as lan, servers.serving(lan.nodes, stream=[STREAM_PORT]):
        yield PlainSharing(lan, Lan.vip(1))


@pytest.fixture
def prober(sharing: PlainSharing) -> Prober:
    lan = sharing.lan
    return Prober(lan.client, sharing.address, TCP_PORT, sharing.sources, lan.owner_of)


def turns(log: Log, since: float, count: int = TURNS) -> None:
    """Wait until every bucket was asked so often."""
    await_probes(
        log,
        f"{count} attempts in each bucket",
        lambda probes: takeover.asked(probes, range(BUCKETS), count),
        since=since,
        seconds=20,
    )


def test_every_attempt_is_answered_by_its_buckets_owner_and_by_no_one_else(sharing, prober):
    owners = sharing.share()
    started = time.monotonic()
    with prober as log:
        turns(log, started, 20)
    probes = log.probes()
    print(f"{len(probes)} attempts, worst {max(p.ended - p.started for p in probes) * 1000:.0f} ms, ")
    print(
        f"late by {log.late_seconds * 1000:.0f} ms, spacing {takeover.spacing_seconds(probes, owners):.3f} s"
    )
    assert len(probes) >= 20 * BUCKETS
    assert takeover.disturbed(probes, owners, ()) == []
    assert takeover.doubles(probes) == []
    assert takeover.orphans(probes, owners) == []
    assert all(p.senders == (owners[p.bucket],) for p in probes)


def test_a_bucket_that_nobody_keeps_for_a_while_is_unserved_for_just_that_while(sharing, prober):
    owners = sharing.share()
    started = time.monotonic()
    with prober as log:
        turns(log, started)
        gone = time.monotonic()
        sharing.assign({b: name for b, name in owners.items() if b != 4})
        took = time.monotonic()
        turns(log, took)
        middle = time.monotonic()
        back = time.monotonic()
        sharing.assign(owners)
        there = time.monotonic()
        turns(log, there)
    of_4 = [p for p in log.probes() if p.bucket == 4]
    assert takeover.orphans(log.probes(took, middle), owners) == [4]
    assert takeover.orphans(log.probes(there), owners) == []
    certain = [p for p in of_4 if not (gone <= p.started < took or back <= p.started < there)]
    assert all((p.answerer is None) == (took <= p.started < back) for p in certain)
    unserved = takeover.unserved_seconds(of_4, gone)
    spacing = takeover.spacing_seconds(of_4, [4])
    print(f"unserved {unserved:.3f} s of {back - took:.3f} to {there - gone:.3f} s, spacing {spacing:.3f} s")
    # One attempt's way to either side: that is what it can be wrong by.
    assert back - took <= unserved <= there - gone + spacing + max(p.ended - p.started for p in of_4)
    assert [
        b for b in owners if takeover.unserved_seconds([p for p in log.probes() if p.bucket == b], gone)
    ] == [4]
    assert all("bucket 4 of" in sentence for sentence in takeover.disturbed(log.probes(), owners, ()))


def test_a_bucket_that_two_nodes_keep_is_answered_twice_and_both_are_named(sharing, prober):
    owners = sharing.share()
    started = time.monotonic()
    with prober as log:
        turns(log, started)
        healthy = log.probes()
        second = sharing.lan.nodes[2]
        sharing.keep(second, [*(b for b, name in owners.items() if name == "n3"), 3])
        since = time.monotonic()
        turns(log, since)
    assert owners[3] == "n1"
    doubled = [p for p in log.probes(since) if p.bucket == 3]
    assert takeover.doubles(healthy) == []
    assert len(takeover.doubles(doubled)) == len(doubled)
    assert all(set(p.senders) == {"n1", "n3"} for p in doubled)
    assert takeover.doubles(p for p in log.probes(since) if p.bucket != 3) == []


def test_a_takeover_is_timed_from_the_fault_to_each_buckets_first_answer_by_another_node(sharing, prober):
    owners = sharing.share()
    started = time.monotonic()
    with prober as log:
        turns(log, started)
        at = time.monotonic()
        sharing.keep(sharing.lan.nodes[0], [])
        turns(log, time.monotonic())
        gave = time.monotonic()
        # One of n2's goes with them, to the third node: nobody else's bucket is to move.
        moved = {b: ("n3" if name == "n1" or b == 1 else name) for b, name in owners.items()}
        sharing.assign(moved)
        taken = time.monotonic()
        turns(log, taken)
    probes = log.probes()
    found = takeover.takeovers(probes, owners, {"n1"}, at)
    assert [t.bucket for t in found] == [b for b, name in owners.items() if name == "n1"]
    assert {t.by for t in found} == {"n3"}
    spacing = takeover.spacing_seconds(probes, owners)
    longest = max(p.ended - p.started for p in probes)
    for one in found:
        assert one.seconds is not None
        assert gave - at <= one.seconds <= taken - at + spacing + longest
        assert one.unserved_seconds <= one.seconds
    strays = set(takeover.disturbed(probes, owners, {"n1"}))
    assert "bucket 1 of n2 was answered by n3" in strays
    # While the nodes changed one after the other it may have had no owner for a moment.
    assert all(sentence.startswith("bucket 1 of n2") for sentence in strays)


def test_long_downloads_end_with_all_their_data_and_one_whose_node_lets_it_go_is_told(sharing):
    lan = sharing.lan
    owners = sharing.share()
    chosen = [pair[1:] for pair in sharing.sources.take(range(6))]
    with downloading(lan.client, sharing.address, STREAM_PORT, chosen, patience_seconds=2) as running:
        assert running.nodes == [owners[b] for b in range(6)]
        # The third node has its buckets no more: nobody answers what its clients say, and its data is not confirmed.
        sharing.keep(lan.nodes[2], [])
    assert running.broken(["n1", "n2"]) == []
    assert [d.node for d in running.ended if d.error is not None] == ["n3", "n3"]
    assert len(running.broken(["n3"])) == 2
    assert all(d.bytes > 0 for d in running.ended)
