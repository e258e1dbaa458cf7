"""Decisions: the whole state in, a status and what to tell out; applied again, nothing changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.digest import applied_digest
from lbless_operator.assignment import MAX_NODES
from lbless_operator.conditions import BLOCKED, REASONS, Finding, Reason, Type, settle
from lbless_operator.conditions import State as Truth
from lbless_operator.decision import PROGRAMMING_SECONDS, Decision, decide
from lbless_operator.facts import Kind, Seen
from lbless_operator.notices import NoticeReason
from lbless_operator.state import Clock, Listing, State
from lbless_operator.status import Status, ownership, parse_status, render_status
from unit import operatorobjects as objects

BEGIN = 5000.0
WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z, as the Leases say


class Scenario:
    """A cluster in the operator's eyes; `step` decides and takes the status in as if it had been written."""

    def __init__(self, *nodes: str, **spec: Any) -> None:
        self.state = State("https://192.0.2.250:6443", "lbless-system", BEGIN)
        self.now = BEGIN
        self.version = 100
        self.spec = {"ports": [{"port": 80}], **spec}
        self.status: Status | None = None
        self.expected: dict[str, int] = {}
        for name in nodes:
            self.join(name)
        self.learn(objects.clusterip(version=self.next(), spec=self.spec))

    def next(self) -> int:
        self.version += 1
        return self.version

    def learn(self, *news: Seen) -> None:
        for one in news:
            self.state.learn(one, Clock(self.now, WALL + self.now - BEGIN))
        self.state.tick(self.now)

    def join(self, name: str) -> None:
        renewed = f"2026-01-01T00:{int(self.now - BEGIN) // 60:02}:{int(self.now - BEGIN) % 60:02}.000000Z"
        self.learn(
            objects.node(name, self.next()),
            objects.agent(name, self.next()),
            objects.lease(name, self.next(), renewed),
        )

    def respec(self, **spec: Any) -> None:
        self.spec = {**self.spec, **spec}
        self.put(self.status)

    def put(self, status: Status | None) -> None:
        rendered = render_status(status) if status else None
        self.learn(objects.clusterip(version=self.next(), spec=self.spec, status=rendered))

    def decide(self) -> Decision:
        situation = self.state.situation("shop/web", self.now, f"now {self.now:.0f}")
        assert situation is not None
        return decide(situation)

    def step(self) -> Decision:
        decision = self.decide()
        self.status = decision.status
        self.expected = {"uid-web": decision.status.epoch} if decision.status.epoch else {}
        self.put(decision.status)
        return decision

    def confirm(self, *names: str, **report: Any) -> None:
        excluded = {o["uid"] for key in ("failures", "pending") for o in report.get(key, [])}
        applied = {uid: epoch for uid, epoch in self.expected.items() if uid not in excluded}
        for name in names:
            self.learn(objects.agent(name, self.next(), digest=applied_digest(applied), **report))
        self.state.confirm()

    def silence(self, *names: str) -> None:
        """Let these be silent for long, and the others renew their Leases."""
        self.now += 60
        renewed = f"2026-01-01T00:{int(self.now - BEGIN) // 60:02}:{int(self.now - BEGIN) % 60:02}.000000Z"
        others = [n.name for n in self.state.nodes() if n.name not in names]
        self.learn(*(objects.lease(name, self.next(), renewed) for name in others))
        leases = tuple(objects.lease(name, self.version, renewed) for name in others)
        known = [objects.lease(name, 1) for name in names]
        scope = next(s for s in self.state.base_scopes if s.kind is Kind.LEASE)
        self.state.learn_listing(
            Listing(scope, self.now, self.next(), (*leases, *known)), Clock(self.now, WALL + self.now - BEGIN)
        )
        self.state.tick(self.now)


def condition(decision: Decision, kind: Type) -> tuple[str, str]:
    found = next(c for c in decision.status.conditions if c.type == kind)
    return found.status, found.reason


def message(decision: Decision, kind: Type) -> str:
    return next(c.message for c in decision.status.conditions if c.type == kind)


def shares(decision: Decision) -> dict[str, int]:
    return {a.node: len(a.buckets) for a in decision.status.assignments}


