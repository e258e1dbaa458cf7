"""Membership under the faults of the design's table, in a simulated segment: no bucket has two owners, and none
is without one for longer than the bounds."""

import pytest

from unit.segment.scenarios import SCENARIOS, Scenario, run

CASES = [pytest.param(one, nodes, id=f"{one.name}-{nodes}") for one in SCENARIOS for nodes in one.nodes]
SEEDS = {2: range(2), 3: range(2), 5: range(1), 16: range(1)}


def check(scenario: Scenario, nodes: int, seed: int) -> None:
    made = run(scenario, nodes, seed)
    faults = made.faults(scenario)
    assert not faults, (
        f"{scenario.name}, {nodes} nodes, seed {seed}: {', '.join(faults)}\n"
        + "\n".join(made.verdict.details)
        + f"\n{made.world.record.timeline(2.0)}"
    )


@pytest.mark.parametrize(("scenario", "nodes"), CASES)
def test_a_bucket_has_one_owner_and_soon_has_one_again(scenario, nodes):
    for seed in SEEDS[nodes] if scenario.clusterips == 1 else range(1):  # many ClusterIPs are many seeds
        check(scenario, nodes, seed)


@pytest.mark.parametrize("name", ["crash", "power cut, no API", "epochs at different times"])
def test_sixteen_nodes_fare_alike(name):
    check(next(one for one in SCENARIOS if one.name == name), 16, 0)


def test_many_clusterips_fare_alike_at_once():
    crash = next(one for one in SCENARIOS if one.name == "crash")
    made = run(crash, 3, 1, clusterips=120)
    assert made.faults(crash) == []


def test_half_the_tick_halves_the_wait():
    from lbless_nodeagent.dataplane.membership import Times

    crash = next(one for one in SCENARIOS if one.name == "crash")
    for seed in range(3):
        verdict = run(crash, 3, seed, times=Times.of_tick(0.05)).verdict
        assert verdict.double == 0
        assert 0.3 < verdict.unserved <= 0.55
