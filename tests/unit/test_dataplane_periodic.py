"""How often dataplane believes nothing."""

import pytest

from lbless_nodeagent.dataplane.loop import Periodic


@pytest.mark.parametrize(
    ("took", "rest"),
    [(0.001, 30), (0.06, 30), (0.2, 100), (0.5, 250), (10.0, 300)],
)
def test_a_pass_that_takes_long_comes_more_rarely_and_every_five_minutes_at_least(took: float, rest: float):
    periodic = Periodic(due_at=5.0)
    assert not periodic.is_due(4.9)
    assert periodic.is_due(5.0)
    periodic.made(7.0, took)
    assert not periodic.is_due(6.9 + rest)
    assert periodic.is_due(7.0 + rest)
