"""The loop: when it may decide, what it writes, and what becomes of a write that fails."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from lbless_api.digest import applied_digest
from lbless_edge.kube import ApiError
from lbless_operator import reconciler as module
from lbless_operator.facts import Kind, Scope, Seen
from lbless_operator.followers import Follower, Followers
from lbless_operator.leader import NotLeading
from lbless_operator.lister import Lister
from lbless_operator.mailbox import Mailbox, RoundDone
from lbless_operator.notices import Notice, NoticeReason
from lbless_operator.reconciler import BLIND_SECONDS, DEFECT_SECONDS, Reconciler
from lbless_operator.restraint import BURST, Restraint
from lbless_operator.state import Listing, State
from lbless_operator.writers import COUNT, Write, Writers
from unit import operatorobjects as objects


@dataclass
class Server:
    """Takes applies as an API server does: only on the version that it has. The real one is in tests/cluster."""

    version: int = 1000
    errors: list[ApiError] = field(default_factory=list)
    written: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    server: str = "https://192.0.2.250"

    def apply(self, path: str, body: dict[str, Any], *, field_manager: str) -> dict[str, Any]:
        assert field_manager == "lbless-operator"
        name = body["metadata"]["name"]
        assert path == f"/apis/lbless.dev/v1alpha1/namespaces/shop/clusterips/{name}/status"
        if self.errors:
            raise self.errors.pop(0)
        if body["metadata"]["resourceVersion"] != self.versions.setdefault(
            name, body["metadata"]["resourceVersion"]
        ):
            raise ApiError(409, "the object has been modified", reason="Conflict")
        self.version += 1
        self.versions[name] = str(self.version)
        self.written.append(body["status"])
        metadata = {
            **objects.metadata(name, self.version, "shop"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": 1,
        }
        self.names.append(name)
        spec = {"ip": "192.0.2.11" if name == "other" else "192.0.2.10", "buckets": 16}
        return {"metadata": metadata, "spec": {**spec, **self.specs.get(name, {})}, "status": body["status"]}


class Inline(Writers):
    """Writes at once, in the loop's thread; its answers come as the others' do."""

    def __init__(self, api: Server, leader: Others, mailbox: Mailbox) -> None:
        super().__init__(api, leader, mailbox)  # type: ignore[arg-type] # what they call of them is there
        self.box = mailbox
        self.held: list[Write] | None = None
        """None, or the writes that are under way until a test lets them go on."""

    def submit(self, write: Write) -> None:
        if self.held is None:
            self.box.put(self.perform(write))
        else:
            self.held.append(write)

    def release(self) -> None:
        assert self.held is not None
        for write in self.held:
            self.box.put(self.perform(write))
        self.held = None


NONE: frozenset[tuple[Kind, str]] = frozenset()


@dataclass
class Others:
    """The leader, the lister and the poster of Events, as far as the loop talks to them."""

    valid: bool = True
    rounds: int = 0
    scopes: frozenset[Scope] = frozenset()
    late: frozenset[Scope] = frozenset()
    notices: list[Notice] = field(default_factory=list)

    def is_valid(self) -> bool:
        return self.valid

    def check(self) -> None:
        if not self.valid:
            raise NotLeading("The Lease has run out.")

    def request_round(self, since: float = 0.0) -> None:  # noqa: ARG002
        self.rounds += 1

    def follow(self, scopes: frozenset[Scope], unwatched: frozenset[tuple[Kind, str]] = NONE) -> Any:
        """The followers' and the lister's."""
        self.scopes = scopes
        return unwatched

    def start(self) -> None:
        """The followers'."""

    def overdue(self, seconds: float) -> frozenset[Scope]:
        """The lister's."""
        assert seconds == BLIND_SECONDS
        return self.late

    def post(self, notice: Notice) -> None:
        self.notices.append(notice)


