"""Two clocks that are read together."""

from __future__ import annotations

import time

import pytest

from lbless_nodeagent.dataplane.clocks import read_together, seconds_ahead


def test_a_reading_that_was_interrupted_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reader is away for 8 ms between the two clocks, the second one for none."""
    answers = iter([0, 5_008_000_000, 8_000_000, 10_000_000, 5_010_000_010, 10_000_020])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(answers))
    assert read_together(1, 2) == (5_010_000_010, 10_000_010)


def test_of_three_that_were_all_interrupted_the_shortest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0, 0, 900_000, 2_000_000, 2_100_000, 2_200_000, 3_000_000, 3_000_000, 3_700_000])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(answers))
    assert read_together(1, 2) == (2_100_000, 2_100_000)


def test_a_clock_is_not_ahead_of_itself() -> None:
    assert abs(seconds_ahead(time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC)) < 0.001
