"""What the operator decides and says while buckets move between living nodes, from the first to the last."""

from __future__ import annotations

from typing import Any

from lbless_api.buckets import BucketSet
from lbless_api.digest import applied_digest
from lbless_operator.conditions import Type
from lbless_operator.decision import Decision
from lbless_operator.moves import FIGURES_SECONDS, pace_seconds
from lbless_operator.notices import NoticeReason
from lbless_operator.state import Clock
from unit import operatorobjects as objects
from unit.test_operator_decision import BEGIN, IPTABLES, WALL, condition, message, serving, shares, told
from unit.test_operator_takeover import OnSegment, status_of

UID = "uid-web"


class Moving(OnSegment):
    """Nodes with heartbeats that all hear each other. `drains`: node → the flows that it has left to finish."""

    def __init__(self, *nodes: str, **spec: object) -> None:
        self.drains: dict[str, int] = {}
        self.address = ""
        super().__init__(*nodes, **spec)

    def join(self, name: str) -> None:
        super().join(name)
        if hasattr(self, "lives"):
            self.lives[name] = 1
            self.all_hear(*self.lives)

    def weigh(self, name: str, weight: str) -> None:
        self.learn(objects.node(name, self.next(), annotations={"lbless.dev/weight": weight}))

    def leave(self, name: str) -> Decision:
        """Weight 0, and what follows from it."""
        self.weigh(name, "0")
        return self.step()

    def finish(self, *names: str, **drains: int) -> Decision:
        """Let all of these confirm, with so many flows left, and decide."""
        self.drains = drains
        self.confirm(*names)
        return self.step()

    def report(self, name: str) -> set[str]:
        """A report of a node as it is now; return whom it concerns."""
        return self.state.learn(self._agent(name), Clock(self.now, WALL + self.now - BEGIN))

    def _agent(self, node: str) -> objects.Seen:
        drains = [{"uid": UID, "buckets": "0-9", "flows": self.drains[node]}] if node in self.drains else []
        more: dict[str, Any] = {"address": self.address} if self.address else {}
        return objects.agent(
            node,
            self.next(),
            digest=applied_digest(self.expected),
            incarnation=self.lives[node],
            segment=self.heard[node],
            drains=drains,
            **more,
        )


def moving(decision: Decision) -> dict[tuple[str, str], int]:
    return {(m.source, m.destination): len(m.buckets) for m in decision.status.moves}


def assert_settled(scenario: Moving) -> None:
    """Deciding again changes nothing and tells nothing."""
    again = scenario.decide()
    assert again.status == scenario.status
    assert again.notices == ()


def test_a_node_that_leaves_moves_its_buckets_and_stays_in_the_status_until_its_last_flow_has_ended():
    scenario = Moving("a", "b")
    share = shares(scenario.decide())["a"]
    first = scenario.leave("a")
    assert moving(first) == {("a", "b"): share}
    assert first.status.moving == str(share)
    assert told(first) == [NoticeReason.MOVED]
    assert first.notices[0].note.endswith("Established connections stay where they are for up to 300 s.")
    assert condition(first, Type.PROGRAMMED) == ("False", "Programming")
    scenario.now += 5
    programmed = scenario.finish("a", "b", a=212)
    assert condition(programmed, Type.PROGRAMMED) == ("True", "Programmed")
    assert condition(programmed, Type.READY) == ("True", "Serving")
    assert message(programmed, Type.PROGRAMMED) == (
        f"Epoch 2 is in the kernel of node b. {share} buckets move from a to b: a still finishes 212 connections."
    )
    assert_settled(scenario)
    scenario.now += 60
    last = scenario.finish("a")
    assert (last.status.moves, last.status.moving, last.status.epoch) == ((), "", 2)
    assert message(last, Type.PROGRAMMED) == "Epoch 2 is in the kernel of node b."
    assert told(last) == [NoticeReason.MOVE_FINISHED]
    assert last.notices[0].note == (
        f"{share} buckets have moved from a to b, 65 s after they began to: no connection is left where they were."
    )
    assert last.recheck_seconds is None
    assert_settled(scenario)


def test_a_move_without_connections_ends_with_the_confirmations():
    scenario = Moving("a", "b")
    scenario.leave("a")
    assert moving(scenario.finish("b"))
    assert moving(scenario.finish("a")) == {}