def told(decision: Decision) -> list[NoticeReason]:
    return [notice.reason for notice in decision.notices]


def serving(*nodes: str, **spec: Any) -> Scenario:
    """A scenario in which all is assigned, programmed and reported."""
    scenario = Scenario(*nodes, **spec)
    scenario.step()
    scenario.confirm(*nodes)
    assert condition(scenario.step(), Type.READY) == ("True", "Serving")
    return scenario


def test_a_fresh_clusterip_goes_from_assigned_to_programmed_to_ready():
    scenario = Scenario("a", "b", "c")
    first = scenario.step()
    assert first.status.epoch == 1
    assert sorted(shares(first).values()) == [5, 5, 6]
    assert condition(first, Type.ASSIGNED) == ("True", "Assigned")
    assert condition(first, Type.PROGRAMMED) == ("False", "Programming")
    assert message(first, Type.PROGRAMMED) == "Epoch 1 is not confirmed yet by nodes a, b and c."
    assert condition(first, Type.READY) == ("False", "Programming")
    assert first.status.nodes == "0/3"
    assert told(first) == [NoticeReason.ASSIGNED]
    scenario.confirm("a", "b")
    second = scenario.step()
    assert second.status.nodes == "2/3"
    assert message(second, Type.PROGRAMMED) == "Epoch 1 is not confirmed yet by node c."
    scenario.confirm("c")
    third = scenario.step()
    assert condition(third, Type.PROGRAMMED) == ("True", "Programmed")
    assert condition(third, Type.READY) == ("True", "Serving")
    assert condition(third, Type.DEGRADED) == ("False", "AsPlanned")
    assert third.status.nodes == "3/3"
    assert third.status.mac == "03:bf:c0:00:02:0a"
    assert told(third) == []


def test_deciding_again_changes_nothing_whatever_the_time():
    scenario = serving("a", "b")
    scenario.now += 3000
    decision = scenario.decide()
    assert decision.status == scenario.status
    assert decision.notices == ()
    assert decision.recheck_seconds is None


def test_open_ports_are_warned_of_once_and_said_in_ready():
    scenario = Scenario("a", ports=None)
    first = scenario.step()
    assert told(first) == [NoticeReason.ASSIGNED, NoticeReason.ALL_PORTS_OPEN]
    scenario.confirm("a")
    assert "(ssh, kubelet) answer on the address too" in message(scenario.step(), Type.READY)
    scenario.join("b")
    assert told(scenario.step()) == [NoticeReason.MOVED]


def test_a_move_is_told_with_its_numbers_and_its_reason():
    scenario = serving("a", "b", "c")
    before = shares(scenario.decide())
    scenario.learn(objects.node("c", scenario.next(), taints=[{"key": "k", "effect": "NoExecute"}]))
    decision = scenario.step()
    (notice,) = decision.notices
    gains = {node: share - before[node] for node, share in shares(decision).items()}
    to = " and ".join(f"{node} ({gain})" for node, gain in gains.items())
    assert notice.note == (
        f"{before['c']} buckets moved: {before['c']} from c, which is tainted NoExecute, to {to}. "
        f"Established connections in them end."  # there are no heartbeats
    )
    assert decision.status.epoch == 2


def test_ready_does_not_blink_for_a_move_but_falls_when_it_does_not_end():
    scenario = serving("a", "b")
    scenario.join("c")
    decision = scenario.step()
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert condition(decision, Type.PROGRAMMED) == ("False", "Programming")
    assert decision.recheck_seconds == PROGRAMMING_SECONDS
    scenario.confirm("a", "b")
    scenario.now += PROGRAMMING_SECONDS
    late = scenario.step()
    assert condition(late, Type.READY) == ("False", "Programming")
    assert condition(late, Type.DEGRADED) == ("True", "Programming")
    assert message(late, Type.READY) == "Epoch 2 is not confirmed yet by node c."
    assert late.recheck_seconds is None
    scenario.confirm("c")
    assert condition(scenario.step(), Type.READY) == ("True", "Serving")


