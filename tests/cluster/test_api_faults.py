"""The API server misbehaves: operator and sync are right again by themselves, and shrink nothing meanwhile.

Both run as programs, each through a fault proxy of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from cluster.operatorworld import await_log, end, log_of, shares, until
from cluster.scene import RIGHT_SECONDS, Scene
from lab.faultproxy import Asked, FaultProxy
from lbless_operator.watches import RETRY_SECONDS

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


@pytest.mark.soak
def test_connections_that_went_silent_half_open_delay_what_was_deleted_by_80_s_at_most(scene: Scene) -> None:
    epoch, _ = scene.assignment()
    # The worst time: just after a round of LISTs. These, writes and the renewal of the Lease have each left
    # connections, all of which are silent from now on.
    await_round(scene.before_operator)
    scene.before_operator.stall()
    scene.before_syncs["sync"].stall()
    scene.before_syncs["second sync"].stall(new_too=True)
    stalled = time.monotonic()
    scene.delete()
    time.sleep(15)  # no condition, a span: so long nothing answers the second sync at all
    scene.before_syncs["second sync"].heal()
    took = scene.times_until_right(stalled)
    assert max(took.values()) < RIGHT_SECONDS
    assert scene.assignment()[0] == epoch + 1
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
    epoch, _ = scene.assignment()
    for proxy in scene.proxies.values():
        fault(proxy)
    began = time.monotonic()
    scene.delete()
    time.sleep(3)  # a span, which docs/operations.md names: the waits between repetitions have grown by then
    await_that_each(scene, "to be refused", lambda proxy: bool(refused(proxy, began)))
    for proxy in scene.proxies.values():
        proxy.heal()
    took = scene.times_until_right(began)
    assert max(took.values()) < RIGHT_SECONDS
    assert scene.assignment()[0] == epoch + 1
    assert scene.operator.poll() is None


def test_after_refusals_that_outlast_every_retry_what_is_new_is_seen_at_once_again(scene: Scene) -> None:
    """kopf gives up then, and must not hang while it ends: no watch would be left, only LISTs."""
    scene.before_operator.answer(403, verbs=["LIST", "WATCH"])
    scene.before_operator.cut_watches()
    # Each watch ends kopf at another time, up to the sum of its waits after the first.
    await_log(scene.operator, "Watches failed and begin anew", sum(RETRY_SECONDS) + 5)
    anew = time.monotonic()
    both = {"clusterips", "nodes"}
    until(
        "the new watches to be refused",
        lambda: {a.plural for a in refused(scene.before_operator, anew)} >= both,
    )
    scene.before_operator.heal()
    # The next request, the round that kopf waits for, and its own LISTs.
    until("watches of the operator", lambda: watched(scene.before_operator) >= both, 30)
    await_round(scene.before_operator)
    asked_at = time.monotonic()
    scene.world.clusterip("new", ip=scene.world.beside(2))
    until("the assignment", lambda: shares(scene.world.get("new")), 10)
    print(f"a new ClusterIP was assigned after {time.monotonic() - asked_at:.2f} s")
    assert "defect" not in log_of(scene.operator)


def watched(proxy: FaultProxy) -> set[str]:
    """The plurals of which a watch was begun since the proxy is healed."""
    return {
        asked.plural
        for asked in proxy.requests()
        if asked.verb == "WATCH" and asked.outcome == 200 and asked.at > proxy.healed_at
    }


def test_with_every_third_request_dropped_everything_still_happens(scene: Scene) -> None:
    for proxy in scene.proxies.values():
        proxy.drop(every=3)
        proxy.cut_watches()
    began = time.monotonic()
    scene.delete()
    took = scene.times_until_right(began)
    assert max(took.values()) < RIGHT_SECONDS
    assert scene.operator.poll() is None


def test_a_crowd_that_is_told_to_wait_waits_and_does_not_come_back_all_at_once(scene: Scene) -> None:
    """429 with Retry-After 5: who asked is not heard again for 5 s on that path."""
    for proxy in scene.proxies.values():
        proxy.answer(429, verbs=["LIST", "WATCH", "PATCH"], retry_after_seconds=5)
        proxy.cut_watches()
    await_that_each(scene, "to come back twice", lambda proxy: len(waits_after_429(proxy)) > 1)
    for name, proxy in scene.proxies.items():
        waits = waits_after_429(proxy)
        print(f"{name}: repeated after {min(waits):.2f} to {max(waits):.2f} s")
        assert min(waits) >= 5
        assert len({round(wait, 3) for wait in waits}) > 1
    for proxy in scene.proxies.values():
        proxy.heal()


def test_told_to_end_while_every_watch_waits_to_be_repeated_the_operator_ends(scene: Scene) -> None:
    """Neither of its two kopfs goes on waiting for the 30 s that it was told to wait."""
    proxy = scene.before_operator
    began = time.monotonic()
    proxy.answer(429, verbs=["LIST", "WATCH"], retry_after_seconds=30)
    proxy.cut_watches()
    plurals = {"clusterips", "clusteripnodes", "nodes", "leases"}
    until(
        "every watch to be refused",
        lambda: {one.plural for one in refused(proxy, began) if one.verb == "WATCH"} >= plurals,
        40,
    )
    assert end(scene.operator) == 0


def waits_after_429(proxy: FaultProxy) -> list[float]:
    """How long after a 429 the same was asked again, and answered so again."""
    refused_at: dict[tuple[str, str], list[float]] = {}
    for asked in proxy.requests():
        if asked.outcome == 429:
            refused_at.setdefault((asked.verb, asked.path.split("?")[0]), []).append(asked.at)
    return [two - one for times in refused_at.values() for one, two in itertools.pairwise(times)]


def await_that_each(scene: Scene, what: str, condition: Callable[[FaultProxy], bool]) -> None:
    """Wait until the condition holds of each program's proxy."""
    for name, proxy in scene.proxies.items():
        until(f"{name} {what}", lambda proxy=proxy: condition(proxy), 40)


def refused(proxy: FaultProxy, since: float) -> list[Asked]:
    """The LISTs and WATCHes since then that got an error, or no answer."""
    return [
        asked
        for asked in proxy.requests()
        if asked.at > since
        and asked.verb in {"LIST", "WATCH"}
        and asked.outcome in {"dropped", 403, 410, 429, 500}
    ]
