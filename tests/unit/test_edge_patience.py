from __future__ import annotations

import time
from collections.abc import Iterator

from lbless_edge.patience import Patience


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
