"""Operator and sync start while the API server is slow or half told: they shrink nothing before they know."""

from __future__ import annotations

import time

import pytest

from cluster.operatorworld import await_log, end, log_of, until
from cluster.scene import Scene
from lab.installation import NAMESPACE

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


def test_restarted_against_slow_lists_both_get_there_and_nothing_shrinks_before(scene: Scene) -> None:
    """Each LIST takes 16 s, longer than they wait at first."""
    before = scene.assignment()
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
    # No condition, a span: nothing may shrink from here until both have their answers.
    while "answers every LIST again" not in log_of(operator):
        assert time.monotonic() - began < 120
        if scene.assignment() != before:  # the log may say it at this very moment
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
    assert scene.assignment()[0] == before[0] + 1


def test_restarted_before_any_agent_has_reported_it_shrinks_nothing_and_asks_little(scene: Scene) -> None:
    before = scene.assignment()
    assert end(scene.operator) == 0
    for node in (scene.a, scene.b):
        scene.world.agents.remove(node)
    operator = scene.restart_operator()
    await_log(operator, "This replica leads")
    degraded = scene.world.wait_condition("Degraded", "True", "AgentSilent", "stays")
    assert scene.a in degraded["message"]
    assert scene.b in degraded["message"]
    # No condition, a span: only after 40 s may it conclude anything from the absence of Leases.
    idle_from = time.monotonic() + 5
    idle_until = idle_from + 42
    while time.monotonic() < idle_until:
        assert scene.assignment() == before
        time.sleep(0.5)
    rates = {}
    for name, proxy in scene.proxies.items():
        count = sum(idle_from <= asked.at < idle_until for asked in proxy.requests())
        rates[name] = count / (idle_until - idle_from)
    print(f"idle requests per second, over {idle_until - idle_from:.0f} s: {rates}")
    # One renewal in 3 s; LISTs once a minute, of which one round is in this time.
    assert rates["operator"] < 0.75
    assert max(rates[name] for name in scene.before_syncs) < 0.5
    scene.world.agents.add(scene.a, "10.80.9.8/16")
    scene.world.agents.add(scene.b, "10.80.9.9/16")
    scene.world.wait_condition("Degraded", "False", "AsPlanned", "stays")
    until(
        "where they are reached now",
        lambda: [one["address"] for one in scene.assignment()[1]] == ["10.80.9.8", "10.80.9.9"],
    )
    epoch, shares = scene.assignment()
    for one in shares:
        del one["address"]
    assert (epoch, shares) == (
        before[0],
        [{k: v for k, v in one.items() if k != "address"} for one in before[1]],
    )
