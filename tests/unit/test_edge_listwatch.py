from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from kubernetes import client

from lbless_edge import listwatch as module
from lbless_edge.backoff import Backoff
from lbless_edge.kube import CLUSTERIPS, Api, Object, Watch
from lbless_edge.listwatch import ListWatch
from lbless_edge.patience import Patience
from unit.fakeapi import FakeApi

DEADLINE_SECONDS = 10


class Mirror:
    """A listener that keeps the collection as it was told, and what was told in which order."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.told: list[str] = []
        self.lists = 0

    def changed(self, obj: Object) -> None:
        self.objects[obj["metadata"]["uid"]] = obj
        self.told.append(f"changed {obj['metadata']['name']}")

    def removed(self, uid: str) -> None:
        self.told.append(f"removed {self.objects.pop(uid)['metadata']['name']}")

    def listed(self, present: Set[str]) -> None:
        assert present == self.objects.keys()
        self.lists += 1
        self.told.append("listed")

    @property
    def names(self) -> set[str]:
        return {obj["metadata"]["name"] for obj in self.objects.values()}


class Waits(Api):
    """An Api that keeps how long it was told to wait for each answer."""

    def __init__(self, url: str) -> None:
        super().__init__(client.Configuration(host=url))
        self.for_lists: list[float] = []
        self.for_watches: list[float] = []

    def list_pages(self, path: str, **query: Any) -> Iterator[tuple[list[Object], str]]:
        self.for_lists.append(query["read_timeout_seconds"])
        return super().list_pages(path, **query)

    def watch(self, path: str, resource_version: str, **query: Any) -> Watch:
        self.for_watches.append(query["read_timeout_seconds"])
        return super().watch(path, resource_version, **query)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


@pytest.fixture
def url(fake: FakeApi) -> Iterator[str]:
    with fake.serve() as url:
        yield url


@contextmanager
def following(
    server: str | Api,
    mirror: Mirror,
    *,
    page: int = 500,
    silence_seconds: float = 75,
    backoff: Backoff | None = None,
    turn: AbstractContextManager[object] | None = None,
) -> Iterator[ListWatch]:
    stop = threading.Event()
    api = Api(client.Configuration(host=server)) if isinstance(server, str) else server
    quick = backoff or Backoff(base_seconds=0.01, cap_seconds=0.05)
    listwatch = ListWatch(
        api, CLUSTERIPS, mirror, stop, page=page, silence_seconds=silence_seconds, backoff=quick, turn=turn
    )
    thread = threading.Thread(target=listwatch.run, daemon=True)
    thread.start()
    try:
        yield listwatch
    finally:
        stop.set()
        began = time.monotonic()
        listwatch.cut()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "it does not stop"
        assert time.monotonic() - began < 1, "it does not stop at once"


def test_what_exists_is_told_page_by_page_and_then_that_the_list_is_complete(fake: FakeApi, url: str) -> None:
    for n in range(7):
        fake.put(f"a{n}")
    mirror = Mirror()
    with following(url, mirror, page=3):
        wait_for(lambda: mirror.lists, "the LIST")
        assert mirror.told == [*(f"changed a{n}" for n in range(7)), "listed"]
        assert fake.count(watch=False) == 3


def test_changes_and_deletions_follow_at_once(fake: FakeApi, url: str) -> None:
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        began = time.monotonic()
        fake.put("a")
        fake.put("b")
        fake.delete("a")
        wait_for(lambda: mirror.told == ["listed", "changed a", "changed b", "removed a"], "the events")
        assert time.monotonic() - began < 0.5, "the stream is buffered"


def test_after_a_cut_in_the_middle_of_an_event_it_watches_on_from_the_last_whole_one(
    fake: FakeApi, url: str
) -> None:
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.put("a")
        wait_for(lambda: "a" in mirror.names, "the event")
        fake.send_raw(b'{"type":"ADDED","object":{"metadata":{"name":"half')
        fake.end_watches(cut=True)
        fake.put("b")
        wait_for(lambda: "b" in mirror.names, "the event after the cut")
        assert mirror.told == ["listed", "changed a", "changed b"], "a cut is no reason to LIST"


def test_an_event_of_a_megabyte_that_comes_in_many_chunks_is_one_event(fake: FakeApi, url: str) -> None:
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        line = (
            b'{"type":"ADDED","object":{"metadata":{"name":"big","uid":"u","resourceVersion":"9"},"x":"%s"}}\n'
            % (b"x" * 1_000_000)
        )
        for start in range(0, len(line), 4096):
            fake.send_raw(line[start : start + 4096])
        wait_for(lambda: "big" in mirror.names, "the big event")
        assert len(mirror.objects["u"]["x"]) == 1_000_000


def test_a_watch_that_the_server_ends_is_taken_up_where_it_ended(fake: FakeApi, url: str) -> None:
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.bookmark()
        fake.put("a")
        fake.end_watches(cut=False)
        fake.put("b")
        wait_for(lambda: mirror.names == {"a", "b"}, "both")
        assert mirror.lists == 1


def test_a_bookmark_moves_the_version_that_the_next_watch_starts_from(fake: FakeApi, url: str) -> None:
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.bookmark()
        wait_for(lambda: fake.open_watches, "the watch")
        fake.end_watches(cut=False)
        wait_for(lambda: fake.count(watch=True) == 2 and fake.open_watches, "the second watch")
        assert fake.requests[-1][1]["resourceVersion"] == str(fake.version)


def test_deletions_during_a_gap_too_long_for_the_server_are_found_by_comparison(
    fake: FakeApi, url: str
) -> None:
    for name in "abc":
        fake.put(name)
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.silence_watches()
        fake.delete("a")
        fake.put("b", changed=True)
        fake.delete("c")
        fake.put("c")  # the same name, another object
        fake.forget_history()
        fake.end_watches(cut=True)
        wait_for(lambda: mirror.lists == 2, "the second LIST")
        assert mirror.names == {"b", "c"}
        assert {o["metadata"]["uid"] for o in fake.objects.values()} == set(mirror.objects)
        assert mirror.told.count("changed b") == 2
        assert sorted(mirror.told[-5:-1]) == ["changed b", "changed c", "removed a", "removed c"]


def test_a_second_list_tells_nothing_of_what_did_not_change(fake: FakeApi, url: str) -> None:
    fake.put("a")
    mirror = Mirror()
    with following(url, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.bookmark()
        fake.forget_history()
        fake.send_raw(b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}\n')
        wait_for(lambda: mirror.lists == 2, "the second LIST")
        assert mirror.told == ["changed a", "listed", "listed"]


def test_a_list_that_breaks_off_between_pages_deletes_nothing(fake: FakeApi, url: str) -> None:
    for n in range(4):
        fake.put(f"a{n}")
    mirror = Mirror()
    with following(url, mirror, page=2):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.silence_watches()
        fake.delete("a3")
        fake.forget_history()
        # The watch is refused as too old; then the first page comes, and the second one never.
        broken = [(200, {"metadata": {"resourceVersion": "99", "continue": "2"}, "items": []}), (500, {})]
        fake.refusals = [(410, {"message": "too old", "reason": "Expired"}), *broken, *broken]
        fake.end_watches(cut=True)
        wait_for(lambda: not fake.refusals, "the broken LISTs")
        wait_for(lambda: mirror.lists == 2, "a whole LIST")
        assert [t for t in mirror.told if t.startswith("removed")] == ["removed a3"]
        assert mirror.told[-1] == "listed"


def test_a_connection_that_is_half_open_is_noticed_by_its_silence(fake: FakeApi, url: str) -> None:
    mirror = Mirror()
    fake.silent = True
    with following(url, mirror, silence_seconds=0.3):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.put("a")
        fake.silent = False
        wait_for(lambda: "a" in mirror.names, "the object, by a new connection")
        assert mirror.lists == 1
        assert fake.count(watch=True) >= 2


def test_a_watch_that_opens_again_is_waited_for_no_longer_than_before_the_server_stalled(
    fake: FakeApi, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Patience", lambda: Patience(first_seconds=0.1))
    api, mirror = Waits(url), Mirror()
    with following(api, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.refusals = [(-1, "")] * 3
        fake.end_watches(cut=True)
        wait_for(lambda: len(api.for_watches) == 5 and fake.open_watches, "the watch after the stall")
        fake.end_watches(cut=True)
        wait_for(lambda: len(api.for_watches) == 6, "the next watch")
    assert api.for_watches[1:5] == pytest.approx([0.1, 0.2, 0.4, 0.8], rel=0.5)
    assert api.for_watches[5] < api.for_watches[4] / 2
    assert mirror.lists == 1, "the watch went on where it was: no LIST has taught it anything"


def test_a_server_that_is_slow_to_list_is_given_more_time_however_quickly_it_opens_watches(
    fake: FakeApi, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Patience", lambda: Patience(first_seconds=0.1))
    api, mirror = Waits(url), Mirror()
    with following(api, mirror):
        wait_for(lambda: fake.open_watches, "the watch")
        fake.pages_take_seconds = 0.5
        fake.silence_watches()
        fake.put("a")
        for lists in (2, 3):
            fake.forget_history()
            fake.end_watches(cut=True)
            wait_for(lambda: mirror.lists == lists and fake.open_watches, "a slow LIST")  # noqa: B023
            fake.bookmark()
    assert api.for_lists[1:5] == pytest.approx([0.1, 0.2, 0.4, 0.8], rel=0.5)
    assert len(api.for_lists) == 6, "the second LIST was given its time at once"


def test_a_watch_that_was_open_for_long_is_taken_up_at_once_whatever_failed_before_it(
    fake: FakeApi, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WELL_SECONDS", 0.1)
    fake.silent = True
    backoff = Backoff(base_seconds=1e-6, cap_seconds=3600)
    for _ in range(40):
        backoff.failed()
    with following(url, Mirror(), silence_seconds=0.2, backoff=backoff):
        wait_for(lambda: fake.count(watch=True) == 3, "two watches more, both silent")


def test_one_that_is_ended_while_it_waits_for_its_turn_asks_for_nothing_any_more(
    fake: FakeApi, url: str
) -> None:
    turn, stop = threading.Lock(), threading.Event()
    listwatch = ListWatch(Api(client.Configuration(host=url)), CLUSTERIPS, Mirror(), stop, turn=turn)
    thread = threading.Thread(target=listwatch.run, daemon=True)
    with turn:
        thread.start()
        wait_for(lambda: listwatch.lists_for_seconds, "its wait")
        stop.set()
        listwatch.cut()
        assert fake.requests == []
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert fake.requests == []


def test_a_list_is_under_way_from_the_wait_for_its_turn_to_its_end(fake: FakeApi, url: str) -> None:
    turn, mirror = threading.Lock(), Mirror()
    with turn, following(url, mirror, turn=turn) as listwatch:
        wait_for(lambda: listwatch.lists_for_seconds, "its wait")
        assert not mirror.lists
        turn.release()
        wait_for(lambda: fake.open_watches, "the watch")
        assert listwatch.lists_for_seconds == 0
        turn.acquire()


def test_errors_are_tried_again_and_each_new_sentence_is_logged_once(
    fake: FakeApi, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake.refusals = [
        *[(404, b"404 page not found\n")] * 5,
        *[(403, {"reason": "Forbidden", "message": 'User "u" cannot list resource "clusterips"'})] * 5,
        *[(500, {"message": "etcd is away"})] * 5,
        *[(401, {"message": "Unauthorized"})] * 5,
        *[(0, "")] * 3,
        (200, b"this is not JSON"),
        (200, b"[]"),
    ]
    mirror = Mirror()
    with following(url, mirror) as listwatch:
        wait_for(lambda: mirror.lists, "the LIST")
        wait_for(lambda: not listwatch.waits_for, "that nothing is missing")
        assert not fake.refusals
    lines = [record.getMessage() for record in caplog.records if record.name == "lbless.watch"]
    assert lines == [
        "The CustomResourceDefinition clusterips.lbless.dev is not installed: kubectl apply -f crds/",
        f"A permission is missing, grant it (helm/lbless/rbac/): {url} refused GET {CLUSTERIPS} with 403: "
        'User "u" cannot list resource "clusterips"',
        f"{url} refused GET {CLUSTERIPS} with 500: etcd is away",
        f"{url} does not accept the credentials: renew the token or certificate, or correct $KUBECONFIG.",
        lines[4],
        f"The answer to GET {CLUSTERIPS} from {url} broke off: Expecting value: line 1 column 1 (char 0).",
        f"The answer to GET {CLUSTERIPS} from {url} is not a JSON object.",
        f"{url} answers for {CLUSTERIPS} again.",
    ]
    assert lines[4].startswith(f"The API server {url} cannot be reached: Remote end closed connection")


def test_a_server_that_asks_for_time_gets_it(fake: FakeApi, url: str) -> None:
    fake.refusals = [(429, {"message": "too many requests"})]
    mirror = Mirror()
    began = time.monotonic()
    with following(url, mirror):
        wait_for(lambda: mirror.lists, "the LIST")
    assert time.monotonic() - began >= 1


def test_a_watch_that_may_not_be_opened_keeps_its_sentence_though_the_list_works(
    fake: FakeApi, url: str
) -> None:
    refused = (403, {"message": "cannot watch resource"})
    listed = (200, {"metadata": {"resourceVersion": "5"}, "items": []})
    fake.refusals = [listed, refused] * 4
    mirror = Mirror()
    sentences = set()
    with following(url, mirror) as listwatch:
        wait_for(lambda: mirror.lists, "the first LIST")
        wait_for(lambda: listwatch.waits_for, "a sentence")
        while fake.refusals:
            sentences.add(listwatch.waits_for)
        wait_for(lambda: not listwatch.waits_for, "the watch")
    assert len(sentences) == 1
    assert "cannot watch resource" in sentences.pop()


def test_an_unreachable_server_is_waited_for_and_nothing_is_told() -> None:
    mirror = Mirror()
    with following("http://127.0.0.1:1", mirror) as listwatch:
        wait_for(lambda: listwatch.waits_for, "a sentence")
        assert (
            listwatch.waits_for == "The API server http://127.0.0.1:1 cannot be reached: Connection refused."
        )
        assert mirror.told == []


def test_a_watch_ended_at_once_again_and_again_does_not_spin(fake: FakeApi, url: str) -> None:
    mirror = Mirror()
    fake.refusals = [(200, {"metadata": {"resourceVersion": "5"}, "items": []}), *[(200, b"")] * 500]
    with following(url, mirror):
        wait_for(lambda: mirror.lists, "the LIST")
        before = fake.count(watch=True)
        time.sleep(0.5)
        assert fake.count(watch=True) - before < 200, "back-off of at most 0.05 s here: about 20 expected"


def test_backoff_doubles_up_to_its_cap_and_begins_anew_after_success() -> None:
    backoff = Backoff(base_seconds=1, cap_seconds=8)
    for bound in (1, 2, 4, 8, 8, 8):
        assert 0 <= backoff.failed() <= bound
    assert 30 <= backoff.failed(at_least_seconds=30) <= 38
    backoff.succeeded()
    assert backoff.failed() <= 1
    for _ in range(5000):
        backoff.failed()


def test_everything_is_told_again_where_the_listener_asks_for_it(
    fake: FakeApi, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake.put("a")
    fake.put("b")
    mirror = Mirror()
    with following(url, mirror) as listwatch:
        for lists in range(1, 6):
            wait_for(lambda: mirror.lists == lists and fake.open_watches, "the watch")  # noqa: B023
            mirror.told.clear()
            listwatch.again()
            wait_for(lambda: mirror.told == ["changed a", "changed b", "listed"], "all of it again")
        wait_for(lambda: fake.open_watches, "the watch")
        fake.silence_watches()
        fake.delete("a")
        mirror.told.clear()
        listwatch.again()
        wait_for(lambda: mirror.told == ["changed b", "removed a", "listed"], "the deletion")
    assert caplog.text == "", "a watch that was ended on purpose is no news"


def test_a_listener_may_ask_for_everything_again_while_it_is_told(fake: FakeApi, url: str) -> None:
    fake.put("a")
    mirror = Mirror()
    with following(url, mirror) as listwatch:
        wait_for(lambda: mirror.lists, "the LIST")
        changed = mirror.changed

        def ask_again(obj: Object) -> None:
            changed(obj)
            if obj["metadata"]["name"] == "b":
                listwatch.again()

        mirror.changed = ask_again  # type: ignore[method-assign]  # for the next event
        fake.put("b")
        wait_for(lambda: mirror.lists >= 3, "a LIST after that, and one after the next")


def test_what_a_listener_raises_ends_the_listwatch(fake: FakeApi, url: str) -> None:
    class Full(Mirror):
        def changed(self, obj: Object) -> None:
            raise OSError(f"the disk is full at {obj['metadata']['name']}")

    fake.put("a")
    listwatch = ListWatch(Api(client.Configuration(host=url)), CLUSTERIPS, Full(), threading.Event())
    with pytest.raises(OSError, match="the disk is full at a"):
        listwatch.run()
