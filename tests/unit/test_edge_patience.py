from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lbless_edge.backoff import CAP_SECONDS
from lbless_edge.patience import MOST_SECONDS, Patience

RIGHT_SECONDS = 80
"""So soon after the API server is back everything is right: docs/operations.md."""
API_SERVER_SECONDS = 60
"""An API server itself ends a request that takes longer: its default of --request-timeout."""
ANSWER_SECONDS = 5
"""What is left for a server that is well to answer a LIST."""


def test_each_time_out_doubles_it_up_to_its_bound_whoever_tells_of_it() -> None:
    patience = Patience(first_seconds=10, most_seconds=60)
    waited = []
    for _ in range(5):
        waited.append(patience.seconds)
        for _ in range(3):  # as many threads asked at the same time
            patience.ran_out(waited[-1])
    assert waited == [10, 20, 40, 60, 60]


def test_a_slow_answer_is_remembered_and_quick_ones_bring_it_back() -> None:
    patience = Patience(first_seconds=0.05, most_seconds=60)

    def answers(seconds: float) -> Iterator[int]:
        for number in range(2):
            time.sleep(seconds)
            yield number

    patience.ran_out(10)
    assert patience.seconds == 20
    assert list(patience.timed(answers(0.2))) == [0, 1]
    assert 0.4 <= patience.seconds < 20
    assert list(patience.timed(answers(0))) == [0, 1]
    assert patience.seconds < 0.4


def test_the_time_that_the_reader_takes_does_not_count() -> None:
    patience = Patience(first_seconds=0.01)
    for _ in patience.timed(iter(range(2))):
        time.sleep(0.1)
    assert patience.seconds < 0.1


def test_an_answer_is_learned_from_at_once_within_the_bounds() -> None:
    patience = Patience(first_seconds=10, most_seconds=60)
    for took_seconds, waits_seconds in ((0.1, 10), (20, 40), (50, 60), (0.1, 10)):
        patience.answered(took_seconds)
        assert patience.seconds == pytest.approx(waits_seconds)


def test_the_slowest_server_is_waited_for_and_after_a_stall_the_promise_is_kept_all_the_same() -> None:
    assert MOST_SECONDS > API_SERVER_SECONDS
    assert MOST_SECONDS + CAP_SECONDS + ANSWER_SECONDS <= RIGHT_SECONDS