class Loop:
    """A reconciler whose clock and news a test has in its hands."""

    def __init__(self, *, follows: bool = False) -> None:
        """`follows`: with a lister and followers as they are, though none of them works before a test lets it."""
        self.now = 5000.0
        self.server = Server()
        self.others = Others()
        self.mailbox = Mailbox()
        self.mailbox.close()  # nobody waits
        self.state = State("https://192.0.2.250", "lbless-system", self.now)
        self.writers = Inline(self.server, self.others, self.mailbox)
        restraint = Restraint(logging.getLogger("lbless.operator"), lambda: self.now)
        api: Any = self.server
        stop = threading.Event()
        self.lister = Lister(api, self.mailbox, self.state.base_scopes, stop, lambda: self.now)
        followers = Followers(api, self.mailbox, restraint, self.lister.list_again, stop)
        self.reconciler = Reconciler(
            self.state,
            self.mailbox,
            self.lister if follows else self.others,  # type: ignore[arg-type] # what the loop calls of them is there
            followers if follows else self.others,  # type: ignore[arg-type]
            self.others,  # type: ignore[arg-type]
            self.writers,
            self.others,  # type: ignore[arg-type]
            restraint,
            stop,
            lambda: self.now,
        )

    def list_everything(self, *found: Seen) -> None:
        for scope in self.state.base_scopes:
            of_it = tuple(s for s in found if s.kind is scope.kind)
            self.mailbox.put(Listing(scope, self.now, 900, of_it))
        self.mailbox.put(RoundDone(self.now))

    def clusterip(self, name: str, version: int, **spec: Any) -> Seen:
        """A ClusterIP of which the server knows the spec as well."""
        self.server.specs[name] = spec
        return objects.clusterip(name, version, spec=spec)

    def many(self, count: int, **spec: Any) -> list[Seen]:
        addresses = (
            f"192.0.2.{n + 12}" if n < 80 else f"10.1.{n // 200}.{n % 200 + 1}" for n in range(count)
        )
        return [self.clusterip(f"web-{n}", n + 10, **{"ip": ip, **spec}) for n, ip in enumerate(addresses)]

    def tell(self, *news: Seen) -> None:
        for one in news:
            self.mailbox.put(one)

    def steps(self, count: int = 12) -> None:
        for _ in range(count):
            self.reconciler.step()

    @property
    def epochs(self) -> list[int]:
        return [status["epoch"] for status in self.server.written]


def fresh_lease(name: str, version: int = 5) -> Seen:
    """Renewed in the future: fresh whatever the time is."""
    return objects.lease(name, version, "2999-01-01T00:00:00.000000Z")


CLUSTER = (objects.node("a"), objects.agent("a"), fresh_lease("a"), objects.clusterip())


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def assigned(loop: Loop) -> Loop:
    loop.list_everything(*CLUSTER)
    loop.steps()
    assert loop.epochs == [1]
    return loop


def test_nothing_is_written_before_every_collection_was_listed_and_the_round_was_whole(loop: Loop):
    for scope in sorted(loop.state.base_scopes, key=str):
        loop.steps()
        assert loop.server.written == []
        of_it = tuple(s for s in CLUSTER if s.kind is scope.kind)
        loop.mailbox.put(Listing(scope, loop.now, 900, of_it))
    loop.steps()
    assert loop.server.written == []
    loop.mailbox.put(RoundDone(loop.now))
    loop.steps()
    assert loop.epochs == [1]


def test_what_needs_no_change_is_not_written_again(assigned: Loop):
    assigned.tell(objects.node("a", 1001, ready=False))
    assigned.steps()
    assert assigned.epochs == [1]
    assert assigned.reconciler.reconciles > 1


def test_a_confirmation_is_written_with_the_epoch_it_is_about(assigned: Loop):
    assigned.tell(objects.agent("a", 1002, digest=applied_digest({"uid-web": 1})))
    assigned.now += 1
    assigned.steps()
    assert [status["nodes"] for status in assigned.server.written] == ["0/1", "1/1"]
    assert assigned.epochs == [1, 1]


def test_who_does_not_lead_writes_nothing_and_decides_only_on_a_newer_view_when_it_leads_again(loop: Loop):
    loop.others.valid = False
    loop.list_everything(*CLUSTER)
    loop.now += 1
    loop.steps()
    assert loop.server.written == []
    rounds = loop.others.rounds
    loop.now += 1
    loop.others.valid = True
    loop.steps()
    assert loop.server.written == []
    assert loop.others.rounds > rounds
    loop.now += 1
    loop.list_everything(*CLUSTER)
    loop.steps()
    assert loop.epochs == [1]


