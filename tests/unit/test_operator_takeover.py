"""What the operator makes of deaths on the segment: epoch e+1 from what the successors hold, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.digest import applied_digest
from lbless_api.segment import Condition, Peer, SegmentReport
from lbless_api.successors import rank
from lbless_operator.conditions import Type
from lbless_operator.notices import NoticeReason
from lbless_operator.seating import ANSWER_SECONDS
from lbless_operator.state import Clock
from lbless_operator.status import Status
from unit import operatorobjects as objects
from unit.test_operator_decision import BEGIN, WALL, Scenario, condition, message, shares, told

IP = "192.0.2.10"


class OnSegment(Scenario):
    """Nodes with heartbeats. `says` lets one report; what it does not name it neither hears nor counts dead."""

    def __init__(self, *nodes: str, **spec: object) -> None:
        super().__init__(*nodes, **{"buckets": 256, **spec})
        self.lives = dict.fromkeys(nodes, 1)
        self.all_hear(*nodes)
        self.step()
        self.confirm(*nodes)
        assert condition(self.step(), Type.READY) == ("True", "Serving")

    def all_hear(self, *nodes: str, dead: str = "") -> None:
        """These hear each other, and count the `dead` dead."""
        for node in nodes:
            self.says(node, "".join(n for n in nodes if n != node), dead)

    def says(self, node: str, heard: str = "", dead: str = "", *conditions: Condition) -> set[str]:
        """A node's report: the present lives of the nodes of each text. Return the ClusterIPs that it concerns."""
        self.heard = getattr(self, "heard", {})
        self.heard[node] = SegmentReport(
            frozenset(conditions),
            tuple(Peer(n, self.lives[n]) for n in heard),
            tuple(Peer(n, self.lives[n]) for n in dead),
        )
        return self.state.learn(self._agent(node), Clock(self.now, WALL + self.now - BEGIN))

    def wait(self, seconds: float = ANSWER_SECONDS) -> set[str]:
        """Let time pass, for others to report; return the ClusterIPs that it concerns when it is over."""
        self.now += seconds
        return self.state.tick(self.now)[0]

    def confirm(self, *names: str, **_: object) -> None:
        for name in names:
            self.learn(self._agent(name))
        self.state.confirm()

    def _agent(self, node: str) -> objects.Seen:
        return objects.agent(
            node,
            self.next(),
            digest=applied_digest(self.expected),
            incarnation=self.lives[node],
            segment=self.heard[node],
        )


def successors(before: Status, living: str, heirs: str = "") -> dict[str, BucketSet]:
    """What the nodes take by themselves, `heirs` or all: rule 9, written here once more."""
    owners = {node: had if node in living else BucketSet() for node, had in before.owners().items()}
    for bucket in chain.from_iterable(had for node, had in before.owners().items() if node not in living):
        owners[heir := rank(IP, bucket, heirs or living)[0]] |= BucketSet([bucket])
        assert heir in living
    return owners


def owner_of(owners: Mapping[str, BucketSet], bucket: int) -> str:
    return next(node for node, had in owners.items() if bucket in had)


def assert_none_moves_twice(before: Status, taken: Mapping[str, BucketSet], after: Status) -> None:
    for bucket in range(256):
        way = [owner_of(owners, bucket) for owners in (before.owners(), taken, after.owners())]
        assert way[0] == way[1] or way[1] == way[2], (bucket, way)


def status_of(scenario: Scenario) -> Status:
    assert scenario.status is not None
    return scenario.status


def test_a_death_on_the_segment_is_planned_at_once_from_what_the_successors_hold():
    scenario = OnSegment("a", "b", "c", "d")
    before = status_of(scenario)
    scenario.all_hear("a", "b", "c", dead="d")
    decision = scenario.step()
    taken = successors(before, "abc")
    assert decision.status.epoch == 2
    assert decision.status.owners() == taken | {"d": BucketSet()}, "levelling would break others' connections"


