"""How kopf is set up: what it asks for, when it gives up on a silent watch, and how it waits."""

from __future__ import annotations

from lbless_operator.facts import Kind
from lbless_operator.watches import RETRY_SECONDS, _settings


def test_requests_are_repeated_after_other_random_times_each_time():
    backoffs = _settings([Kind.NODE]).networking.error_backoffs
    assert not isinstance(backoffs, float)
    waits = [list(backoffs) for _ in range(20)]
    assert len({tuple(times) for times in waits}) == 20
    assert all(
        0 <= time <= bound for times in waits for time, bound in zip(times, RETRY_SECONDS, strict=True)
    )


def test_a_watch_that_is_silent_for_longer_than_bookmarks_take_is_given_up():
    assert 60 < _settings([Kind.NODE]).watching.inactivity_timeout <= 75
