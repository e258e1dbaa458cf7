"""The API server misbehaves: operator and sync are right again by themselves, and shrink nothing meanwhile.

Both run as programs, each through a fault proxy of its own. Agents are played by the tests, as the real ones
are in the end-to-end tests.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.operatorworld import (
    NAMESPACE,
    Operator,
    World,
    await_log,
    end,
    log_of,
    shares,
    until,
)
from cluster.syncing import ACCOUNT, SyncedNode, wait_for
from lab.controlplane import ControlPlane
from lab.faultproxy import FaultProxy
from lbless_operator.watches import RETRY_SECONDS

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

RIGHT_SECONDS = 80.0
"""Promised: so long after a watch went wrong, whatever happened meanwhile has taken effect."""


@dataclass
class Scene:
    """An operator and two syncs at work, each behind a proxy. ClusterIP `stays` is shared by nodes a and b; `goes`
    and node b are what a test deletes while they do not see it."""

    world: World
    program: Operator
    operator: subprocess.Popen[bytes]
    before_operator: FaultProxy
    syncs: dict[str, SyncedNode]
    before_syncs: dict[str, FaultProxy]
    a: str
    b: str

    @property
    def proxies(self) -> list[FaultProxy]:
        return [self.before_operator, *self.before_syncs.values()]

    def restart_operator(self) -> subprocess.Popen[bytes]:
        """Start another operator in the place of the one that has ended."""
        self.operator = self.program.start_behind(self.before_operator)
        return self.operator

    def delete(self) -> None:
        """Delete node b and ClusterIP `goes`, as administrator."""
        self.world.control_plane.delete_node(self.b)
        self.world.agents.remove(self.b)
        self.world.delete("goes")

    def times_until_right(self, since: float) -> dict[str, float]:
        """Seconds since `since` until each program has made right what was deleted."""
        wanted: dict[str, Callable[[], bool]] = {
            "operator": lambda: shares(self.world.get("stays")) == {self.a: 16}
        }
        for name, sync in self.syncs.items():
            wanted[name] = lambda sync=sync: set(sync.desired) == {"stays"}  # type: ignore[misc]
        took: dict[str, float] = {}

        def all_right() -> bool:
            took.update(
                {n: time.monotonic() - since for n, right in wanted.items() if n not in took and right()}
            )
            return len(took) == len(wanted)

        try:
            until("all to be right", all_right, RIGHT_SECONDS + 40)
        finally:
            print(f"right again after: { ({n: round(s, 1) for n, s in took.items()}) } s")
        return took


@contextmanager
def living_dataplanes(syncs: list[SyncedNode]) -> Iterator[None]:
    """Say each second, as dataplane does, that all that is desired is applied."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(1):
            for sync in syncs:
                with suppress(OSError):  # a file that was removed while all were read
                    sync.observe()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def scene(control_plane: ControlPlane, world: World, program: Operator, tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:

        def started() -> FaultProxy:
            return stack.enter_context(FaultProxy(control_plane, control_plane.host))

        before_operator = started()
        before_syncs = {name: started() for name in ("sync", "second sync")}
        stack.callback(program.close)  # before its proxy; healed, so that it can release its Lease
        for proxy in (before_operator, *before_syncs.values()):
            stack.callback(proxy.heal)
        a, b = world.nodes("a", "b")
        world.clusterip("stays")
        world.clusterip("goes", ip=world.beside(1))
        operator = program.start_behind(before_operator)
        syncs = {}
        for number, (name, before) in enumerate(before_syncs.items()):
            node = f"{world.namespace}-synced-{number}"
            control_plane.make_node(node, f"10.80.250.{number + 1}")
            stack.callback(control_plane.delete_node, node)
            kubeconfig = control_plane.kubeconfig_for_service_account(
                NAMESPACE, ACCOUNT, node, server=before.outside_url
            )
            directory = tmp_path / node
            directory.mkdir()
            syncs[name] = stack.enter_context(SyncedNode(control_plane, node, directory, kubeconfig))
            syncs[name].observe({})
            syncs[name].start()
        stack.enter_context(living_dataplanes(list(syncs.values())))
        world.wait_shares({a: 8, b: 8}, "stays")
        for name in ("stays", "goes"):
            world.wait_condition("Programmed", "True", "Programmed", name)
        for name, sync in syncs.items():
            wait_for(f"the files of {name}", lambda sync=sync: set(sync.desired) == {"stays", "goes"})
            wait_for(f"the Lease and the report of {name}", lambda sync=sync: sync.lease and sync.ready)
        yield Scene(world, program, operator, before_operator, syncs, before_syncs, a, b)
        log = log_of(operator)
        assert "defect" not in log, log
        print(log)
        for sync in syncs.values():
            print(sync.log)


def assignment(world: World, name: str = "stays") -> tuple[int, Any]:
    """The epoch and who has what."""
    status = world.get(name)["status"]
    return status["epoch"], status["assignments"]


def test_connections_that_went_silent_half_open_delay_what_was_deleted_by_80_s_at_most(scene: Scene) -> None:
    epoch, _ = assignment(scene.world)
    # The worst time: just after a round of LISTs. These, writes and the renewal of the Lease have each left
    # connections, all of which are silent from now on.
    await_round(scene.before_operator)
    scene.before_operator.stall()
    scene.before_syncs["sync"].stall()
    scene.before_syncs["second sync"].stall(new_too=True)
    stalled = time.monotonic()
    scene.delete()
    time.sleep(15)
    scene.before_syncs["second sync"].heal()
    took = scene.times_until_right(stalled)
    assert max(took.values()) < RIGHT_SECONDS
    assert assignment(scene.world)[0] == epoch + 1
    assert scene.operator.poll() is None


def await_round(proxy: FaultProxy) -> None:
    """Wait until rounds of LISTs that were asked for are over: then none comes for most of a minute."""

    def last_is_old() -> bool:
        rounds = [
            asked.at for asked in proxy.requests() if asked.verb == "LIST" and "servicecidrs" in asked.path
        ]
        return bool(rounds) and time.monotonic() - rounds[-1] > 2.5

    until("the rounds of LISTs of the start to be over", last_is_old)


def break_watches(proxy: FaultProxy, *, within_event: bool = False) -> None:
    proxy.drop(verbs=["LIST", "WATCH"])
    proxy.cut_watches(within_event=within_event)


def expire_watches(proxy: FaultProxy) -> None:
    proxy.answer(410, verbs=["WATCH"])
    proxy.expire_watches()


def refuse(proxy: FaultProxy, status: int) -> None:
    proxy.answer(
        status, verbs=["LIST", "WATCH", "GET", "PATCH"], retry_after_seconds=2 if status == 429 else 0
    )
    proxy.cut_watches()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(break_watches, id="cut mid-stream"),
        pytest.param(lambda p: break_watches(p, within_event=True), id="cut within an event"),
        pytest.param(expire_watches, id="410"),
        pytest.param(lambda p: refuse(p, 500), id="500"),
        pytest.param(lambda p: refuse(p, 429), id="429"),
    ],
)
def test_what_was_deleted_while_watches_were_gone_takes_effect(
    scene: Scene, fault: Callable[[FaultProxy], None]
) -> None:
    epoch, _ = assignment(scene.world)
    for proxy in scene.proxies:
        fault(proxy)
    began = time.monotonic()
    scene.delete()
    time.sleep(3)  # they try, and are refused, in the meantime
    for proxy in scene.proxies:
        proxy.heal()
    took = scene.times_until_right(began)
    assert max(took.values()) < RIGHT_SECONDS
    assert assignment(scene.world)[0] == epoch + 1
    assert scene.operator.poll() is None