def test_the_dead_node_is_not_waited_for_and_said_to_be_dead_until_kubernetes_finds_so_too():
    scenario = OnSegment("a", "b", "c")
    scenario.all_hear("a", "b", dead="c")
    decision = scenario.step()
    assert condition(decision, Type.DEGRADED) == ("True", "NodeDeadOnSegment")
    said = message(decision, Type.DEGRADED)
    assert said.startswith("Node c is counted dead on the segment, where others have taken over")
    assert said.endswith(
        "look after lbless-dataplane there, and after the cable, switch port and VLAN of eth0."
    )
    assert told(decision) == [NoticeReason.MOVED, NoticeReason.NODE_DEAD_ON_SEGMENT]
    assert "from c, which is counted dead on the segment, to" in decision.notices[0].note
    scenario.confirm("a", "b")
    decision = scenario.step()
    assert condition(decision, Type.PROGRAMMED) == ("True", "Programmed")
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert decision.status.nodes == "2/2"
    scenario.silence("c")
    assert condition(scenario.step(), Type.DEGRADED) == ("True", "NodeDeadOnSegment")
    scenario.learn(objects.node("c", scenario.next(), ready=False))
    decision = scenario.step()
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")
    assert decision.status.epoch == 2


def test_nothing_moves_while_one_of_the_others_still_hears_it():
    scenario = OnSegment("a", "b", "c")
    assert scenario.says("a", "b", "c") == set()
    assert scenario.decide().status == scenario.status
    assert scenario.says("b", "a", "c") == {"shop/web"}
    assert scenario.step().status.epoch == 2


def test_reports_that_change_no_conclusion_concern_no_clusterip():
    scenario = OnSegment("a", "b", "c")
    assert scenario.says("a", "b") == set()
    assert scenario.says("a", "bc") == set()
    assert scenario.says("a", "bc", "", Condition.HELD) == {"shop/web"}


def test_a_returned_node_gets_its_share_back_by_moves_once_it_has_joined():
    scenario = OnSegment("a", "b", "c")
    scenario.all_hear("a", "b", dead="c")
    without = scenario.step().status
    scenario.lives["c"] = 2
    scenario.says("c", "ab", "", Condition.LISTENING)
    assert scenario.step().status.assignments == without.assignments
    for node, other in ("ab", "ba"):
        scenario.says(node, other + "c")
    assert scenario.decide().status.assignments == without.assignments
    scenario.says("c", "ab")
    back = scenario.step().status
    assert next(a for a in back.assignments if a.node == "c").incarnation == 2
    assert sorted(len(had) for had in back.owners().values()) == [85, 85, 86]
    for node in "ab":
        assert back.owners()[node].issubset(without.owners()[node])


def test_a_node_that_came_back_before_anybody_planned_has_nothing_and_its_share_is_with_the_successors():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    scenario.lives["c"] = 2
    scenario.all_hear("a", "b", "c")
    after = scenario.step().status
    taken = successors(before, "ab")
    gave = {node: taken[node] - after.owners()[node] for node in "ab"}
    assert after.owners()["c"] == gave["a"] | gave["b"]
    assert next(a for a in after.assignments if a.node == "c").incarnation == 2
    assert sorted(len(had) for had in after.owners().values()) == [85, 85, 86]


def test_a_new_life_that_others_hear_ends_the_old_one_also_where_its_own_report_is_old():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    scenario.lives["c"] = 2
    scenario.says("a", "bc")
    scenario.says("b", "ac")
    scenario.lives["c"] = 1
    decision = scenario.step()
    assert shares(decision)["c"] == 0
    assert_none_moves_twice(before, successors(before, "ab"), decision.status)
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")


