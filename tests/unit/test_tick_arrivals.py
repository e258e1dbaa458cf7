"""Arrival times by the monotonic clock, whatever is done to the wall clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_nodeagent.dataplane.tick.arrivals import Arrivals, read_clocks

MS = 1_000_000
SECOND = 1000 * MS
WALL = 1_790_000_000 * SECOND


class Clocks:
    """Two clocks that the test moves; `wall` is ahead of `now` by WALL and whatever it was turned by."""

    def __init__(self) -> None:
        self.now = 50 * SECOND
        self.wall = WALL + self.now

    def __call__(self) -> tuple[int, int]:
        return self.wall, self.now

    def advance(self, ns: int, turned_ns: int = 0) -> int:
        """Let time pass; return what the kernel would stamp then."""
        self.now += ns
        self.wall += ns + turned_ns
        return self.wall


def draining(arrivals: Arrivals, stamps: list[int]) -> list[int]:
    arrivals.begin()
    found = [arrivals.at(stamp) for stamp in stamps]
    arrivals.end()
    return found


@given(st.lists(st.integers(0, 10 * SECOND), min_size=1, max_size=20))
def test_frames_arrived_when_the_kernel_stamped_them_however_long_ago(gaps):
    clocks = Clocks()
    arrivals = Arrivals(clocks)
    arrived, stamps = [], []
    for gap in gaps:
        stamps.append(clocks.advance(gap))
        arrived.append(clocks.now)
    clocks.advance(10 * SECOND)
    assert draining(arrivals, stamps) == arrived


@given(st.integers(-500, 500))
def test_ntp_turning_the_clock_errs_by_no_more_than_it_turned_it(per_million):
    clocks = Clocks()
    arrivals = Arrivals(clocks)
    stamp = clocks.advance(0)
    arrived = clocks.now
    clocks.advance(10 * SECOND, turned_ns=10 * SECOND * per_million // 1_000_000)
    assert draining(arrivals, [stamp]) == [pytest.approx(arrived, abs=5 * MS)]


@given(st.integers(-(10**9), 10**9).filter(lambda ms: abs(ms) > 2), st.integers(0, 100), st.integers(0, 100))
def test_after_a_step_of_the_clock_frames_count_as_arrived_now_and_the_next_ones_as_ever(
    step_ms, before, after
):
    clocks = Clocks()
    arrivals = Arrivals(clocks)
    stamps = [clocks.advance(before * MS)]
    clocks.advance(0, turned_ns=step_ms * MS)
    stamps.append(clocks.advance(after * MS))
    assert draining(arrivals, stamps) == [clocks.now, clocks.now]
    assert not any(arrivals.is_later(stamp) for stamp in stamps)
    stamp = clocks.advance(30 * MS)
    arrived = clocks.now
    clocks.advance(70 * MS)
    assert draining(arrivals, [stamp]) == [arrived]


@given(st.integers(-(10**18), 10**18))
def test_no_frame_arrived_before_the_last_draining_or_after_this_one(turned):
    clocks = Clocks()
    arrivals = Arrivals(clocks)
    clocks.advance(100 * MS)
    draining(arrivals, [])
    last = clocks.now
    clocks.advance(100 * MS)
    (found,) = draining(arrivals, [clocks.wall + turned])
    assert last <= found <= clocks.now


def test_what_was_left_behind_may_have_arrived_before_the_draining_that_left_it():
    clocks = Clocks()
    arrivals = Arrivals(clocks)
    first = clocks.advance(10 * MS)
    arrived = clocks.now
    clocks.advance(10 * MS)
    arrivals.begin()  # and no end: not all was taken
    clocks.advance(10 * MS)
    assert draining(arrivals, [first]) == [arrived]


def test_what_comes_while_draining_is_told_from_what_was_there():
    clocks = Clocks()
    arrivals = Arrivals(clocks)
    before = clocks.advance(MS)
    arrivals.begin()
    after = clocks.advance(MS)
    assert not arrivals.is_later(before)
    assert arrivals.is_later(after)


def test_both_clocks_are_read_at_the_same_time():
    first_wall, first = read_clocks()
    wall, now = read_clocks()
    assert now > first
    assert (wall - now) - (first_wall - first) == pytest.approx(0, abs=MS)