def test_after_refusals_that_outlast_every_retry_what_is_new_is_seen_at_once_again(scene: Scene) -> None:
    """kopf gives up then, and must not hang while it ends: no watch would be left, only LISTs."""
    scene.before_operator.answer(403, verbs=["LIST", "WATCH"])
    scene.before_operator.cut_watches()
    # Each watch ends kopf at another time, up to the sum of its waits after the first.
    await_log(scene.operator, "Watches failed and begin anew", sum(RETRY_SECONDS) + 5)
    time.sleep(2)
    scene.before_operator.heal()
    # The next request, the round that kopf waits for, and its own LISTs.
    until("watches of the operator", lambda: watched(scene.before_operator) >= {"clusterips", "nodes"}, 30)
    await_round(scene.before_operator)
    asked_at = time.monotonic()
    scene.world.clusterip("new", ip=scene.world.beside(2))
    until("the assignment", lambda: shares(scene.world.get("new")), 10)
    print(f"a new ClusterIP was assigned after {time.monotonic() - asked_at:.2f} s")
    assert "defect" not in log_of(scene.operator)


def watched(proxy: FaultProxy) -> set[str]:
    """The plurals of which a watch was begun since the proxy is healed."""
    return {
        asked.path.split("?")[0].rpartition("/")[2]
        for asked in proxy.requests()
        if asked.verb == "WATCH" and asked.outcome == 200 and asked.at > proxy.healed_at
    }


