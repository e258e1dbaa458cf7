"""Posts notices as Kubernetes Events (events.k8s.io/v1), where `kubectl describe` shows them.

Owns a thread of its own: an Event that cannot be posted delays no decision, and is dropped.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from lbless_edge.kube import Api, ApiError, Object, in_namespace
from lbless_operator.conditions import shorten
from lbless_operator.notices import Limit, Notice
from lbless_operator.restraint import Restraint
from lbless_operator.said import Said

EVENTS = "/apis/events.k8s.io/v1/events"
CONTROLLER = "lbless.dev/operator"
MAX_NOTE = 1024
MAX_WAITING = 1000

_log = logging.getLogger("lbless.operator")


class Events:
    """Takes notices from one thread and posts them in another."""

    def __init__(
        self,
        api: Api,
        instance: str,
        restraint: Restraint,
        stop: threading.Event,
        may_post: Callable[[], bool] = lambda: True,
    ) -> None:
        """`instance` says which replica reports; `may_post` whether it leads: another one reports the same."""
        self._api = api
        self._instance = shorten(instance, 128)
        self._restraint = restraint
        self._stop = stop
        self._may_post = may_post
        self._limit = Limit()
        self._waiting: queue.Queue[Notice | None] = queue.Queue(MAX_WAITING)

    def post(self, notice: Notice) -> None:
        """Log a notice and post it soon, within the limits."""
        subject = notice.subject
        key = f"{subject.namespace}/{subject.name}" if subject.namespace else subject.name
        level = logging.WARNING if notice.is_warning else logging.INFO
        self._restraint.log(level, notice.reason, f"{subject.kind} {key}: {notice.reason}: {notice.note}")
        if self._limit.admits(notice, time.monotonic()):
            try:
                self._waiting.put_nowait(notice)
            except queue.Full:
                sentence = f"{MAX_WAITING} Events wait to be posted, this one is dropped."
                self._restraint.log(logging.WARNING, "dropped Event", sentence)

    def close(self) -> None:
        """End `run`, after what waits already if the stop event is not set."""
        with suppress(queue.Full):  # then there is something to wake it anyway
            self._waiting.put_nowait(None)

    def run(self) -> None:
        """Post until the stop event is set."""
        said = Said(_log)
        while not self._stop.is_set():
            notice = self._waiting.get()
            if notice is None:
                return
            if not self._may_post():
                continue
            try:
                self._api.create(
                    in_namespace(EVENTS, notice.subject.namespace or "default"), self._event(notice)
                )
            except ApiError as error:
                said.warn(f"An Event could not be posted and is dropped: {error}")
            else:
                said.settled("Events are posted again.")

    def _event(self, notice: Notice) -> Object:
        subject = notice.subject
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                # A name may have 253 characters, and the object's name alone may have them.
                "name": f"{subject.name[:200].rstrip('.-')}.{uuid.uuid4().hex[:16]}",
                "namespace": subject.namespace or "default",
            },
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": "Plan",
            "reason": notice.reason.value,
            "type": "Warning" if notice.is_warning else "Normal",
            # The API server counts bytes here.
            "note": notice.note.encode()[:MAX_NOTE].decode(errors="ignore"),
            "regarding": {
                "apiVersion": subject.api_version,
                "kind": subject.kind,
                "name": subject.name,
                "uid": subject.uid,
                **({"namespace": subject.namespace} if subject.namespace else {}),
            },
        }
