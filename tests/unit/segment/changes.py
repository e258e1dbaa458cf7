"""What a segment goes through without any fault, or beside one: epochs, restarts, holds, nodes that come back.

Each is a function like those of `faults`.
"""

from __future__ import annotations

from lbless_nodeagent.dataplane.membership import Intent
from unit.segment.faults import crash, moment, some
from unit.segment.node import Node
from unit.segment.world import World


def epochs(world: World) -> float:
    """Epochs follow each other and reach the nodes at different times."""
    began = world.now
    for _ in range(5):
        for uid in world.uids:
            chosen = some(world, world.random.randint(1, len(world.nodes)))
            shares = {node.name: world.random.choice((0.01, 1, 2)) for node in chosen}
            world.assign(uid, shares, spread=world.random.uniform(0, 0.3))
        moment(world)
    return began


def epochs_upon_each_other(world: World) -> float:
    """Each epoch supersedes the one before it at some point of its moves."""
    began = world.now
    for _ in range(12):
        for uid in world.uids:
            shares = {name: world.random.choice((0.01, 1, 2)) for name in world.nodes}
            world.assign(uid, shares, spread=0.004)
        world.run(world.random.uniform(0.001, 0.05))
    return began


def _hold(world: World, node: Node, away: float) -> None:
    node.stop(Intent.HOLD)

    def again() -> None:
        if node.machine is not None:
            world.after(0.01, again)
        elif node.on:
            world.after(away, begin)

    def begin() -> None:
        # A fresh one that starts while the only other one holds acts beside it: it cannot know of it.
        others = any(other.holds() for other in world.nodes.values() if other is not node)
        if others and not node.holds():
            world.after(0.1, begin)
        elif node.on and node.machine is None:
            node.begin(node.memory)

    again()


def hold_and_epoch(world: World) -> float:
    """An epoch takes buckets from a node that holds and cannot know."""
    moment(world)
    holding = world.random.choice(list(world.nodes.values()))
    _hold(world, holding, 1.5)
    world.run(0.4)
    for uid in world.uids:
        world.assign(uid, {name: 0.01 if name == holding.name else 1 for name in world.nodes})
    return world.now


def hold_amid_epoch(world: World) -> float:
    """A process stops to hold while its programming process has not yet followed an epoch."""
    moment(world)
    holding = world.random.choice(list(world.nodes.values()))
    for uid in world.uids:
        world.assign(uid, {name: 0.01 if name == holding.name else 1 for name in world.nodes})
    holding.programming_stuck = True
    world.run(0.01)
    _hold(world, holding, 1.5)
    return world.now


def hold_and_superseding_epochs(world: World) -> float:
    """The same, and a second epoch does not name it any more; one node learns that one alone."""
    moment(world)
    holding = world.random.choice(list(world.nodes.values()))
    _hold(world, holding, 1.5)
    world.run(0.4)
    for uid in world.uids:
        world.assign(uid, {name: 0.01 if name == holding.name else 1 for name in world.nodes}, spread=0.2)
        world.assign(uid, {name: 1 for name in world.nodes if name != holding.name}, spread=0.2)
    return world.now


def epochs_from_a_peer(world: World) -> float:
    """Only one node's API connection works."""
    began = world.now
    for _ in range(3):
        one = world.random.choice(list(world.nodes))
        for uid in world.uids:
            shares = {name: world.random.choice((0.01, 1, 2)) for name in world.nodes}
            world.assign(uid, shares, to=[one])
        world.run(0.5)
    return began


def epochs_and_crash(world: World) -> float:
    """A node crashes while an epoch spreads."""
    for uid in world.uids:
        shares = {name: world.random.choice((0.01, 1, 2)) for name in world.nodes}
        world.assign(uid, shares, spread=0.3)
    return crash(world)


def restart(world: World) -> float:
    """A process is killed and a successor resumes, or the lease is over by then."""
    moment(world)
    node = some(world)[0]
    memory = node.kill()
    world.after(world.random.uniform(0.02, 0.6), lambda: node.begin(memory))
    return world.now


