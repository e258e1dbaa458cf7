"""Which agents are alive: by Leases that change, with clocks that nobody trusts."""

from __future__ import annotations

import pytest

from lbless_operator.agents import Agents, Freshness

START = 1000.0


def freshness(agents: Agents, now: float, node: str = "n1") -> Freshness:
    agents.tick({node}, now)
    return agents.freshness(node)


def test_a_lease_renewed_lately_by_its_nodes_clock_is_fresh_at_first_sight():
    agents = Agents(START)
    agents.renewed("n1", "t0", 5.0, START)
    assert freshness(agents, START) is Freshness.FRESH


def test_a_nodes_clock_that_is_ahead_does_not_make_its_lease_last_longer():
    agents = Agents(START)
    agents.renewed("n1", "t0", -3600.0, START)
    agents.listed(START + 41)
    assert freshness(agents, START + 41) is Freshness.SILENT


@pytest.mark.parametrize("age", [3600.0, None])
def test_a_lease_that_looks_old_is_unknown_until_it_changes_or_a_period_has_passed(age):
    agents = Agents(START)
    agents.renewed("n1", "t0", age, START)
    assert freshness(agents, START) is Freshness.UNKNOWN
    agents.renewed("n1", "t1", age, START + 9)
    assert freshness(agents, START + 9) is Freshness.FRESH
    other = Agents(START)
    other.renewed("n1", "t0", age, START)
    other.listed(START + 40)
    assert freshness(other, START + 40.5) is Freshness.SILENT


def test_silence_is_concluded_only_from_a_list_that_began_after_the_lease_had_run_out():
    """The watch may be broken: then no renewal arrives from anybody."""
    agents = Agents(START)
    agents.renewed("n1", "t0", 0.0, START)
    agents.listed(START + 39)
    changed, unsure = agents.tick({"n1"}, START + 45)
    assert (changed, unsure) == ({"n1"}, True)  # known now, and not before the first tick
    assert agents.freshness("n1") is Freshness.FRESH
    agents.listed(START + 46)
    assert agents.tick({"n1"}, START + 46.1) == ({"n1"}, False)
    assert agents.freshness("n1") is Freshness.SILENT


def test_a_list_that_finds_a_renewal_keeps_it_fresh():
    agents = Agents(START)
    agents.renewed("n1", "t0", 0.0, START)
    agents.renewed("n1", "t1", 2.0, START + 46)
    agents.listed(START + 46)
    assert freshness(agents, START + 46) is Freshness.FRESH


def test_a_node_without_a_lease_is_unknown_first_and_absent_when_it_had_time_to_make_one():
    agents = Agents(START)
    agents.listed(START + 1)
    assert freshness(agents, START + 1) is Freshness.UNKNOWN
    assert agents.tick({"n1"}, START + 41)[1] is True
    agents.listed(START + 41)
    assert freshness(agents, START + 41) is Freshness.ABSENT


def test_a_deleted_lease_gives_a_living_agent_time_to_make_it_anew():
    agents = Agents(START)
    agents.renewed("n1", "t0", 0.0, START)
    agents.listed(START + 100)
    agents.renewed("n1", "t1", 0.0, START + 100)
    agents.removed("n1", START + 101)
    agents.listed(START + 102)
    assert freshness(agents, START + 102) is Freshness.UNKNOWN
    agents.renewed("n1", "t2", 0.0, START + 110)
    assert freshness(agents, START + 110) is Freshness.FRESH


def test_each_change_is_told_once():
    agents = Agents(START)
    agents.renewed("n1", "t0", 0.0, START)
    assert agents.tick({"n1"}, START)[0] == {"n1"}
    assert agents.tick({"n1"}, START + 1)[0] == set()
