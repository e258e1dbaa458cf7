"""Two operators with the Lease of the default length: one works, and the other takes over whatever becomes of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.operatorworld import (
    LEASES,
    Operator,
    World,
    await_log,
    end,
    log_of,
    shares,
    until,
)
from lab.controlplane import ControlPlane
from lab.faultproxy import FaultProxy

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

TAKEOVER_SECONDS = 20.0
"""Promised: so long after the one that works stopped, the other works."""


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[FaultProxy]:
    """What the first operator takes for the API server."""
    with FaultProxy(control_plane, control_plane.host) as proxy:
        yield proxy


@pytest.fixture
def program(control_plane: ControlPlane, proxy: FaultProxy, tmp_path: Path) -> Iterator[Operator]:
    program = Operator(control_plane, tmp_path)
    yield program
    proxy.heal()
    program.close()


def spec_of_lease(world: World) -> dict[str, Any]:
    """The leader's Lease."""
    spec: dict[str, Any] = world.control_plane.api("GET", f"{LEASES}/lbless-operator")["spec"]
    return spec


def kill(first: subprocess.Popen[bytes], _proxy: FaultProxy) -> Callable[[], None]:
    first.kill()
    return lambda: None


def stop(first: subprocess.Popen[bytes], _proxy: FaultProxy) -> Callable[[], None]:
    first.send_signal(signal.SIGSTOP)
    return lambda: first.send_signal(signal.SIGCONT)


def cut_off(_first: subprocess.Popen[bytes], proxy: FaultProxy) -> Callable[[], None]:
    proxy.cut()
    return proxy.heal


@pytest.mark.parametrize("strike", [kill, stop, cut_off])
def test_the_other_takes_over_within_20_s_and_the_old_one_does_nothing_when_it_wakes(
    world: World, program: Operator, proxy: FaultProxy, strike: Callable[..., Callable[[], None]]
) -> None:
    a, b = world.nodes("a", "b")
    world.clusterip()
    first = program.start_behind(proxy)
    world.wait_shares({a: 8, b: 8})
    world.wait_condition("Programmed", "True", "Programmed")
    before = world.get()
    second = program.start()
    await_log(second, "Waiting for the Lease lbless-system/lbless-operator, which ")
    holder, renewed = (spec_of_lease(world)[key] for key in ("holderIdentity", "renewTime"))
    # The worst moment: just after a renewal, of which the other learns when it looks the next time.
    until("a renewal", lambda: spec_of_lease(world)["renewTime"] != renewed)
    wake = strike(first, proxy)
    struck = time.monotonic()
    until("another holder", lambda: spec_of_lease(world)["holderIdentity"] != holder, 30)
    led_after = time.monotonic() - struck
    # What only it can do.
    world.control_plane.patch_node(b, {"metadata": {"annotations": {"lbless.dev/weight": "many"}}})
    world.wait_event("InvalidWeight", b, "default")
    works_after = time.monotonic() - struck
    print(
        f"{strike.__name__}: led by the other after {led_after:.1f} s, which worked after {works_after:.1f} s"
    )
    assert led_after < TAKEOVER_SECONDS
    assert works_after < TAKEOVER_SECONDS
    assert world.get()["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    # There is something to do for whoever takes himself for the leader.
    world.control_plane.patch_node(b, {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})
    after = world.wait_shares({a: 16})
    assert after["status"]["epoch"] == before["status"]["epoch"] + 1
    world.wait_condition("Programmed", "True", "Programmed")
    settled = world.get()["metadata"]["resourceVersion"]
    assert world.get()["metadata"]["resourceVersion"] == settled
    wake()
    if strike is not kill:
        assert first.wait(15) == 1
        assert "was lost to" in log_of(first).splitlines()[-1]
    assert [w for w in proxy.writes() if w.at > struck and w.outcome in (200, 201)] == []
    assert world.get()["metadata"]["resourceVersion"] == settled
    assert shares(world.get()) == {a: 16}
    assert second.poll() is None
    assert end(second) == 0