def test_flows_alone_are_written_every_ten_seconds_and_concern_nobody_in_between():
    scenario = Moving("a", "b")
    scenario.leave("a")
    scenario.finish("a", "b", a=100)
    said = message(scenario.decide(), Type.PROGRAMMED)
    for second in range(1, int(FIGURES_SECONDS)):
        scenario.now += 1
        scenario.drains["a"] = 100 - second
        assert scenario.report("a") == set()
        decision = scenario.decide()
        assert decision.status == scenario.status
        assert decision.recheck_seconds == FIGURES_SECONDS - second
    scenario.now += 1
    decision = scenario.step()
    assert message(decision, Type.PROGRAMMED) == said.replace("100 connections", "91 connections")
    assert decision.recheck_seconds == FIGURES_SECONDS
    scenario.drains.clear()
    assert scenario.report("a") == {"shop/web"}, "an end is looked at at once"
    assert moving(scenario.step()) == {}


def test_whom_a_move_waits_for_is_written_at_once():
    scenario = Moving("a", "b", "c")
    scenario.leave("a")
    assert "yet by node c." in message(scenario.finish("a", "b", a=5), Type.PROGRAMMED)
    assert condition(scenario.finish("c", a=5), Type.PROGRAMMED) == ("True", "Programmed")


def test_what_else_changes_is_written_at_once_with_the_newest_figures():
    scenario = Moving("a", "b", "c")
    scenario.leave("a")
    scenario.finish("a", "b", "c", a=100)
    scenario.drains["a"] = 99
    scenario.report("a")
    scenario.respec(ports=None)
    assert "99 connections" in message(scenario.step(), Type.PROGRAMMED)


def test_with_a_thousand_that_move_figures_are_written_more_rarely():
    scenario = Moving("a", "b")
    scenario.leave("a")
    scenario.finish("a", "b", a=100)
    for number in range(1000):
        move = {"buckets": "0", "from": "a", "to": "b"}
        status = {"epoch": 1, "assignments": [{"node": "b", "buckets": "0"}], "moves": [move]}
        spec = {"ip": f"198.51.{number // 250}.{number % 250 + 1}"}
        scenario.learn(objects.clusterip(f"vip{number}", scenario.next(), spec=spec, status=status))
    assert scenario.decide().recheck_seconds == pace_seconds(1001) == 250.25


def test_a_plan_amid_a_move_starts_from_the_assigned_owners_and_keeps_the_first_source():
    scenario = Moving("a", "b", "c")
    owners = status_of(scenario).owners()
    scenario.leave("a")
    scenario.finish("a", "b", "c", a=7)
    taken = status_of(scenario).owners()
    decision = scenario.leave("b")
    after = decision.status.owners()
    assert after == {"c": BucketSet.full(256)}, "planned from what is assigned"
    assert moving(decision) == {("a", "c"): len(owners["a"]), ("b", "c"): len(taken["b"])}
    assert decision.status.moving == str(len(owners["a"] | taken["b"]))
    assert moving(scenario.finish("a", "b", "c", a=7, b=3)) == moving(decision)
    assert message(scenario.decide(), Type.PROGRAMMED).count("still finishes") == 2
    partly = scenario.finish("a", "b", "c", b=3)
    assert moving(partly) == {("b", "c"): len(taken["b"])}
    assert told(partly) == [NoticeReason.MOVE_FINISHED]
    assert " after they began" not in partly.notices[0].note
    assert_settled(scenario)


def test_a_node_that_comes_back_amid_its_move_is_a_source_of_what_it_does_not_get_back_alone():
    scenario = Moving("a", "b")
    former = status_of(scenario).owners()["a"]
    scenario.leave("a")
    scenario.finish("a", "b", a=7)
    scenario.weigh("a", "100")
    decision = scenario.step()
    back = decision.status.owners()["a"]
    assert moving(decision) == {("b", "a"): len(back), ("a", "b"): len(former - back)}


def test_a_source_that_dies_ends_its_move_without_a_word_and_without_a_new_epoch():
    scenario = Moving("a", "b", "c")
    scenario.leave("a")
    scenario.finish("a", "b", "c", a=7)
    scenario.all_hear("b", "c", dead="a")
    decision = scenario.step()
    assert (decision.status.moves, decision.status.epoch) == ((), 2)
    assert NoticeReason.MOVE_FINISHED not in told(decision)


