"""A failover trial finds each thing that must not be, when it was made on purpose, and nothing when all went well."""

import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from kernel.plainsharing import PlainSharing
from lab import claim, failover, servers
from lab.failover import Trial
from lab.faults import Act, Fault
from lab.host import Host
from lab.lan import Lan

pytestmark = pytest.mark.root

DELAY_SECONDS = 0.3
SETTLE_SECONDS = 1.0

Kept = Mapping[str, list[int]]


@pytest.fixture(scope="module")
def sharing() -> Iterator[PlainSharing]:
    with Lan(claim.unique("trial"), nodes=3) as lan, servers.serving(lan.nodes, stream=[servers.STREAM_PORT]):
        made = PlainSharing(lan, Lan.vip(1))
        made.share()
        yield made


def trial(sharing: PlainSharing, after: Callable[[Kept], Kept]) -> Trial:
    """n1 stops keeping anything; a while later the nodes keep what `after` makes of what they kept before."""

    def strike(place: PlainSharing, node: Host) -> None:
        before = {
            n.name: [b for b, names in place.keepers().items() if n.name in names] for n in place.lan.nodes
        }
        place.keep(node, [])
        time.sleep(DELAY_SECONDS)
        for other in place.lan.nodes:
            place.keep(other, after(before)[other.name])

    fault = Fault[PlainSharing]("on purpose", (Act(0, "on purpose", strike),), lambda place, _: place.share())
    found = failover.run(sharing, fault, [sharing.lan.nodes[0]], settle_seconds=SETTLE_SECONDS)
    print(found)
    return found


def taken_by_n2(kept: Kept) -> dict[str, list[int]]:
    return {"n1": [], "n2": [*kept["n2"], *kept["n1"]], "n3": kept["n3"]}


def test_a_takeover_without_a_flaw_is_timed_and_has_no_faults(sharing):
    found = trial(sharing, taken_by_n2)
    assert found.faults == []
    assert [t.bucket for t in found.takeovers] == [0, 3, 6, 9, 12, 15]
    assert {t.by for t in found.takeovers} == {"n2"}
    assert all(DELAY_SECONDS < seconds < SETTLE_SECONDS for seconds in found.seconds)
    assert all(seconds > DELAY_SECONDS for seconds in found.unserved_seconds)


def test_a_bucket_that_nobody_takes_over_is_reported_as_an_orphan_and_never_answered(sharing):
    found = trial(sharing, lambda kept: {**taken_by_n2(kept), "n2": [*kept["n2"], *kept["n1"][1:]]})
    assert found.orphans == [0]
    assert found.faults == ["bucket 0 has no owner afterwards"]
    assert [t.bucket for t in found.takeovers if t.seconds is None] == [0]
    assert max(found.seconds) == float("inf")


def test_a_bucket_that_two_take_over_is_reported_with_its_double_answers(sharing):
    found = trial(sharing, lambda kept: {**taken_by_n2(kept), "n3": [*kept["n3"], 6]})
    assert found.overlaps == [6]
    assert found.doubles != []
    assert all(sentence.startswith("bucket 6") for sentence in found.faults)


def test_a_bucket_of_a_node_that_was_not_struck_is_reported_if_it_moves_and_its_downloads_if_they_break(
    sharing,
):
    # The first buckets of each are those with downloads: bucket 1 of n2 is one.
    found = trial(
        sharing,
        lambda kept: {
            "n1": [],
            "n2": [b for b in taken_by_n2(kept)["n2"] if b != 1],
            "n3": [*kept["n3"], 1],
        },
    )
    assert found.moved == ["bucket 1 went from n2 to ['n3']"]
    assert "bucket 1 of n2 was answered by n3" in found.disturbed
    assert len(found.broken_downloads) == 1
    assert "from n2" in found.broken_downloads[0]
    assert found.orphans == found.overlaps == []
