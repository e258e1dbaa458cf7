"""Nodes whose engines cannot do what a ClusterIP asks for, as the operator and `kubectl describe` have them."""

from __future__ import annotations

import pytest

from cluster.operatorworld import Operator, World, conditions, shares, until
from lbless_api.capabilities import Capability
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.node import EngineReport

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

IPTABLES = EngineReport(
    "iptables",
    True,
    capabilities=(
        Capability(frozenset({HashFunction.LEGACY_CLUSTERIP}), frozenset(HashMode), 16),
        Capability(frozenset({HashFunction.JHASH}), frozenset({HashMode.SOURCE_IP}), 32),
    ),
)
NFTABLES = EngineReport(
    "nftables",
    True,
    capabilities=(Capability(frozenset(HashFunction), frozenset(HashMode), 4096, 1, ports=True, moves=True),),
)
MISSING = EngineReport("nftables", False, "This kernel cannot do hashing: use another.", active=False)


def test_a_node_whose_engine_cannot_do_what_is_asked_is_left_out_and_described_until_it_can(
    program: Operator, world: World
):
    program.start()
    a, b = world.nodes("a", "b")
    c = world.node("c", engines=(NFTABLES,))
    world.clusterip(hashMode="SourceIP", buckets=256)
    serving(world, a, b, c)
    world.agents.get(c).engines = (IPTABLES, MISSING)
    sentence = f"Node {c}: the iptables engine cannot do 256 buckets with hashFunction JHash: use 1 to 32."
    assert world.wait_condition("Degraded", "True", "EngineIncapable")["message"] == sentence
    serving(world, a, b)
    assert world.wait_event("EngineIncapable") == sentence
    described = " ".join(
        world.control_plane.kubectl("-n", world.namespace, "describe", "cip", "web").stdout.split()
    )
    assert f"Message: {sentence}" in described
    assert "Reason: EngineIncapable" in described
    shown = world.control_plane.kubectl("describe", "cipn", c).stdout
    assert "Max Buckets:" in shown
    assert MISSING.message in shown
    world.agents.get(c).engines = (NFTABLES,)
    serving(world, a, b, c)
    world.wait_condition("Degraded", "False", "AsPlanned")


def test_what_a_nodes_engine_can_do_it_is_given(program: Operator, world: World):
    program.start()
    a = world.node("a", engines=(IPTABLES, MISSING))
    world.clusterip(hashFunction="LegacyClusterIP", buckets=16)
    serving(world, a)


def test_an_engine_that_does_not_work_leaves_its_node_out_with_what_the_node_says(
    program: Operator, world: World
):
    program.start()
    a = world.node("a")
    b = world.node("b", engines=(EngineReport("nftables", False, "This kernel has no nftables."),))
    world.clusterip()
    serving(world, a)
    assert world.wait_condition("Degraded", "True", "EngineIncapable")["message"] == (
        f"Node {b}: the nftables engine does not work there: This kernel has no nftables."
    )


def test_where_no_engine_can_do_what_is_asked_the_reason_is_in_ready(program: Operator, world: World):
    program.start()
    a, b = (world.node(short, engines=(IPTABLES, MISSING)) for short in "ab")
    world.clusterip(buckets=16)
    why = (
        f"Nodes {a} and {b}: the iptables engine cannot do hashMode SourceIPSourcePort with hashFunction "
        "JHash: use SourceIP, or hashFunction LegacyClusterIP."
    )
    # Among the reasons of others' nodes, where a test before this one has left some.
    until(
        f"Ready to end with {why!r}, and not {ready(world)!r}",
        lambda: "2 have no engine that can serve it" in ready(world) and ready(world).endswith(why),
    )


def ready(world: World) -> str:
    """What the condition says."""
    return str(conditions(world.get()).get("Ready", {}).get("message"))


def serving(world: World, *nodes: str) -> None:
    """Wait until these nodes share the address, and no other is named."""
    number = str(len(nodes))
    until(f"{nodes} to be named", lambda: set(shares(world.get())) == set(nodes))
    until(f"{nodes} to serve", lambda: world.get()["status"]["nodes"] == f"{number}/{number}")
    world.wait_condition("Ready", "True", "Serving")
