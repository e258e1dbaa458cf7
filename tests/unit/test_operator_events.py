"""What is posted is within the limits: a burst of different Events, and none of them twice."""

import logging
import threading
from typing import cast

from lbless_edge.kube import Api, Object
from lbless_operator.events import Events
from lbless_operator.notices import BURST, Notice, NoticeReason, Subject
from lbless_operator.restraint import Restraint


class Poster:
    """Stands in for the API server, which has tests of its own: only what it is asked to create counts."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def create(self, _path: str, body: Object) -> Object:
        self.notes.append(str(body["note"]))
        return body


def test_a_burst_is_cut_and_a_repetition_is_not_posted() -> None:
    poster = Poster()
    events = Events(cast(Api, poster), "replica-1", Restraint(logging.getLogger("test")), threading.Event())
    one = Subject("lbless.dev/v1alpha1", "ClusterIP", "default", "web", "uid-1")
    other = Subject("lbless.dev/v1alpha1", "ClusterIP", "default", "api", "uid-2")
    for number in range(BURST + 5):
        for _ in range(2):
            events.post(Notice(one, NoticeReason.MOVED, f"move {number}"))
    events.post(Notice(other, NoticeReason.ASSIGNED, "256 buckets"))
    events.close()
    events.run()
    assert poster.notes == [*(f"move {number}" for number in range(BURST)), "256 buckets"]