def test_a_lease_that_runs_out_between_the_decision_and_the_write_stops_the_write(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
):
    decide = module.decide

    def decide_slowly(situation: Any) -> Any:
        loop.others.valid = False
        return decide(situation)

    monkeypatch.setattr(module, "decide", decide_slowly)
    loop.list_everything(*CLUSTER)
    loop.steps()
    assert loop.server.written == []


def test_a_view_too_old_to_decide_on_decides_nothing_until_it_is_new(assigned: Loop):
    assigned.now += BLIND_SECONDS + 1
    taint = [{"key": "k", "effect": "NoExecute"}]
    assigned.tell(objects.node("b", 1001), objects.agent("b", 1002), fresh_lease("b", 1003))
    assigned.tell(objects.node("a", 1004, taints=taint))
    assigned.steps()
    assert assigned.epochs == [1]
    assigned.mailbox.put(RoundDone(assigned.now))
    assigned.steps()
    assert assigned.epochs[-1] == 2


def test_an_object_that_changed_meanwhile_is_looked_at_again_when_its_news_arrive(assigned: Loop):
    assigned.server.versions["web"] = "2000"  # somebody changed it, and the watch has not said so yet
    assigned.tell(objects.node("b", 1001), objects.agent("b", 1002), fresh_lease("b", 1003))
    assigned.steps()
    assert assigned.epochs == [1]
    assert assigned.others.rounds > 0
    status = {"epoch": 1, "assignments": [{"node": "a", "incarnation": 1, "buckets": "0-15"}]}
    assigned.tell(objects.clusterip(version=2000, status=status))
    assigned.steps()
    assert assigned.epochs[-1] == 2


def test_an_api_server_that_takes_no_writes_is_asked_again_with_patience_and_said_once(
    loop: Loop, caplog: pytest.LogCaptureFixture
):
    loop.server.errors = [ApiError(503, "https://192.0.2.250 is busy.") for _ in range(3)]
    loop.list_everything(*CLUSTER)
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            loop.steps(3)
            loop.now += 1
    assert loop.epochs == [1]
    said = [record.getMessage() for record in caplog.records]
    assert said.count("The status of ClusterIP shop/web cannot be written: https://192.0.2.250 is busy.") == 1
    assert "The API server takes writes again." in said


def test_a_deleted_object_is_not_written_again(loop: Loop):
    loop.server.errors = [ApiError(404, "not found")]
    loop.list_everything(*CLUSTER)
    loop.steps()
    assert loop.server.written == []
    assert loop.reconciler.waiting == 0


def test_a_status_that_the_server_refuses_does_not_stop_the_others(loop: Loop):
    other = objects.clusterip("other", 2, spec={"ip": "192.0.2.11"})
    loop.server.errors = [ApiError(422, "status.nodes is too long")]
    loop.list_everything(*CLUSTER, other)
    loop.steps()
    (first,) = loop.server.names
    loop.now += 5
    loop.steps()
    assert loop.server.names == [first, *({"web", "other"} - {first})]


