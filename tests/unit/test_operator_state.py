"""The state: news in any order, LISTs that make them right, and whom each piece concerns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.digest import applied_digest
from lbless_operator.eligibility import Standing
from lbless_operator.facts import Kind, PodFact, Scope, Seen, parse
from lbless_operator.shelf import Shelf
from lbless_operator.state import Clock, Listing, State
from lbless_operator.workloads import MAX_NAMESPACES
from unit import operatorobjects as objects

NOW = Clock(now=5000.0, wall=1_767_225_600.0)  # 2026-01-01T00:00:00Z
WEB_PODS = {"workload": {"podSelector": {"matchLabels": {"app": "web"}}}}
LEASES = Scope(Kind.LEASE, "lbless-system")


def pod_fact(node: str) -> PodFact:
    return PodFact({}, node, True)


def seen(name: str, version: int, node: str | None = "n1", namespace: str = "a") -> Seen:
    return Seen(Kind.POD, namespace, name, version, pod_fact(node) if node else None)


def test_an_older_event_changes_nothing():
    shelf = Shelf()
    assert shelf.put(seen("p", 5, "n1"))
    assert shelf.put(seen("p", 4, "n2")) is None
    assert shelf.get("a/p") == pod_fact("n1")


def test_a_late_event_brings_no_deleted_object_back():
    shelf = Shelf()
    shelf.put(seen("p", 5))
    shelf.put(seen("p", 7, None))
    assert shelf.put(seen("p", 6)) is None
    assert shelf.get("a/p") is None


def test_a_list_makes_up_the_deletions_that_no_event_told():
    shelf = Shelf()
    shelf.put(seen("p", 5))
    shelf.put(seen("q", 6))
    (change,) = shelf.replace("", 9, [seen("q", 6)])
    assert (change.seen.key, change.seen.fact, change.old) == ("a/p", None, pod_fact("n1"))
    # An event from before the LIST, long on its way, is older than what the LIST has shown.
    assert shelf.put(seen("p", 8)) is None
    assert shelf.put(seen("p", 10))


def test_a_list_deletes_nothing_that_is_newer_than_it_and_revives_nothing_that_was_deleted_since():
    shelf = Shelf()
    shelf.put(seen("new", 12))
    shelf.put(seen("old", 3))
    shelf.put(seen("old", 11, None))
    assert shelf.replace("", 10, [seen("old", 3)]) == []
    assert shelf.get("a/new")
    assert shelf.get("a/old") is None


def test_a_list_of_one_namespace_says_nothing_of_others():
    shelf = Shelf()
    shelf.put(seen("p", 5, namespace="a"))
    shelf.put(seen("q", 5, namespace="b"))
    shelf.replace("a", 9, [])
    assert list(shelf) == ["b/q"]
    assert shelf.put(seen("r", 8, namespace="b"))
    assert shelf.put(seen("r", 8, namespace="a")) is None


def test_a_namespace_that_was_forgotten_is_learnt_anew():
    shelf = Shelf()
    shelf.replace("a", 9, [seen("p", 5)])
    shelf.drop_namespace("a")
    assert shelf.get("a/p") is None
    assert shelf.replace("a", 12, [seen("p", 5)])
    assert shelf.get("a/p")


def test_of_a_namespace_that_was_forgotten_no_deletion_is_remembered():
    shelf = Shelf()
    for namespace in ("a", "ab"):
        shelf.put(seen("p", 5, namespace=namespace))
        shelf.put(seen("p", 6, None, namespace=namespace))
    shelf.drop_namespace("a")
    assert shelf.put(seen("p", 5, namespace="a"))
    assert shelf.put(seen("p", 5, namespace="ab")) is None
    shelf.drop_namespace("")
    assert shelf.put(seen("p", 5, namespace="ab"))


def test_what_a_list_shows_and_nobody_can_read_stays_as_it_is_known():
    shelf = Shelf()
    shelf.put(seen("p", 5))
    assert shelf.replace("a", 9, [], ["a/p", "a/q"]) == []
    assert shelf.get("a/p") == pod_fact("n1")
    assert shelf.replace("a", 10, [])


@st.composite
def histories(draw):
    """What truly happened to a few objects, told in any order, some of it never, with a LIST in between."""
    truth: dict[str, int | None] = {}
    events = []
    for version in range(1, draw(st.integers(1, 12)) + 1):
        name = draw(st.sampled_from(["p", "q", "r"]))
        if truth.get(name) is not None and draw(st.booleans()):
            truth[name] = None
            events.append(seen(name, version, None))
        else:
            truth[name] = version
            events.append(seen(name, version, f"n{version}"))
    kept = draw(st.lists(st.sampled_from(events), max_size=len(events)))
    at = draw(st.integers(0, len(kept)))
    return events, draw(st.permutations(kept)), at


@given(histories())
def test_after_a_complete_list_the_shelf_is_right_whatever_events_came_when(history):
    events, told, at = history
    truth: dict[str, Seen] = {}
    for event in events:
        truth[event.key] = event
    living = [event for event in truth.values() if event.fact]
    shelf = Shelf()
    for event in told[:at]:
        shelf.put(event)
    shelf.replace("", events[-1].version, living)
    for event in told[at:]:
        shelf.put(event)
    assert {key: shelf.get(key) for key in shelf} == {event.key: event.fact for event in living}


def state_with(*news: Seen) -> State:
    state = State("https://192.0.2.250:6443", "lbless-system", NOW.now)
    for one in news:
        state.learn(one, NOW)
        state.follow(NOW.now)
    state.tick(NOW.now)
    return state


def listing(kind: Kind, version: int, *found: Seen, namespace: str = "") -> Listing:
    return Listing(Scope(kind, namespace), NOW.now, version, found)


def unread(kind: Kind, key: str, *found: Seen, namespace: str = "") -> Listing:
    return Listing(Scope(kind, namespace), NOW.now, 900, found, frozenset({key}))


def everything_but(kind: Kind) -> State:
    state = state_with()
    for scope in state.base_scopes:
        if scope.kind is not kind:
            state.learn_listing(Listing(scope, NOW.now, 1, ()), NOW)
    return state


@pytest.mark.parametrize("kind", [Kind.NODE, Kind.SERVICE_RANGE])
def test_nothing_is_decided_before_nodes_and_ranges_were_listed_all_of_which_could_be_read(kind: Kind):
    state = everything_but(kind)
    state.learn_listing(unread(kind, "n1"), NOW)
    assert not state.is_complete()
    state.learn_listing(listing(kind, 901), NOW)
    assert state.is_complete()
    state.learn_listing(unread(kind, "n1"), NOW)
    assert state.is_complete()


@pytest.mark.parametrize("kind", [Kind.CLUSTERIP, Kind.AGENT])
def test_a_clusterip_or_a_report_that_nobody_can_read_is_no_reason_to_decide_nothing(kind: Kind):
    state = everything_but(kind)
    state.learn_listing(unread(kind, "shop/web"), NOW)
    assert state.is_complete()


def test_a_node_that_nobody_can_read_any_more_is_what_it_was():
    state = state_with(objects.node("n1"), objects.agent("n1"), objects.clusterip())
    state.learn_listing(unread(Kind.NODE, "n1"), NOW)
    assert [node.name for node in state.nodes()] == ["n1"]


def test_an_agent_whose_lease_nobody_can_read_may_be_alive_however_long_that_lasts():
    state = state_with(objects.node("n1", ready=False), objects.agent("n1"), objects.lease("n1"))
    status = {"epoch": 1, "assignments": [{"node": "n1", "incarnation": 1, "buckets": "0-15"}]}
    state.learn(objects.clusterip(status=status), NOW)
    for seconds in range(30, 300, 30):
        late = replace(NOW, now=NOW.now + seconds)
        began = replace(
            unread(Kind.LEASE, "lbless-system/lbless-node-n1", namespace="lbless-system"), began=late.now
        )
        state.learn_listing(began, late)
        state.tick(late.now)
        situation = state.situation("shop/web", late.now, "2026-01-01T00:00:00Z")
        assert situation is not None
        assert [verdict.standing for verdict in situation.verdicts] == [Standing.PINNED]


def test_a_pod_of_which_nothing_can_be_read_keeps_its_namespace_waiting_and_no_other():
    state = state_with(objects.clusterip(spec=WEB_PODS))
    (scope,) = state.scopes() - state.base_scopes
    elsewhere = Listing(scope, NOW.now, 900, (), frozenset({"other/p"}))
    here = Listing(scope, NOW.now, 900, (), frozenset({"shop/p"}))
    state.learn_listing(here, NOW)
    assert state.awaits("shop/web")
    assert state.learn_listing(elsewhere, NOW) == {"shop/web"}
    assert not state.awaits("shop/web")
    # Once it was known, a pod that is new and cannot be read is as one that is not ready.
    state.learn_listing(here, NOW)
    assert not state.awaits("shop/web")


def test_nothing_may_be_decided_before_every_collection_was_listed():
    state = state_with()
    for scope in sorted(state.base_scopes, key=str):
        assert not state.is_complete()
        state.learn_listing(Listing(scope, NOW.now, 1, ()), NOW)
    assert state.is_complete()


def following(state: State) -> Scope:
    """Follow what the ClusterIPs ask for now; return the one collection that this is, beside those of all."""
    state.follow(NOW.now)
    (scope,) = state.scopes() - state.base_scopes
    return scope


def test_a_clusterip_that_asks_for_pods_waits_for_them_and_the_others_do_not():
    state = state_with(
        objects.clusterip(spec=WEB_PODS), objects.clusterip("other", spec={"ip": "192.0.2.11"})
    )
    scope = following(state)
    assert (scope.kind, scope.namespace) == (Kind.POD, "shop")
    assert (state.awaits("shop/web"), state.awaits("shop/other")) == (True, False)
    assert state.learn_listing(Listing(scope, NOW.now, 3, ()), NOW) == {"shop/web"}
    assert not state.awaits("shop/web")


def test_a_new_selector_waits_for_a_list_that_began_after_it_was_followed():
    state = state_with(objects.clusterip(spec=WEB_PODS))
    before = following(state)
    state.learn_listing(Listing(before, NOW.now, 3, ()), NOW)
    other = {"ip": "192.0.2.11", "workload": {"podSelector": {"matchLabels": {"app": "db"}}}}
    state.learn(objects.clusterip("other", 4, spec=other), NOW)
    assert not state.is_following
    state.follow(NOW.now + 1)
    (scope,) = state.scopes() - state.base_scopes
    db = objects.pod("p", "n1", 2, labels={"app": "db"})
    assert (before.admits(db), scope.admits(db)) == (False, True)
    state.learn_listing(Listing(scope, NOW.now, 5, ()), NOW)
    assert state.awaits("shop/other")
    assert not state.awaits("shop/web")
    # The pod is older than the LIST before, which did not ask for it.
    assert state.learn_listing(Listing(scope, NOW.now + 1, 6, (db,)), NOW) == {"shop/other"}
    assert ready(state, "shop/other") == {"n1": 1}


def test_what_was_none_of_ours_when_it_was_told_is_found_when_it_is_asked_for():
    state = state_with(objects.clusterip(spec=WEB_PODS))
    following(state)
    db = objects.pod("p", "n1", 5, labels={"app": "db"})
    state.learn(objects.gone(db, 5), NOW)
    other = {"ip": "192.0.2.11", "workload": {"podSelector": {"matchLabels": {"app": "db"}}}}
    state.learn(objects.clusterip("other", 6, spec=other), NOW)
    state.learn_listing(Listing(following(state), NOW.now, 7, (db,)), NOW)
    assert ready(state, "shop/other") == {"n1": 1}


def ready(state: State, key: str) -> Mapping[str, int]:
    situation = state.situation(key, NOW.now, "")
    assert situation is not None
    return situation.readiness.ready


def test_a_collection_nobody_asks_for_any_more_is_forgotten_and_listed_anew_later():
    state = state_with(objects.clusterip(spec=WEB_PODS))
    state.learn_listing(Listing(following(state), NOW.now, 3, (objects.pod("p", "n1", 2),)), NOW)
    assert ready(state, "shop/web") == {"n1": 1}
    state.learn(objects.clusterip(version=4, spec={}), NOW)
    state.follow(NOW.now + 1)
    # What was on its way still.
    state.learn(objects.pod("q", "n1", 6), NOW)
    state.learn(objects.clusterip(version=5, spec=WEB_PODS), NOW)
    state.follow(NOW.now + 2)
    assert state.awaits("shop/web")
    assert ready(state, "shop/web") == {}


def test_beyond_a_number_of_namespaces_the_whole_cluster_is_followed_and_then_each_again():
    state = state_with()

    def ask(number: int, *, gone: bool = False) -> None:
        name = f"team-{number}"
        seen = objects.clusterip(name, 10 + number, spec={"ip": f"192.0.2.{number + 1}", **WEB_PODS})
        seen = replace(
            seen, namespace=name, fact=None if gone else seen.fact, version=10 + number + 1000 * gone
        )
        state.learn(seen, NOW)
        state.follow(NOW.now)

    def followed() -> list[str]:
        return sorted(scope.namespace for scope in state.scopes() - state.base_scopes)

    for number in range(MAX_NAMESPACES):
        ask(number)
    assert len(followed()) == MAX_NAMESPACES
    ask(MAX_NAMESPACES)
    assert followed() == [""]
    (scope,) = state.scopes() - state.base_scopes
    inside = replace(objects.pod("p", "n1", 5), namespace="team-3")
    outside = replace(objects.pod("p", "n1", 5), namespace="elsewhere")
    assert (scope.admits(inside), scope.admits(outside)) == (True, False)
    assert state.awaits("team-3/team-3")
    state.learn_listing(Listing(scope, NOW.now, 6, (inside,)), NOW)
    assert ready(state, "team-3/team-3") == {"n1": 1}
    for number in range(MAX_NAMESPACES // 2, MAX_NAMESPACES):
        ask(number, gone=True)
        assert followed() == [""]
    ask(0, gone=True)
    assert len(followed()) == MAX_NAMESPACES // 2
    assert state.awaits("team-3/team-3")
    assert ready(state, "team-3/team-3") == {}


@pytest.mark.parametrize(
    ("news", "concerned"),
    [
        (objects.node("n1", 9), set()),
        (objects.node("n1", 9, ready=False), {"shop/web", "shop/other"}),
        (objects.node("n2", 9), {"shop/web", "shop/other"}),
        (objects.agent("n1", 9), set()),
        (objects.agent("n1", 9, address="192.0.2.77/24"), {"shop/web", "shop/other"}),
        (objects.pod("p", "n1", 9), set()),
        (objects.pod("p", "n1", 9, ready=False), {"shop/web"}),
        (objects.pod("q", "n1", 9, labels={"app": "none"}), set()),
        (objects.pod("q", "n1", 9, ready=False), set()),
        (objects.pod("q", "n1", 9), {"shop/web"}),
        (objects.endpoints("s", {"n1": True}, 9), {"shop/other"}),
        (objects.endpoints("s", {"n1": True}, 9, service="none"), set()),
        (objects.lease("n1", 9), set()),
    ],
)
def test_news_concern_those_for_whom_they_matter(news, concerned):
    service = {"ip": "192.0.2.11", "workload": {"serviceRef": {"name": "web"}}}
    state = state_with(
        objects.clusterip(spec=WEB_PODS),
        objects.clusterip("other", spec=service),
        objects.node("n1"),
        objects.agent("n1"),
        objects.pod("p", "n1"),
    )
    assert state.learn(news, NOW) == concerned


def test_a_lease_that_makes_an_agent_fresh_concerns_all_at_the_next_tick():
    state = state_with(objects.clusterip(), objects.node("n1"), objects.agent("n1"))
    assert state.learn(objects.lease("n1"), NOW) == set()
    assert state.tick(NOW.now) == ({"shop/web"}, False)


def test_a_deleted_lease_and_a_missed_deletion_are_the_same():
    for news in ("event", "list"):
        state = state_with(objects.clusterip(), objects.node("n1"), objects.agent("n1"), objects.lease("n1"))
        if news == "event":
            state.learn(objects.gone(objects.lease("n1"), 9), NOW)
        else:
            state.learn_listing(Listing(LEASES, NOW.now, 9, ()), NOW)
        assert state.tick(NOW.now + 1)[0] == {"shop/web"}, news


def test_of_two_with_one_address_the_newer_knows_the_older_until_that_is_gone():
    older = objects.clusterip("older", 1, created="2026-01-01T00:00:00Z")
    newer = objects.clusterip("newer", 2, created="2026-01-01T00:00:01Z")
    state = state_with(newer, older)

    def rival(key: str) -> str | None:
        situation = state.situation(key, NOW.now, "")
        assert situation is not None
        return situation.older

    assert (rival("shop/newer"), rival("shop/older")) == ("shop/older", None)
    assert state.learn(objects.gone(older, 9), NOW) == {"shop/newer"}
    assert rival("shop/newer") is None
    assert state.situation("shop/older", NOW.now, "") is None


def test_an_older_one_that_is_refused_holds_its_address_only_with_an_assignment():
    refused = {"buckets": 0}
    newer = objects.clusterip("newer", 2, created="2026-01-01T00:00:01Z")
    for status, holder in (
        ({}, None),
        ({"epoch": 3, "assignments": [{"node": "n1", "buckets": "0-15"}]}, "shop/older"),
    ):
        state = state_with(objects.clusterip("older", 1, spec=refused, status=status), newer)
        situation = state.situation("shop/newer", NOW.now, "")
        assert situation is not None
        assert situation.older == holder


def test_an_assignment_that_the_api_server_lost_is_remembered():
    held = {"epoch": 3, "assignments": [{"node": "n1", "incarnation": 1, "buckets": "0-15"}]}
    state = state_with(objects.clusterip(status=held))
    for version, status in enumerate(({}, {"epoch": 2}, {"epoch": 3}), 2):
        state.learn(objects.clusterip(version=version, status=status), NOW)
        situation = state.situation("shop/web", NOW.now, "")
        assert situation is not None
        assert situation.tampered
        assert situation.current.epoch == 3
        assert [a.node for a in situation.current.assignments] == ["n1"]
    state.learn(objects.clusterip(version=9, status={"epoch": 4}), NOW)
    situation = state.situation("shop/web", NOW.now, "")
    assert situation is not None
    assert not situation.tampered
    assert situation.current.assignments == ()


def test_moves_that_the_api_server_lost_with_their_assignment_are_remembered():
    move = {"buckets": "0-7", "from": "n0", "to": "n1"}
    held = {"epoch": 3, "assignments": [{"node": "n1", "buckets": "0-15"}], "moves": [move]}
    state = state_with(objects.clusterip(status=held))
    state.learn(objects.clusterip(version=2, status={}), NOW)
    situation = state.situation("shop/web", NOW.now, "")
    assert situation is not None
    assert [(m.source, m.destination) for m in situation.current.moves] == [("n0", "n1")]
    assert {v.node for v in situation.verdicts} == {"n0", "n1"}, "whether a source lives is judged too"


def test_another_address_of_a_node_is_no_other_assignment():
    held = {"epoch": 3, "assignments": [{"node": "n1", "buckets": "0-15", "address": "192.0.2.1"}]}
    state = state_with(objects.clusterip(status=held))
    moved = {"epoch": 3, "assignments": [{"node": "n1", "buckets": "0-15", "address": "192.0.2.2"}]}
    state.learn(objects.clusterip(version=2, status=moved), NOW)
    situation = state.situation("shop/web", NOW.now, "")
    assert situation is not None
    assert not situation.tampered
    assert [str(a.address) for a in situation.current.assignments] == ["192.0.2.2"]


def test_a_recreated_clusterip_is_another_one():
    held = {"epoch": 3, "assignments": [{"node": "n1", "buckets": "0-15"}]}
    state = state_with(objects.clusterip(status=held))
    state.learn(objects.clusterip(version=9, uid="another"), NOW)
    situation = state.situation("shop/web", NOW.now, "")
    assert situation is not None
    assert (situation.current.epoch, situation.tampered) == (0, False)


def test_a_node_that_is_named_and_deleted_is_still_judged():
    held = {"epoch": 3, "assignments": [{"node": "n9", "buckets": "0-15"}]}
    state = state_with(objects.clusterip(status=held), objects.node("n1"))
    situation = state.situation("shop/web", NOW.now, "")
    assert situation is not None
    assert [v.node for v in situation.verdicts] == ["n1", "n9"]


def test_a_confirmation_concerns_the_clusterip_that_it_is_about():
    held = {"epoch": 3, "assignments": [{"node": "n1", "buckets": "0-15"}]}
    state = state_with(objects.clusterip(status=held), objects.node("n1"))
    assert state.confirm() == set()
    state.learn(objects.agent("n1", digest=applied_digest({"uid-web": 3})), NOW)
    assert state.confirm() == {"shop/web"}
    assert state.confirm() == set()


@pytest.mark.parametrize(
    ("ip", "holder"),
    [
        ("192.0.2.1", "node n1 (eth0)"),
        ("192.0.2.254", "the gateway of node n1"),
        ("192.0.2.7", "node n1"),
        ("192.0.2.250", "the API server"),
        ("192.0.2.255", "everybody"),
        ("192.0.2.0", "nobody"),
        ("10.244.1.7", "the pod range of node n1"),
        ("10.96.3.4", "the Service range"),
        ("192.0.2.99", None),
    ],
)
def test_an_address_is_refused_for_everybody_who_is_known_to_have_it(ip, holder):
    service_range = {
        "metadata": objects.metadata("kubernetes", 1),
        "spec": {"cidrs": ["10.96.0.0/16"]},
    }
    interface = {
        "name": "eth0",
        "mac": "02:00:00:00:00:01",
        "addresses": ["192.0.2.1/24"],
        "gateways": ["192.0.2.254"],
    }
    state = state_with(
        objects.clusterip(spec={"ip": ip}),
        objects.node("n1", addresses=("192.0.2.7",), pod_ranges=("10.244.1.0/24",)),
        objects.agent("n1", interfaces=[interface]),
        parse(Kind.SERVICE_RANGE, service_range),
    )
    situation = state.situation("shop/web", NOW.now, "")
    assert situation is not None
    if holder is None:
        assert situation.refusal is None
    else:
        assert holder in str(situation.refusal)


def test_a_late_list_of_what_was_followed_before_takes_nothing_from_what_is_followed_now():
    """At the 65th namespace all pods are followed at once, while a LIST of one namespace may still hang."""

    def asks_for(app: str, number: int, namespace: str = "shop") -> Seen:
        spec = {
            "ip": f"192.0.2.{10 + number}",
            "workload": {"podSelector": {"matchLabels": {"app": app}}},
        }
        seen = objects.clusterip(f"vip{number}", 1 + number, spec=spec)
        identity = replace(seen.fact.identity, namespace=namespace)
        return replace(seen, namespace=namespace, fact=replace(seen.fact, identity=identity))

    state = State("https://192.0.2.250", "lbless-system", 0.0)
    state.learn(asks_for("old", 0), NOW)
    state.follow(1.0)
    (old,) = state.scopes() - state.base_scopes
    state.learn(asks_for("web", 1), NOW)
    for number in range(MAX_NAMESPACES):
        state.learn(asks_for("web", 2 + number, f"space{number}"), NOW)
    state.follow(2.0)
    (everywhere,) = state.scopes() - state.base_scopes
    assert everywhere.namespace == ""
    pod = objects.pod("p", "a", 50)
    state.learn_listing(Listing(everywhere, 3.0, 100, (pod,)), NOW)
    before = state.situation("shop/vip1", NOW.now, "")
    state.learn_listing(Listing(old, 0.5, 101, ()), NOW)
    after = state.situation("shop/vip1", NOW.now, "")
    assert before is not None
    assert after is not None
    assert after.readiness == before.readiness
    assert after.readiness.ready == {"a": 1}
