"""What every test shares: skipping, with the reason said, where the machine cannot run a test."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    "images/",
    "cluster/test_chart",
    "cluster/test_crds",
    "cluster/test_edge",
    "cluster/test_lab",
    "cluster/test_operator_permissions",
    "cluster/test_operator_reserved",
    "cluster/test_sync",
    "kernel/test_engine",
    "kernel/test_fence",
    "kernel/test_flows",
    "kernel/test_hash",
    "kernel/test_iptables",
    "kernel/test_lab_lan",
    "kernel/test_nftables",
)
"""Two lanes of tests run at a time (`make test`): this one gives way to the other, which has deadlines to keep."""
BACKGROUND_NICENESS = 10
ALONE = (
    "e2e/test_handover_drain",
    "e2e/test_segment",
    "guest/test_node",
    "kernel/test_dataplane_faults",
    "kernel/test_dataplane_iptables",
)
"""Of the other lane: while these run, last of all, this one waits. They measure times of milliseconds, or starts of
programs against the time for which a node may be silent, or have a node whose processor is emulated."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped without it, those with guests where a machine can have none; both say so. Those
    that run alone come last."""
    items.sort(key=lambda item: _is_alone(item.nodeid))
    without_guests = guestimage.unavailable()
    for item in items:
        markers = {marker.name for marker in item.iter_markers()}
        if os.geteuid() != 0 and markers & {"root", "apiserver", "guest"}:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces, nftables"))
        elif without_guests and "guest" in markers:
            item.add_marker(pytest.mark.skip(reason=without_guests))


def lane(nodeid: str) -> str:
    """The lane of a test, by its file."""
    is_background = nodeid.removeprefix("tests/").startswith(BACKGROUND) and not _is_alone(nodeid)
    return "background" if is_background else "foreground"


def _is_alone(nodeid: str) -> bool:
    return nodeid.removeprefix("tests/").startswith(ALONE)


class Room:
    """Both lanes' tests are in it, or one that wants it for itself and its followers. Whoever enters passes a turnstile
    that such a one holds from when it begins to wait, so that it need not wait for long."""

    def __init__(self, run: str) -> None:
        directory = Path(tempfile.gettempdir())
        self._turnstile, self._room = (
            os.open(directory / f"lbless-tests-{run}.{name}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            for name in ("turnstile", "room")
        )
        self.is_held = False

    def enter(self) -> None:
        """With others."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        fcntl.flock(self._room, fcntl.LOCK_SH)

    def hold(self) -> None:
        """Alone."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        self.is_held = True

    def leave(self) -> None:
        """Give it back."""
        fcntl.flock(self._room, fcntl.LOCK_UN)
        fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        self.is_held = False


_rooms: list[Room] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Wait for the room before anything of a test, and its time-out, begins."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    alone = _is_alone(item.nodeid)
    if run is None or not (alone or lane(item.nodeid) == "background"):
        return (yield)
    if not _rooms:
        _rooms.append(Room(run))
    (room,) = _rooms
    if not alone:
        room.enter()
    elif not room.is_held:
        room.hold()
    try:
        return (yield)
    finally:
        if not (alone and nextitem is not None and _is_alone(nextitem.nodeid)):
            room.leave()


def pytest_sessionfinish() -> None:
    """Remove what the lanes have met at."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    for path in Path(tempfile.gettempdir()).glob(f"lbless-tests-{run}.*") if run else ():
        path.unlink(missing_ok=True)


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
