"""Random schedules: faults that promise one owner always, one after the other and into each other."""

from __future__ import annotations

from unit.segment.record import Verdict
from unit.segment.scenarios import SCENARIOS, Scenario
from unit.segment.world import BUCKETS, Lan, World

# Two nodes of which one is not heard, restarting, cannot know of each other: such a fault is not combined.
_ALONE = ("one-way", "send failure", "receive failure", "not heard", "filtered", "identity", "replayed")
MEETING_SECONDS = 0.005
"""What a search may find: two sides that knew nothing of each other meet with an epoch under way (docs/failover.md)."""

COMBINED: tuple[Scenario, ...] = tuple(
    one
    for one in SCENARIOS
    if one.double == 0 and one.clusterips == 1 and not any(w in one.name for w in _ALONE)
)


def play(
    seed: int, nodes: int, clusterips: int, faults: list[Scenario], pauses: list[float]
) -> tuple[World, Verdict]:
    """Let the faults happen, each some seconds after the former one; half of what failed comes back between
    two. Returns what clients met meanwhile, and raises AssertionError if all is not served in the end."""
    world = World(seed, nodes, clusterips=clusterips, redirect=seed % 2 == 0)
    world.settle()
    began = world.now
    for fault, pause in zip(faults, pauses, strict=True):
        world.note("", f"--- {fault.name}")
        fault.fault(world)
        world.run(pause)
        repair(world, 0.5)
        if world.random.random() < 0.5:
            operate(world)
    world.run(2)
    verdict = world.record.judge(world.uids, BUCKETS, began, world.now, {0})
    world.note("", "--- all is repaired")
    world.lan = Lan()
    repair(world, 1)
    world.run(4)
    operate(world)
    world.run(3)
    end = world.record.judge(world.uids, BUCKETS, world.now - 0.3, world.now, {0})
    assert end.double == 0, story(world, end)
    assert end.unserved < 0.02, story(world, end)
    return world, verdict


def repair(world: World, chance: float) -> None:
    """Bring back what is off, each with this chance."""
    for node in world.nodes.values():
        # A node that starts while the only other one holds acts beside it: it cannot know of it.
        held = any(other.holds() for other in world.nodes.values())
        if world.random.random() > chance or (held and not node.on):
            continue
        node.programming_delay, node.programming_stuck, node.late = 0.005, False, 0.002
        if not (node.can_send and node.can_receive):
            node.cable(True)
        if not node.on:
            node.boot()
        elif node.machine is None:
            node.begin(node.memory)
    if world.random.random() < chance:
        world.lan.loss.clear()
        world.lan.cut.clear()


def operate(world: World) -> None:
    """The operator assigns to the nodes that are on."""
    on = [name for name, node in world.nodes.items() if node.on] or list(world.nodes)
    for uid in world.uids:
        world.assign(uid, {name: world.random.choice((0.01, 1, 2)) for name in on}, spread=0.3)


def story(world: World, verdict: Verdict) -> str:
    """What happened, for a person."""
    return "\n".join((f"seed {world.seed}", *verdict.details, world.record.timeline(2.0)))
