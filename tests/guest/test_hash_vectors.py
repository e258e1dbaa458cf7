"""The real CLUSTERIP target answers as on file (tests/vectors)."""

import pytest

from lab.guest import Guest
from vectors import asking, cases

# Three minutes, for what is on file: that the target keeps just those buckets, test_iptables_engine tries every time.
pytestmark = [pytest.mark.guest, pytest.mark.soak]


def test_the_clusterip_target_answers_as_on_file(guest: Guest):
    answers = cases.read()
    said = asking.ask(guest, "clusterip")
    assert len(said) == 3 * 7 * 2  # modes, protocols, numbers of buckets
    assert said == {case: answers[case] for case in cases.clusterip_cases()}
