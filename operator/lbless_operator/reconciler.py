"""The loop that decides and writes: news in, one ClusterIP after the other looked at, its status applied.

One thread, synchronous. What is known is the state's, what is right is the decision's; this is the order
in which it happens, and what becomes of a write that fails.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from lbless_api import API_VERSION
from lbless_api.fields import Invalid
from lbless_edge.backoff import Backoff
from lbless_edge.kube import CLUSTERIPS, Api, ApiError, in_namespace
from lbless_operator.decision import Decision, Situation, decide
from lbless_operator.events import Events
from lbless_operator.facts import DEFAULT_WEIGHT, Kind, Scope, Seen, parse_weight
from lbless_operator.leader import Leader, NotLeading
from lbless_operator.lister import ROUND_SECONDS, Lister
from lbless_operator.mailbox import KeyQueue, Mailbox, News, RoundDone
from lbless_operator.notices import Notice, NoticeReason, Subject
from lbless_operator.said import Said
from lbless_operator.sources import read
from lbless_operator.state import Clock, Listing, State
from lbless_operator.status import render_status

FIELD_MANAGER = "lbless-operator"
TICK_SECONDS = 1.0
CONFIRM_SECONDS = 0.2
"""Digests are compared at most so often: nodes report in bursts, and each costs a hash over all ClusterIPs."""
BLIND_SECONDS = 3 * ROUND_SECONDS
"""Without a complete round of LISTs for so long, what is known is too old to decide on."""
DEFECT_SECONDS = 30.0

_log = logging.getLogger("lbless.operator")


class Reconciler:
    """Owns the state; `run` in a thread of its own."""

    def __init__(
        self,
        api: Api,
        state: State,
        mailbox: Mailbox,
        lister: Lister,
        leader: Leader,
        events: Events,
        stop: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self.writes = 0
        self.reconciles = 0
        self.beat = clock()
        """When the loop last came round."""
        self._api = api
        self._state = state
        self._mailbox = mailbox
        self._lister = lister
        self._leader = leader
        self._events = events
        self._stop = stop
        self._clock = clock
        self._queue = KeyQueue()
        self._scopes: frozenset[Scope] = state.base_scopes
        self._round = float("-inf")
        self._blind_since = clock()
        """A round must have begun after this: what was known before may be old."""
        self._next_tick = 0.0
        self._next_confirm = 0.0
        self._paused_until = 0.0
        self._backoff = Backoff()
        self._said = Said(_log)
        self._weights_told: dict[str, str] = {}

    @property
    def clusterips(self) -> int:
        """How many ClusterIPs are known."""
        return len(self._state.keys)

    @property
    def waiting(self) -> int:
        """How many ClusterIPs are to be looked at."""
        return len(self._queue)

    def run(self) -> None:
        """Work until the stop event is set."""
        while not self._stop.is_set():
            self.step()

    def step(self) -> None:
        """Wait for something to do, and do it: take in all news, then look at one ClusterIP at most."""
        self.beat = self._clock()
        self._learn(self._mailbox.take(self._patience_seconds()))
        self._tick()
        if not self._may_decide():
            return
        self._confirm()
        key = self._queue.take(self._clock())
        if key is not None:
            self._reconcile(key)

    def _patience_seconds(self) -> float:
        """How long nothing has to be done but wait for news."""
        due = self._next_tick
        if self._may_decide():
            if self._state.confirmations.stale:
                due = min(due, self._next_confirm)
            next_key = self._queue.next_due()
            due = min(due, due if next_key is None else next_key)
        return due - self._clock()

    def _learn(self, news: list[News]) -> None:
        clock = Clock(self._clock(), datetime.now(UTC).timestamp())
        changed: set[Kind] = set()
        for one in news:
            match one:
                case RoundDone():
                    self._round = max(self._round, one.began)
                case Seen():
                    changed.add(one.kind)
                    self._look_at(self._state.learn(one, clock))
                case Listing():
                    changed.add(one.scope.kind)
                    self._look_at(self._state.learn_listing(one, clock))
        if Kind.CLUSTERIP in changed:
            self._follow()
        if Kind.NODE in changed and self._leader.is_valid():
            self._tell_weights()
        if changed & {Kind.LEASE, Kind.NODE, Kind.AGENT}:
            self._next_tick = 0.0

    def _look_at(self, keys: set[str]) -> None:
        now = self._clock()
        for key in keys:
            self._queue.add(key, now)

    def _follow(self) -> None:
        """Have listed what the ClusterIPs ask for now."""
        scopes = self._state.scopes()
        if scopes != self._scopes:
            self._scopes = scopes
            self._state.keep_only(scopes)
            self._lister.follow(scopes)

    def _tell_weights(self) -> None:
        for node in self._state.nodes():
            if node.weight is None or parse_weight(node.weight) is not None:
                self._weights_told.pop(node.name, None)
            elif self._weights_told.get(node.name) != node.weight:
                self._weights_told[node.name] = node.weight
                note = (
                    f"The annotation lbless.dev/weight {node.weight[:40]!r} is not an integer from 0 to 1000: "
                    f"the node counts with the default, {DEFAULT_WEIGHT}. Correct or remove it."
                )
                subject = Subject("v1", "Node", "", node.name, node.uid)
                self._events.post(Notice(subject, NoticeReason.INVALID_WEIGHT, note))

    def _tick(self) -> None:
        now = self._clock()
        if not self._leader.is_valid():
            self._blind_since = now
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_SECONDS
        concerned, unsure = self._state.tick(now)
        self._look_at(concerned)
        if unsure or self._round < self._blind_since:
            self._lister.request_round()

    def _may_decide(self) -> bool:
        """Only on a complete view that is not old, and only while leading."""
        return (
            self._leader.is_valid()
            and self._state.is_complete(self._scopes)
            and self._round >= self._blind_since
            and self._clock() - self._round < BLIND_SECONDS
            and self._clock() >= self._paused_until
        )

    def _confirm(self) -> None:
        now = self._clock()
        if self._state.confirmations.stale and now >= self._next_confirm:
            self._next_confirm = now + CONFIRM_SECONDS
            self._look_at(self._state.confirm())

    def _reconcile(self, key: str) -> None:
        self.reconciles += 1
        try:
            timestamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            situation = self._state.situation(key, self._clock(), timestamp)
            if situation is None:
                return
            decision = decide(situation)
            if decision.status != situation.fact.status:
                self._write(key, situation, decision)
            if decision.recheck_seconds is not None:
                self._queue.add(key, self._clock() + decision.recheck_seconds)
        except ApiError as error:
            self._failed(key, error)
        except NotLeading:
            self._queue.add(key, self._clock())
        except Exception:  # noqa: BLE001 - a defect that one object brings to light must not stop the others
            _log.exception("ClusterIP %s could not be decided: this is a defect of lbless.", key)
            self._queue.postpone(key, self._clock() + DEFECT_SECONDS)
        else:
            self._backoff.succeeded()
            self._said.settled(f"{self._api.server} takes writes again.")

    def _write(self, key: str, situation: Situation, decision: Decision) -> None:
        identity = situation.fact.identity
        body = {
            "apiVersion": API_VERSION,
            "kind": "ClusterIP",
            # The version that the decision was made on: had anything changed since, the server would
            # refuse it, also where this process slept between its check of the Lease and the request.
            "metadata": {
                "name": identity.name,
                "namespace": identity.namespace,
                "uid": identity.uid,
                "resourceVersion": situation.fact.version,
            },
            "status": render_status(decision.status),
        }
        path = in_namespace(CLUSTERIPS, identity.namespace, identity.name) + "/status"
        self._leader.check()
        written = self._api.apply(path, body, field_manager=FIELD_MANAGER)
        self.writes += 1
        for notice in decision.notices:
            self._events.post(notice)
        self._learn_written(key, written)

    def _learn_written(self, key: str, obj: object) -> None:
        """Take in the answer to a write at once, so that the next decision stands on it."""
        clock = Clock(self._clock(), datetime.now(UTC).timestamp())
        try:
            self._look_at(self._state.learn(read(Kind.CLUSTERIP, obj), clock) - {key})
        except Invalid as error:
            raise ApiError(0, f"The answer to a write of ClusterIP {key} cannot be read: {error}") from error

    def _failed(self, key: str, error: ApiError) -> None:
        now = self._clock()
        if error.status == 404:
            return  # deleted; the watch will say so
        if error.status == 409:
            # It changed since it was last seen. The watch brings the news; a LIST does if that is broken.
            self._queue.add(key, now + TICK_SECONDS)
            self._lister.request_round()
            return
        wait = self._backoff.failed(error.retry_after_seconds)
        self._said.warn(f"The status of ClusterIP {key} cannot be written: {error}")
        if error.status == 422:
            self._queue.postpone(key, now + max(wait, TICK_SECONDS))
            return
        self._paused_until = now + wait
        self._queue.add(key, now)