def hold(world: World) -> float:
    """A process is replaced: it holds, and its successor resumes."""
    moment(world)
    _hold(world, some(world)[0], world.random.uniform(0.05, 1.5))
    return world.now


def hold_and_crash(world: World) -> float:
    """While one holds or has just come back, another one crashes."""
    moment(world)
    held, crashing = world.random.sample(list(world.nodes.values()), 2)
    _hold(world, held, world.random.uniform(0.05, 1.0))
    moment(world, 2.0)
    crashing.crash()
    return world.now


def held_node_dies(world: World) -> float:
    """Power fails while a node holds."""
    node = some(world)[0]
    node.stop(Intent.HOLD)
    world.run(0.3)
    node.crash()
    return world.now


def leaving(world: World) -> float:
    """A node is shut down."""
    moment(world)
    some(world)[0].stop(Intent.LEAVE)
    return world.now


def programming_late(world: World) -> float:
    """The programming processes need up to half a second while epochs spread."""
    for node in world.nodes.values():
        node.programming_delay = 0.5
    return epochs(world)


def hold_unheard(world: World) -> float:
    """One node does not hear the one that holds."""
    moment(world)
    names = world.random.sample(list(world.nodes), 2)
    world.lan.cut.add((names[0], names[1]))
    world.run(0.5)
    _hold(world, world.nodes[names[0]], 1.5)
    return world.now


def hold_after_crash(world: World) -> float:
    """A process is replaced after a node has been taken over."""
    crash(world)
    world.run(1.5)
    alive = [node for node in world.nodes.values() if node.on]
    if alive:
        _hold(world, world.random.choice(alive), 0.5)
    return world.now


def newcomer(world: World) -> float:
    """A node comes back; the operator, faster than its first heartbeats, assigns to it."""
    node = some(world)[0]
    node.crash()
    world.run(2)
    for uid in world.uids:
        world.assign(uid, {name: 1 for name in world.nodes if name != node.name})
    world.run(1)
    began = world.now
    node.boot()
    for uid in world.uids:
        world.assign(uid, dict.fromkeys(world.nodes, 1), spread=0.05)
    return began


def newcomer_during_hold(world: World) -> float:
    """A node comes back while another one holds, and hears nothing of that one but from the others."""
    if len(world.nodes) < 3:
        return world.now  # nobody could tell the one that comes back
    holding, coming = world.random.sample(list(world.nodes.values()), 2)
    coming.crash()
    world.run(2)
    for uid in world.uids:
        world.assign(uid, {name: 1 for name in world.nodes if name != coming.name})
    world.run(1)
    began = world.now
    _hold(world, holding, 1.5)
    world.run(0.25)
    coming.boot()
    world.run(0.2)
    for uid in world.uids:
        world.assign(uid, dict.fromkeys(world.nodes, 1))
    return began


def identity_lost(world: World) -> float:
    """A node comes back with an incarnation that is older than its last one."""
    node = some(world)[0]
    for _ in range(2):
        node.crash()
        world.run(1.5)
        node.boot()
        world.run(1.5)
    node.crash()
    node.incarnation -= 2
    node.boot()
    world.run(2.5)
    for uid in world.uids:
        world.assign(uid, {node.name: 1}, spread=0.05)
    return world.now + 0.5


def epochs_lossy(world: World) -> float:
    """Epochs of many ClusterIPs, while every third heartbeat is lost."""
    world.lan.loss[""] = 0.33
    epochs(world)
    world.after(2, world.lan.loss.clear)
    return world.now + 1.5


def crash_of_one_way(world: World) -> float:
    """An epoch takes from a node whose frames one other does not hear."""
    moment(world)
    names = world.random.sample(list(world.nodes), 2)
    world.lan.cut.add((names[0], names[1]))
    world.run(1)
    began = world.now
    for uid in world.uids:
        world.assign(uid, {name: 0.01 if name == names[0] else 1 for name in world.nodes}, spread=0.3)
    return began
