"""The scenario table over many seeds, printed as docs/failover.md has it (`make soak PYTEST_ARGS="-s -k
membership"`; `python -m unit.segment` runs a part of it), and random schedules by the thousand."""

import random

import pytest

from unit.segment.__main__ import HEAD, row
from unit.segment.clauses import table
from unit.segment.scenarios import SCENARIOS, run
from unit.segment.schedules import COMBINED, MEETING_SECONDS, play, story

RUNS = {2: 100, 3: 100, 5: 60, 16: 8}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_table_of_faults_holds_over_many_seeds():
    rows, broken = [HEAD], []
    for scenario in SCENARIOS:
        for nodes in (*scenario.nodes, 16):
            runs = [run(scenario, nodes, seed) for seed in range(1000, 1000 + RUNS[nodes])]
            rows.append(row(scenario, nodes, runs))
            broken += [(scenario.name, nodes, r.world.seed, f) for r in runs if (f := r.faults(scenario))]
    print("\n".join(("", *rows)))
    assert broken == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_random_schedules_hardly_ever_give_a_bucket_two_owners():
    for seed in range(1000):
        chance = random.Random(seed)
        faults = [chance.choice(COMBINED) for _ in range(chance.randint(1, 5))]
        pauses = [chance.uniform(0, 3) for _ in faults]
        world, verdict = play(seed, chance.choice((2, 3, 4, 5)), chance.choice((1, 2)), faults, pauses)
        assert verdict.double <= MEETING_SECONDS, story(world, verdict)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_table_of_clauses_is_printed():
    print("\n" + table())