def test_after_a_power_cut_the_plan_starts_from_those_that_act():
    scenario = OnSegment("a", "b", "c", reservedBuckets="250-255")
    scenario.lives = dict.fromkeys("abc", 2)
    for node in "abc":
        scenario.says(node, "", "", Condition.LISTENING)
    blocked = scenario.decide()
    assert condition(blocked, Type.READY) == ("False", "NoEligibleNode")
    assert "3 are joining the segment" in message(blocked, Type.READY)
    assert blocked.status.epoch == 1
    scenario.says("a", "b", "", Condition.ACTING)
    scenario.says("b", "a", "", Condition.ACTING)
    after = scenario.step().status
    acting = {node: BucketSet(b for b in range(250) if rank(IP, b, "ab")[0] == node) for node in "ab"}
    assert sorted(len(had) for had in after.owners().values()) == [0, 125, 125]
    for node in "ab":
        assert len(after.owners()[node] & acting[node]) == min(125, len(acting[node]))
    assert all(a.incarnation == 2 for a in after.assignments if a.node != "c")


def test_who_listens_is_given_a_share_at_once_where_nothing_was_ever_assigned():
    scenario = Scenario("a", "b", "c", buckets=256)
    for name, conditions in (("a", {Condition.LISTENING}), ("b", set()), ("c", {Condition.DEAF})):
        report = SegmentReport(frozenset(conditions))
        scenario.learn(objects.agent(name, scenario.next(), incarnation=7, segment=report))
    first = scenario.step().status
    assert {a.node: (a.incarnation, len(a.buckets)) for a in first.assignments} == {
        "a": (7, 128),
        "b": (7, 128),
    }


def test_of_two_halves_the_larger_is_followed_and_the_other_is_degraded():
    scenario = OnSegment("a", "b", "c")
    scenario.says("c", "", "ab")
    scenario.all_hear("a", "b", dead="c")
    decision = scenario.step()
    assert shares(decision) == {"a": 130, "b": 126, "c": 0}
    assert condition(decision, Type.DEGRADED) == ("True", "NodeDeadOnSegment")


def test_one_against_several_is_not_believed_before_these_had_time_to_say_the_same_of_it():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    assert scenario.says("a", "", "bc") == set()
    assert scenario.decide().status == before
    assert scenario.wait(ANSWER_SECONDS - 0.1) == set()
    scenario.all_hear("b", "c", dead="a")
    assert shares(scenario.decide()) == {"a": 0, "b": 127, "c": 129}


def test_the_one_that_is_left_is_believed_when_the_others_do_not_answer():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    scenario.says("a", "", "bc")
    assert scenario.decide().status == before
    assert scenario.wait() == {"shop/web"}
    assert shares(scenario.decide()) == {"a": 256, "b": 0, "c": 0}
    assert scenario.wait() == set()
    scenario.lives["b"] = 2
    scenario.says("a", "b", "c")
    scenario.says("b", "a", "c")
    assert shares(scenario.decide()) == {"a": 128, "b": 128, "c": 0}


def test_nodes_that_are_not_selected_have_no_say_as_they_may_be_on_another_segment():
    scenario = OnSegment("a", "b")
    before = status_of(scenario)
    scenario.lives |= dict.fromkeys("xyz", 1)
    scenario.learn(*(objects.node(n, scenario.next(), labels={"here": "yes"}) for n in "ab"))
    scenario.respec(nodeSelector={"here": "yes"}, interfaces=["eth*"])
    for name in "xyz":
        scenario.join(name)
    scenario.all_hear("x", "y", "z", dead="ab")
    assert scenario.decide().status.assignments == before.assignments
    scenario.says("a", "", "b")
    assert shares(scenario.decide()) == {"a": 256, "b": 0}


def test_the_word_of_one_that_may_not_serve_moves_nothing():
    scenario = OnSegment("a", "b")
    scenario.says("a", "", "b", Condition.LEASE_LAPSED)
    assert scenario.decide().status == scenario.status


