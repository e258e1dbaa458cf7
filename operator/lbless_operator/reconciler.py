"""The loop that decides: news in, one ClusterIP after the other looked at, its status handed to the writers.

One thread, synchronous. What is known is the state's, what is right is the decision's; this is the order
in which it happens, and what becomes of a write that fails.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from lbless_edge.backoff import Backoff
from lbless_edge.kube import ApiError
from lbless_operator.agenda import BLIND_SECONDS
from lbless_operator.complaints import Complaints
from lbless_operator.decision import Decision, decide
from lbless_operator.events import Events
from lbless_operator.facts import Kind, Seen
from lbless_operator.followers import Followers
from lbless_operator.keyqueue import FEW, KeyQueue
from lbless_operator.leader import Leader, NotLeading
from lbless_operator.lister import Lister
from lbless_operator.mailbox import Mailbox, News, RoundDone, Written
from lbless_operator.restraint import Restraint
from lbless_operator.state import Clock, Listing, State
from lbless_operator.writers import COUNT, Write, Writers

TICK_SECONDS = 1.0
CONFIRM_SECONDS = 0.2
"""Digests are compared at most so often: nodes report in bursts, and each costs a hash over all ClusterIPs."""
FOLLOW_SECONDS = 1.0
"""What is followed changes at most so often: a new selector has its namespace listed anew."""
DEFECT_SECONDS = 30.0

_log = logging.getLogger("lbless.operator")


class Reconciler:
    """Owns the state; `run` in a thread of its own."""

    def __init__(
        self,
        state: State,
        mailbox: Mailbox,
        lister: Lister,
        followers: Followers,
        leader: Leader,
        writers: Writers,
        events: Events,
        restraint: Restraint,
        stop: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self.writes = 0
        self.reconciles = 0
        self.beat = clock()
        """When the loop last came round."""
        self._state = state
        self._mailbox = mailbox
        self._lister = lister
        self._followers = followers
        self._leader = leader
        self._writers = writers
        self._events = events
        self._restraint = restraint
        self._complaints = Complaints(events, restraint)
        self._stop = stop
        self._clock = clock
        self._queue = KeyQueue()
        self._writing: dict[str, Decision] = {}
        self._meanwhile: set[str] = set()
        """Of those, the ones that something has concerned since."""
        self._round = float("-inf")
        self._blind_since = clock()
        """A round must have begun after this: what was known before may be old."""
        self._next_follow = 0.0
        self._next_tick = 0.0
        self._next_confirm = 0.0
        self._paused_until = 0.0
        self._backoff = Backoff()
        self._trouble = ""

    @property
    def clusterips(self) -> int:
        """How many ClusterIPs are known."""
        return len(self._state.keys)

    @property
    def waiting(self) -> int:
        """How many ClusterIPs are to be looked at, or are being written."""
        return len(self._queue) + len(self._writing)

    def run(self) -> None:
        """Work until the stop event is set."""
        while not self._stop.is_set():
            self.step()

    def step(self) -> None:
        """Wait for something to do, and do it: take in all news, then look at one ClusterIP at most."""
        self.beat = self._clock()
        self._learn(self._mailbox.take(self._patience_seconds()))
        self._follow()
        self._tick()
        if not self._may_decide():
            return
        self._confirm()
        key = self._queue.take(self._clock()) if len(self._writing) < COUNT else None
        if key in self._writing:
            self._meanwhile.add(key)
        elif key is not None:
            self._reconcile(key)

    def _patience_seconds(self) -> float:
        """How long nothing has to be done but wait for news."""
        due = self._next_tick
        if not self._state.is_following:
            due = min(due, self._next_follow)
        if self._may_decide():
            if self._state.confirmations.stale:
                due = min(due, self._next_confirm)
            next_key = self._queue.next_due() if len(self._writing) < COUNT else None
            due = min(due, due if next_key is None else next_key)
        return due - self._clock()

    def _learn(self, news: list[News]) -> None:
        clock = self._now()
        changed: set[Kind] = set()
        for one in news:
            match one:
                case Written():
                    self._learn_written(one)
                case RoundDone():
                    self._round = max(self._round, one.began)
                case Seen():
                    changed.add(one.kind)
                    self._complaints.about(one)
                    self._look_at(self._state.learn(one, clock))
                case Listing():
                    changed.add(one.scope.kind)
                    for seen in one.objects:
                        self._complaints.about(seen)
                    self._look_at(self._state.learn_listing(one, clock))
        if changed & {Kind.LEASE, Kind.NODE}:
            self._next_tick = 0.0

    def _now(self) -> Clock:
        return Clock(self._clock(), datetime.now(UTC).timestamp())

    def _look_at(self, keys: set[str]) -> None:
        now, urgent = self._clock(), len(keys) <= FEW
        for key in keys:
            self._queue.add(key, now, urgent=urgent)

    def _follow(self) -> None:
        """Have followed and listed what the ClusterIPs ask for now."""
        now = self._clock()
        if self._state.is_following or now < self._next_follow:
            return
        self._next_follow = now + FOLLOW_SECONDS
        scopes = self._state.scopes()
        new = self._followers.follow(scopes)
        self._state.follow(now)
        self._lister.follow(scopes, new)
        self._followers.start()

    def _tick(self) -> None:
        now = self._clock()
        if not self._leader.is_valid():
            self._blind_since = now
            self._state.doubt(self._state.scopes(), now)
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_SECONDS
        self._restraint.summarise()
        concerned, unsure = self._state.tick(now)
        self._look_at(concerned)
        self._state.doubt(self._lister.overdue(BLIND_SECONDS), now - BLIND_SECONDS)
        if unsure:
            self._lister.request_round()
        if self._round < self._blind_since:
            self._lister.request_round(self._blind_since)

    def _may_decide(self) -> bool:
        """Only on a complete view that is not old, and only while leading."""
        return (
            self._leader.is_valid()
            and self._state.is_complete()
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
        if self._state.awaits(key):
            return  # the LIST that it awaits will name it
        self.reconciles += 1
        try:
            timestamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            situation = self._state.situation(key, self._clock(), timestamp)
            if situation is None:
                return
            decision = decide(situation)
        except Exception:  # noqa: BLE001 - a defect that one object brings to light must not stop the others
            sentence = f"ClusterIP {key} could not be decided: this is a defect of lbless."
            self._restraint.log(logging.ERROR, "defect", sentence, exc_info=True)
            self._queue.postpone(key, self._clock() + DEFECT_SECONDS)
            return
        if decision.status == situation.fact.status:
            self._recheck(key, decision)
        else:
            self._writing[key] = decision
            self._writers.submit(Write(situation.fact, decision.status))

    def _recheck(self, key: str, decision: Decision) -> None:
        if decision.recheck_seconds is not None:
            self._queue.add(key, self._clock() + decision.recheck_seconds)

    def _learn_written(self, written: Written) -> None:
        """Take in the answer to a write at once, so that the next decision stands on it."""
        key, now = written.key, self._clock()
        decision = self._writing.pop(key)
        if written.seen is not None:
            self.writes += 1
            self._backoff.succeeded()
            if self._trouble:
                _log.info("The API server takes writes again.")
                self._trouble = ""
            for notice in decision.notices:
                self._events.post(notice)
            self._recheck(key, decision)
            self._look_at(self._state.learn(written.seen, self._now()) - {key})
        elif isinstance(written.error, ApiError):
            self._failed(key, written.error, now)
        elif isinstance(written.error, NotLeading):
            self._queue.add(key, now)
        if key in self._meanwhile:
            self._meanwhile.discard(key)
            self._queue.add(key, now, urgent=True)

    def _failed(self, key: str, error: ApiError, now: float) -> None:
        if error.status == 404:
            return  # deleted; the watch will say so
        if error.status == 409:
            # It changed since it was last seen. The watch brings the news; a LIST does if that is broken.
            self._queue.add(key, now + TICK_SECONDS)
            self._lister.request_round()
            return
        sentence = f"The status of ClusterIP {key} cannot be written: {error}"
        if sentence != self._trouble:
            self._restraint.log(logging.WARNING, "write", sentence)
            self._trouble = sentence
        if error.status == 422:
            wait = max(self._backoff.failed(error.retry_after_seconds), TICK_SECONDS)
            self._queue.postpone(key, now + wait)
            return
        if now >= self._paused_until:  # else another write has failed for the same cause
            self._paused_until = now + self._backoff.failed(error.retry_after_seconds)
        self._queue.add(key, now)
