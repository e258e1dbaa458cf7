"""The histogram of ticks' lateness."""

from hypothesis import given
from hypothesis import strategies as st

from lbless_nodeagent.dataplane.tick.lateness import BOUNDS_MS, Lateness


@given(st.lists(st.floats(-10, 5000) | st.sampled_from(BOUNDS_MS)))
def test_ticks_are_counted_by_every_bound_that_they_keep(late):
    lateness = Lateness()
    for one in late:
        lateness.add(one)
    kept = tuple(sum(one <= bound for one in late) for bound in BOUNDS_MS)
    assert lateness.cumulative() == (*kept, len(late))
    assert lateness.worst_ms == max([0.0, *late])
    assert lateness.sum_ms == sum(max(one, 0.0) for one in late)
