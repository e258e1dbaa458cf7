"""The lease on a kernel whose sets once could not be renewed: the kernel tests, run in the guest."""

from pathlib import Path

import pytest

from guest.test_iptables_engine import KERNEL_TESTS, run
from lab.guest import Guest

pytestmark = pytest.mark.guest

LEASE: Path = KERNEL_TESTS / "test_lease.py"


@pytest.mark.soak
def test_a_lease_runs_is_set_anew_sooner_or_later_and_ends_in_time(guest: Guest) -> None:
    run(guest, LEASE, "nothing_is_kept or sets_the_end or ends_when_it_was", 280)


@pytest.mark.soak
def test_what_is_no_renewal_renews_nothing_and_no_datagram_leaves(guest: Guest) -> None:
    run(guest, LEASE, "neither_another or does_not_leave or link_that_is_down", 280)