def test_a_source_that_began_another_life_has_no_flows_of_the_one_before():
    scenario = Moving("a", "b", "c")
    scenario.join("d")
    decision = scenario.step()
    assert set(moving(decision)) == {("a", "d"), ("b", "d"), ("c", "d")}
    scenario.lives["a"] = 2
    scenario.all_hear("a", "b", "c", "d")
    decision = scenario.step()
    assert {source for source, _ in moving(decision)} <= {"b", "c", "d"}


def test_what_successors_have_taken_over_does_not_move_from_the_dead():
    scenario = Moving("a", "b", "c")
    scenario.all_hear("a", "b", dead="c")
    decision = scenario.step()
    assert decision.status.moves == ()
    assert told(decision)[0] == NoticeReason.MOVED
    assert "Established" not in decision.notices[0].note
    scenario.lives["c"] = 2
    scenario.all_hear("a", "b", "c")
    back = scenario.step()
    assert set(moving(back)) == {("a", "c"), ("b", "c")}


def test_without_draining_moves_are_listed_and_nobody_is_told_that_they_ended():
    scenario = Moving("a", "b", drainTimeoutSeconds=0)
    first = scenario.leave("a")
    assert moving(first)
    assert first.notices[0].note.endswith(
        "Established connections in them end, as spec.drainTimeoutSeconds is 0."
    )
    last = scenario.finish("a", "b")
    assert (last.status.moves, told(last)) == ((), [])


def test_an_older_rival_ends_all_moves():
    scenario = Moving("a", "b")
    scenario.leave("a")
    rival = objects.clusterip("older", scenario.next(), created="2025-01-01T00:00:00Z")
    scenario.learn(rival)
    assert scenario.step().status.moves == ()


def test_a_spec_that_is_refused_leaves_the_moves_as_they_run():
    scenario = Moving("a", "b")
    first = scenario.leave("a")
    scenario.respec(buckets=0)
    assert scenario.step().status.moves == first.status.moves
    assert moving(scenario.finish("a", "b")) == {}


def test_each_assignment_says_where_its_node_is_reached_and_another_address_is_no_other_epoch():
    scenario = Moving("a", "b")
    before = status_of(scenario)
    assert [str(a.address) for a in before.assignments] == ["192.0.2.197", "192.0.2.198"]
    scenario.address = "192.0.2.77/24"
    assert scenario.report("a") == {"shop/web"}
    decision = scenario.step()
    assert [str(a.address) for a in decision.status.assignments] == ["192.0.2.77", "192.0.2.198"]
    assert decision.status.epoch == before.epoch
    assert decision.notices == ()
    assert_settled(scenario)
    scenario.learn(objects.gone(objects.agent("a"), scenario.next()))
    decision = scenario.step()
    kept = {a.node: str(a.address) for a in decision.status.assignments}
    assert kept["a"] == "192.0.2.77", "what is not known stays as it was"


def test_an_engine_that_cannot_drain_is_the_least_of_all_troubles_and_none_where_nothing_is_to_be_drained():
    able = {**IPTABLES, "capabilities": [{"functions": ["JHash"], "modes": ["SourceIPSourcePort"]}]}
    able["capabilities"][0] |= {"maxBuckets": 4096, "ports": True, "moves": False}
    scenario = serving("a", "b")
    scenario.learn(objects.agent("b", scenario.next(), engines=[able]))
    decision = scenario.step()
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert condition(decision, Type.DEGRADED) == ("True", "NoDrain")
    assert message(decision, Type.DEGRADED).startswith(
        "Node b: the iptables engine cannot finish connections"
    )
    scenario.learn(objects.agent("b", scenario.next(), engines=[{**able, "unfenced": "No lease."}]))
    assert condition(scenario.step(), Type.DEGRADED) == ("True", "NoFastTakeover")
    scenario.respec(drainTimeoutSeconds=0)
    scenario.learn(objects.agent("b", scenario.next(), engines=[able]))
    assert condition(scenario.step(), Type.DEGRADED) == ("False", "AsPlanned")