def test_a_node_that_lost_everything_is_waited_for_until_it_has_let_go():
    scenario = serving("a", "b")
    scenario.learn(objects.node("b", scenario.next(), annotations={"lbless.dev/weight": "0"}))
    decision = scenario.step()
    assert set(shares(decision)) == {"a"}
    scenario.confirm("a")
    assert message(scenario.step(), Type.PROGRAMMED) == "Epoch 2 is not confirmed yet by node b."
    scenario.confirm("b")
    assert condition(scenario.step(), Type.PROGRAMMED) == ("True", "Programmed")


def test_a_node_that_never_had_anything_is_not_waited_for():
    scenario = Scenario("a", nodeSelector={"zone": "x"})
    scenario.join("other")
    scenario.learn(objects.node("a", scenario.next(), labels={"zone": "x"}))
    scenario.step()
    scenario.confirm("a")
    assert condition(scenario.step(), Type.PROGRAMMED) == ("True", "Programmed")


def failure(text: str = "The table is locked.") -> list[dict[str, Any]]:
    return [{"uid": "uid-web", "clusterIP": "shop/web", "epoch": 1, "reason": "Failed", "message": text}]


def test_a_failure_is_named_with_its_node_also_where_it_worked_before():
    scenario = serving("a", "b")
    scenario.confirm("b", failures=failure())
    decision = scenario.step()
    assert condition(decision, Type.PROGRAMMED) == ("False", "ProgrammingFailed")
    assert condition(decision, Type.DEGRADED) == ("True", "ProgrammingFailed")
    assert condition(decision, Type.READY) == ("False", "ProgrammingFailed")
    assert message(decision, Type.READY) == "Node b: The table is locked."
    assert decision.status.nodes == "1/2"
    assert told(decision) == [NoticeReason.PROGRAMMING_FAILED]
    scenario.confirm("b")
    assert condition(scenario.step(), Type.READY) == ("True", "Serving")


def test_where_every_node_fails_it_is_not_merely_degraded():
    scenario = Scenario("a")
    scenario.step()
    scenario.confirm("a", failures=failure())
    decision = scenario.step()
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")
    assert condition(decision, Type.READY) == ("False", "ProgrammingFailed")


def test_a_silent_agent_keeps_its_buckets_and_the_others_share_the_rest():
    scenario = serving("a", "b", "c")
    mine = scenario.decide().status.owners()["a"]
    scenario.silence("a")
    decision = scenario.step()
    assert decision.status.epoch == 1
    assert condition(decision, Type.DEGRADED) == ("True", "AgentSilent")
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert f"a keeps its {len(mine)} buckets" in message(decision, Type.DEGRADED)
    assert told(decision) == [NoticeReason.AGENT_SILENT]
    scenario.learn(objects.node("c", scenario.next(), annotations={"lbless.dev/weight": "0"}))
    decision = scenario.step()
    assert decision.status.owners() == {"a": mine, "b": BucketSet.full(16) - mine}
    assert decision.status.nodes == "0/2"
    scenario.confirm("b", "c")
    assert condition(scenario.step(), Type.PROGRAMMED) == ("True", "Programmed")


IPTABLES = {
    "name": "iptables",
    "available": True,
    "active": True,
    "capabilities": [{"functions": ["LegacyClusterIP"], "modes": ["SourceIP"], "maxBuckets": 16}],
}
CANNOT = "the iptables engine cannot do hashFunction JHash: use LegacyClusterIP."


def test_a_node_whose_engine_cannot_serve_it_is_left_out_and_named_until_it_can():
    scenario = serving("a", "b", "c")
    scenario.learn(objects.agent("a", scenario.next(), engines=[IPTABLES]))
    decision = scenario.step()
    assert sorted(shares(decision)) == ["b", "c"]
    assert condition(decision, Type.DEGRADED) == ("True", "EngineIncapable")
    assert message(decision, Type.DEGRADED) == f"Node a: {CANNOT}"
    assert told(decision) == [NoticeReason.MOVED, NoticeReason.ENGINE_INCAPABLE]
    assert "from a, which has no engine that can serve it, to" in decision.notices[0].note
    scenario.confirm("b", "c")
    assert told(scenario.step()) == []
    scenario.learn(objects.agent("a", scenario.next()))
    decision = scenario.step()
    assert sorted(shares(decision)) == ["a", "b", "c"]
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")