def test_with_every_third_request_dropped_everything_still_happens(scene: Scene) -> None:
    for proxy in scene.proxies:
        proxy.drop(every=3)
        proxy.cut_watches()
    began = time.monotonic()
    scene.delete()
    took = scene.times_until_right(began)
    assert max(took.values()) < RIGHT_SECONDS
    assert scene.operator.poll() is None


def test_a_crowd_that_is_told_to_wait_waits_and_does_not_come_back_all_at_once(scene: Scene) -> None:
    """429 with Retry-After 5: who asked is not heard again for 5 s on that path."""
    for proxy in scene.proxies:
        proxy.answer(429, verbs=["LIST", "WATCH", "PATCH"], retry_after_seconds=5)
        proxy.cut_watches()
    time.sleep(12)
    for name, proxy in {"operator": scene.before_operator, **scene.before_syncs}.items():
        refused: dict[tuple[str, str], list[float]] = {}
        for asked in proxy.requests():
            if asked.outcome == 429:
                refused.setdefault((asked.verb, asked.path.split("?")[0]), []).append(asked.at)
        assert refused, name
        waits = [two - one for times in refused.values() for one, two in itertools.pairwise(times)]
        assert waits, name
        print(f"{name}: repeated after {min(waits):.2f} to {max(waits):.2f} s")
        assert min(waits) >= 5
        assert len({round(wait, 3) for wait in waits}) > 1 or len(waits) == 1
    for proxy in scene.proxies:
        proxy.heal()


def test_restarted_against_slow_lists_both_get_there_and_nothing_shrinks_before(scene: Scene) -> None:
    """Each LIST takes 16 s, longer than they wait at first."""
    before = assignment(scene.world)
    sync = scene.syncs["sync"]
    assert end(scene.operator) == 0
    assert sync.stop() == 0
    for proxy in (scene.before_operator, scene.before_syncs["sync"]):
        proxy.delay(16, verbs=["LIST"])
    scene.delete()
    began = time.monotonic()
    operator = scene.restart_operator()
    sync.start()
    line = await_log(operator, "Nothing is decided: ", 10)
    said_after = time.monotonic() - began
    for plural in ("clusterips", "clusteripnodes", "nodes", "servicecidrs", f"leases in {NAMESPACE}"):
        assert plural in line
    assert "for 3 s to LIST" in line
    while "answers every LIST again" not in log_of(operator):
        assert time.monotonic() - began < 120
        if assignment(scene.world) != before:  # the log may say it at this very moment
            break
        assert set(sync.desired) == {"stays", "goes"} or sync.complete
        time.sleep(0.2)
    await_log(operator, "answers every LIST again", 5)
    took = scene.times_until_right(began)
    print(f"said what it waits for after {said_after:.1f} s")
    assert took["operator"] < 120
    assert took["sync"] < 120
    lines = [line for line in log_of(operator).splitlines() if "Nothing is decided" in line]
    # What is asked for, and that it took too long.
    assert len(lines) <= 3, lines
    assert assignment(scene.world)[0] == before[0] + 1


def test_restarted_before_any_agent_has_reported_it_shrinks_nothing_and_asks_little(scene: Scene) -> None:
    before = assignment(scene.world)
    assert end(scene.operator) == 0
    for node in (scene.a, scene.b):
        scene.world.agents.remove(node)
    operator = scene.restart_operator()
    await_log(operator, "This replica leads")
    degraded = scene.world.wait_condition("Degraded", "True", "AgentSilent", "stays")
    assert scene.a in degraded["message"]
    assert scene.b in degraded["message"]
    # Only after 40 s may it conclude anything from the absence of Leases.
    idle_from = time.monotonic() + 5
    idle_until = idle_from + 42
    while time.monotonic() < idle_until:
        assert assignment(scene.world) == before
        time.sleep(0.5)
    rates = {}
    for name, proxy in {"operator": scene.before_operator, **scene.before_syncs}.items():
        count = sum(idle_from <= asked.at < idle_until for asked in proxy.requests())
        rates[name] = count / (idle_until - idle_from)
    print(f"idle requests per second, over {idle_until - idle_from:.0f} s: {rates}")
    # One renewal in 3 s; LISTs once a minute, of which one round is in this time.
    assert rates["operator"] < 0.75
    assert max(rates[name] for name in scene.before_syncs) < 0.5
    scene.world.agents.add(scene.a, "10.80.9.8/16")
    scene.world.agents.add(scene.b, "10.80.9.9/16")
    scene.world.wait_condition("Degraded", "False", "AsPlanned", "stays")
    assert assignment(scene.world) == before
