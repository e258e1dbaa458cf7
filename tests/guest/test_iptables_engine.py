"""The iptables engine where the kernel still has the CLUSTERIP target: the kernel tests, run in the guest."""

import sys
from pathlib import Path

import pytest

from lab.guest import Guest

pytestmark = pytest.mark.guest

KERNEL_TESTS = Path(__file__).parents[1] / "kernel"
CONTRACT, TARGET = KERNEL_TESTS / "test_engine_contract.py", KERNEL_TESTS / "test_iptables_target.py"
SOAK_SECONDS = 1800  # an emulated processor is a tenth as fast


def run(guest: Guest, path: Path, chosen: str, seconds: float) -> None:
    """Run those of a file's tests in the guest that are chosen: some, and all of them must pass."""
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "--timeout=900", "-rs", "-k", chosen]
    done = guest.run(
        [sys.executable, "-P", "-m", "pytest", *options, str(path)], check=False, timeout=seconds
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_exactly_the_owned_buckets_are_kept_by_the_target_and_by_xt_cluster(guest: Guest) -> None:
    run(guest, CONTRACT, "iptables and not leased and exactly_the_owned", 280)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS)
@pytest.mark.parametrize("path", [CONTRACT, TARGET], ids=["contract", "target"])
def test_all_of_it(guest: Guest, path: Path) -> None:
    run(guest, path, "iptables", SOAK_SECONDS - 60)
