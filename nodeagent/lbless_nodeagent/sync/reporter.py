"""The node's ClusterIPNode: created under the Node, and its status written when it changed, never else.

Owns the writing and its pace. What is written is `report`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from lbless_api import API_VERSION
from lbless_api.node import render_node_status
from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import CLUSTERIPNODES, Api, ApiError, Object, named
from lbless_nodeagent.sync.ownnode import OwnNode
from lbless_nodeagent.sync.report import Report, without_figures

FIELD_MANAGER = "lbless-sync"
LOOK_SECONDS = 1.0
PACE_SECONDS = 0.25
"""At most so often; the first change after a pause is written at once."""
SETTLE_SECONDS = 0.08
"""dataplane programs most changes within it: then one write tells the end instead of two the way."""
FIGURES_SECONDS = 10.0
"""How much is left to drain is told at most so often, unless something else is to be told."""
REFRESH_SECONDS = 60.0
"""Applied anew so often, should somebody have deleted or edited it. Where nothing differs, the API server
writes nothing: the resource version stays."""

_log = logging.getLogger("lbless.sync")


class Reporter:
    """Writes what `current` returns (None: nothing can be said yet); `run` in a thread of its own."""

    def __init__(
        self,
        api: Api,
        node: OwnNode,
        current: Callable[[], Report | None],
        wake: threading.Event,
        stop: threading.Event,
    ) -> None:
        """`wake` is set by whoever changes what `current` returns."""
        self.writes = 0
        self._api = api
        self._path = named(CLUSTERIPNODES, node.name)
        self._node = node
        self._current = current
        self._stop = stop
        self._wake = wake
        self._written: tuple[str, Report] | None = None
        self._written_at = 0.0
        self._owner = ""  # the Node UID that the object was last made to belong to
        self._ready: tuple[bool, str] | None = None  # Ready as last written, and since when
        self._backoff = Backoff()
        self._fault = ""

    def run(self) -> None:
        """Write each change at once, but not faster than the pace, until the stop event is set."""
        while not self._stop.is_set():
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            self._stop.wait(self._report())

    def _report(self) -> float:
        """Write what is new, if anything is, and return the seconds to wait before the next."""
        report = self._settled()
        owner = self._node.uid
        if not owner or report is None:
            return 0
        if time.monotonic() - self._written_at < self._lasting_seconds(owner, report):
            return 0
        if self._written == (owner, report):
            self._owner = ""
        try:
            self._write(owner, report)
        except ApiError as error:
            return self._failed(error)
        self._written, self._written_at = (owner, report), time.monotonic()
        self._backoff.succeeded()
        if self._fault:
            _log.info("The report of Node %s is written again.", self._node.name)
            self._fault = ""
        return PACE_SECONDS

    def _lasting_seconds(self, owner: str, report: Report) -> float:
        """How long what was written will do before this is written."""
        if self._written == (owner, report):
            return REFRESH_SECONDS
        if self._written is None or self._written[0] != owner:
            return 0
        told = without_figures(self._written[1]) == without_figures(report)
        return FIGURES_SECONDS if told else 0

    def _settled(self) -> Report | None:
        """What is to be said; where something began to wait just now, what became of it."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            report = self._current()
            left_seconds = deadline - time.monotonic()
            if report is None or left_seconds <= 0 or not _begins_to_wait(self._written, report):
                return report
            self._wake.wait(left_seconds)
            self._wake.clear()

    def _write(self, owner: str, report: Report) -> None:
        head: Object = {"apiVersion": API_VERSION, "kind": "ClusterIPNode"}
        if self._owner != owner:
            metadata = {"name": self._node.name, "ownerReferences": [owner_reference(self._node.name, owner)]}
            made = self._api.apply(self._path, {**head, "metadata": metadata}, field_manager=FIELD_MANAGER)
            self._owner = owner
            self._ready = _ready_of(made)
        since = self._ready[1] if self._ready and self._ready[0] == report.ready else _now()
        status = {**render_node_status(report.status), "conditions": [_condition(report, since)]}
        body = {**head, "metadata": {"name": self._node.name}, "status": status}
        self._api.apply(f"{self._path}/status", body, field_manager=FIELD_MANAGER)
        self._ready = (report.ready, since)
        self.writes += 1

    def _failed(self, error: ApiError) -> float:
        if error.status == 404:
            self._owner = ""  # somebody deleted it
        fault = explain(error, self._path, self._api.server)
        if fault != self._fault and not self._stop.is_set():
            _log.warning("The report of Node %s cannot be written: %s", self._node.name, fault)
        self._fault = fault
        self._wake.set()
        return self._backoff.failed(error.retry_after_seconds)


def owner_reference(node: str, uid: str) -> Object:
    """What makes an object go away with its Node."""
    return {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}


def _begins_to_wait(written: tuple[str, Report] | None, report: Report) -> bool:
    return written is not None and not set(report.status.pending) <= set(written[1].status.pending)


def _condition(report: Report, since: str) -> Object:
    return {
        "type": "Ready",
        "status": "True" if report.ready else "False",
        "reason": str(report.reason),
        "message": report.message,
        "lastTransitionTime": since,
    }


def _ready_of(obj: Object) -> tuple[bool, str] | None:
    """Ready as the API has it from an earlier life of this process: its time is kept."""
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready" and condition.get("lastTransitionTime"):
            return condition.get("status") == "True", condition["lastTransitionTime"]
    return None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