def test_a_silent_agent_whose_node_is_not_ready_keeps_its_buckets_while_its_heartbeats_arrive():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    scenario.silence("c")
    scenario.learn(objects.node("c", scenario.next(), ready=False))
    decision = scenario.step()
    assert decision.status.assignments == before.assignments
    assert condition(decision, Type.DEGRADED) == ("True", "AgentSilent")
    said = message(decision, Type.DEGRADED)
    assert f"c keeps its {len(before.owners()['c'])} buckets" in said
    assert said.endswith("Node c is NotReady, and yet others hear the heartbeats.")
    scenario.says("a", "b")
    assert scenario.decide().status.assignments == before.assignments
    scenario.says("b", "a")
    decision = scenario.step()
    assert shares(decision)["c"] == 0
    assert condition(decision, Type.DEGRADED) == ("False", "AsPlanned")
    assert_none_moves_twice(before, successors(before, "ab"), decision.status)


def test_a_silent_agents_buckets_move_though_its_node_is_ready_when_the_segment_counts_it_dead():
    scenario = OnSegment("a", "b", "c")
    scenario.silence("c")
    assert condition(scenario.step(), Type.DEGRADED) == ("True", "AgentSilent")
    scenario.all_hear("a", "b", dead="c")
    decision = scenario.step()
    assert shares(decision) == {"a": 130, "b": 126, "c": 0}
    assert condition(decision, Type.DEGRADED) == ("True", "NodeDeadOnSegment")


def test_a_silent_node_keeps_what_it_took_over():
    """It cannot be told to give any of it up."""
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    scenario.silence("b")
    scenario.all_hear("a", dead="c")
    scenario.says("a", "b", "c")
    after = scenario.step().status
    taken = successors(before, "ab")
    assert after.owners() == taken
    assert len(taken["b"]) > len(before.owners()["b"])


def test_filtered_heartbeats_move_nothing_and_are_said():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    for node in "abc":
        scenario.says(node, "", "", Condition.NO_PEERS_HEARD)
    decision = scenario.step()
    assert decision.status.assignments == before.assignments
    assert condition(decision, Type.READY) == ("True", "Serving")
    assert condition(decision, Type.DEGRADED) == ("True", "NoPeersHeard")
    assert message(decision, Type.DEGRADED) == (
        "Nodes a, b and c hear no heartbeat of the others on eth0: nobody takes over until Kubernetes finds a node "
        "dead. Let the switch pass multicast of Ethernet type 0x88B5, and give all nodes the same key."
    )
    assert told(decision) == [NoticeReason.NO_PEERS_HEARD]
    scenario.all_hear("a", "b", "c")
    assert condition(scenario.step(), Type.DEGRADED) == ("False", "AsPlanned")


def test_a_node_alone_on_its_segment_that_hears_nobody_is_as_planned():
    scenario = OnSegment("a")
    scenario.says("a", "", "", Condition.NO_PEERS_HEARD)
    assert condition(scenario.step(), Type.DEGRADED) == ("False", "AsPlanned")


def test_a_deaf_moment_of_a_node_that_is_named_moves_nothing():
    scenario = OnSegment("a", "b")
    for word in (Condition.DEAF, Condition.LEASE_LAPSED, Condition.LISTENING):
        scenario.says("b", "", "", word)
        assert scenario.step().status.epoch == 1


def test_a_node_that_is_still_listening_is_given_nothing_yet():
    scenario = OnSegment("a", "b")
    scenario.lives["c"] = 1
    scenario.join("c")
    scenario.says("c", "ab", "", Condition.LISTENING)
    assert set(shares(scenario.step())) == {"a", "b"}
    scenario.says("c", "ab")
    assert set(shares(scenario.step())) == {"a", "b", "c"}


def test_nodes_without_heartbeats_are_judged_as_ever_beside_such_with():
    scenario = OnSegment("a", "b", "c")
    scenario.learn(objects.agent("c", scenario.next(), digest=applied_digest(scenario.expected)))
    scenario.all_hear("a", "b")
    assert scenario.step().status.epoch == 1
    scenario.silence("c")
    scenario.learn(objects.node("c", scenario.next(), ready=False))
    assert shares(scenario.step()) == {"a": 128, "b": 128, "c": 0}


