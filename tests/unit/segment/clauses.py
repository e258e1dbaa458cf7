"""What each clause of membership is for: a scenario that goes wrong without it. `python -m unit.segment.clauses`."""

from __future__ import annotations

from lbless_nodeagent.dataplane.membership import Membership
from unit.segment import ablation
from unit.segment.scenarios import SCENARIOS, run

CASES: dict[type[Membership], tuple[str, int, int]] = {
    ablation.AnyOrder: ("replayed frames and crash", 2, 0),
    ablation.RumoursCount: ("crash", 3, 0),
    ablation.NoReports: ("a node comes back during a hold", 3, 0),
    ablation.NamedIsNothing: ("heartbeats filtered from the start", 2, 0),
    ablation.UnheardDie: ("heartbeats filtered from the start", 2, 0),
    ablation.WaitsForUnheard: ("heartbeats filtered from the start", 2, 0),
    ablation.JudgesAtOnce: ("pause of all", 2, 6),
    ablation.DeafAreBelieved: ("receive failure", 2, 0),
    ablation.NoGivingUp: ("receive failure", 2, 0),
    ablation.HoldsAreSilence: ("a node comes back during a hold", 3, 0),
    ablation.HearsayIsEnough: ("a node comes back during a hold", 3, 0),
    ablation.NeverDeaf: ("receive failure", 2, 0),
    ablation.CarrierUnseen: ("flapping link", 3, 4),
    ablation.NoAcknowledgement: ("heartbeats not heard by one", 3, 0),
    ablation.NewestAcknowledgement: ("heartbeats not heard by one", 3, 0),
    ablation.AllAcknowledge: ("one-way cut", 3, 0),
    ablation.NoBridge: ("a node comes back during a hold", 3, 0),
    ablation.NoDispute: ("pause of one", 3, 0),
    ablation.AlwaysYield: ("partition heals", 5, 29),
    ablation.NeverUntold: ("heals in one direction first", 2, 2),
    ablation.ListensUnconfirmed: ("stuck programming, step down", 2, 0),
    ablation.EpochAtOnce: ("a node comes back during a hold", 3, 0),
    ablation.NotByPeers: ("one-way cut, epoch", 3, 0),
    ablation.NamedListeners: ("a node comes back", 3, 11),
    ablation.EpochOfTheDead: ("power cut, no API", 3, 0),
    ablation.NoExchange: ("epochs from a peer", 3, 0),
    ablation.GainsAtOnce: ("epochs at different times", 3, 0),
    ablation.HeardAtLast: ("filter of heartbeats lifted", 3, 2),
    ablation.GainsUnheard: ("heartbeats filtered, epochs", 2, 0),
    ablation.HeldNotAwaited: ("hold amid an epoch", 3, 0),
    ablation.HeldTakeOver: ("hold and crash of another", 3, 1),
    ablation.NoActing: ("power cut, no API", 2, 0),
    ablation.ActsUnannounced: ("the acting node dies", 3, 2),
    ablation.ActsBesideOthers: ("power cut, no API", 3, 0),
    ablation.ActsUnheard: ("heartbeats filtered from the start", 2, 0),
    ablation.HoldsUnacknowledged: ("hold not heard by one", 3, 0),
    ablation.HoldsAnyway: ("hold after a crash", 3, 2),
    ablation.GivesUpAtOnce: ("epochs at different times", 2, 0),
    ablation.SendsNothingOn: ("epochs at different times", 2, 0),
    ablation.OwnsAtOnce: ("epochs at different times", 2, 0),
    ablation.Supersedes: ("epochs upon each other", 3, 16),
    ablation.BeginsSuperseded: ("epochs upon each other", 3, 14),
    ablation.ShowsAtOnce: ("epochs upon each other", 3, 5),
    ablation.WaitsUnheard: ("heartbeats filtered, epochs", 2, 0),
}
"""For each a scenario, a number of nodes and a seed that go wrong without the clause."""

DIRECT: tuple[type[Membership], ...] = (ablation.NoRepeats, ablation.OldIncarnation)
"""Shown by tests of a single membership (`test_membership`)."""

NO_DIFFERENCE: tuple[type[Membership], ...] = (
    ablation.ReportsWithoutAge,
    ablation.SilenceIsNoGap,
    ablation.DeafOnce,
    ablation.LapsedJudge,
    ablation.OldAcknowledgements,
    ablation.BlindBridge,
    ablation.AloneAtOnce,
    ablation.AloneAmongSilent,
    ablation.NoListening,
    ablation.KeepsVerdicts,
    ablation.OnlyByName,
    ablation.OwnerAheadIgnored,
    ablation.ActsBesideOwners,
    ablation.BackAtOnce,
    ablation.AlwaysHeld,
)
"""Clauses that could be left out unnoticed: at 2 and 3 nodes in ten seeds of every scenario (without "heartbeats
filtered" and "many epochs"), and in 150 random schedules. Those schedules notice the absence of others (of the
dispute 37 times, of the wait before gaining 115 times), but combine no faults of one direction: about clauses
that are for those, they say little. That none was noticed is no proof that a clause is superfluous."""


def without(clause: type[Membership]) -> list[str]:
    """What goes wrong without a clause, in its scenario."""
    name, nodes, seed = CASES[clause]
    scenario = next(one for one in SCENARIOS if one.name == name)
    return run(scenario, nodes, seed, machine=clause).faults(scenario)


def table() -> str:
    """Clause, scenario, what goes wrong without it: as markdown."""
    rows = ["| rule: clause | scenario, nodes | without it |", "|---|---|---|"]
    for clause, (name, nodes, _) in CASES.items():
        rows.append(f"| {clause.__doc__} | {name}, {nodes} | {', '.join(without(clause))} |")
    rows += [f"| {clause.__doc__} | a test of one membership | |" for clause in DIRECT]
    rows += [f"| {clause.__doc__} | none found | no difference |" for clause in NO_DIFFERENCE]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
