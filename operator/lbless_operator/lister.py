"""Authoritative LISTs: every kind at the start and each minute, so that what a watch missed is made right.

Owns their order, their time and their retries. What they say is put into the mailbox, complete or not at all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from random import SystemRandom

from lbless_api.fields import Invalid
from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import Api, ApiError, in_namespace
from lbless_operator.facts import Kind, Scope, Seen, parse
from lbless_operator.mailbox import Mailbox, RoundDone
from lbless_operator.said import Said
from lbless_operator.sources import SOURCES
from lbless_operator.state import Listing
from lbless_operator.workloads import FOLLOWED

PAGE = 100
"""Objects at once, of some KiB each; only what matters of them is kept."""
ROUND_SECONDS = 60.0
FOLLOWED_ROUNDS = 10
"""A ListWatch finds by itself what it missed, kopf does not: what followers follow is listed each so many rounds."""
REQUESTED_ROUND_SECONDS = 1.0
"""A round that was asked for waits so long, as many tend to ask at once, and rounds stay so far apart."""

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
        self._scopes = scopes
        self._listed: set[Scope] = set()
        self._next_round = clock()
        self._requested = True
        self._rounds_to_followed = 0
        self._last_round = float("-inf")
        self._changed = threading.Condition()
        self._backoff = Backoff()
        self._said = Said(_log)

    def follow(self, scopes: frozenset[Scope], unwatched: Collection[tuple[Kind, str]] = ()) -> None:
        """List these from now on; those that are `unwatched` not at once, but when `list_again` says so."""
        with self._changed:
            self._scopes = scopes
            self._listed &= scopes
            self._listed |= {scope for scope in scopes if (scope.kind, scope.namespace) in unwatched}
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
            else:
                self._backoff.succeeded()
                self._said.settled(f"{self._api.server} answers every LIST again.")

    def _wait(self) -> bool:
        """Return True when something is to be listed, False when the stop event is set."""
        with self._changed:
            while not self._stop.is_set():
                left = self._next_round - self._clock()
                if left <= 0 or self._scopes - self._listed:
                    return True
                self._changed.wait(left)
        return False

    def _list_due(self) -> None:
        began = self._clock()
        if began < self._next_round:
            self._list_all(self._scopes - self._listed)
            return
        with self._changed:
            scopes, self._requested = self._due(), False
            self._listed -= scopes
        self._list_all(scopes | self._scopes - self._listed)
        self._mailbox.put(RoundDone(began))
        with self._changed:
            # Not all operators and their restarts at the same second of each minute. What was asked for
            # during this round may be about something that it had listed already.
            wait = REQUESTED_ROUND_SECONDS if self._requested else ROUND_SECONDS * _random.uniform(0.9, 1.1)
            self._next_round = self._clock() + wait
            self._last_round = began
            self._changed.notify_all()

    def _due(self) -> frozenset[Scope]:
        """What this round has to list: everything if it was asked for."""
        self._rounds_to_followed -= 1
        if self._requested or self._rounds_to_followed <= 0:
            self._rounds_to_followed = FOLLOWED_ROUNDS
            return self._scopes
        return frozenset(scope for scope in self._scopes if scope.kind not in FOLLOWED)

    def _list_all(self, scopes: frozenset[Scope]) -> None:
        for scope in sorted(scopes, key=lambda s: (s.kind, s.namespace)):
            if self._stop.is_set():
                return
            path = SOURCES[scope.kind].path
            try:
                listing = self._list(scope)
            except ApiError as error:
                self._said.warn(f"Nothing is decided: {explain(error, path, self._api.server)}")
                raise
            self._mailbox.put(listing)
            with self._changed:
                if scope in self._scopes:
                    self._listed.add(scope)

    def _list(self, scope: Scope) -> Listing:
        began, source = self._clock(), SOURCES[scope.kind]
        path = in_namespace(source.path, scope.namespace) if scope.namespace else source.path
        objects: list[Seen] = []
        version = "0"
        try:
            for page, of_all_pages in self._api.list_pages(path, limit=PAGE, **source.selectors):
                version = of_all_pages
                objects += filter(scope.admits, (parse(scope.kind, obj) for obj in page))
        except ApiError as error:
            if error.status == 404 and source.optional:
                return Listing(scope, began, 0, ())
            raise
        except Invalid as error:
            raise ApiError(0, f"A LIST of {path} sent what cannot be read: {error}") from error
        return Listing(scope, began, int(version), tuple(objects))
