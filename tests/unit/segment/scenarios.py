"""The faults of the design's table (section 6), as things that happen to a settled segment, with their bounds.

Each fault is a function of the world that lets time pass as it wants to and returns the moment from which the
clients' wait for an owner counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbless_nodeagent.dataplane.membership import Intent, Membership, Times
from unit.segment.node import Node
from unit.segment.record import Verdict
from unit.segment.world import BUCKETS, World

Fault = Callable[[World], float]


@dataclass(frozen=True)
class Scenario:
    """A fault, and for how many seconds at most, in all, a bucket may have two owners and how long none.

    `settled`: whether all ClusterIPs must be wholly served at the end, and by their newest epoch if `newest`."""

    name: str
    fault: Fault
    double: float
    unserved: float
    nodes: tuple[int, ...] = (2, 3, 5)
    after: float = 4.0
    settled: bool = True
    newest: bool = False
    begin: Callable[[World], None] = World.settle
    clusterips: int = 1


@dataclass(frozen=True)
class Run:
    """What came of one run."""

    world: World
    verdict: Verdict
    unserved_at_end: bool
    behind: bool
    """Whether a node does not follow the newest epoch at the end."""

    def faults(self, scenario: Scenario) -> list[str]:
        """In what it broke the scenario's bounds, a sentence each."""
        found = []
        if self.verdict.double > scenario.double:
            found.append(f"two owners for {self.verdict.double:.3f} s")
        if self.verdict.unserved > scenario.unserved:
            found.append(f"no owner for {self.verdict.unserved:.3f} s")
        if scenario.settled and self.unserved_at_end:
            found.append("not all served at the end")
        if scenario.newest and self.behind:
            found.append("not by the newest epoch")
        return found


def run(
    scenario: Scenario,
    nodes: int,
    seed: int,
    *,
    machine: type[Membership] = Membership,
    clusterips: int = 0,
    times: Times | None = None,
) -> Run:
    """Settle a segment, let the fault happen, and judge."""
    count = clusterips or scenario.clusterips
    world = World(seed, nodes, clusterips=count, machine=machine, times=times)
    scenario.begin(world)
    began = world.now
    world.note("", f"--- {scenario.name}")
    counted = scenario.fault(world)
    world.run(max(0.0, counted - world.now) + scenario.after)
    sides = {0}
    whole = world.record.judge(world.uids, BUCKETS, began, world.now, sides)
    after = world.record.judge(world.uids, BUCKETS, counted, world.now, sides)
    end = world.record.judge(world.uids, BUCKETS, world.now - 0.05, world.now, sides)
    verdict = Verdict(whole.double, after.unserved, whole.details)
    numbers = {uid: epoch.number for uid, epoch in world.epochs.items()}
    behind = any(
        (use.epoch if (use := node.view.use.get(uid)) else 0) != number
        for node in world.nodes.values()
        if node.machine
        for uid, number in numbers.items()
    )
    return Run(world, verdict, end.unserved > 0.02, behind)


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


def _hold(world: World, node: Node, away: float) -> None:
    node.stop(Intent.HOLD)

    def again() -> None:
        if node.machine is not None:
            world.after(0.01, again)
        elif node.on:
            world.after(away, lambda: node.begin(node.memory))

    again()


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


def programming_late(world: World) -> float:
    """The programming processes need up to half a second while epochs spread."""
    for node in world.nodes.values():
        node.programming_delay = 0.5
    return epochs(world)


def step_down_while_stuck(world: World) -> float:
    """A node's programming process is stuck while it must step down; then it goes on."""
    moment(world)
    node = some(world)[0]
    node.programming_stuck = True
    node.pause(1.2)
    world.run(world.random.uniform(2.5, 4))
    node.programming_stuck = False
    return world.now


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


def replayed(world: World) -> float:
    """A node crashes, and old frames of everyone are sent again and again."""
    old = list(world.sent)[-60:]
    moment(world)
    some(world)[0].crash()
    began = world.now
    for turn in range(200):
        world.after(turn * 0.01, lambda: world.replay(world.random.choice(old)))
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


def filtered(world: World) -> None:
    """The switch filters heartbeats from the start."""
    world.lan.cut = {(one, other) for one in world.nodes for other in world.nodes}
    world.settle()


