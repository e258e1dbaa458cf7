"""Authoritative LISTs: every kind at the start and each minute, so that what a watch missed is made right.

Owns the requests, their threads, and saying what is waited for; when each is due is the agenda's. What they say is
put into the mailbox, complete or not at all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Set

from lbless_api.fields import Invalid
from lbless_edge.explain import explain
from lbless_edge.kube import Api, ApiError, in_namespace
from lbless_edge.patience import Patience
from lbless_operator.agenda import Agenda, Place, place
from lbless_operator.facts import Kind, Scope, Seen, key_of, parse
from lbless_operator.mailbox import Mailbox, RoundDone
from lbless_operator.said import Said
from lbless_operator.sources import SOURCES
from lbless_operator.state import Listing

PAGE = 100
"""Objects at once, of some KiB each; only what matters of them is kept."""
SAY_SECONDS = 3.0
"""A LIST that is waited for longer is worth a line in the log."""
MAX_NAMES = 8

_log = logging.getLogger("lbless.operator")


class Lister:
    """Lists `scopes`, on which everything depends, and what else is followed: what is new at once, all of them each
    minute and when a round is asked for. A round is complete when `scopes` are."""

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
        self._agenda = Agenda(scopes, clock())
        self._changed = threading.Condition()
        """Held by whoever uses the agenda, or says something."""
        self._waiting_since: float | None = None  # of LISTs that did not come at once
        self._say_at = float("inf")
        self._last_round = float("-inf")
        self._defect: Exception | None = None
        self._patience = {kind: Patience() for kind in Kind}
        self._said = Said(_log)
        self._said_unread = Said(_log)

    @property
    def awaited(self) -> frozenset[Scope]:
        """What is to be listed, and is not yet."""
        with self._changed:
            return self._agenda.awaited

    @property
    def view_age_seconds(self) -> float:
        """Time since the last complete round began, endless before the first."""
        return self._clock() - self._last_round

    def overdue(self, seconds: float) -> frozenset[Scope]:
        """What no round waits for, and was asked for that long ago without an answer since."""
        with self._changed:
            return self._agenda.overdue(self._clock() - seconds)

    def follow(self, scopes: frozenset[Scope], unwatched: Collection[Place] = ()) -> None:
        """List these from now on; those that are `unwatched` not at once, but when `list_again` says so."""
        with self._changed:
            self._agenda.follow(scopes, unwatched, self._clock())
            self._changed.notify_all()

    def list_again(self, kind: Kind, namespace: str) -> None:
        """List a collection at once: what is deleted from now on, its watch will tell."""
        with self._changed:
            self._agenda.list_again((kind, namespace), self._clock())
            self._changed.notify_all()

    def request_round(self, since: float | None = None) -> None:
        """List everything soon, in a round that begins from now on; one that began at `since` will do."""
        with self._changed:
            now = self._clock()
            self._agenda.request_round(now, now if since is None else since)
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
        with self._changed:
            while not self._stop.is_set():
                if self._defect:
                    raise self._defect
                now = self._clock()
                was_idle = self._agenda.is_idle
                taken = self._agenda.take(now)
                if taken:
                    self._waiting_since = self._waiting_since or now
                    self._say_at = now + SAY_SECONDS if was_idle else self._say_at
                for scope in taken:
                    # A daemon: one that hangs in a request must not keep the program from ending.
                    name = f"list-{scope.kind.lower()}-{scope.namespace or 'all'}"
                    threading.Thread(target=self._work, args=(scope,), name=name, daemon=True).start()
                if now >= self._say_at:
                    self._say_at = float("inf")
                    self._say_awaited()
                wait = min(self._agenda.next_time(now), self._say_at) - now
                self._changed.wait(min(wait, threading.TIMEOUT_MAX))

    def _work(self, scope: Scope) -> None:
        """List once, and see to what comes of it."""
        try:
            listing = self._list(scope)
        except ApiError as error:
            with self._changed:
                self._agenda.failed(scope, error.retry_after_seconds, self._clock())
                if not self._stop.is_set():
                    why = explain(error, SOURCES[scope.kind].path, self._api.server)
                    self._said.warn(f"{self._consequence({scope})}: {why}")
                self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - `run` raises it, which ends the program
            with self._changed:
                self._defect = error
                self._changed.notify_all()
        else:
            self._learn(listing)

    def _learn(self, listing: Listing) -> None:
        with self._changed:
            self._mailbox.put(listing)
            now = self._clock()
            round_began = self._agenda.answered(listing.scope, listing.began, now)
            if round_began is not None:
                self._mailbox.put(RoundDone(round_began))
                self._last_round = round_began
            if not self._agenda.awaited and self._waiting_since is not None:
                waited_seconds = now - self._waiting_since
                self._said.settled(
                    f"After {waited_seconds:.0f} s {self._api.server} answers every LIST again."
                )
                self._waiting_since = None
            if self._agenda.is_idle:
                self._say_at = float("inf")
            self._changed.notify_all()

    def _say_awaited(self) -> None:
        scopes = self._agenda.awaited
        if not scopes:
            return  # nobody asks for it any more
        self._said.warn(
            f"{self._consequence(scopes)}: {self._api.server} has been asked for {SAY_SECONDS:.0f} s to LIST "
            f"{_names(scopes)}, and is waited for."
        )

    def _consequence(self, scopes: Set[Scope]) -> str:
        """What it means that these are not listed."""
        unseen = self._agenda.unseen & scopes
        if unseen & self._agenda.base:
            return "Nothing is decided"
        return "Nothing is decided about some ClusterIPs" if unseen else "What is known grows old"

    def _list(self, scope: Scope) -> Listing:
        began, source = self._clock(), SOURCES[scope.kind]
        path = in_namespace(source.path, scope.namespace) if scope.namespace else source.path
        objects: list[Seen] = []
        unread: dict[str, Invalid] = {}
        version = "0"
        patience = self._patience[scope.kind]
        waited_seconds = patience.seconds
        pages = self._api.list_pages(
            path, limit=PAGE, read_timeout_seconds=waited_seconds, **source.selectors
        )
        try:
            for page, of_all_pages in patience.timed(pages):
                version = of_all_pages
                for obj in page:
                    try:
                        seen = parse(scope.kind, obj)
                    except Invalid as error:
                        unread[key_of(obj)] = error
                        continue
                    if scope.admits(seen):
                        objects.append(seen)
        except ApiError as error:
            if error.timed_out:
                patience.ran_out(waited_seconds)
            if error.status == 404 and source.optional:
                return Listing(scope, began, 0, ())
            raise
        except Invalid as error:
            raise ApiError(0, f"A LIST of {path} sent what cannot be read: {error}") from error
        if unread:
            self._say_unread(scope.kind, unread)
        return Listing(scope, began, int(version), tuple(objects), frozenset(unread))

    def _say_unread(self, kind: Kind, unread: Mapping[str, Invalid]) -> None:
        key = min(unread)
        others = f" (and {len(unread) - 1} more like it)" if unread.keys() - {key} else ""
        with self._changed:
            self._said_unread.warn(
                f"{kind} {key}{others} cannot be read, and counts as what was known of it last: {unread[key]}"
            )


def _names(scopes: Set[Scope]) -> str:
    """The plurals of some of them: "nodes, pods in shop and 3 more"."""
    names = [
        SOURCES[scope.kind].resource[2] + (f" in {scope.namespace}" if scope.namespace else "")
        for scope in sorted(scopes, key=place)
    ]
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if names[MAX_NAMES:] else "")
