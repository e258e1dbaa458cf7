"""The edge against a real API server: what the unit tests' fake is believed to do, the real one does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from itertools import count

import pytest

from cluster.syncing import wait_for
from lab import claim
from lab.controlplane import ControlPlane
from lab.lan import Lan
from lab.progress import Silence
from lbless_edge.backoff import Backoff
from lbless_edge.kube import LEASES, NODES, Api, ApiError, Object, connect, in_namespace, named
from lbless_edge.listwatch import ListWatch

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

CONFIGMAPS = "/api/v1/configmaps"
_numbers = count(1)


class Mirror:
    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.lists = 0
        self.told = 0

    def changed(self, obj: Object) -> None:
        self.told += 1
        self.names[obj["metadata"]["uid"]] = obj["metadata"]["name"]

    def removed(self, uid: str) -> None:
        self.told += 1
        del self.names[uid]

    def listed(self, present: Set[str]) -> None:
        assert present == self.names.keys()
        self.lists += 1


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """Not the one that the other modules share: this one is stopped and started."""
    with Lan(claim.unique("lbedge"), nodes=0) as lan, ControlPlane(lan, progress=Silence()) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Api:
    return connect(str(plane.kubeconfig))


@pytest.fixture
def label() -> str:
    """A label of this test's own ConfigMaps."""
    return f"edge-{next(_numbers)}"


def make(api: Api, label: str, name: str) -> Object:
    body = {"metadata": {"name": name, "labels": {"edge": label}}}
    return api.create(in_namespace(CONFIGMAPS, "default"), body)


def remove(api: Api, name: str) -> None:
    api.delete(in_namespace(CONFIGMAPS, "default", name))


@contextmanager
def following(api: Api, label: str, mirror: Mirror, **options: int) -> Iterator[ListWatch]:
    stop = threading.Event()
    listwatch = ListWatch(
        api,
        CONFIGMAPS,
        mirror,
        stop,
        label_selector=f"edge={label}",
        backoff=Backoff(0.05, 0.5),
        **options,  # type: ignore[arg-type]  # page alone
    )
    thread = threading.Thread(target=listwatch.run, daemon=True)
    thread.start()
    try:
        yield listwatch
    finally:
        stop.set()
        began = time.monotonic()
        listwatch.cut()
        thread.join(10)
        assert not thread.is_alive(), "it does not stop"
        assert time.monotonic() - began < 1, "it does not stop at once while it waits for an event over TLS"


def test_a_collection_is_followed_page_by_page_and_event_by_event(api: Api, label: str) -> None:
    for n in range(7):
        make(api, label, f"{label}-{n}")
    mirror = Mirror()
    with following(api, label, mirror, page=3):
        wait_for("the LIST", lambda: mirror.lists)
        assert len(mirror.names) == 7
        began = time.monotonic()
        make(api, label, f"{label}-new")
        wait_for("the event", lambda: f"{label}-new" in mirror.names.values())
        assert time.monotonic() - began < 0.5, "the stream is buffered"
        remove(api, f"{label}-0")
        wait_for("the deletion", lambda: f"{label}-0" not in mirror.names.values())
        assert mirror.lists == 1


def test_an_old_version_is_gone_and_what_was_missed_is_found_by_a_new_list(
    plane: ControlPlane, api: Api, label: str
) -> None:
    for n in range(3):
        make(api, label, f"{label}-{n}")
    mirror = Mirror()
    version = [v for _, v in api.list_pages(CONFIGMAPS)][-1]
    with following(api, label, mirror) as listwatch:
        wait_for("the LIST", lambda: mirror.lists)
        plane.stop()
        try:
            wait_for("the sentence", lambda: listwatch.waits_for)
            assert listwatch.waits_for.startswith(f"The API server {api.server} cannot be reached: ")
            assert len(mirror.names) == 3
        finally:
            plane.start()  # it remembers no event from before
        wait_for("the return", lambda: not listwatch.waits_for)
        remove(api, f"{label}-0")
        wait_for("the deletion", lambda: len(mirror.names) == 2)
    make(api, label, f"{label}-3")
    with pytest.raises(ApiError) as raised:
        for _ in api.watch(CONFIGMAPS, str(int(version) // 2), timeout_seconds=5):
            pass
    assert (raised.value.status, raised.value.reason) == (410, "Expired")


def test_a_watch_ends_when_its_time_is_over(api: Api, label: str) -> None:
    version = [v for _, v in api.list_pages(CONFIGMAPS)][-1]
    began = time.monotonic()
    assert {
        e.kind for e in api.watch(CONFIGMAPS, version, timeout_seconds=1, labelSelector=f"edge={label}")
    } <= {"BOOKMARK"}
    assert time.monotonic() - began < 5


def test_a_list_is_whole_also_where_it_comes_in_pages(api: Api, label: str) -> None:
    for n in range(5):
        make(api, label, f"{label}-{n}")
    pages = list(api.list_pages(CONFIGMAPS, limit=2, labelSelector=f"edge={label}"))
    assert [len(items) for items, _ in pages] == [2, 2, 1]
    assert len({version for _, version in pages}) == 1


def test_an_object_is_created_once_replaced_in_its_newest_version_and_deleted(api: Api, label: str) -> None:
    path = in_namespace(LEASES, "default")
    body = {"metadata": {"name": label}, "spec": {"holderIdentity": "a"}}
    made = api.create(path, body)
    with pytest.raises(ApiError) as raised:
        api.create(path, body)
    assert (raised.value.status, raised.value.reason) == (409, "AlreadyExists")
    taken = api.replace(f"{path}/{label}", {**made, "spec": {"holderIdentity": "b"}})
    with pytest.raises(ApiError) as raised:
        api.replace(f"{path}/{label}", {**made, "spec": {"holderIdentity": "c"}})
    assert (raised.value.status, raised.value.reason) == (409, "Conflict")
    assert api.get(f"{path}/{label}")["metadata"]["resourceVersion"] == taken["metadata"]["resourceVersion"]
    api.delete(f"{path}/{label}")
    with pytest.raises(ApiError) as raised:
        api.get(f"{path}/{label}")
    assert (raised.value.status, raised.value.reason) == (404, "NotFound")


def test_applying_the_same_twice_writes_once(api: Api, label: str) -> None:
    path = in_namespace(CONFIGMAPS, "default", label)
    head = {"apiVersion": "v1", "kind": "ConfigMap"}
    body = {**head, "metadata": {"name": label, "labels": {"edge": label}}, "data": {"a": "1"}}
    first = api.apply(path, body, field_manager="test")
    again = api.apply(path, body, field_manager="test")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    other = api.apply(path, {**body, "data": {"b": "2"}}, field_manager="test")
    assert other["data"] == {"b": "2"}, "what is no longer applied is removed"


def test_a_resource_that_is_not_served_is_told_from_an_object_that_is_not_there(api: Api) -> None:
    with pytest.raises(ApiError) as raised:
        api.get("/apis/lbless.dev/v1alpha1/nothings")
    assert (raised.value.status, raised.value.reason) == (404, "")
    with pytest.raises(ApiError) as raised:
        api.get(named(NODES, "no-such-node"))
    assert (raised.value.status, raised.value.reason) == (404, "NotFound")
