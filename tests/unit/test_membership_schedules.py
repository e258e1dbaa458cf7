"""Membership under faults in any order and at any moment: no two owners, and all is served in the end.

`make test` always plays the same schedules; `make soak` looks for new ones.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unit.segment.schedules import COMBINED, MEETING_SECONDS, play, story

BY_NAME = {one.name: one for one in COMBINED}
# A cable is pulled again before anybody has noticed that it was plugged in.
PULLED_AGAIN = [(BY_NAME[name], 0.0) for name in ("power cut, no API", "all ports down", "all ports down")]
# What a node's kernel still keeps by an older epoch has another owner by the time that its lease begins anew.
OUTRUN = [(BY_NAME["hold amid an epoch"], 1.0), (BY_NAME["all ports down"], 0.0)]

steps = st.lists(st.tuples(st.sampled_from(COMBINED), st.floats(0, 3)), min_size=1, max_size=4)
schedules = given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 5]), st.sampled_from([1, 2]), steps)


@settings(max_examples=25, deadline=None, derandomize=True)
@schedules
@example(170986941, 2, 1, PULLED_AGAIN)
@example(0, 2, 2, OUTRUN)
def test_no_bucket_ever_has_two_owners_whatever_happens_in_which_order(seed, nodes, clusterips, chosen):
    check(seed, nodes, clusterips, chosen, 0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=1000, deadline=None)
@schedules
def test_no_search_finds_an_order_in_which_a_bucket_has_two_owners(seed, nodes, clusterips, chosen):
    check(seed, nodes, clusterips, chosen, MEETING_SECONDS)


def check(seed, nodes, clusterips, chosen, at_most_seconds):
    faults, pauses = [one for one, _ in chosen], [pause for _, pause in chosen]
    world, verdict = play(seed, nodes, clusterips, faults, pauses)
    assert verdict.double <= at_most_seconds, story(world, verdict)