def test_a_node_that_can_have_no_lease_serves_and_is_named_as_one_that_nobody_takes_over_from():
    scenario = serving("a", "b", "c")
    why = "nftables is missing: install libnftables1."
    unfenced = {"name": "iptables", "available": True, "active": True, "unfenced": why}
    unused = {**unfenced, "name": "other", "active": False}
    scenario.learn(objects.agent("b", scenario.next(), engines=[{**unfenced, "unfenced": ""}, unused]))
    assert condition(scenario.step(), Type.DEGRADED) == ("False", "AsPlanned")
    for name in "ab":
        scenario.learn(objects.agent(name, scenario.next(), engines=[unfenced]))
    decision = scenario.step()
    assert sorted(shares(decision)) == ["a", "b", "c"]
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert condition(decision, Type.DEGRADED) == ("True", "NoFastTakeover")
    assert message(decision, Type.DEGRADED).endswith(f"no lease. Nodes a and b: {why}")


def test_a_clusterip_that_no_nodes_engine_can_serve_keeps_its_assignment_and_says_why():
    scenario = serving("a", "b")
    before = scenario.decide().status.owners()
    for name in "ab":
        scenario.learn(objects.agent(name, scenario.next(), engines=[IPTABLES]))
    decision = scenario.step()
    assert decision.status.owners() == before
    assert condition(decision, Type.READY) == ("False", "NoEligibleNode")
    assert f"Nodes a and b: {CANNOT}" in message(decision, Type.READY)


def test_sixty_four_nodes_whose_engines_change_one_by_one_are_no_flood_of_events():
    names = [f"n{number:02}" for number in range(65)]
    scenario = serving(*names)
    incapable = 0
    for name in names[1:]:
        scenario.learn(objects.agent(name, scenario.next(), engines=[IPTABLES]))
        incapable += told(scenario.step()).count(NoticeReason.ENGINE_INCAPABLE)
    assert incapable == 1
    assert f"Nodes n01, n02, n03, n04, n05, n06 and 58 more: {CANNOT}" in message(
        scenario.decide(), Type.DEGRADED
    )


def test_a_silent_agent_hides_no_incapable_engine():
    scenario = serving("a", "b", "c")
    scenario.silence("a")
    scenario.learn(objects.agent("b", scenario.next(), engines=[IPTABLES]))
    decision = scenario.step()
    assert condition(decision, Type.DEGRADED) == ("True", "AgentSilent")
    assert message(decision, Type.DEGRADED).endswith(f"Node b: {CANNOT}")


def test_a_dead_node_stays_named_without_buckets_while_it_still_belongs_here():
    scenario = serving("a", "b")
    scenario.silence("a")
    scenario.learn(objects.node("a", scenario.next(), ready=False))
    decision = scenario.step()
    assert shares(decision) == {"a": 0, "b": 16}
    assert decision.status.epoch == 2
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")
    scenario.confirm("b")
    scenario.step()
    assert scenario.decide().status == scenario.status
    scenario.learn(objects.gone(objects.node("a"), scenario.next()))
    assert shares(scenario.step()) == {"b": 16}


def test_when_only_silent_owners_are_left_nothing_moves_and_it_is_said():
    scenario = serving("a", "b")
    before = scenario.status
    scenario.silence("a", "b")
    decision = scenario.step()
    assert before is not None
    assert decision.status.assignments == before.assignments
    assert condition(decision, Type.READY) == ("False", "NoEligibleNode")
    assert "2 have a silent lbless agent" in message(decision, Type.READY)
    assert message(decision, Type.READY).endswith("The last assignment stays in force.")


def test_without_any_eligible_node_the_assignment_and_its_epoch_stay():
    scenario = serving("a", "b")
    before = scenario.status
    assert before is not None
    for name in ("a", "b"):
        scenario.learn(objects.node(name, scenario.next(), annotations={"lbless.dev/weight": "0"}))
    decision = scenario.step()
    assert (decision.status.assignments, decision.status.epoch) == (before.assignments, before.epoch)
    assert condition(decision, Type.READY) == ("False", "NoEligibleNode")
    assert condition(decision, Type.ASSIGNED) == ("False", "NoEligibleNode")
    assert condition(decision, Type.PROGRAMMED) == ("True", "Programmed")
    assert decision.status.nodes == "2/0"
    assert told(decision) == [NoticeReason.NO_ELIGIBLE_NODE]