def long_wait(world: World) -> float:
    """A minute passes."""
    return world.now + 62


def epochs_lossy(world: World) -> float:
    """Epochs of many ClusterIPs, while every third heartbeat is lost."""
    world.lan.loss[""] = 0.33
    epochs(world)
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


SCENARIOS = (
    Scenario("crash", crash, 0, 0.8),
    Scenario("two crashes", two_crashes, 0, 0.8, nodes=(3, 5)),
    Scenario("send failure", send_failure, 0, 0.1),
    Scenario("receive failure", receive_failure, 0, 0.6),
    Scenario("pause of one", pause_one, 0, 0.4),
    Scenario("pause of most", pause_most, 0, 0.25),
    Scenario("pause of all", pause_all, 0, 0.25),
    Scenario("late ticks", late_ticks, 0, 0.05),
    Scenario("200 ms delay and reordering", delays, 0, 0.05),
    Scenario("late ticks and crash", late_and_crash, 0, 1.0),
    Scenario("200 ms delay and crash", delayed_and_crash, 0, 1.0),
    Scenario("one-way cut", one_way, 0, 0.1),
    Scenario("one-way cut and crash", one_way_and_crash, 0, 2.3),
    Scenario("heartbeats not heard by one", not_heard_by_one, 0, 0.1),
    Scenario("20% loss", loss_20, 0, 0.5),
    Scenario("20% loss and crash", loss_20_and_crash, 0, 0.85),
    Scenario("50% loss", loss_50, 0.31, 0.8, settled=False),
    Scenario("flapping link", flapping, 0, 0.4),
    Scenario("flapping beyond the port", flapping_behind_a_switch, 0.15, 0.5),
    Scenario("flapping slowly", slow_flapping, 0.4, 0.9),
    Scenario("all ports down", all_ports_down, 0, 0.5),
    Scenario("power cut, no API", power_cut, 0, 1.0),
    Scenario("power cut, API", power_cut_with_api, 0, 1.0),
    Scenario("the acting node dies", acting_node_dies, 0, 1.15, nodes=(3, 5)),
    Scenario("epochs at different times", epochs, 0, 0.03, newest=True),
    Scenario("epochs from a peer", epochs_from_a_peer, 0, 0.03, newest=True),
    Scenario("epoch spreads, crash", epochs_and_crash, 0, 0.85),
    Scenario("epochs, late programming", programming_late, 0, 2.5, newest=True),
    Scenario("stuck programming, step down", step_down_while_stuck, 0, 0.1),
    Scenario("restart", restart, 0, 0.3),
    Scenario("hold", hold, 0, 0.03),
    Scenario("hold and epoch", hold_and_epoch, 0, 1.7, newest=True),
    Scenario("hold amid an epoch", hold_amid_epoch, 0, 2.1),
    Scenario("hold and two epochs", hold_and_superseding_epochs, 0, 1.7),
    Scenario("hold not heard by one", hold_unheard, 0, 0.9, nodes=(3, 5)),
    Scenario("hold after a crash", hold_after_crash, 0, 0.7, nodes=(3, 5)),
    Scenario("hold and crash of another", hold_and_crash, 0, 2.3),
    Scenario("held node dies", held_node_dies, 0, 2.3),
    Scenario("leaving", leaving, 0, 0.03),
    Scenario("partition heals", partition, 0.13, 0.2),
    Scenario("heals in one direction first", one_way_heal, 0.5, 0.2),
    Scenario("paused virtual machine", frozen, 0.13, 0.8),
    Scenario("a node comes back", newcomer, 0, 0.05, newest=True),
    Scenario("a node comes back during a hold", newcomer_during_hold, 0, 0.05, nodes=(3, 5)),
    Scenario("replayed frames and crash", replayed, 0, 0.8),
    Scenario("identity lost", identity_lost, 0, 0.05),
    Scenario("heartbeats filtered from the start", long_wait, 0, 0.05, begin=filtered),
    Scenario("many epochs, 33% loss", epochs_lossy, 0, 0.3, newest=True, clusterips=12),
    Scenario("one-way cut, epoch", crash_of_one_way, 0, 1.0, newest=True, nodes=(3, 5)),
)
