"""What each clause of membership is for: without it, a scenario goes wrong that goes well with it."""

import pytest

from lbless_nodeagent.dataplane.membership import Membership
from unit.segment import ablation
from unit.segment.clauses import CASES, DIRECT, NO_DIFFERENCE, without
from unit.segment.scenarios import SCENARIOS, run


@pytest.mark.parametrize("clause", CASES, ids=lambda one: one.__name__)
def test_without_the_clause_its_scenario_goes_wrong(clause):
    assert without(clause) != []


@pytest.mark.parametrize("case", sorted(set(CASES.values())), ids=str)
def test_with_all_clauses_the_same_scenarios_go_well(case):
    name, nodes, seed = case
    scenario = next(one for one in SCENARIOS if one.name == name)
    assert run(scenario, nodes, seed).faults(scenario) == []


def test_every_clause_that_can_be_left_out_is_accounted_for():
    left_out = {
        one for one in vars(ablation).values() if isinstance(one, type) and issubclass(one, Membership)
    }
    assert left_out - {Membership} == {*CASES, *DIRECT, *NO_DIFFERENCE}