def test_while_one_is_held_its_peers_have_taken_over_alone():
    scenario = OnSegment("a", "b", "c", "d")
    before = status_of(scenario)
    scenario.says("a", "bc", "d")
    scenario.says("b", "ac", "d", Condition.HELD)
    scenario.says("c", "ab", "d")
    decision = scenario.step()
    taken = successors(before, "abc", heirs="ac")
    assert taken["b"] == before.owners()["b"]
    assert_none_moves_twice(before, taken, decision.status)


def test_a_deleted_node_whose_heartbeats_arrive_has_its_buckets_still_and_only_these_move():
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario).owners()
    scenario.learn(objects.gone(objects.node("c"), scenario.next()))
    after = scenario.step().status.owners()
    assert set(after) == set("ab")
    assert all(before[node].issubset(after[node]) for node in "ab")


def test_a_restart_that_nobody_hears_of_leaves_every_bucket_where_it_was():
    """Where heartbeats are filtered, nobody has taken over from the old incarnation."""
    scenario = OnSegment("a", "b", "c")
    for node in "abc":
        scenario.says(node, "", "", Condition.NO_PEERS_HEARD)
    before = scenario.step().status
    scenario.lives["c"] = 2
    scenario.says("c", "", "", Condition.LISTENING)
    assert scenario.step().status.owners() == before.owners()
    scenario.says("c", "", "", Condition.NO_PEERS_HEARD)
    after = scenario.step().status
    assert after.owners() == before.owners()
    assert {a.node: a.incarnation for a in after.assignments} == {"a": 1, "b": 1, "c": 2}


def test_a_node_without_heartbeats_that_others_have_taken_over_from_has_nothing_and_is_named():
    """It serves without a lease what its successors serve, too: only the next epoch can end that."""
    scenario = OnSegment("a", "b", "c")
    before = status_of(scenario)
    scenario.learn(objects.agent("c", scenario.next(), digest=applied_digest(scenario.expected)))
    scenario.all_hear("a", "b", dead="c")
    decision = scenario.step()
    assert shares(decision) == {"a": 130, "b": 126, "c": 0}
    assert_none_moves_twice(before, successors(before, "ab"), decision.status)
    assert condition(decision, Type.DEGRADED) == ("True", "NodeDeadOnSegment")
    assert message(decision, Type.DEGRADED).endswith(
        "Node c sends no heartbeats: give all nodes the same key."
    )
    assert scenario.step().status.epoch == decision.status.epoch


def test_incarnation_0_is_nobodys_life_on_the_segment_and_is_judged_as_ever():
    scenario = Scenario("a", "b", "c", buckets=256)
    for name in "abc":
        scenario.learn(objects.agent(name, scenario.next(), incarnation=0))
    before = scenario.step().status
    assert {a.incarnation for a in before.assignments} == {0}
    scenario.learn(objects.node("c", scenario.next(), ready=False))
    assert scenario.step().status.assignments == before.assignments
    scenario.silence("c")
    decision = scenario.step()
    assert shares(decision) == {"a": 128, "b": 128, "c": 0}


@given(
    deaths=st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True),
    at_once=st.integers(1, 4),
)
def test_no_bucket_moves_twice_whoever_dies_in_which_order(deaths: list[str], at_once: int):
    scenario = OnSegment("a", "b", "c", "d", "e")
    gone = ""
    while deaths:
        now, deaths = deaths[:at_once], deaths[at_once:]
        before = status_of(scenario)
        gone += "".join(now)
        living = "".join(n for n in "abcde" if n not in gone)
        scenario.all_hear(*living, dead=gone)
        scenario.wait()
        decision = scenario.step()
        assert_none_moves_twice(before, successors(before, living), decision.status)
        assert {n for n, share in shares(decision).items() if share} == set(living)
        scenario.confirm(*living)
        assert scenario.step().status.assignments == decision.status.assignments
