"""The threads that write statuses: several at a time, as most of a write is waiting for the API server.

Owns the request, and the last look at the Lease before it. What is written is decided by the reconciler, which
gives no second write of a ClusterIP before it has the answer to the first.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass

from lbless_api import API_VERSION
from lbless_api.fields import Invalid
from lbless_edge.kube import CLUSTERIPS, Api, ApiError, in_namespace
from lbless_operator.facts import ClusterIPFact, Kind, parse
from lbless_operator.leader import Leader, NotLeading
from lbless_operator.mailbox import Mailbox, Written
from lbless_operator.status import Status, render_status

FIELD_MANAGER = "lbless-operator"
COUNT = 4
"""Writes at a time; more would only wait for each other in the API server."""


@dataclass(frozen=True, slots=True)
class Write:
    """A status to be written over what was known when it was decided."""

    fact: ClusterIPFact
    status: Status


class Writers:
    """Takes writes from one thread; their answers go into the mailbox. `run` is for COUNT threads."""

    def __init__(self, api: Api, leader: Leader, mailbox: Mailbox) -> None:
        self._api = api
        self._leader = leader
        self._mailbox = mailbox
        self._waiting: queue.SimpleQueue[Write | None] = queue.SimpleQueue()

    def submit(self, write: Write) -> None:
        """Write soon."""
        self._waiting.put(write)

    def close(self) -> None:
        """End every `run`, after what waits already."""
        for _ in range(COUNT):
            self._waiting.put(None)

    def run(self) -> None:
        """Work until closed."""
        while (write := self._waiting.get()) is not None:
            self._mailbox.put(self.perform(write))

    def perform(self, write: Write) -> Written:
        """Make the request and return what came of it."""
        identity = write.fact.identity
        body = {
            "apiVersion": API_VERSION,
            "kind": "ClusterIP",
            # The version that the decision was made on: had anything changed since, the server would
            # refuse it, also where this process slept between its check of the Lease and the request.
            "metadata": {
                "name": identity.name,
                "namespace": identity.namespace,
                "uid": identity.uid,
                "resourceVersion": write.fact.version,
            },
            "status": render_status(write.status),
        }
        path = in_namespace(CLUSTERIPS, identity.namespace, identity.name) + "/status"
        try:
            self._leader.check()
            answer = self._api.apply(path, body, field_manager=FIELD_MANAGER)
            return Written(identity.key, parse(Kind.CLUSTERIP, answer))
        except (ApiError, NotLeading) as error:
            return Written(identity.key, error=error)
        except Invalid as error:
            message = f"The answer to a write of ClusterIP {identity.key} cannot be read: {error}"
            return Written(identity.key, error=ApiError(0, message))
