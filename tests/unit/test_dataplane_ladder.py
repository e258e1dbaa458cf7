"""Which of the durations that the rules have a renewal asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_nodeagent.dataplane.ladder import (
    COARSE_MS,
    END_PORT,
    FINE_MS,
    FINE_UNTIL_MS,
    LAST_MS,
    RUNGS_MS,
    rung,
)


@given(st.floats(-10, 100))
def test_it_is_the_longest_that_is_not_longer_than_what_is_left(seconds: float):
    shorter = [ms for ms in RUNGS_MS if ms <= seconds * 1_000]
    assert rung(seconds) == (shorter[-1] if shorter else END_PORT)


def test_what_is_lost_by_that_is_little():
    for ms in range(FINE_MS, LAST_MS):
        assert ms - rung(ms / 1_000 + 1e-9) < (FINE_MS if ms < FINE_UNTIL_MS else COARSE_MS)


@pytest.mark.parametrize("hz", [100, 250, 1_000])
def test_each_is_whole_jiffies(hz: int):
    assert [ms for ms in RUNGS_MS if ms * hz % 1_000] == []


def test_the_port_that_ends_it_is_no_rung():
    assert END_PORT not in RUNGS_MS
    assert rung(-1.0) == rung(0.0) == rung(0.0199) == END_PORT
