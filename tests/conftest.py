"""What every test shares: skipping, with the reason said, where the machine cannot run a test."""

import os

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy: a slow example is no failure. A failing one prints how to run it again.
settings.register_profile(
    "lbless", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lbless")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped without it, and say so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("apiserver"):
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, nftables"))
