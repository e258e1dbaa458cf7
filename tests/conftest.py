"""What every test shares: skipping, with the reason said, where the machine cannot run a test."""

import os

import pytest
from hypothesis import HealthCheck, settings

from lab import guestimage

# The machine may be busy: a slow example is no failure. A failing one prints how to run it again.
settings.register_profile(
    "lbless", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lbless")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped without it, those with guests where a machine can have none; both say so."""
    without_guests = guestimage.unavailable()
    for item in items:
        markers = {marker.name for marker in item.iter_markers()}
        if os.geteuid() != 0 and markers & {"root", "apiserver", "guest"}:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, nftables"))
        elif without_guests and "guest" in markers:
            item.add_marker(pytest.mark.skip(reason=without_guests))
