"""What every test shares: skipping, with the reason said, where the machine cannot run a test."""

import os

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from lab import guestimage

# The machine may be busy: a slow example is no failure. A failing one prints how to run it again.
settings.register_profile(
    "lbless", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lbless")


BACKGROUND = (
    "unit/",
    "guest/",
    "cluster/test_crds",
    "cluster/test_edge",
    "cluster/test_lab",
    "cluster/test_sync",
    "kernel/test_engine",
    "kernel/test_hash",
    "kernel/test_iptables",
    "kernel/test_nftables",
)
"""Two lanes of tests run at a time (`make test`): this one gives way to the other, which has deadlines to keep."""
BACKGROUND_NICENESS = 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped without it, those with guests where a machine can have none; both say so."""
    without_guests = guestimage.unavailable()
    for item in items:
        markers = {marker.name for marker in item.iter_markers()}
        if os.geteuid() != 0 and markers & {"root", "apiserver", "guest"}:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, nftables"))
        elif without_guests and "guest" in markers:
            item.add_marker(pytest.mark.skip(reason=without_guests))


def lane(nodeid: str) -> str:
    """The lane of a test, by its file."""
    return "background" if nodeid.removeprefix("tests/").startswith(BACKGROUND) else "foreground"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Each lane has a worker of its own."""

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid)

    return Lanes(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker has one lane, and with it one niceness, which what it starts inherits."""
    if "PYTEST_XDIST_WORKER" in os.environ and lane(item.nodeid) == "background":
        os.nice(max(0, BACKGROUND_NICENESS - os.nice(0)))