def test_a_spec_that_is_refused_later_leaves_the_assignment_in_force():
    scenario = serving("a", "b")
    before = scenario.status
    assert before is not None
    scenario.respec(buckets=0)
    decision = scenario.step()
    assert (decision.status.assignments, decision.status.epoch) == (before.assignments, before.epoch)
    assert condition(decision, Type.READY) == ("False", "Invalid")
    assert decision.status.mac == before.mac
    assert decision.status.nodes == "2/2"
    assert told(decision) == [NoticeReason.REFUSED]


def test_reserved_buckets_are_given_to_nobody_and_that_is_said():
    scenario = serving("a", "b", reservedBuckets="12-15")
    decision = scenario.decide()
    assert shares(decision) == {"a": 6, "b": 6}
    assert message(decision, Type.ASSIGNED) == (
        "12 buckets: a 6 and b 6. 4 of 16 buckets (12-15) are reserved for machines outside lbless."
    )
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")
    assert decision.status.nodes == "2/2"


def test_buckets_are_taken_when_they_become_reserved_and_given_when_they_no_longer_are():
    scenario = serving("a", "b")
    before = scenario.decide().status.owners()
    scenario.respec(reservedBuckets="6-9")
    decision = scenario.step()
    reserved = BucketSet.parse("6-9")
    assert decision.status.owners() == {node: had - reserved for node, had in before.items()}
    assert decision.status.epoch == 2
    assert decision.notices[0].note.startswith(
        "4 buckets moved: 2 from a, reserved for machines outside lbless and "
        "2 from b, reserved for machines outside lbless."
    )
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert condition(decision, Type.PROGRAMMED) == ("False", "Programming")
    scenario.confirm("a", "b")
    assert condition(scenario.step(), Type.PROGRAMMED) == ("True", "Programmed")
    scenario.respec(reservedBuckets="9")
    decision = scenario.step()
    assert sorted(shares(decision).values()) == [7, 8]
    assert decision.notices[0].note.startswith("3 buckets moved: 3 that no node had, to a (")
    assert message(decision, Type.ASSIGNED).endswith(
        "1 of 16 buckets (9) is reserved for machines outside lbless."
    )


def test_a_silent_agent_keeps_reserved_buckets_too_and_nobody_is_told_that_they_are_free():
    scenario = serving("a", "b")
    mine = scenario.decide().status.owners()["a"]
    scenario.silence("a")
    scenario.step()
    scenario.respec(reservedBuckets=f"{mine},15")
    decision = scenario.step()
    assert decision.status.owners() == {"a": mine, "b": BucketSet.full(16) - mine - BucketSet([15])}
    scenario.confirm("b")
    decision = scenario.step()
    assert condition(decision, Type.PROGRAMMED) == ("False", "AgentSilent")
    assert message(decision, Type.PROGRAMMED) == (
        f"Reserved buckets {mine} are still with node a, whose silent agent cannot be told: "
        f"no other machine may answer for them yet."
    )
    assert condition(decision, Type.READY) == ("True", "Serving")
    scenario.join("a")
    decision = scenario.step()
    assert all(had.isdisjoint(mine | BucketSet([15])) for had in decision.status.owners().values())
    scenario.confirm("a", "b")
    assert condition(scenario.step(), Type.PROGRAMMED) == ("True", "Programmed")


def test_reserved_buckets_are_given_up_also_where_no_node_is_eligible():
    scenario = serving("a", "b")
    before = scenario.decide().status.owners()
    for name in ("a", "b"):
        scenario.learn(objects.node(name, scenario.next(), annotations={"lbless.dev/weight": "0"}))
    scenario.step()
    scenario.respec(reservedBuckets="0-3,15")
    decision = scenario.step()
    assert decision.status.owners() == {node: had - BucketSet.parse("0-3,15") for node, had in before.items()}
    assert condition(decision, Type.READY) == ("False", "NoEligibleNode")
    assert decision.status.epoch == 2


