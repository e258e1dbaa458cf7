"""Buckets that machines outside lbless answer for, against a real API server: no node is ever given one."""

from __future__ import annotations

import pytest

from cluster.operatorworld import Operator, World, conditions, shares, until
from lbless_api.buckets import BucketSet

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


def reserve(world: World, reserved: str | None) -> None:
    world.patch({"spec": {"reservedBuckets": reserved}})


def owned(world: World) -> dict[str, BucketSet]:
    """Node → its buckets; no two may have the same."""
    assignments = world.get()["status"]["assignments"]
    owners = {a["node"]: BucketSet.parse(a["buckets"]) for a in assignments}
    numbers = [number for buckets in owners.values() for number in buckets]
    assert len(numbers) == len(set(numbers)), owners
    return owners


def await_programmed(world: World) -> None:
    """Wait as docs/migrating.md says to: kubectl takes no condition of an older generation for an answer."""
    for condition in ("Ready", "Programmed"):
        world.control_plane.kubectl(
            *("-n", world.namespace, "wait", "cip/web", f"--for=condition={condition}", "--timeout=20s")
        )


def test_a_migration_machine_by_machine_gives_nodes_what_is_not_reserved_and_nothing_else(
    program: Operator, world: World
):
    """The whole way there and back: each time only what must move does, and kubectl can be waited for."""
    program.start()
    a, b = world.nodes("a", "b")
    world.clusterip(hashFunction="LegacyClusterIP", reservedBuckets="2-15")
    world.wait_shares({a: 1, b: 1})
    for reserved in ("4-15", "12-15", "14-15", "15", "", "6-9", "12,14", None):
        before, epoch = owned(world), world.get()["status"]["epoch"]
        reserve(world, reserved)
        await_programmed(world)
        after, now = owned(world), world.get()
        given = BucketSet.full(16) - BucketSet.parse(reserved or "")
        assert after[a] | after[b] == given
        assert abs(len(after[a]) - len(after[b])) <= 1
        moved = sum(len(had & after[other]) for had, other in ((before[a], b), (before[b], a)))
        assert moved <= 1, "more than balance asks for"
        assert now["status"]["epoch"] > epoch or before == after
        said = conditions(now)["Assigned"]["message"]
        assert ("reserved for machines outside lbless" in said) == bool(reserved)
        assert now["status"]["nodes"] == "2/2"
    assert "that no node had" in world.wait_event("Moved", containing="that no node had")


def test_a_node_that_joins_or_goes_changes_nothing_about_reserved_buckets(program: Operator, world: World):
    program.start()
    a, b = world.nodes("a", "b")
    world.clusterip(reservedBuckets="0-3")
    world.wait_shares({a: 6, b: 6})
    c = world.node("c")
    world.wait_shares({a: 4, b: 4, c: 4})
    world.control_plane.delete_node(b)
    world.agents.remove(b)
    world.wait_shares({a: 6, c: 6})
    assert all(had.isdisjoint(BucketSet.parse("0-3")) for had in owned(world).values())


def test_what_a_silent_agent_keeps_of_reserved_buckets_is_named_until_it_is_back(
    program: Operator, world: World
):
    program.start()
    a = world.node("a", lease_age_seconds=30, renews=False)
    b = world.node("b")
    world.clusterip()
    world.wait_shares({a: 8, b: 8})
    mine = owned(world)[a]
    world.wait_condition("Degraded", "True", "AgentSilent", timeout_seconds=40)
    reserve(world, str(mine))
    sentence = f"Reserved buckets {mine} are still with node {a}, whose silent agent cannot be told"
    assert sentence in world.wait_condition("Programmed", "False", "AgentSilent")["message"]
    assert shares(world.get()) == {a: 8, b: 8}
    world.agents.get(a).renews = True
    until("the reserved buckets to be given up", lambda: owned(world)[a].isdisjoint(mine))
    await_programmed(world)
    assert set(shares(world.get()).values()) == {4}


def test_without_an_eligible_node_reserved_buckets_are_given_up_and_nothing_else_is(
    program: Operator, world: World
):
    program.start()
    a, b = world.nodes("a", "b")
    world.clusterip(workload={"podSelector": {"matchLabels": {"app": "web"}}})
    world.control_plane.make_pod(world.namespace, "pod-0", a, labels={"app": "web"})
    world.wait_shares({a: 16})
    world.control_plane.set_pod_ready(world.namespace, "pod-0", False)
    world.wait_condition("Ready", "False", "NoEligibleNode")
    reserve(world, "0-3")
    world.wait_shares({a: 12})
    world.wait_condition("Programmed", "True", "Programmed")
    world.control_plane.make_pod(world.namespace, "pod-1", b, labels={"app": "web"})
    world.wait_shares({b: 12})


def test_overlapping_reserved_buckets_that_the_crd_lets_pass_are_refused_and_change_nothing(
    program: Operator, world: World
):
    program.start()
    (a,) = world.nodes("a")
    world.clusterip(reservedBuckets="0-3")
    before = world.wait_shares({a: 12})["status"]["assignments"]
    reserve(world, "0-3,3")
    said = world.wait_condition("Ready", "False", "Invalid")["message"]
    assert said == "spec.reservedBuckets: bucket set '0-3,3' is not in ascending order at '3'."
    assert world.get()["status"]["assignments"] == before
    reserve(world, "0-3")
    world.wait_condition("Ready", "True", "Serving")
