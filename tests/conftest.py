"""What every test shares: skipping, with the reason said, where the machine cannot run a test."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lab import guestimage

# The machine may be busy: a slow example is no failure. A failing one prints how to run it again.
settings.register_profile(
    "lbless", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lbless")


BACKGROUND = (
    "unit/",
    "guest/",
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
        item.add_marker(pytest.mark.xdist_group(lane(item)))
        markers = {marker.name for marker in item.iter_markers()}
        if os.geteuid() != 0 and markers & {"root", "apiserver", "guest"}:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, nftables"))
        elif without_guests and "guest" in markers:
            item.add_marker(pytest.mark.skip(reason=without_guests))


def lane(item: pytest.Item) -> str:
    """The lane of a test, by its file."""
    inside = item.path.relative_to(Path(__file__).parent).as_posix()
    return "background" if inside.startswith(BACKGROUND) else "foreground"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker has one lane, and with it one niceness, which what it starts inherits."""
    if "PYTEST_XDIST_WORKER" in os.environ and lane(item) == "background":
        os.nice(max(0, BACKGROUND_NICENESS - os.nice(0)))