def test_a_clusterip_that_reserves_everything_is_refused_and_stays_as_it_was():
    scenario = serving("a", "b")
    before = scenario.decide().status
    scenario.respec(reservedBuckets="0-7,8-15")
    decision = scenario.step()
    assert (decision.status.assignments, decision.status.epoch) == (before.assignments, before.epoch)
    assert condition(decision, Type.READY) == ("False", "Invalid")
    assert "spec.reservedBuckets 0-15 leaves the nodes none of the 16 buckets" in message(
        decision, Type.READY
    )


def test_a_shared_source_mac_is_served_and_warned_of_until_it_is_taken_back():
    scenario = Scenario("a", sourceMAC="Cluster")
    first = scenario.step()
    assert condition(first, Type.SOURCE_MAC_UNSAFE) == ("True", "SharedSourceMAC")
    assert "source 02:bf:c0:00:02:0a" in message(first, Type.SOURCE_MAC_UNSAFE)
    assert told(first) == [NoticeReason.ASSIGNED, NoticeReason.SOURCE_MAC_UNSAFE]
    assert sum(shares(first).values()) == 16
    assert told(scenario.step()) == []
    scenario.respec(sourceMAC="Node")
    assert Type.SOURCE_MAC_UNSAFE not in {c.type for c in scenario.step().status.conditions}
    scenario.respec(sourceMAC="Cluster")
    assert told(scenario.step()) == [NoticeReason.SOURCE_MAC_UNSAFE]


def test_an_address_found_in_use_refuses_a_new_clusterip_and_degrades_one_that_serves():
    taken = objects.agent("z", 90, address="192.0.2.10/24")
    scenario = Scenario("a")
    scenario.learn(taken)
    decision = scenario.step()
    assert condition(decision, Type.READY) == ("False", "AddressInUse")
    assert (shares(decision), decision.status.epoch) == ({}, 0)
    assert told(decision) == [NoticeReason.REFUSED]
    scenario = serving("a")
    scenario.learn(taken)
    decision = scenario.step()
    assert shares(decision) == {"a": 16}
    assert condition(decision, Type.DEGRADED) == ("True", "AddressInUse")
    assert condition(decision, Type.READY) == ("True", "Serving")


def test_an_older_rival_takes_the_assignment_away_with_a_new_epoch_and_its_end_brings_it_back():
    scenario = serving("a")
    rival = objects.clusterip("older", 99, created="2025-01-01T00:00:00Z")
    scenario.learn(rival)
    decision = scenario.step()
    assert (shares(decision), decision.status.epoch) == ({}, 2)
    assert condition(decision, Type.CONFLICT) == ("True", "Conflict")
    assert condition(decision, Type.READY) == ("False", "Conflict")
    assert "the older ClusterIP shop/older" in message(decision, Type.CONFLICT)
    assert decision.status.nodes == "0/0"
    assert told(decision) == [NoticeReason.WITHDRAWN, NoticeReason.CONFLICT]
    assert scenario.decide().status == decision.status
    scenario.learn(objects.gone(rival, scenario.next()))
    decision = scenario.step()
    assert (shares(decision), decision.status.epoch) == ({"a": 16}, 3)
    assert condition(decision, Type.CONFLICT) == ("False", "NoConflict")


def test_a_new_incarnation_is_a_new_epoch_with_the_same_buckets():
    scenario = serving("a", "b")
    owners = scenario.decide().status.owners()
    interface = {
        "name": "eth0",
        "mac": "02:00:00:00:00:01",
        "addresses": ["192.0.2.5/24"],
        "incarnation": 9,
    }
    scenario.learn(objects.agent("a", scenario.next(), interfaces=[interface]))
    decision = scenario.step()
    assert decision.status.epoch == 2
    assert decision.status.owners() == owners
    assert [a.incarnation for a in decision.status.assignments] == [9, 1]
    assert told(decision) == []


def test_a_status_set_back_by_somebody_gets_a_newer_epoch_and_the_same_assignment():
    scenario = serving("a", "b")
    before = scenario.status
    assert before is not None
    scenario.put(replace(before, epoch=0, assignments=()))
    decision = scenario.step()
    assert decision.status.epoch == before.epoch + 1
    assert decision.status.assignments == before.assignments


