"""Membership under faults in any order and at any moment: never two owners, and all is served in the end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from unit.segment.schedules import COMBINED, play, story

steps = st.lists(st.tuples(st.sampled_from(COMBINED), st.floats(0, 3)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 5]), st.sampled_from([1, 2]), steps)
def test_no_bucket_ever_has_two_owners_whatever_happens_in_which_order(seed, nodes, clusterips, chosen):
    faults, pauses = [one for one, _ in chosen], [pause for _, pause in chosen]
    world, verdict = play(seed, nodes, clusterips, faults, pauses)
    assert verdict.double == 0, story(world, verdict)
