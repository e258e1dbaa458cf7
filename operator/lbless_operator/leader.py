"""Who of the operator's replicas leads: the Lease, and the time for which this process may trust that it does.

The `kubernetes` package has an election too; it measures by the wall clock, does not fence, and never
releases its Lease, so this one is the project's own. Times here are seconds of CLOCK_BOOTTIME, which
counts also while the process is stopped or the machine sleeps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from lbless_api.fields import Invalid, integer, mapping, text
from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import LEASES, Api, ApiError, Object, in_namespace
from lbless_edge.process import Fatal
from lbless_operator.said import Said

LEASE_NAME = "lbless-operator"
LEASE_SECONDS = 15
"""Others take over when they have seen no renewal for so long."""
_TRUST_PART = 2 / 3
"""Part of it for which the holder trusts a renewal; the rest is for a last request on its way."""
_RENEW_PART = 1 / 5
"""A renewal that gets no answer (4 s of 15) leaves time for another one before trust ends."""
_LOOK_PART = 2 / 15
"""How often who waits looks for a renewal: what he may take over later than a whole term after the last one."""
_RELEASED_SECONDS = 1
_MAX_TRANSITIONS = 2**31 - 1

_log = logging.getLogger("lbless.operator")


class NotLeading(Exception):
    """This process must not write: its Lease has run out, as far as it knows."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The Lease as the API has it. `holder` empty: released. `version` empty: there is none yet."""

    holder: str = ""
    renewed: str = ""
    acquired: str = ""
    duration_seconds: int = LEASE_SECONDS
    transitions: int = 0
    version: str = ""


class Term:
    """What one replica may conclude from the records that it reads and writes. Pure: `now` is handed in."""

    def __init__(self, identity: str, lease_seconds: float) -> None:
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._seen = LeaseRecord()
        self._seen_at = 0.0
        self._valid_until = float("-inf")

    def may_take(self, record: LeaseRecord, now: float) -> bool:
        """Whether to write the Lease: it is free, ours, or its holder let a whole term pass unrenewed."""
        if record != self._seen:
            self._seen, self._seen_at = record, now
        return record.holder in {"", self._identity} or self.runs_out_in(now) <= 0

    def runs_out_in(self, now: float) -> float:
        """Seconds until the record that was seen last may be taken from its holder, if he does not renew it."""
        return self._seen_at + max(self._lease_seconds, self._seen.duration_seconds) - now

    def won(self, asked_at: float) -> None:
        """The API server took a renewal that was sent at `asked_at`."""
        self._valid_until = asked_at + self._lease_seconds * _TRUST_PART

    def lost(self) -> None:
        """Somebody else leads."""
        self._valid_until = float("-inf")

    def is_valid(self, now: float) -> bool:
        """Whether nobody else can have taken over by `now`."""
        return now < self._valid_until


