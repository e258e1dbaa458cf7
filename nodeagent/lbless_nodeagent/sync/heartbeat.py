"""The node's Lease: the operator's only measure of whether this node still hears the API and does its work.

Owns renewing it, and not renewing it while dataplane is silent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from lbless_api import AGENT_LEASE_PREFIX, AGENT_LEASE_RENEW_SECONDS, AGENT_LEASE_STALE_SECONDS
from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import LEASES, Api, ApiError, Object, in_namespace
from lbless_nodeagent.sync.ownnode import OwnNode
from lbless_nodeagent.sync.reporter import FIELD_MANAGER, owner_reference

LOOK_SECONDS = 0.5
_log = logging.getLogger("lbless.sync")


class Heartbeat:
    """Renews while `alive` says so; `run` in a thread of its own, as a report may hang in a request."""

    def __init__(
        self, api: Api, namespace: str, node: OwnNode, alive: Callable[[], bool], stop: threading.Event
    ) -> None:
        self.renewals = 0
        self._api = api
        self._namespace = namespace
        self._name = AGENT_LEASE_PREFIX + node.name
        self._path = in_namespace(LEASES, namespace, self._name)
        self._node = node
        self._alive = alive
        self._stop = stop
        # Three tries at least fit between one renewal and the moment at which the Lease is stale.
        self._backoff = Backoff(cap_seconds=5)
        self._fault = ""

    def run(self) -> None:
        """Renew every 10 s, and at once when dataplane speaks again."""
        due = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            owner = self._node.uid
            if time.monotonic() < due or not owner or not self._alive():
                continue
            try:
                self._api.apply(self._path, self._lease(owner), field_manager=FIELD_MANAGER)
            except ApiError as error:
                due = time.monotonic() + self._failed(error)
            else:
                due = time.monotonic() + AGENT_LEASE_RENEW_SECONDS - LOOK_SECONDS
                self._succeeded()

    def _lease(self, owner: str) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "ownerReferences": [owner_reference(self._node.name, owner)],
            },
            "spec": {
                "holderIdentity": self._node.name,
                "leaseDurationSeconds": AGENT_LEASE_STALE_SECONDS,
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }

    def _succeeded(self) -> None:
        self.renewals += 1
        self._backoff.succeeded()
        if self._fault:
            _log.info("Lease %s/%s is renewed again.", self._namespace, self._name)
            self._fault = ""

    def _failed(self, error: ApiError) -> float:
        fault = explain(error, self._path, self._api.server)
        if fault != self._fault and not self._stop.is_set():
            _log.warning("Lease %s/%s cannot be renewed: %s", self._namespace, self._name, fault)
        self._fault = fault
        return self._backoff.failed(error.retry_after_seconds)
