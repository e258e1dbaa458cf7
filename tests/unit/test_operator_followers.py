"""Followers: what they tell of pods, whom they watch, and what happens to those nobody asks for any more."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes import client

from lbless_api.clusterip import PodWorkload, ServiceWorkload
from lbless_api.selectors import LabelSelector
from lbless_edge import listwatch
from lbless_edge.kube import Api
from lbless_edge.patience import Patience
from lbless_operator import followers as module
from lbless_operator.facts import Kind, PodFact, Scope, Seen
from lbless_operator.followers import Followers
from lbless_operator.interest import Interest
from lbless_operator.mailbox import Mailbox
from lbless_operator.restraint import Restraint
from unit.fakeapi import FakeApi


def asked(app: str, namespace: str = "shop") -> tuple[str, PodWorkload]:
    return namespace, PodWorkload(LabelSelector.parse({"matchLabels": {"app": app}}, "selector"))


def scope_of(*apps: str, namespace: str = "shop") -> Scope:
    return Scope(Kind.POD, namespace, Interest(asked(app) for app in apps))


def put_pod(fake: FakeApi, name: str, app: str, *, ready: bool = True) -> None:
    fake.put(
        name,
        metadata={"namespace": "shop", "labels": {"app": app}},
        spec={"nodeName": "n1"},
        status={"conditions": [{"type": "Ready", "status": str(ready)}]},
    )


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)
    return found


class Told:
    """What came out of the mailbox so far: the newest of each pod, and which collections are watched."""

    def __init__(self) -> None:
        self.pods: dict[str, Seen] = {}
        self.listed: list[tuple[Kind, str]] = []

    def is_ready(self, name: str) -> bool | None:
        fact = self.pods[name].fact if name in self.pods else None
        return fact.ready if isinstance(fact, PodFact) else None


@contextmanager
def following(fake: FakeApi) -> Iterator[tuple[Followers, Told]]:
    stop, mailbox, told = threading.Event(), Mailbox(), Told()

    def collect() -> None:
        while not stop.is_set():
            for news in mailbox.take(0.02):
                assert isinstance(news, Seen)
                told.pods[news.name] = news

    with fake.serve() as url:
        followers = Followers(
            Api(client.Configuration(host=url), read_timeout_seconds=10),
            mailbox,
            Restraint(logging.getLogger("lbless.operator")),
            lambda kind, namespace: told.listed.append((kind, namespace)),
            stop,
        )
        threads = [threading.Thread(target=work) for work in (followers.run, collect)]
        for thread in threads:
            thread.start()
        try:
            yield followers, told
        finally:
            stop.set()
            followers.close()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()


def follow(followers: Followers, scopes: set[Scope]) -> frozenset[tuple[Kind, str]]:
    new = followers.follow(scopes)
    followers.start()
    return new


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


def test_pods_that_somebody_asks_for_are_told_and_others_only_that_they_are_none_of_ours(fake: FakeApi):
    put_pod(fake, "ours", "web")
    put_pod(fake, "other", "db")
    with following(fake) as (followers, told):
        assert follow(followers, {scope_of("web")}) == {(Kind.POD, "shop")}
        wait_for(lambda: told.listed == [(Kind.POD, "shop")], "the LIST")
        wait_for(lambda: told.is_ready("ours"), "our pod")
        assert told.is_ready("other") is None
        put_pod(fake, "ours", "web", ready=False)
        wait_for(lambda: told.is_ready("ours") is False, "its change")
        put_pod(fake, "ours", "db")
        wait_for(lambda: told.pods["ours"].fact is None, "that it is ours no longer")
        put_pod(fake, "other", "web")
        wait_for(lambda: told.is_ready("other"), "that the other is ours now")
    path, query = fake.requests[0]
    assert path == "/api/v1/namespaces/shop/pods"
    assert query["fieldSelector"] == "status.phase!=Succeeded,status.phase!=Failed"


def test_a_deletion_is_told_at_its_own_version_also_of_a_pod_that_was_asked_for_later(fake: FakeApi):
    put_pod(fake, "p", "db")
    with following(fake) as (followers, told):
        follow(followers, {scope_of("web")})
        wait_for(lambda: fake.open_watches, "the watch")
        assert follow(followers, {scope_of("web", "db")}) == frozenset()
        fake.delete("p")
        wait_for(lambda: "p" in told.pods and told.pods["p"].version == fake.version, "the deletion")
        assert told.pods["p"].fact is None


def test_a_pod_recreated_while_the_watch_was_broken_is_not_deleted_with_its_predecessor(fake: FakeApi):
    put_pod(fake, "p", "web")
    with following(fake) as (followers, told):
        follow(followers, {scope_of("web")})
        wait_for(lambda: fake.open_watches, "the watch")
        with fake._changed:  # unseen: neither its deletion nor its creation is in the log of the server
            fake.version += 2
            metadata = fake.objects["p"]["metadata"]
            metadata |= {"uid": "another", "resourceVersion": str(fake.version)}
        fake.forget_history()
        fake.end_watches(cut=True)
        put_pod(fake, "later", "web")
        wait_for(lambda: told.is_ready("later"), "the LIST after 410")
        assert told.is_ready("p")


def test_a_collection_nobody_asks_for_any_more_is_watched_no_longer(fake: FakeApi):
    put_pod(fake, "p", "web")
    services = Scope(Kind.SLICE, "shop", Interest([("shop", ServiceWorkload("web"))]))
    with following(fake) as (followers, _):
        follow(followers, {scope_of("web"), services})
        wait_for(lambda: fake.open_watches == 2, "both watches")
        follow(followers, {services})

        def one_is_left() -> bool:
            fake.bookmark()  # the server sees who is gone when it sends something
            return fake.open_watches == 1

        wait_for(one_is_left, "the end of one")
        follow(followers, {services, scope_of("web")})
        wait_for(lambda: fake.open_watches == 2, "both again")


def test_what_cannot_be_read_is_ignored_and_the_rest_is_told(fake: FakeApi):
    fake.put("bad", metadata={"namespace": "shop"}, spec={"nodeName": 5})
    put_pod(fake, "good", "web")
    with following(fake) as (followers, told):
        follow(followers, {scope_of("web")})
        wait_for(lambda: told.is_ready("good"), "the good one")
        assert "bad" not in told.pods


def test_what_cannot_be_watched_is_said_once_for_all_and_listed_instead(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "RELIST_SECONDS", 0.1)
    fake.refusals = [(403, {"message": "pods is forbidden", "reason": "Forbidden"})] * 8
    with caplog.at_level(logging.INFO, "lbless.operator"), following(fake) as (followers, told):
        follow(followers, {scope_of("web"), scope_of("web", namespace="other")})
        wait_for(lambda: len(told.listed) > 4, "the LISTs instead")
        wait_for(lambda: fake.open_watches == 2, "the watches")
        wait_for(lambda: "Pods and endpoints are followed again." in caplog.text, "that it is over")
    said = [line for line in caplog.messages if "not followed: A permission is missing" in line]
    assert len(said) == 2  # its path is part of the sentence


def test_nothing_is_asked_for_before_it_is_started_and_what_never_was_can_be_ended(fake: FakeApi):
    with following(fake) as (followers, _):
        assert followers.follow({scope_of("web")}) == {(Kind.POD, "shop")}
        assert fake.requests == []


def in_namespaces(count: int) -> set[Scope]:
    return {scope_of("web", namespace=f"ns{number:02}") for number in range(count)}


def test_the_wait_for_a_turn_is_not_taken_for_slowness_of_the_server(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    first_seconds, patiences = 2.0, []

    def patience() -> Patience:
        patiences.append(Patience(first_seconds))
        return patiences[-1]

    monkeypatch.setattr(listwatch, "Patience", patience)
    monkeypatch.setattr(module, "LISTS_AT_ONCE", 1)
    fake.pages_take_seconds = 0.25
    with following(fake) as (followers, told):
        follow(followers, in_namespaces(8))
        wait_for(lambda: len(told.listed) == 8, "all LISTs")
    assert {one.seconds for one in patiences} == {first_seconds}


def test_lists_that_are_waited_for_are_named_once_and_that_they_came_is_said(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(module, "SAY_SECONDS", 0.1)
    fake.pages_take_seconds = 1.0
    with caplog.at_level(logging.INFO, "lbless.operator"), following(fake) as (followers, told):
        follow(followers, in_namespaces(12))
        wait_for(lambda: caplog.messages, "a line about it")
        fake.pages_take_seconds = 0.0
        wait_for(lambda: len(told.listed) == 12, "all LISTs")
        wait_for(lambda: len(caplog.messages) == 2, "that it is over")
    late, settled = caplog.messages
    names = r"pods in ns\d\d(, pods in ns\d\d){7} and \d more"  # some may have come before
    assert re.fullmatch(f"Pods or endpoints are not followed: LISTs of {names} have taken .*", late)
    assert settled == "Pods and endpoints are followed again."