class Leader:
    """Gets, keeps and releases the Lease. `check` may be asked from any thread."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        stop: threading.Event,
        clock: Callable[[], float],
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """`api` should be one of its own, with a read timeout shorter than a renewal may take."""
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._stop = stop
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._path = in_namespace(LEASES, namespace, LEASE_NAME)
        self._term = Term(identity, lease_seconds)
        self._said = Said(_log)
        self._kept: LeaseRecord | None = (
            None  # as this process has written it last, if nothing went wrong since
        )
        self._backoff = Backoff(
            base_seconds=lease_seconds * _LOOK_PART, cap_seconds=lease_seconds * _LOOK_PART
        )

    def acquire(self) -> bool:
        """Return True when this process leads, False when the stop event is set before that."""
        while not self._stop.is_set():
            try:
                holder = self._try()
            except ApiError as error:
                self._said.warn(f"Waiting: {explain(error, self._path, self._api.server)}")
                self._pause(self._backoff.failed(error.retry_after_seconds))
            else:
                if holder == self._identity:
                    _log.info("This replica leads: %s holds the Lease %s.", self._identity, LEASE_NAME)
                    return True
                self._said.warn(
                    f"Waiting for the Lease {self._namespace}/{LEASE_NAME}, which {holder} holds."
                )
                left = self._term.runs_out_in(self._clock())
                self._pause(max(0.0, min(self._lease_seconds * _LOOK_PART, left)))
        return False

    def run(self) -> None:
        """Renew until the stop event is set. Raises Fatal when another replica leads."""
        wait = self._lease_seconds * _RENEW_PART
        while not self._pause(wait):
            try:
                holder = self._try()
            except ApiError as error:
                # Without a renewal `check` soon fails and nothing is written; the Lease may still be ours.
                self._said.warn(f"The Lease is not renewed: {explain(error, self._path, self._api.server)}")
                wait = self._backoff.failed(error.retry_after_seconds)
                continue
            wait = self._lease_seconds * _RENEW_PART
            self._backoff.succeeded()
            if holder != self._identity:
                self._term.lost()
                raise Fatal(
                    f"The Lease {self._namespace}/{LEASE_NAME} was lost to {holder}: this replica ends."
                )
            self._said.settled("The Lease is renewed again.")

    def is_valid(self) -> bool:
        """Whether this process may write now."""
        return self._term.is_valid(self._clock())

    def check(self) -> None:
        """Raise NotLeading unless this process may write now; to be called right before each write."""
        if not self.is_valid():
            raise NotLeading("The Lease has run out.")

    def release(self) -> None:
        """Let another replica take over at once; only after the last write. Does nothing if not leading."""
        if not self.is_valid():
            return
        self._term.lost()
        self._kept = None
        try:
            record = self._read()
            if record.holder == self._identity:
                self._write(record, holder="", duration_seconds=_RELEASED_SECONDS)
        except ApiError as error:
            _log.warning("The Lease could not be released, so others wait until it runs out: %s", error)

    def _pause(self, seconds: float) -> bool:
        """Wait; return whether the stop event is set."""
        return self._stop.wait(seconds)

    def _try(self) -> str:
        """Write the Lease if that is due, unread where nobody else can have written it; return who holds it then."""
        asked_at = self._clock()
        kept, self._kept = self._kept, None
        record = kept or self._read()
        if not self._term.may_take(record, self._clock()):
            return record.holder
        try:
            written = self._write(record, holder=self._identity, duration_seconds=round(self._lease_seconds))
        except ApiError as error:
            if error.status == 409:  # somebody else was faster, or has touched it
                return self._try() if kept else self._read().holder or "another replica"
            raise
        self._term.won(asked_at)
        self._kept = written
        return self._identity

    def _read(self) -> LeaseRecord:
        try:
            lease = self._api.get(self._path)
        except ApiError as error:
            if error.status == 404 and error.reason == "NotFound":
                return LeaseRecord()
            raise
        return self._parse(lease)

    def _parse(self, lease: Object) -> LeaseRecord:
        try:
            spec = mapping(lease.get("spec") or {}, "spec")
            return LeaseRecord(
                holder=text(spec.get("holderIdentity") or "", "spec.holderIdentity"),
                renewed=text(spec.get("renewTime") or "", "spec.renewTime"),
                acquired=text(spec.get("acquireTime") or "", "spec.acquireTime"),
                duration_seconds=integer(
                    spec.get("leaseDurationSeconds") or LEASE_SECONDS, "spec.leaseDurationSeconds", 1, 3600
                ),
                transitions=integer(
                    spec.get("leaseTransitions") or 0, "spec.leaseTransitions", 0, _MAX_TRANSITIONS
                ),
                version=text(lease["metadata"].get("resourceVersion"), "metadata.resourceVersion"),
            )
        except Invalid as error:
            raise ApiError(0, f"The Lease {self._namespace}/{LEASE_NAME} cannot be read: {error}") from error

    def _write(self, record: LeaseRecord, *, holder: str, duration_seconds: int) -> LeaseRecord:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new_term = bool(holder) and holder != record.holder
        lease: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE_NAME, "namespace": self._namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": duration_seconds,
                "renewTime": now,
                "acquireTime": now if is_new_term or not record.acquired else record.acquired,
                "leaseTransitions": record.transitions + (is_new_term and bool(record.version)),
            },
        }
        if record.version:
            # With the version that was read, two replicas cannot both succeed.
            lease["metadata"]["resourceVersion"] = record.version
            return self._parse(self._api.replace(self._path, lease))
        return self._parse(self._api.create(in_namespace(LEASES, self._namespace), lease))
