"""Authoritative LISTs: every kind at the start and each minute, so that what a watch missed is made right.

Owns their order, their time and their retries. What they say is put into the mailbox, complete or not at all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from random import SystemRandom

from lbless_api.fields import Invalid
from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import PAGE, Api, ApiError, in_namespace
from lbless_operator.facts import Scope, Seen
from lbless_operator.mailbox import Mailbox, RoundDone
from lbless_operator.said import Said
from lbless_operator.sources import SOURCES, read
from lbless_operator.state import Listing

ROUND_SECONDS = 60.0
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
        self._requested = False
        self._last_round = float("-inf")
        self._changed = threading.Condition()
        self._backoff = Backoff()
        self._said = Said(_log)

    @property
    def scopes(self) -> frozenset[Scope]:
        """What matters now; what watches tell of anything else may be dropped."""
        return self._scopes

    def follow(self, scopes: frozenset[Scope]) -> None:
        """List these from now on."""
        with self._changed:
            self._scopes = scopes
            self._listed &= scopes
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
            self._listed.clear()
            self._requested = False
        self._list_all(self._scopes)
        self._mailbox.put(RoundDone(began))
        with self._changed:
            # Not all operators and their restarts at the same second of each minute. What was asked for
            # during this round may be about something that it had listed already.
            wait = REQUESTED_ROUND_SECONDS if self._requested else ROUND_SECONDS * _random.uniform(0.9, 1.1)
            self._next_round = self._clock() + wait
            self._last_round = began
            self._changed.notify_all()

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
                objects += (read(scope.kind, obj) for obj in page)
        except ApiError as error:
            if error.status == 404 and source.optional:
                return Listing(scope, began, 0, ())
            raise
        except Invalid as error:
            raise ApiError(0, f"A LIST of {path} sent what cannot be read: {error}") from error
        return Listing(scope, began, int(version), tuple(objects))
