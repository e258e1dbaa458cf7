"""When one of dataplane's processes takes the other for stuck: not after a pause of both at any point."""

import pytest

from lbless_nodeagent.dataplane.watch import PAUSE_SECONDS, STUCK_SECONDS, Watch


def test_who_says_nothing_is_stuck_after_a_while_and_no_longer_once_it_speaks():
    watch, at = Watch(0.0, STUCK_SECONDS), 0.0
    while not watch.is_stuck(at):
        at += 0.1
        assert at <= STUCK_SECONDS + 0.2
    assert at > STUCK_SECONDS
    watch.heard(at)
    assert not watch.is_stuck(at + 0.1)


@pytest.mark.parametrize("spoke", [False, True])
def test_a_pause_of_both_is_nobodys_fault_and_earns_no_credit(spoke: bool):
    watch = Watch(0.0, STUCK_SECONDS)
    assert not watch.is_stuck(1.0)
    if spoke:
        watch.heard(61.0)
    assert not watch.is_stuck(61.0)
    silent = 61.0 - (0 if spoke else 1)
    at = 61.0
    while not watch.is_stuck(at):
        at += PAUSE_SECONDS / 2
    assert STUCK_SECONDS < at - silent <= STUCK_SECONDS + PAUSE_SECONDS
