"""The API server is away for a minute: nobody who uses an address notices, and what was deleted goes afterwards."""

import time
from collections.abc import Iterator

import pytest

from lab import verdict
from lab.errors import LabError
from lab.faultproxy import FaultProxy
from lab.installation import OPERATOR, SYNC, Installation
from lab.kernelstate import traces
from lab.progress import Silence

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

GONE_SECONDS = 60.0
RIGHT_SECONDS = 80.0
"""Promised: so long after it is back, what was deleted meanwhile is gone from every node."""


@pytest.fixture
def proxy(lbless: Installation) -> Iterator[FaultProxy]:
    """What the operator and every sync take for the API server during the test."""
    programs = [(OPERATOR, lbless.lan.control), *((SYNC, node) for node in lbless.lan.nodes)]

    def restart(server: str) -> None:
        for program, host in programs:
            assert lbless.stop(program, host) == 0
            lbless.start(program, host, server=server)

    with FaultProxy(lbless.control_plane, lbless.lan.control) as proxy:
        restart(proxy.url)
        try:
            yield proxy
        finally:
            print(lbless.log(OPERATOR, lbless.lan.control))
            proxy.heal()
            restart("")


def test_a_minute_without_the_api_server_disturbs_nobody_and_deletions_take_effect_afterwards(
    lbless: Installation, proxy: FaultProxy, vip: str
) -> None:
    lan, control_plane = lbless.lan, lbless.control_plane
    lbless.create("steady", {"ip": vip})
    lbless.create("goes", {"ip": f"10.80.4.{vip.rpartition('.')[2]}"})
    steady, goes = lbless.wait_ready("steady"), lbless.wait_ready("goes")

    def left() -> set[str]:
        return {n.name for n in lan.nodes if traces(n, str(goes.spec.ip), goes.spec.mac)}

    assert verdict.tcp(lan, steady, 200).faults == ()
    # First their connections are reset and nothing listens where they ask; then there is no server at all.
    proxy.cut()
    gone = time.monotonic()
    lbless.delete("goes")
    control_plane.stop()
    try:
        attempts, worst = 0, 0
        while time.monotonic() - gone < GONE_SECONDS:
            found = verdict.tcp(lan, steady, 300)
            attempts += found.attempts
            worst = max(worst, len(found.faults) + found.resets)
            assert found.faults == ()
            assert found.resets == 0
        assert left() == {node.name for node in lan.nodes}, "nodes changed something of their own accord"
        proxy.heal()
    finally:
        control_plane.start()
    back = time.monotonic()
    Silence().until("the nodes to let go", lambda: not left(), timeout_seconds=RIGHT_SECONDS + 20)
    took = time.monotonic() - back
    print(
        f"{attempts} connections in {back - gone:.0f} s without the API server, at worst {worst} wrong of 300"
    )
    print(f"the deleted ClusterIP was gone from all nodes {took:.1f} s after the API server was back")
    assert took < RIGHT_SECONDS

    def settled() -> bool:
        try:
            return lbless.condition("steady", "Degraded").get("status") == "False"
        except LabError:
            return False  # its stores of custom resources open a little later

    Silence().until("steady to be as planned", settled, timeout_seconds=60)
    now = lbless.wait_ready("steady", timeout_seconds=60)
    assert (now.epoch, now.assignments) == (steady.epoch, steady.assignments)
    assert verdict.tcp(lan, now, 300).faults == ()
    # The operator works again: it decides about what is new.
    lbless.create("new", {"ip": str(goes.spec.ip)})
    lbless.wait_ready("new")
    for name in ("new", "steady"):
        lbless.delete(name)
