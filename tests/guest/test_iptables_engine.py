"""The iptables engine where the kernel still has the CLUSTERIP target: the same tests, run in the guest."""

import sys
from pathlib import Path

import pytest

from lab.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1800)]

KERNEL_TESTS = Path(__file__).parents[1] / "kernel"
SECONDS = 1700  # an emulated processor is a tenth as fast


def run(guest: Guest, *arguments: str) -> str:
    """Run tests in the guest, all of which must pass."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--timeout=900",
        *arguments,
    ]
    done = guest.run(command, check=False, timeout=SECONDS)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_it_keeps_the_contract_in_both_ways(guest: Guest) -> None:
    said = run(guest, str(KERNEL_TESTS / "test_engine_contract.py"), "-k", "iptables", "-rs", "--durations=5")
    assert "skipped" not in said


def test_the_target_keeps_less_or_what_is_wanted_whatever_happens(guest: Guest) -> None:
    said = run(guest, str(KERNEL_TESTS / "test_iptables_target.py"), "-rs")
    assert "skipped" not in said
