"""What every test shares: skipping where the machine cannot run one, with the reason said, and who runs beside whom."""

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

UNIT = Path(__file__).parent / "unit"


@pytest.hookimpl(tryfirst=True)  # the groups are read in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped without it, those with guests where a machine can have none; both say so.

    Where there are several workers, one of them runs all that has a lab, which measures time, and the pure ones run
    beside it.
    """
    without_guests = guestimage.unavailable()
    for item in items:
        if UNIT not in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("lab"))
        markers = {marker.name for marker in item.iter_markers()}
        if os.geteuid() != 0 and markers & {"root", "apiserver", "guest"}:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, nftables"))
        elif without_guests and "guest" in markers:
            item.add_marker(pytest.mark.skip(reason=without_guests))
