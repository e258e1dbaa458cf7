"""LISTs and the mailbox: everything at the start and each minute, in pages, complete or not at all."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes import client

from lbless_api.clusterip import PodWorkload
from lbless_api.selectors import LabelSelector
from lbless_edge.kube import CLUSTERIPS, NODES, Api, ApiError, Object
from lbless_edge.patience import Patience
from lbless_operator import agenda as module_agenda
from lbless_operator import lister as module
from lbless_operator import mailbox as module_mailbox
from lbless_operator.facts import Kind, Scope, Seen
from lbless_operator.interest import Interest
from lbless_operator.lister import Lister
from lbless_operator.mailbox import Mailbox, News, RoundDone
from lbless_operator.state import Listing
from unit import operatorobjects as objects
from unit.fakeapi import FakeApi

NODE_SCOPE = Scope(Kind.NODE)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


class Gate(Api):
    """An Api whose LISTs of pods come to a gate, in the order in which they began."""

    def __init__(self, configuration: client.Configuration) -> None:
        super().__init__(configuration)
        self.came = 0
        self.may_pass = threading.Semaphore(0)
        self.failure: ApiError | None = None
        """What becomes of those that pass."""

    def list_pages(self, path: str, **query: Any) -> Iterator[tuple[list[Object], str]]:
        if path.endswith("/pods"):
            self.came += 1
            assert self.may_pass.acquire(timeout=10)
            if self.failure:
                raise self.failure
        return super().list_pages(path, **query)


@contextmanager
def listing(fake: FakeApi, *scopes: Scope) -> Iterator[tuple[Lister, list[News]]]:
    """A lister at work, and what it has put into its mailbox so far."""
    with gated(fake, *scopes, api=Api) as (lister, got, _):
        yield lister, got


@contextmanager
def gated(fake: FakeApi, *scopes: Scope, api: Any = Gate) -> Iterator[tuple[Lister, list[News], Gate]]:
    """The same, with a gate for its LISTs of pods."""
    stop, mailbox, got = threading.Event(), Mailbox(), []

    def collect() -> None:
        while not stop.is_set():
            got.extend(mailbox.take(0.05))

    with fake.serve() as url:
        asked = api(client.Configuration(host=url))
        lister = Lister(asked, mailbox, frozenset(scopes), stop, time.monotonic)
        threads = [threading.Thread(target=work) for work in (lister.run, collect)]
        for thread in threads:
            thread.start()
        try:
            yield lister, got, asked
        finally:
            stop.set()
            lister.wake()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()


def rounds(got: list[News]) -> int:
    return sum(isinstance(news, RoundDone) for news in got)


def test_all_pages_make_one_listing(fake: FakeApi, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAGE", 2)
    for number in range(5):
        fake.put(f"n{number}")
    with listing(fake, NODE_SCOPE) as (_, got):
        wait_for(lambda: rounds(got), "a round")
    (one,) = [news for news in got if isinstance(news, Listing)]
    assert {seen.name for seen in one.objects} == {f"n{number}" for number in range(5)}
    assert one.version == fake.version
    assert fake.count(watch=False) == 3


def test_a_list_that_breaks_off_is_not_told_and_is_begun_anew(fake: FakeApi, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAGE", 2)
    for number in range(3):
        fake.put(f"n{number}")
    fake.refusals = [(500, b"no"), (0, b"")]
    with listing(fake, NODE_SCOPE) as (_, got):
        wait_for(lambda: rounds(got), "a round")
    (one,) = [news for news in got if isinstance(news, Listing)]
    assert len(one.objects) == 3


@pytest.mark.parametrize(
    ("scope", "refusal", "sentence"),
    [
        (
            Scope(Kind.CLUSTERIP),
            (404, b"404 page not found"),
            "Nothing is decided: The CustomResourceDefinition clusterips.lbless.dev is not installed: "
            "kubectl apply -f crds/",
        ),
        (
            NODE_SCOPE,
            (403, {"message": "nodes is forbidden", "reason": "Forbidden"}),
            "Nothing is decided: A permission is missing, grant it (helm/lbless/rbac/): ",
        ),
    ],
)
def test_what_is_waited_for_is_said_once_and_that_it_is_over_too(fake, caplog, scope, refusal, sentence):
    fake.refusals = [refusal] * 3
    with caplog.at_level(logging.INFO), listing(fake, scope) as (_, got):
        wait_for(lambda: rounds(got), "a round")
    said = [record.getMessage() for record in caplog.records if record.name == "lbless.operator"]
    assert len([line for line in said if line.startswith(sentence)]) == 1
    assert said[-1].endswith("answers every LIST again.")


def test_a_list_that_is_not_answered_is_named_once_and_waited_for_longer_each_time(
    fake: FakeApi, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(module, "Patience", lambda: Patience(first_seconds=0.2))
    fake.refusals = [(-1, b"")] * 4
    scopes = [NODE_SCOPE, Scope(Kind.POD, "shop")]
    with caplog.at_level(logging.INFO), listing(fake, *scopes) as (lister, got):
        wait_for(lambda: "and is waited for" in caplog.text, "a word about what is waited for")
        assert lister.awaited == set(scopes)
        assert lister.view_age_seconds == float("inf")
        wait_for(lambda: rounds(got), "a round")
        assert lister.awaited == set()
        assert lister.view_age_seconds < 10
    said = [record.getMessage() for record in caplog.records if record.name == "lbless.operator"]
    (named,) = [line for line in said if "and is waited for" in line]
    assert named.startswith("Nothing is decided: ")
    assert "to LIST nodes, pods in shop, and" in named
    assert len([line for line in said if "nothing was heard for too long" in line]) == 1
    assert said[-1].endswith("answers every LIST again.")
    # Twice each: 0.2 s, 0.4 s, and a third time in which the answer came.
    assert fake.count(watch=False) == 6


def test_of_a_round_only_what_failed_is_asked_for_again(fake: FakeApi):
    fake.refusals = [(500, b"no")]
    scopes = [NODE_SCOPE, Scope(Kind.AGENT), Scope(Kind.LEASE, "lbless-system")]
    with listing(fake, *scopes) as (_, got):
        wait_for(lambda: rounds(got), "a round")
    assert fake.count(watch=False) == 4


def test_an_api_server_without_servicecidrs_has_none(fake: FakeApi):
    fake.refusals = [(404, {"message": "the server could not find the requested resource"})]
    with listing(fake, Scope(Kind.SERVICE_RANGE)) as (_, got):
        wait_for(lambda: rounds(got), "a round")
    (one,) = [news for news in got if isinstance(news, Listing)]
    assert one.objects == ()


def test_a_new_scope_is_listed_at_once_and_the_others_are_not(fake: FakeApi):
    with listing(fake, NODE_SCOPE) as (lister, got):
        wait_for(lambda: rounds(got), "a round")
        lister.follow(frozenset({NODE_SCOPE, Scope(Kind.POD, "shop")}))
        wait_for(lambda: len([n for n in got if isinstance(n, Listing)]) == 2, "the pods")
    paths = [path for path, _ in fake.requests]
    assert paths == [NODES, "/api/v1/namespaces/shop/pods"]
    assert fake.requests[1][1]["fieldSelector"] == "status.phase!=Succeeded,status.phase!=Failed"


def test_a_round_that_is_asked_for_comes_soon_and_many_askers_get_one(fake: FakeApi):
    with listing(fake, NODE_SCOPE) as (lister, got):
        wait_for(lambda: rounds(got) == 1, "the first round")
        began = time.monotonic()
        for _ in range(10):
            lister.request_round()
        lister.await_round(began)
        wait_for(lambda: rounds(got) == 2, "the second round")
        assert fake.count(watch=False) == 2


def test_objects_that_cannot_be_read_are_listed_as_such_and_said_once(fake, caplog):
    for name in ("n1", "n2", "n3"):
        fake.put(name)
    fake.objects["n1"]["metadata"]["resourceVersion"] = "abc"
    fake.objects["n2"]["metadata"]["labels"] = "web"
    with listing(fake, NODE_SCOPE) as (lister, got):
        wait_for(lambda: rounds(got), "a round")
        lister.request_round()
        wait_for(lambda: rounds(got) == 2, "another")
    for one in (news for news in got if isinstance(news, Listing)):
        assert [seen.name for seen in one.objects] == ["n3"]
        assert one.unread == {"n1", "n2"}
    (line,) = [line for line in caplog.messages if "cannot be read" in line]
    assert line.startswith("Node n1 (and 1 more like it) cannot be read, and counts as what was known of it")


def test_an_object_without_a_name_spoils_the_list_and_deletes_nothing(fake, caplog):
    fake.put("n1")
    del fake.objects["n1"]["metadata"]["name"]
    with listing(fake, NODE_SCOPE) as (_, got):
        wait_for(lambda: "cannot be read" in caplog.text, "a complaint")
    assert [news for news in got if isinstance(news, Listing)] == []


def test_the_path_of_every_kind_is_followed_below_its_group():
    from lbless_operator.sources import SOURCES

    assert SOURCES[Kind.CLUSTERIP].resource == ("lbless.dev", "v1alpha1", "clusterips")
    assert SOURCES[Kind.NODE].resource == ("", "v1", "nodes")
    assert SOURCES[Kind.CLUSTERIP].path == CLUSTERIPS
    assert json.dumps(SOURCES[Kind.SLICE].selectors) == '{"labelSelector": "kubernetes.io/service-name"}'


def test_the_mailbox_keeps_the_newest_of_each_object():
    mailbox = Mailbox()
    for version in (3, 5, 4):
        mailbox.put(objects.node("n1", version))
    mailbox.put(objects.node("n2", 1))
    taken = [news for news in mailbox.take(0) if isinstance(news, Seen)]
    assert {(seen.name, seen.version) for seen in taken} == {("n1", 5), ("n2", 1)}
    assert mailbox.take(0) == []


def pods_of(app: str) -> Scope:
    asked = ("shop", PodWorkload(LabelSelector.parse({"matchLabels": {"app": app}}, "selector")))
    return Scope(Kind.POD, "shop", Interest([asked]))


def test_of_pods_only_those_are_kept_that_somebody_asks_for(fake: FakeApi):
    for name, app in (("p", "web"), ("q", "db")):
        fake.put(name, metadata={"namespace": "shop", "labels": {"app": app}}, spec={"nodeName": "n1"})
    with listing(fake, pods_of("web")) as (_, got):
        wait_for(lambda: rounds(got), "a round")
    (one,) = [news for news in got if isinstance(news, Listing)]
    assert [seen.name for seen in one.objects] == ["p"]


def test_a_new_selector_has_its_namespace_listed_again(fake: FakeApi):
    with listing(fake, pods_of("web")) as (lister, got):
        wait_for(lambda: rounds(got), "a round")
        lister.follow(frozenset({pods_of("db")}))
        wait_for(lambda: len([n for n in got if isinstance(n, Listing)]) == 2, "the second LIST")
        assert rounds(got) == 1


def test_what_is_not_watched_yet_is_listed_when_its_watch_has_begun(fake: FakeApi):
    with listing(fake, NODE_SCOPE) as (lister, got):
        wait_for(lambda: rounds(got), "a round")
        lister.follow(frozenset({NODE_SCOPE, pods_of("web")}), {(Kind.POD, "shop")})
        lister.follow(frozenset({NODE_SCOPE, pods_of("web"), Scope(Kind.AGENT)}))
        wait_for(lambda: fake.count(watch=False) == 2, "the agents")
        lister.list_again(Kind.POD, "shop")
        wait_for(lambda: fake.count(watch=False) == 3, "the pods")
    assert [path for path, _ in fake.requests][2] == "/api/v1/namespaces/shop/pods"


def test_a_workload_that_may_not_be_listed_holds_up_no_round_and_is_asked_for_until_it_may(fake: FakeApi):
    fake.forbidden = {"/api/v1/namespaces/shop/pods"}
    with listing(fake, NODE_SCOPE) as (lister, got):
        wait_for(lambda: rounds(got), "a round")
        lister.follow(frozenset({NODE_SCOPE, pods_of("web")}))
        for number in (2, 3):
            began = time.monotonic()
            lister.request_round()
            wait_for(lambda least=number: rounds(got) >= least, "another round")
            lister.await_round(began)
        assert lister.awaited == {pods_of("web")}
        assert lister.overdue(0.0) == {pods_of("web")}
        assert lister.overdue(3600.0) == set()
        fake.forbidden.clear()
        wait_for(lambda: pods_listed(got), "the pods")
        wait_for(lambda: not lister.awaited, "that nothing is awaited")
        assert lister.overdue(0.0) == set()


def test_a_workload_whose_list_hangs_holds_up_no_round(fake: FakeApi):
    with gated(fake, NODE_SCOPE) as (lister, got, gate):
        lister.follow(frozenset({NODE_SCOPE, pods_of("web")}))
        wait_for(lambda: gate.came, "the LIST of pods")
        for number in (1, 2):
            lister.request_round()
            wait_for(lambda least=number: rounds(got) >= least, "a round")
        assert pods_listed(got) == 0
        gate.may_pass.release(2)


def drop_and_ask(lister: Lister) -> None:
    lister.follow(frozenset({NODE_SCOPE}))
    lister.follow(frozenset({NODE_SCOPE, pods_of("web")}))


@pytest.mark.parametrize("ask", [lambda lister: lister.list_again(Kind.POD, "shop"), drop_and_ask])
def test_what_is_asked_for_while_it_is_being_listed_is_listed_again(
    fake: FakeApi, ask: Callable[[Lister], None]
):
    with gated(fake, NODE_SCOPE) as (lister, got, gate):
        wait_for(lambda: rounds(got), "a round")
        lister.follow(frozenset({NODE_SCOPE, pods_of("web")}))
        wait_for(lambda: gate.came == 1, "the LIST")
        ask(lister)
        gate.may_pass.release()
        wait_for(lambda: gate.came == 2, "the LIST that shows what has happened since")
        assert lister.awaited == {pods_of("web")}
        gate.may_pass.release()
        wait_for(lambda: not lister.awaited, "that nothing is awaited")
        assert rounds(got) == 1


def test_what_is_new_does_not_wait_for_what_has_failed(fake: FakeApi):
    with gated(fake, NODE_SCOPE) as (lister, got, gate):
        gate.failure = ApiError(429, "busy", retry_after_seconds=3600.0)
        gate.may_pass.release()
        wait_for(lambda: rounds(got), "a round")
        scopes = frozenset({NODE_SCOPE, pods_of("web")})
        lister.follow(scopes)
        wait_for(lambda: gate.came, "the LIST that fails")
        lister.follow(scopes | {Scope(Kind.SLICE, "shop")})
        wait_for(lambda: lister.awaited == {pods_of("web")}, "the slices")


def test_what_followers_follow_is_listed_in_some_rounds_only_unless_a_round_is_asked_for(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module_agenda, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(module_agenda, "FOLLOWED_ROUNDS", 3)
    with listing(fake, NODE_SCOPE, pods_of("web")) as (lister, got):
        wait_for(lambda: rounds(got) >= 7, "seven rounds")
        in_rounds: list[set[Kind]] = [set()]
        for news in got:
            if isinstance(news, Listing):
                in_rounds[-1].add(news.scope.kind)
            else:
                in_rounds.append(set())
        both, few = {Kind.NODE, Kind.POD}, {Kind.NODE}
        assert in_rounds[:7] == [both, few, few, both, few, few, both]
        monkeypatch.setattr(module_agenda, "ROUND_SECONDS", 60.0)
        monkeypatch.setattr(module_agenda, "REQUESTED_ROUND_SECONDS", 0.1)
        for _ in range(2):
            began = time.monotonic()
            pods = pods_listed(got)
            lister.request_round()
            lister.await_round(began)
            wait_for(lambda before=pods: pods_listed(got) > before, "the pods")


def pods_listed(got: list[News]) -> int:
    return sum(isinstance(news, Listing) and news.scope.kind is Kind.POD for news in got)


def test_the_mailbox_keeps_the_newest_listing_of_each_collection_and_the_round_after_it():
    mailbox = Mailbox()
    for version in (1, 2):
        for scope in (NODE_SCOPE, pods_of("web")):
            mailbox.put(Listing(scope, 0.0, version, ()))
        mailbox.put(RoundDone(float(version)))
    taken = mailbox.take(0)
    assert [news.version for news in taken if isinstance(news, Listing)] == [2, 2]
    assert taken[-1] == RoundDone(2.0)


def test_reports_wait_a_moment_for_each_other_and_a_pods_change_waits_for_none(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module_mailbox, "GATHER_SECONDS", 2.0)
    mailbox = Mailbox()
    mailbox.put(objects.agent("n1", 1))

    def arrive() -> None:
        mailbox.put(objects.agent("n2", 2))
        mailbox.put(objects.agent("n3", 3))

    timer = threading.Timer(0.1, arrive)
    timer.start()
    assert {news.name for news in mailbox.take(10) if isinstance(news, Seen)} == {"n1", "n2", "n3"}
    mailbox.put(objects.agent("n1", 4))
    mailbox.put(objects.pod("p", "n1", 5))
    began = time.monotonic()
    assert len(mailbox.take(10)) == 2
    assert time.monotonic() - began < module_mailbox.GATHER_SECONDS


def test_reports_are_not_waited_for_when_something_is_due_already(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module_mailbox, "GATHER_SECONDS", 3600.0)
    mailbox, taken = Mailbox(), list[News]()
    mailbox.put(objects.agent("n1", 1))
    thread = threading.Thread(target=lambda: taken.extend(mailbox.take(0)), daemon=True)
    thread.start()
    thread.join(5)
    assert [news.name for news in taken if isinstance(news, Seen)] == ["n1"]