def test_more_nodes_than_a_segment_carries_are_left_out_and_counted():
    names = [f"n{i:02}" for i in range(MAX_NODES + 6)]
    scenario = Scenario(*names, buckets=256)
    decision = scenario.step()
    assert len(decision.status.assignments) == MAX_NODES
    assert "6 more nodes are eligible: 64 at most" in message(decision, Type.ASSIGNED)
    assert scenario.step().status == decision.status


def test_long_lists_of_nodes_are_cut_in_messages():
    scenario = Scenario(*(f"n{i:02}" for i in range(40)), buckets=256)
    decision = scenario.step()
    assert message(decision, Type.PROGRAMMED) == (
        "Epoch 1 is not confirmed yet by nodes n00, n01, n02, n03, n04, n05 and 34 more."
    )
    assert all(len(c.message) < 400 for c in decision.status.conditions)


@given(st.data())
def test_whatever_happens_no_bucket_has_two_owners_and_the_epoch_grows_with_every_change(data):
    """Random changes of three nodes; every status written must be one that a node may act on."""
    scenario = Scenario("a", "b", "c")
    before = scenario.step().status
    for _ in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from(["a", "b", "c"]))
        match data.draw(
            st.sampled_from(["node", "silence", "delete", "agent", "join", "confirm", "restore", "reserve"])
        ):
            case "node":
                weight = data.draw(st.sampled_from(["0", "40", "100", "bad"]))
                scenario.learn(
                    objects.node(
                        name,
                        scenario.next(),
                        ready=data.draw(st.booleans()),
                        annotations={"lbless.dev/weight": weight},
                    )
                )
            case "silence":
                scenario.silence(name)
            case "delete":
                scenario.learn(objects.gone(objects.node(name), scenario.next()))
            case "agent":
                scenario.learn(objects.gone(objects.agent(name), scenario.next()))
            case "join":
                scenario.join(name)
            case "confirm":
                scenario.confirm(name)
            case "restore":
                scenario.put(data.draw(st.sampled_from([None, before])))
            case "reserve":
                scenario.respec(reservedBuckets=data.draw(st.sampled_from(["", "3", "6-9", "1-15"])))
        decision = scenario.step()
        after = decision.status
        assert parse_status(render_status(after)) == after
        owners = after.owners()
        assert sum(map(len, owners.values())) == len(BucketSet(b for s in owners.values() for b in s))
        owned = BucketSet(b for s in owners.values() for b in s)
        reserved = BucketSet.parse(scenario.spec.get("reservedBuckets", ""))
        if condition(decision, Type.ASSIGNED) == ("True", "Assigned"):
            assert BucketSet.full(16) - reserved == owned - reserved
        if not owned.isdisjoint(reserved):
            assert condition(decision, Type.PROGRAMMED)[0] != "True"
        assert after.epoch >= before.epoch
        if ownership(after.assignments) != ownership(before.assignments):
            assert after.epoch > before.epoch
        for move in after.moves:
            assert move.buckets
            assert move.buckets.issubset(owners[move.destination])
            assert move.buckets.isdisjoint(owners.get(move.source, BucketSet()))
        assert scenario.decide().status == after
        before = after


def test_a_condition_can_only_have_a_reason_of_its_set():
    for kind in Type:
        for reason in Reason:
            if reason in REASONS[kind]:
                Finding(kind, Truth.TRUE, reason, "")
            else:
                with pytest.raises(ValueError, match=f"Condition {kind} cannot have the reason {reason}"):
                    Finding(kind, Truth.TRUE, reason, "")
    assert REASONS[Type.READY] >= BLOCKED


def test_a_conditions_time_is_that_of_its_last_change_of_status():
    def at(now: str, status: Truth, reason: Reason, previous=()):
        return settle([Finding(Type.READY, status, reason, "m")], previous, generation=3, now=now)

    first = at("t1", Truth.FALSE, Reason.PROGRAMMING)
    second = at("t2", Truth.FALSE, Reason.CONFLICT, first)
    third = at("t3", Truth.TRUE, Reason.SERVING, second)
    assert [c[0].since for c in (first, second, third)] == ["t1", "t1", "t3"]
    assert third[0].observed_generation == 3