def test_a_defect_that_one_object_brings_to_light_is_logged_and_does_not_stop_the_others(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    decide = module.decide

    def decide_or_fail(situation: Any) -> Any:
        if situation.fact.identity.name == "web":
            raise ZeroDivisionError
        return decide(situation)

    monkeypatch.setattr(module, "decide", decide_or_fail)
    loop.list_everything(*CLUSTER, objects.clusterip("other", 2, spec={"ip": "192.0.2.11"}))
    loop.steps()
    assert loop.server.names == ["other"]
    assert "ClusterIP shop/web could not be decided: this is a defect of lbless." in caplog.text
    monkeypatch.setattr(module, "decide", decide)
    loop.now += DEFECT_SECONDS + 1
    loop.steps()
    assert "web" in loop.server.names


def test_a_clusterip_that_asks_for_pods_has_its_namespace_listed_first(loop: Loop):
    loop.list_everything(*CLUSTER[:3], objects.clusterip(spec={"workload": {"podSelector": {}}}))
    loop.steps()
    (extra,) = loop.others.scopes - loop.state.base_scopes
    assert extra.namespace == "shop"
    assert loop.server.written == []
    loop.mailbox.put(Listing(extra, loop.now, 950, (objects.pod("p", "a"),)))
    loop.steps()
    assert loop.epochs == [1]


def with_and_without_pods(loop: Loop) -> Scope:
    """Have a ClusterIP assigned that asks for pods, and another; return where those pods are."""
    pods = {"podSelector": {}}
    loop.list_everything(
        *CLUSTER[:3],
        loop.clusterip("web", 1, workload=pods),
        loop.clusterip("other", 2, ip="192.0.2.11"),
    )
    loop.steps()
    (scope,) = loop.others.scopes - loop.state.base_scopes
    loop.mailbox.put(Listing(scope, loop.now, 950, (objects.pod("p", "a"), objects.pod("q", "b"))))
    loop.steps()
    assert set(loop.server.names) == {"web", "other"}
    loop.server.names.clear()
    return scope


def test_pods_that_could_not_be_listed_for_long_keep_only_who_asks_for_them_waiting(loop: Loop):
    scope = with_and_without_pods(loop)
    loop.now += BLIND_SECONDS + 1
    loop.mailbox.put(RoundDone(loop.now))
    loop.others.late = frozenset({scope})
    loop.tell(objects.node("b", 1001), objects.agent("b", 1002), fresh_lease("b", 1003))
    loop.steps()
    assert loop.server.names == ["other"]
    loop.others.late = frozenset()
    loop.mailbox.put(Listing(scope, loop.now - BLIND_SECONDS - 1, 960, (objects.pod("p", "a"),)))
    loop.steps()
    assert loop.server.names == ["other"]
    loop.mailbox.put(Listing(scope, loop.now, 1010, (objects.pod("p", "a"), objects.pod("q", "b"))))
    loop.steps()
    assert loop.server.names == ["other", "web"]


def test_who_leads_again_decides_on_pods_only_when_they_were_listed_since(loop: Loop):
    scope = with_and_without_pods(loop)
    loop.others.valid = False
    loop.steps(1)
    loop.others.valid = True
    loop.now += 1
    loop.mailbox.put(RoundDone(loop.now))
    loop.tell(objects.node("b", 1001), objects.agent("b", 1002), fresh_lease("b", 1003))
    loop.steps()
    assert loop.server.names == ["other"]
    loop.mailbox.put(Listing(scope, loop.now, 1010, (objects.pod("p", "a"), objects.pod("q", "b"))))
    loop.steps()
    assert loop.server.names == ["other", "web"]


def test_a_follower_that_has_listed_at_once_has_its_collection_listed_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Follower, "start", lambda follower: follower.listed(frozenset()))
    loop = Loop(follows=True)
    loop.list_everything(*CLUSTER[:3], objects.clusterip(spec={"workload": {"podSelector": {}}}))
    loop.steps(1)
    assert {scope.kind for scope in loop.lister.awaited} >= {Kind.POD}


def test_a_wrong_weight_is_told_once_and_again_when_it_is_another_wrong_one(assigned: Loop):
    for version, weight in enumerate(["lots", "lots", "many", "5", "lots"], 1001):
        assigned.tell(objects.node("a", version, annotations={"lbless.dev/weight": weight}))
        assigned.steps(3)
    told = [n.note for n in assigned.others.notices if n.reason is NoticeReason.INVALID_WEIGHT]
    assert [note.split("'")[1] for note in told] == ["lots", "many", "lots"]
    assert assigned.others.notices[-1].subject.kind == "Node"


def test_a_node_that_takes_too_long_is_complained_about_without_any_news(assigned: Loop):
    assigned.now += 10.5
    assigned.steps()
    ready = next(c for c in assigned.server.written[-1]["conditions"] if c["type"] == "Ready")
    assert ready["message"] == "Epoch 1 is not confirmed yet by node a."
    assigned.now += 100
    count = len(assigned.server.written)
    assigned.steps()
    assert len(assigned.server.written) == count


