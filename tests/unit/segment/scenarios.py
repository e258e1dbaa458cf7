"""The scenario table: each fault with how long a bucket may have two owners, or none; and how one is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbless_nodeagent.dataplane.membership import Membership, Times
from unit.segment import changes, faults
from unit.segment.record import Verdict
from unit.segment.world import BUCKETS, World

Fault = Callable[[World], float]


@dataclass(frozen=True)
class Scenario:
    """A fault, and for how many seconds at most, in all, a bucket may have two owners and how long none.

    No flow may be reset by another node than the one that has it. `settled`: whether all ClusterIPs must be wholly
    served at the end, and by their newest epoch if `newest`; `finishes`: whether every flow must go on to its end, as
    nothing but epochs makes buckets move."""

    name: str
    fault: Fault
    double: float
    unserved: float
    nodes: tuple[int, ...] = (2, 3, 5)
    after: float = 4.0
    settled: bool = True
    newest: bool = False
    finishes: bool = False
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
        if self.verdict.reset > 0:
            found.append(f"flows that another node resets for {self.verdict.reset:.3f} s")
        if scenario.finishes and self.verdict.abandoned:
            found.append(f"flows given up {self.verdict.abandoned} times")
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
    verdict = Verdict(whole.double, after.unserved, whole.reset, whole.abandoned, whole.details)
    numbers = {uid: epoch.number for uid, epoch in world.epochs.items()}
    behind = any(
        (use.epoch if (use := node.view.use.get(uid)) else 0) != number
        for node in world.nodes.values()
        if node.machine
        for uid, number in numbers.items()
    )
    return Run(world, verdict, end.unserved > 0.02, behind)


SCENARIOS = (
    Scenario("crash", faults.crash, 0, 0.8),
    Scenario("two crashes", faults.two_crashes, 0, 0.8, nodes=(3, 5)),
    Scenario("send failure", faults.send_failure, 0, 0.1),
    Scenario("receive failure", faults.receive_failure, 0, 0.6),
    Scenario("pause of one", faults.pause_one, 0, 0.54),
    Scenario("pause of most", faults.pause_most, 0, 0.25),
    Scenario("pause of all", faults.pause_all, 0, 0.25),
    Scenario("late ticks", faults.late_ticks, 0, 0.05),
    Scenario("200 ms delay and reordering", faults.delays, 0, 0.05),
    Scenario("late ticks and crash", faults.late_and_crash, 0, 1.0),
    Scenario("200 ms delay and crash", faults.delayed_and_crash, 0, 1.0),
    Scenario("one-way cut", faults.one_way, 0, 0.1),
    Scenario("one-way cut and crash", faults.one_way_and_crash, 0, 2.3),
    Scenario("heartbeats not heard by one", faults.not_heard_by_one, 0, 0.1),
    Scenario("20% loss", faults.loss_20, 0, 0.5),
    Scenario("20% loss and crash", faults.loss_20_and_crash, 0, 0.85),
    Scenario("50% loss", faults.loss_50, 0.45, 1.2, settled=False),
    Scenario("flapping link", faults.flapping, 0, 0.4),
    Scenario("flapping beyond the port", faults.flapping_behind_a_switch, 0.2, 0.8),
    Scenario("flapping slowly", faults.slow_flapping, 0.4, 0.9),
    Scenario("all ports down", faults.all_ports_down, 0, 0.5),
    Scenario("power cut, no API", faults.power_cut, 0, 1.0),
    Scenario("power cut, API", faults.power_cut_with_api, 0, 1.0),
    Scenario("the acting node dies", faults.acting_node_dies, 0, 1.15, nodes=(3, 5)),
    Scenario("epochs at different times", changes.epochs, 0, 0, newest=True, finishes=True),
    Scenario("epochs upon each other", changes.epochs_upon_each_other, 0, 0, newest=True, finishes=True),
    Scenario("epochs from a peer", changes.epochs_from_a_peer, 0, 0, newest=True, finishes=True),
    Scenario("epoch spreads, crash", changes.epochs_and_crash, 0, 0.85),
    Scenario("epochs, late programming", changes.programming_late, 0, 1.0, newest=True, finishes=True),
    Scenario("stuck programming, step down", faults.step_down_while_stuck, 0, 0.1),
    Scenario("restart", changes.restart, 0, 0.3),
    Scenario("hold", changes.hold, 0, 0.03),
    Scenario("hold and epoch", changes.hold_and_epoch, 0, 1.7, newest=True),
    Scenario("hold amid an epoch", changes.hold_amid_epoch, 0, 2.1),
    Scenario("hold and two epochs", changes.hold_and_superseding_epochs, 0, 1.7),
    Scenario("hold not heard by one", changes.hold_unheard, 0, 0.9, nodes=(3, 5)),
    Scenario("hold after a crash", changes.hold_after_crash, 0, 0.7, nodes=(3, 5)),
    Scenario("hold and crash of another", changes.hold_and_crash, 0, 2.6),
    Scenario("held node dies", changes.held_node_dies, 0, 2.3),
    Scenario("leaving", changes.leaving, 0, 0.03),
    Scenario("partition heals", faults.partition, 0.13, 0.2),
    Scenario("heals in one direction first", faults.one_way_heal, 0.52, 0.2),
    Scenario("paused virtual machine", faults.frozen, 0.13, 0.8),
    Scenario("a node comes back", changes.newcomer, 0, 0.05, newest=True),
    Scenario("a node comes back during a hold", changes.newcomer_during_hold, 0, 0.09, nodes=(3, 5)),
    Scenario("replayed frames and crash", faults.replayed, 0, 0.8),
    Scenario("identity lost", changes.identity_lost, 0, 0.05),
    Scenario("heartbeats filtered from the start", faults.long_wait, 0, 0.05, begin=faults.filtered),
    Scenario("filter of heartbeats lifted", faults.filter_lifted, 0, 0.05, begin=faults.filtered),
    Scenario(
        "heartbeats filtered, epochs",
        faults.long_wait_and_epochs,
        0,
        0.05,
        newest=True,
        begin=faults.filtered,
    ),
    # Not for two nodes: one in a hundred times one rightly counts the other dead, whose last seven frames were lost.
    Scenario("many epochs, 33% loss", changes.epochs_lossy, 0, 0.9, nodes=(3, 5), newest=True, clusterips=12),
    Scenario("one-way cut, epoch", changes.crash_of_one_way, 0, 1.0, newest=True, nodes=(3, 5)),
)
