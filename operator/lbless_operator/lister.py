"""Authoritative LISTs: every kind at the start and each minute, so that what a watch missed is made right.

Owns their time, their retries, and saying what is waited for. What they say is put into the mailbox, complete or
not at all.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import nullcontext
from random import SystemRandom

from lbless_api.fields import Invalid
from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import Api, ApiError, in_namespace
from lbless_edge.patience import Patience
from lbless_operator.facts import Kind, Scope, Seen, parse
from lbless_operator.mailbox import Mailbox, RoundDone
from lbless_operator.said import Said
from lbless_operator.sources import SOURCES
from lbless_operator.state import Listing
from lbless_operator.workloads import FOLLOWED

PAGE = 100
"""Objects at once, of some KiB each; only what matters of them is kept."""
ROUND_SECONDS = 60.0
"""At most so long after one round ended, the next begins."""
FOLLOWED_ROUNDS = 10
"""A ListWatch finds by itself what it missed, kopf does not: what followers follow is listed each so many rounds."""
REQUESTED_ROUND_SECONDS = 1.0
"""A round that was asked for waits so long, as many tend to ask at once, and rounds stay so far apart."""

AT_ONCE = 8
"""LISTs under way at once, so that an API server which takes long for each does not take the sum of all."""
PODS_AT_ONCE = 2
"""Pods are the largest of what is listed: a page of them takes some MiB while it is read."""
SAY_SECONDS = 3.0
"""A LIST that is waited for longer is worth a line in the log."""
MAX_NAMES = 8

_log = logging.getLogger("lbless.operator")
_random = SystemRandom()


class Lister:
    """Lists `scopes`, those that are new at once, all of them each minute and when a round is asked for."""

    def __init__(
        self,
        api: Api,
        mailbox: Mailbox,
        scopes: frozenset[Scope],
        stop: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._mailbox = mailbox
        self._stop = stop
        self._clock = clock
        self._base = self._scopes = scopes
        self._listed: set[Scope] = set()
        self._seen: set[Scope] = set()  # listed at least once
        self._round_began: float | None = None  # of the round that is under way
        self._waiting_since: float | None = None  # of LISTs that did not come at once
        self._pods = threading.Semaphore(PODS_AT_ONCE)
        self._patience = {kind: Patience() for kind in Kind}
        self._next_round = clock()
        self._requested = True
        self._rounds_to_followed = 0
        self._last_round = float("-inf")
        self._changed = threading.Condition()
        self._backoff = Backoff()
        self._said = Said(_log)

    @property
    def awaited(self) -> frozenset[Scope]:
        """What is to be listed, and is not yet."""
        return self._scopes - self._listed

    @property
    def view_age_seconds(self) -> float:
        """Time since the last complete round began, endless before the first."""
        return self._clock() - self._last_round

    def follow(self, scopes: frozenset[Scope], unwatched: Collection[tuple[Kind, str]] = ()) -> None:
        """List these from now on; those that are `unwatched` not at once, but when `list_again` says so."""
        with self._changed:
            self._scopes = scopes
            self._listed &= scopes
            self._listed |= {scope for scope in scopes if (scope.kind, scope.namespace) in unwatched}
            self._seen &= scopes
            self._changed.notify_all()

    def list_again(self, kind: Kind, namespace: str) -> None:
        """List a collection at once: what is deleted from now on, its watch will tell."""
        with self._changed:
            self._listed -= {s for s in self._scopes if (s.kind, s.namespace) == (kind, namespace)}
            self._changed.notify_all()

    def request_round(self) -> None:
        """List everything soon."""
        with self._changed:
            self._requested = True
            self._next_round = min(self._next_round, self._clock() + REQUESTED_ROUND_SECONDS)
            self._changed.notify_all()

    def await_round(self, since: float) -> None:
        """Return when a round that began after `since` was completed, or the stop event is set."""
        with self._changed:
            self._changed.wait_for(lambda: self._last_round >= since or self._stop.is_set())

    def wake(self) -> None:
        """Let everybody see the stop event at once."""
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        """Work until the stop event is set."""
        while self._wait():
            try:
                self._list_due()
            except ApiError as error:
                if not self._stop.is_set():
                    self._stop.wait(self._backoff.failed(error.retry_after_seconds))

    def _wait(self) -> bool:
        """Return True when something is to be listed, False when the stop event is set."""
        with self._changed:
            while not self._stop.is_set():
                left = self._next_round - self._clock()
                if left <= 0 or self.awaited:
                    return True
                self._changed.wait(left)
        return False

    def _list_due(self) -> None:
        """List what is due; where a part of a round failed, only that part is asked for again, for a while."""
        now = self._clock()
        with self._changed:
            is_old = self._round_began is None or now - self._round_began >= ROUND_SECONDS
            if now >= self._next_round and is_old:
                self._round_began = now
                self._listed -= self._due()
                self._requested = False
            self._waiting_since = self._waiting_since or now
            awaited = self.awaited
        self._list_all(awaited)
        if self._stop.is_set():
            return
        self._backoff.succeeded()
        self._said.settled(
            f"After {self._clock() - self._waiting_since:.0f} s {self._api.server} answers every LIST again."
        )
        self._waiting_since = None
        if self._round_began is not None:
            self._end_round(self._round_began)

    def _end_round(self, began: float) -> None:
        self._mailbox.put(RoundDone(began))
        with self._changed:
            # Not all operators and their restarts at the same second of each minute. What was asked for
            # during this round may be about something that it had listed already.
            wait = REQUESTED_ROUND_SECONDS if self._requested else ROUND_SECONDS * _random.uniform(0.8, 1)
            self._next_round = self._clock() + wait
            self._last_round = began
            self._round_began = None
            self._changed.notify_all()

    def _due(self) -> frozenset[Scope]:
        """What this round has to list: everything if it was asked for."""
        self._rounds_to_followed -= 1
        if self._requested or self._rounds_to_followed <= 0:
            self._rounds_to_followed = FOLLOWED_ROUNDS
            return self._scopes
        return frozenset(scope for scope in self._scopes if scope.kind not in FOLLOWED)

    def _list_all(self, scopes: frozenset[Scope]) -> None:
        """List these, a few at once; return or raise (ApiError) when all are done, or the stop event is set."""
        todo = deque(sorted(scopes, key=_order))
        missing, failures = set(scopes), dict[Scope, Exception]()

        def work() -> None:
            while not self._stop.is_set():
                try:
                    scope = todo.popleft()
                except IndexError:
                    return
                failure: Exception | None = None
                try:
                    with self._pods if scope.kind is Kind.POD else nullcontext():
                        self._mailbox.put(self._list(scope))
                except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits for this one
                    failure = error
                with self._changed:
                    missing.discard(scope)
                    if failure:
                        failures[scope] = failure
                    elif scope in self._scopes:
                        self._listed.add(scope)
                        self._seen.add(scope)
                    self._changed.notify_all()

        for number in range(min(AT_ONCE, len(scopes))):
            # A daemon: one that hangs in a request must not keep the program from ending.
            threading.Thread(target=work, name=f"list-{number}", daemon=True).start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_over(missing), SAY_SECONDS):
                self._say_awaited(missing)
                self._changed.wait_for(lambda: self._is_over(missing))
        self._raise(failures)

    def _is_over(self, missing: Set[Scope]) -> bool:
        return not missing or self._stop.is_set()

    def _say_awaited(self, scopes: Set[Scope]) -> None:
        self._said.warn(
            f"{self._consequence()}: {self._api.server} has been asked for {SAY_SECONDS:.0f} s to LIST "
            f"{_names(scopes)}, and is waited for."
        )

    def _raise(self, failures: Mapping[Scope, Exception]) -> None:
        """Say what is wrong, each thing once, and raise the failure that asks for the longest wait."""
        refused: list[ApiError] = []
        for scope in sorted(failures, key=_order):
            failure = failures[scope]
            if not isinstance(failure, ApiError):
                raise failure
            refused.append(failure)
            if not self._stop.is_set():
                why = explain(failure, SOURCES[scope.kind].path, self._api.server)
                self._said.warn(f"{self._consequence()}: {why}")
        if refused:
            raise max(refused, key=lambda error: error.retry_after_seconds)

    def _consequence(self) -> str:
        if self._base - self._seen:
            return "Nothing is decided"
        if self._scopes - self._seen:
            return "Nothing is decided about some ClusterIPs"
        return "What is known grows old"

    def _list(self, scope: Scope) -> Listing:
        began, source = self._clock(), SOURCES[scope.kind]
        path = in_namespace(source.path, scope.namespace) if scope.namespace else source.path
        objects: list[Seen] = []
        version = "0"
        patience = self._patience[scope.kind]
        waited_seconds = patience.seconds
        pages = self._api.list_pages(
            path, limit=PAGE, read_timeout_seconds=waited_seconds, **source.selectors
        )
        try:
            for page, of_all_pages in patience.timed(pages):
                version = of_all_pages
                objects += filter(scope.admits, (parse(scope.kind, obj) for obj in page))
        except ApiError as error:
            if error.timed_out:
                patience.ran_out(waited_seconds)
            if error.status == 404 and source.optional:
                return Listing(scope, began, 0, ())
            raise
        except Invalid as error:
            raise ApiError(0, f"A LIST of {path} sent what cannot be read: {error}") from error
        return Listing(scope, began, int(version), tuple(objects))


def _names(scopes: Set[Scope]) -> str:
    """The plurals of some of them: "nodes, pods in shop and 3 more"."""
    names = [
        SOURCES[scope.kind].resource[2] + (f" in {scope.namespace}" if scope.namespace else "")
        for scope in sorted(scopes, key=_order)
    ]
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if names[MAX_NAMES:] else "")


def _order(scope: Scope) -> tuple[str, str]:
    return scope.kind, scope.namespace