def test_a_lease_that_ran_out_asks_for_a_round_before_silence_is_believed(assigned: Loop):
    before = assigned.others.rounds
    assigned.now += 41
    assigned.steps()
    assert assigned.others.rounds > before
    degraded = [c for c in assigned.server.written[-1]["conditions"] if c["type"] == "Degraded"]
    assert degraded[0]["status"] == "False"


def test_no_more_writes_are_under_way_than_there_are_writers_and_none_of_one_object_twice(loop: Loop):
    held: list[Write] = []
    loop.writers.held = held
    loop.list_everything(*CLUSTER[:3], *loop.many(10))
    loop.steps(50)
    assert len(held) == COUNT
    names = {write.fact.identity.name for write in held}
    assert len(names) == COUNT
    # Everybody is concerned by a new node; those whose write is under way are looked at after it.
    loop.tell(objects.node("b", 1001), objects.agent("b", 1002), fresh_lease("b", 1003))
    loop.steps(50)
    assert len(held) == COUNT
    loop.writers.release()
    loop.steps(50)
    latest = dict(zip(loop.server.names, loop.server.written, strict=True))
    assert len(latest) == 10
    assert {name for name in names if latest[name]["epoch"] == 2} == names
    assert all([a["node"] for a in status["assignments"]] == ["a", "b"] for status in latest.values())


def test_a_pods_change_waits_for_no_hundred_clusterips_that_a_node_concerns(loop: Loop):
    pods = {"podSelector": {"matchLabels": {"app": "web"}}}
    other = loop.clusterip("other", 2, ip="192.0.2.11", workload=pods)
    loop.list_everything(*CLUSTER[:3], other, *loop.many(100))
    loop.steps(150)
    (scope,) = loop.others.scopes - loop.state.base_scopes
    loop.mailbox.put(Listing(scope, loop.now, 950, (objects.pod("p", "a", 5),)))
    loop.steps(20)
    loop.server.names.clear()
    loop.tell(objects.node("b", 9001), objects.agent("b", 9002), fresh_lease("b", 9003))
    loop.steps(5)
    loop.tell(objects.pod("q", "b", 9004))
    loop.steps(3)
    assert "other" in loop.server.names
    loop.steps(200)
    assert len(set(loop.server.names)) == 101


def test_a_thousand_malformed_ones_are_each_refused_in_their_status_and_a_good_one_is_as_quick(
    loop: Loop, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    malformed = loop.many(1000, hashFunction="None")
    loop.list_everything(*CLUSTER, *malformed)
    loop.steps(1)
    for version, name in enumerate(("early", "late"), 5001):
        loop.tell(loop.clusterip(name, version, ip=f"192.0.2.{version - 4908}"))
    loop.steps(3)
    assert {"early", "late"} <= set(loop.server.names)
    loop.steps(2200)
    refused = [s for s in loop.server.written if s["conditions"][0]["reason"] == "Invalid"]
    assert len(refused) == 1000
    message = refused[0]["conditions"][0]["message"]
    assert message == "spec.hashFunction 'None' is unknown: use JHash or LegacyClusterIP."
    # Each is written once, and what comes back of it concerns nobody else.
    assert len(loop.server.written) == 1003
    assert loop.reconciler.reconciles < 3 * 1003


def test_statuses_that_the_server_refuses_one_and_all_are_no_flood_in_the_log(
    loop: Loop, caplog: pytest.LogCaptureFixture
):
    loop.server.errors = [ApiError(422, f"status {n} is too long") for n in range(500)]
    loop.list_everything(*CLUSTER[:3], *loop.many(500))
    loop.steps(600)
    assert len(caplog.records) <= 2 * BURST


def test_a_thousand_with_one_address_do_not_concern_each_other_with_every_write(loop: Loop):
    loop.list_everything(*CLUSTER[:3], *loop.many(300, ip="192.0.2.10"))
    loop.steps(1000)
    assert len(loop.server.written) == 300
    conflicts = [s for s in loop.server.written if s["conditions"][0]["reason"] == "Conflict"]
    assert len(conflicts) == 299
    assert loop.reconciler.reconciles < 1000
