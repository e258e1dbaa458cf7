"""The edges of the program: its options, its probe, and the Events that it posts."""

from __future__ import annotations

import logging
import queue
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from lbless_edge.kube import ApiError
from lbless_edge.metrics import NumbersCollector
from lbless_edge.process import Fatal
from lbless_operator import liveness
from lbless_operator.events import Events
from lbless_operator.metrics import HELP
from lbless_operator.notices import Notice, NoticeReason, Subject
from lbless_operator.restraint import Restraint


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_probe_says_why_the_process_should_be_restarted():
    port, sickness = free_port(), [""]
    liveness.serve(port, lambda: sickness[0])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert answer.read() == b"ok\n"
    sickness[0] = "the reconciler has not come round for 91 s"
    with pytest.raises(urllib.error.HTTPError) as info:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
    assert info.value.code == 503
    assert info.value.read() == b"the reconciler has not come round for 91 s\n"
    info.value.close()


def test_a_port_that_is_taken_is_one_sentence():
    sentence = r"\(Address already in use\): choose another --liveness-port\."
    with socket.create_server(("", 0)) as taken, pytest.raises(Fatal, match=sentence):
        liveness.serve(taken.getsockname()[1], str)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--lease-seconds", "2", "2 is no length of a Lease: use 3 to 3600 seconds"),
        ("--lease-seconds", "soon", "soon is no length of a Lease"),
        ("--liveness-port", "70000", "70000 is no port: use 1 to 65535, or 0 for none"),
        ("--namespace", "../etc", "'../etc' is not a Kubernetes name"),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(option, value, complaint):
    command = [sys.executable, "-m", "lbless_operator", option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_every_number_that_is_served_is_explained():
    numbers = dict.fromkeys(HELP, 1.0)
    assert {metric.name for metric in NumbersCollector(HELP, lambda: numbers).collect()} == set(HELP)


class Poster:
    """Takes Events, or refuses them; the real API server is in tests/cluster."""

    def __init__(self) -> None:
        self.posted: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.refuses = False
        self.refused = threading.Event()

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.refuses:
            self.refuses = False
            self.refused.set()
            raise ApiError(403, "events is forbidden")
        self.posted.put((path, body))
        return body


@pytest.fixture
def posting():
    poster, stop = Poster(), threading.Event()
    events = Events(poster, "host_1", Restraint(logging.getLogger("test")), stop)  # type: ignore[arg-type] # the one method that it calls
    thread = threading.Thread(target=events.run)
    thread.start()
    yield poster, events
    stop.set()
    events.close()
    thread.join(10)
    assert not thread.is_alive()


WEB = Subject("lbless.dev/v1alpha1", "ClusterIP", "shop", "w" * 253, "uid-web")


def test_an_event_is_about_its_object_and_within_the_api_servers_limits(posting):
    poster, events = posting
    events.post(Notice(WEB, NoticeReason.MOVED, "ä" * 2000))
    path, body = poster.posted.get(timeout=10)
    assert path == "/apis/events.k8s.io/v1/namespaces/shop/events"
    assert len(body["note"].encode()) <= 1024
    assert len(body["metadata"]["name"]) <= 253
    assert (body["type"], body["reason"], body["regarding"]["uid"]) == ("Normal", "Moved", "uid-web")


def test_an_event_about_a_node_is_in_the_namespace_where_kubectl_looks(posting):
    poster, events = posting
    events.post(Notice(Subject("v1", "Node", "", "n1", "uid"), NoticeReason.INVALID_WEIGHT, "note"))
    path, body = poster.posted.get(timeout=10)
    assert path == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert body["type"] == "Warning"
    assert "namespace" not in body["regarding"]


def test_an_event_that_is_refused_is_dropped_and_the_next_is_posted(posting):
    poster, events = posting
    poster.refuses = True
    events.post(Notice(WEB, NoticeReason.MOVED, "lost"))
    assert poster.refused.wait(10)
    events.post(Notice(WEB, NoticeReason.MOVED, "kept"))
    assert poster.posted.get(timeout=10)[1]["note"] == "kept"
    assert poster.posted.empty()
