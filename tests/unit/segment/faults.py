"""The faults of the design's table (section 6), as things that happen to a settled segment.

Each is a function of the world that lets time pass as it wants to and returns the moment from which the clients'
wait for an owner counts.
"""

from __future__ import annotations

from unit.segment.node import Node
from unit.segment.world import World


def some(world: World, count: int = 1) -> list[Node]:
    """Nodes at random, at least one fewer than there are."""
    names = world.random.sample(list(world.nodes), min(count, len(world.nodes) - 1))
    return [world.nodes[name] for name in names]


def moment(world: World, longest: float = 0.3) -> None:
    """The phase of everything is random."""
    world.run(world.random.uniform(0, longest))


def crash(world: World) -> float:
    """One node loses power."""
    moment(world)
    some(world)[0].crash()
    return world.now


def two_crashes(world: World) -> float:
    """Two nodes lose power, one after the other; each starts it anew."""
    nodes = some(world, 2)
    for node in nodes:
        moment(world, 0.8)
        node.crash()
    return world.now


def send_failure(world: World) -> float:
    """One node's frames reach nobody."""
    moment(world)
    some(world)[0].can_send = False
    return world.now


def receive_failure(world: World) -> float:
    """One node hears nothing any more."""
    moment(world)
    node = some(world)[0]
    node.can_receive = False
    node.changed()
    return world.now


def pause_one(world: World) -> float:
    """One tick process stands still, for shorter or longer than a lease."""
    moment(world)
    some(world)[0].pause(world.random.choice((0.3, 0.6, 0.7, 0.75, 0.9, 1.5, 3)))
    return world.now


def pause_most(world: World) -> float:
    """All but one stand still; what counts is the time after."""
    moment(world)
    lengths = [world.random.choice((0.3, 0.6, 0.7, 0.75, 0.9, 1.5, 2)) for _ in world.nodes]
    for node, length in zip(some(world, len(world.nodes)), lengths, strict=False):
        node.pause(length)
    return world.now + max(lengths)


def pause_all(world: World) -> float:
    """All stand still."""
    moment(world)
    lengths = [world.random.choice((0.3, 0.6, 0.7, 0.75, 0.9, 1.5, 2)) for _ in world.nodes]
    for node, length in zip(world.nodes.values(), lengths, strict=True):
        node.pause(length)
    return world.now + max(lengths)


def late_ticks(world: World) -> float:
    """Every tick process wakes up to 150 ms late."""
    for node in world.nodes.values():
        node.late = 0.15
    return world.now


def delays(world: World) -> float:
    """Heartbeats take up to 200 ms and overtake each other."""
    world.lan.delay, world.lan.overtaking = lambda r: r.uniform(0, 0.2), True
    return world.now


def late_and_crash(world: World) -> float:
    """Late ticks, then a crash."""
    late_ticks(world)
    world.run(1)
    return crash(world)


def delayed_and_crash(world: World) -> float:
    """Delays, then a crash."""
    delays(world)
    world.run(1)
    return crash(world)


def one_way(world: World) -> float:
    """One node no longer hears one other."""
    moment(world)
    names = world.random.sample(list(world.nodes), 2)
    world.lan.cut.add((names[0], names[1]))
    return world.now


def one_way_and_crash(world: World) -> float:
    """One node does not hear one other, then one crashes."""
    one_way(world)
    world.run(2)
    return crash(world)


def not_heard_by_one(world: World) -> float:
    """One node hears clients, and no heartbeat of anyone."""
    moment(world)
    deaf = some(world)[0].name
    world.lan.cut |= {(name, deaf) for name in world.nodes if name != deaf}
    return world.now


def loss_20(world: World) -> float:
    """Every fifth heartbeat is lost."""
    world.lan.loss[""] = 0.2
    return world.now


def loss_20_and_crash(world: World) -> float:
    """Every fifth heartbeat is lost, and a node crashes."""
    world.lan.loss[""] = 0.2
    world.run(1)
    return crash(world)


def loss_50(world: World) -> float:
    """Every second heartbeat is lost."""
    world.lan.loss[""] = 0.5
    return world.now


def flapping(world: World, *, seen: bool = True) -> float:
    """One node's link goes down and up."""
    node = some(world)[0]
    for _ in range(6):
        for plugged in (False, True):
            node.cable(plugged, seen=seen)
            moment(world, 0.8)
    return world.now


