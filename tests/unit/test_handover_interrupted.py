"""A move from one node to another, interrupted at every point by everything that can happen to either of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbless_nodeagent.dataplane.membership import Intent
from unit.segment.record import Verdict
from unit.segment.world import BUCKETS, World

MOVE_SECONDS = 0.06
"""A move takes some 40 ms here until nothing is sent on any more; draining takes a second."""
POINTS = 10
UID = "uid-0"

Interruption = Callable[[World], None]


def former_owner_crashes(world: World) -> None:
    world.nodes["n0"].crash()


def new_owner_crashes(world: World) -> None:
    world.nodes["n1"].crash()


def both_crash(world: World) -> None:
    former_owner_crashes(world)
    new_owner_crashes(world)


def former_owner_is_cut_off(world: World) -> None:
    world.nodes["n0"].cable(plugged=False)
    world.after(3, lambda: world.nodes["n0"].cable(plugged=True))


def new_owner_is_cut_off(world: World) -> None:
    world.nodes["n1"].cable(plugged=False)
    world.after(3, lambda: world.nodes["n1"].cable(plugged=True))


def former_owner_pauses(world: World) -> None:
    world.nodes["n0"].pause(1.5)


def new_owner_pauses(world: World) -> None:
    world.nodes["n1"].pause(1.5)


def former_owner_is_replaced(world: World) -> None:
    node = world.nodes["n0"]
    memory = node.kill()
    world.after(0.2, lambda: node.begin(memory))


def new_owner_is_replaced(world: World) -> None:
    node = world.nodes["n1"]
    memory = node.kill()
    world.after(0.2, lambda: node.begin(memory))


def former_owner_leaves(world: World) -> None:
    world.nodes["n0"].stop(Intent.LEAVE)


def it_goes_back(world: World) -> None:
    world.assign(UID, {"n0": 1, "n2": 1}, spread=0.01)


def it_goes_on(world: World) -> None:
    world.assign(UID, {"n2": 1}, spread=0.01)


def it_goes_back_and_only_the_new_owner_is_told(world: World) -> None:
    world.assign(UID, {"n0": 1, "n2": 1}, to=["n1"])


def frames_overtake_each_other(world: World) -> None:
    world.lan.overtaking, world.lan.delay = True, lambda r: r.uniform(0.0001, 0.03)


INTERRUPTIONS: tuple[Interruption, ...] = (
    former_owner_crashes,
    new_owner_crashes,
    both_crash,
    former_owner_is_cut_off,
    new_owner_is_cut_off,
    former_owner_pauses,
    new_owner_pauses,
    former_owner_is_replaced,
    new_owner_is_replaced,
    former_owner_leaves,
    it_goes_back,
    it_goes_on,
    it_goes_back_and_only_the_new_owner_is_told,
    frames_overtake_each_other,
)
ALL_LIVE = INTERRUPTIONS[7:9] + INTERRUPTIONS[10:]
"""Nobody has to take over in these."""


UNSERVED_SECONDS = {
    # Its process may be needed for the next step.
    former_owner_is_replaced: 0.3,
    new_owner_is_replaced: 0.3,
}
"""For how long nobody takes new flows, at most; 0 where it is not said."""


def interrupted(
    interruption: Interruption, point: int, to: list[str] | None = None, *, redirect: bool = True
) -> tuple[World, Verdict]:
    """Move n0's share to n1, interrupt that, and judge from then on; `to` are those that are told of the move."""
    world = World(point, 3, redirect=redirect)
    world.start(spread=0.01)
    world.run(1.5)
    world.assign(UID, {"n0": 1, "n2": 1})
    world.run(1)
    began = world.now
    world.assign(UID, {"n1": 1, "n2": 1}, to=to, spread=0.002)
    world.run(MOVE_SECONDS * point / POINTS)
    world.note("", "--- " + interruption.__name__)
    interruption(world)
    world.run(6)
    return world, world.record.judge([UID], BUCKETS, began, world.now, {0})


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda one: one.__name__)
def test_at_no_point_do_two_nodes_take_a_flow_or_reset_anothers_and_while_all_live_none_is_lost(
    interruption: Interruption,
):
    for point in range(POINTS + 1):
        world, verdict = interrupted(interruption, point)
        assert (verdict.double, verdict.reset) == (0, 0), (verdict.details, world.record.timeline(2.4))
        assert verdict.unserved < 0.9, world.record.timeline(2.4)
        if interruption in ALL_LIVE:
            assert verdict.abandoned == 0, world.record.timeline(2.4)
            assert verdict.unserved <= UNSERVED_SECONDS.get(interruption, 0), world.record.timeline(2.4)


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda one: one.__name__)
def test_the_same_where_nothing_is_sent_on_and_the_former_owners_kernel_opens_the_new_owners(
    interruption: Interruption,
):
    for point in range(POINTS + 1):
        world, verdict = interrupted(interruption, point, redirect=False)
        assert (verdict.double, verdict.reset) == (0, 0), (verdict.details, world.record.timeline(2.4))
        assert verdict.unserved < 0.9, world.record.timeline(2.4)
        if interruption in ALL_LIVE:
            assert verdict.abandoned == 0, world.record.timeline(2.4)
            assert verdict.unserved <= 0.3, world.record.timeline(2.4)


def gap(seed: int, *, loss: bool) -> float:
    """For how many seconds the buckets of a move were nobody's where processes wait long for a processor; `loss`: the
    tokens are lost."""
    world = World(seed, 3, redirect=False)
    world.start(spread=0.01)
    world.run(1.5)
    world.assign(UID, {"n0": 1, "n2": 1})
    world.run(1)
    for node in world.nodes.values():
        node.late, node.programming_delay = 0.03, 0.02
        if loss:
            node.take = ignore
    began = world.now
    world.assign(UID, {"n1": 1, "n2": 1}, spread=0.002)
    world.run(6)
    verdict = world.record.judge([UID], BUCKETS, began, world.now, {0})
    assert (verdict.double, verdict.reset, verdict.abandoned) == (0, 0, 0)
    return verdict.unserved


def ignore(_: bytes) -> None:
    """What a node does with a token that never comes to it."""


def test_a_token_spares_the_gap_the_processes_and_one_that_is_lost_costs_that_gap():
    with_tokens, without = ([gap(seed, loss=loss) for seed in range(10)] for loss in (False, True))
    shown = [[round(g * 1000, 1) for g in sorted(gaps)] for gaps in (with_tokens, without)]
    print(f"unserved with tokens {shown[0]} ms, without {shown[1]} ms")
    assert max(with_tokens) < 0.01
    assert 0.01 < min(without) <= max(without) < 0.2


def test_one_whose_api_is_away_learns_of_the_move_from_its_peers_and_the_move_completes():
    for left_out in ("n0", "n1", "n2"):
        told = [name for name in ("n0", "n1", "n2") if name != left_out]
        world, verdict = interrupted(lambda _: None, POINTS, to=told)
        assert (verdict.double, verdict.reset, verdict.unserved, verdict.abandoned) == (0, 0, 0, 0)
        shares = {name: node.kernel[UID] for name, node in world.nodes.items()}
        assert [len(shares[name].owned) for name in ("n0", "n1", "n2")] == [0, 8, 8]
        assert not any(share.moving.buckets for share in shares.values())
