"""Deaths that nodes report from their segment, against a real API server: the next epoch is what successors hold.

The nodes' reports are written by the tests, as sync writes them; that nodes report so is tested with the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from cluster.operatorworld import Operator, World, conditions, shares, until
from lbless_api.buckets import BucketSet
from lbless_api.ownership import divide
from lbless_api.segment import Condition, Peer, SegmentReport
from lbless_operator.seating import ANSWER_SECONDS

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

AT_ONCE_SECONDS = 2.0
"""From a report to the next epoch in the API, where the report leaves no doubt."""


def report(
    world: World, nodes: list[str], dead: Sequence[str] = (), *, lives: Mapping[str, int] | None = None
) -> None:
    """Let these nodes hear each other, and count others dead."""
    number = lives or {}
    for node in nodes:
        heard = tuple(Peer(other, number.get(other, 1)) for other in nodes if other != node)
        world.agents.get(node).segment = SegmentReport(heard=heard, dead=tuple(Peer(n, 1) for n in dead))


def owned(clusterip: dict[str, Any]) -> dict[str, BucketSet]:
    return {a["node"]: BucketSet.parse(a["buckets"]) for a in clusterip["status"]["assignments"]}


def held_by_successors(world: World, clusterip: dict[str, Any], living: list[str]) -> dict[str, BucketSet]:
    return divide(owned(clusterip), living=set(living)).owners(world.ip)


def serving(
    program: Operator, world: World, *shorts: str, answer_seconds: float | None = None
) -> dict[str, Any]:
    program.start(answer_seconds=answer_seconds)
    nodes = world.nodes(*shorts)
    report(world, nodes)
    world.clusterip(buckets=256)
    until("all to be assigned", lambda: set(shares(world.get())) == set(nodes))
    world.wait_condition("Ready", "True", "Serving")
    return world.get()


def test_a_dead_nodes_buckets_stay_with_its_successors_and_its_next_life_gets_them_by_moves(
    program: Operator, world: World
):
    before = serving(program, world, "a", "b", "c")
    a, b, c = owned(before)
    silent = world.agents.get(c)
    silent.reports = False
    report(world, [a, b], [c])
    after = until(
        "the dead to have nothing", when(world, lambda got: shares(got).get(c) == 0), AT_ONCE_SECONDS
    )
    taken = held_by_successors(world, before, [a, b])
    assert owned(after) == {**taken, c: BucketSet()}
    world.wait_condition("Degraded", "True", "NodeDeadOnSegment")
    world.wait_event("NodeDeadOnSegment", containing=f"Node {c} is counted dead on the segment")
    world.wait_condition("Programmed", "True", "Programmed")
    assert conditions(world.get())["Ready"]["status"] == "True"
    assert world.get()["status"]["nodes"] == "2/2"

    silent.incarnation, silent.reports = 2, True
    silent.segment = SegmentReport(frozenset({Condition.LISTENING}))
    report(world, [a, b])
    world.wait_condition("Degraded", "False", "AsPlanned")
    assert owned(world.get()) == owned(after), "it gets nothing before it has joined"
    report(world, [a, b, c], lives={c: 2})
    back = until("its share", when(world, lambda got: shares(got).get(c) in {85, 86}))
    assert next(e for e in back["status"]["assignments"] if e["node"] == c)["incarnation"] == 2
    for node in (a, b):
        assert owned(back)[node].issubset(owned(after)[node])


def test_two_at_once_and_nothing_moves_while_one_hears_them(program: Operator, world: World):
    before = serving(program, world, "a", "b", "c", "d")
    a, b, c, d = owned(before)
    for node in (c, d):
        world.agents.get(node).reports = False
    world.agents.get(a).segment = SegmentReport(heard=(Peer(b, 1),), dead=(Peer(c, 1), Peer(d, 1)))
    seen = until("the report", lambda: _report_of(world, a)["deadPeers"])
    assert [peer["node"] for peer in seen] == [c, d]
    after_another_is_decided(world)
    assert world.get()["status"]["epoch"] == before["status"]["epoch"]
    report(world, [a, b], [c, d])
    after = until("both to have nothing", when(world, lambda got: shares(got).get(d) == 0), AT_ONCE_SECONDS)
    assert after["status"]["epoch"] == before["status"]["epoch"] + 1
    taken = held_by_successors(world, before, [a, b])
    assert owned(after) == {**taken, c: BucketSet(), d: BucketSet()}


def test_one_against_all_others_moves_nothing_and_when_these_answer_it_has_nothing(
    program: Operator, world: World
):
    before = serving(program, world, "a", "b", "c", answer_seconds=600)
    a, b, c = owned(before)
    report(world, [a], [b, c])
    until("the report", lambda: len(_report_of(world, a)["deadPeers"]) == 2)
    after_another_is_decided(world)
    assert world.get()["status"]["epoch"] == before["status"]["epoch"]
    report(world, [b, c], [a])
    after = until("it to have nothing", when(world, lambda got: shares(got).get(a) == 0), AT_ONCE_SECONDS)
    assert after["status"]["epoch"] == before["status"]["epoch"] + 1


def test_the_only_one_that_is_left_is_believed_when_nobody_answers(program: Operator, world: World):
    before = serving(program, world, "a", "b", "c")
    a, b, c = owned(before)
    for node in (b, c):
        world.agents.get(node).reports = False
    report(world, [a], [b, c])
    world.wait_shares({a: 256, b: 0, c: 0}, timeout_seconds=ANSWER_SECONDS + 2 * AT_ONCE_SECONDS)


def test_a_node_that_kubernetes_takes_for_dead_keeps_its_share_while_its_heartbeats_arrive(
    program: Operator, world: World
):
    program.start()
    a = world.node("a", lease_age_seconds=36, renews=False)
    b, c = world.nodes("b", "c")
    report(world, [a, b, c])
    world.clusterip()
    until("all to be assigned", lambda: set(shares(world.get())) == {a, b, c})
    before = owned(world.get())
    world.control_plane.set_node_ready(a, False)
    until(
        "it to be said",
        lambda: "NotReady, and yet" in conditions(world.get())["Degraded"]["message"],
    )
    assert owned(world.get()) == before
    report(world, [b, c])
    world.wait_shares({a: 0, b: 8, c: 8})


def test_heartbeats_that_reach_nobody_are_said_and_move_nothing(program: Operator, world: World):
    before = serving(program, world, "a", "b")
    for node in owned(before):
        world.agents.get(node).segment = SegmentReport(frozenset({Condition.NO_PEERS_HEARD}))
    said = world.wait_condition("Degraded", "True", "NoPeersHeard")["message"]
    until("both to be named", lambda: "Nodes" in conditions(world.get())["Degraded"]["message"])
    assert "Let the switch pass multicast of Ethernet type 0x88B5" in said
    assert owned(world.get()) == owned(before)
    assert conditions(world.get())["Ready"]["status"] == "True"


def after_another_is_decided(world: World) -> None:
    """Return when a ClusterIP of its own is decided: with that, all that was reported before."""
    world.clusterip("marker", ip=world.beside(1), nodeSelector={"marker": "none"})
    world.wait_condition("Ready", "False", "NoEligibleNode", "marker")


def _report_of(world: World, node: str) -> dict[str, Any]:
    path = f"/apis/lbless.dev/v1alpha1/clusteripnodes/{node}"
    interface: dict[str, Any] = world.control_plane.api("GET", path)["status"]["interfaces"][0]
    return interface


def when(world: World, holds: Callable[[dict[str, Any]], bool]) -> Callable[[], dict[str, Any] | None]:
    """A look at the ClusterIP, for `until`: it as it is when that holds."""

    def look() -> dict[str, Any] | None:
        got = world.get()
        return got if holds(got) else None

    return look