def flapping_behind_a_switch(world: World) -> float:
    """A link farther away goes down and up: the node's carrier does not tell."""
    return flapping(world, seen=False)


def all_ports_down(world: World) -> float:
    """The switch restarts: 3 s without any frame."""
    for plugged in (False, True):
        for node in world.nodes.values():
            node.cable(plugged)
        world.run(0 if plugged else 3)
    return world.now


def power_cut(world: World) -> float:
    """The whole site loses power and comes back, one node after the other; the API server does not."""
    moment(world)
    for node in world.nodes.values():
        node.crash()
    world.run(1)
    first = world.now + 0.1
    for place, node in enumerate(world.nodes.values()):
        world.after(0.1 + (world.random.uniform(0, 1) if place else 0), node.boot)
    return first


def power_cut_with_api(world: World) -> float:
    """The same, and an operator assigns to the new incarnations 1 s after all are back."""
    first = power_cut(world)
    world.run(2.5)
    for uid in world.uids:
        world.assign(uid, dict.fromkeys(world.nodes, 1), spread=0.3)
    return first


def partition(world: World) -> float:
    """Two sides for a while, clients on one of them; then it heals."""
    moment(world)
    world.lan.client_sides = {0, 1}
    for node in some(world, world.random.randint(1, len(world.nodes) - 1)):
        world.lan.side[node.name] = 1
        node.changed()
    moment(world, 3)
    world.lan.side.clear()
    for node in world.nodes.values():
        node.changed()
    return world.now


def one_way_heal(world: World) -> float:
    """A partition heals in one direction first."""
    moment(world)
    away = {node.name for node in some(world, world.random.randint(1, len(world.nodes) - 1))}
    world.lan.client_sides = {0, 1}
    for name in away:
        world.lan.side[name] = 1
        world.nodes[name].changed()
    world.run(world.random.uniform(1.2, 3))
    world.lan.side.clear()
    world.lan.cut |= {(name, other) for name in away for other in world.nodes if other not in away}
    for node in world.nodes.values():
        node.changed()
    world.run(2)
    world.lan.cut.clear()
    return world.now - 2


def frozen(world: World) -> float:
    """A virtual machine is paused and resumes with the rest of its lease."""
    moment(world)
    some(world)[0].freeze(world.random.uniform(0.3, 3))
    return world.now


def step_down_while_stuck(world: World) -> float:
    """A node's programming process is stuck while it must step down; then it goes on."""
    moment(world)
    node = some(world)[0]
    node.programming_stuck = True
    node.pause(1.2)
    world.run(world.random.uniform(2.5, 4))
    node.programming_stuck = False
    return world.now


def acting_node_dies(world: World) -> float:
    """After a power cut the node that acts for all loses power again."""
    power_cut(world)
    world.run(3)
    for node in world.nodes.values():
        if any(node.kernel.values()):
            node.crash()
    return world.now


def slow_flapping(world: World) -> float:
    """A link beyond the port is down for almost QUIET, up for a moment, and again."""
    moment(world)
    node = some(world)[0]
    for _ in range(12):
        node.cable(False, seen=False)
        world.run(world.random.uniform(0.3, 0.44))
        node.cable(True, seen=False)
        world.run(world.random.uniform(0.02, 0.1))
    return world.now


def replayed(world: World) -> float:
    """A node crashes, and old frames of everyone are sent again and again."""
    old = list(world.sent)[-60:]
    moment(world)
    some(world)[0].crash()
    began = world.now
    for turn in range(200):
        world.after(turn * 0.01, lambda: world.replay(world.random.choice(old)))
    return began


def filtered(world: World) -> None:
    """The switch filters heartbeats from the start."""
    world.lan.cut = {(one, other) for one in world.nodes for other in world.nodes}
    world.settle()


def long_wait(world: World) -> float:
    """A minute passes."""
    return world.now + 62


def filter_lifted(world: World) -> float:
    """A minute passes, and from then on all hear each other."""
    world.run(62)
    world.lan.cut.clear()
    return world.now


def long_wait_and_epochs(world: World) -> float:
    """A minute passes, and then epochs follow each other, each within 2 s on all nodes."""
    world.run(62)
    for _ in range(3):
        for uid in world.uids:
            world.assign(uid, {name: world.random.choice((0.01, 1, 2)) for name in world.nodes}, spread=2)
        world.run(world.random.uniform(5, 6))
    return world.now
