"""Which LISTs are due: of what was asked for and not answered since, of rounds, and of those that have failed.

Owns their order, their number and their times, and who of them waits for whom: nobody for one that is refused.
For whoever holds the lister's lock; every time is handed in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import SystemRandom

from lbless_edge.backoff import Backoff
from lbless_operator.facts import Kind, Scope
from lbless_operator.workloads import FOLLOWED

ROUND_SECONDS = 60.0
"""At most so long after one round ended, the next begins."""
BLIND_SECONDS = 3 * ROUND_SECONDS
"""Without a complete round of LISTs for so long, what is known is too old to decide on. Of a workload that was to be
listed so long ago, and was not, only the ClusterIPs that ask for it wait."""
FOLLOWED_ROUNDS = 10
"""A ListWatch finds by itself what it missed, kopf does not: what followers follow is listed each so many rounds."""
REQUESTED_ROUND_SECONDS = 1.0
"""A round that was asked for waits so long, as many tend to ask at once, and rounds stay so far apart."""

AT_ONCE = 8
"""LISTs under way at once, so that an API server which takes long for each does not take the sum of all."""
PODS_AT_ONCE = 2
"""Pods are the largest of what is listed: a page of them takes some MiB while it is read."""

Place = tuple[Kind, str]
"""A collection by kind and namespace, whatever of it is asked for."""

_random = SystemRandom()


@dataclass(slots=True)
class _Ask:
    """What a LIST answers that began at `at` or later; `since`: nothing later than this was answered yet."""

    at: float
    since: float


class Agenda:
    """The LISTs of `base`, on which everything depends, and of what else is to be followed."""

    def __init__(self, base: frozenset[Scope], now: float) -> None:
        self._base = self._scopes = base
        self._asks: dict[Scope, _Ask] = {}
        self._seen: set[Scope] = set()  # listed at least once
        self._under_way: dict[Place, Scope] = {}
        self._failed: set[Scope] = set()
        self._retry_at = float("-inf")
        self._backoff = Backoff()
        self._round_began: float | None = None  # of the round that is under way
        self._next_round = now
        self._requested = self._lists_all = True
        self._rounds_to_followed = 0

    @property
    def awaited(self) -> frozenset[Scope]:
        """What is to be listed, and is not yet."""
        return frozenset(self._asks)

    @property
    def unseen(self) -> frozenset[Scope]:
        """What was never listed."""
        return self._scopes - self._seen

    @property
    def base(self) -> frozenset[Scope]:
        """What everything depends on."""
        return self._base

    @property
    def is_idle(self) -> bool:
        """Whether no LIST is under way."""
        return not self._under_way

    def overdue(self, before: float) -> frozenset[Scope]:
        """What does not belong to the base, and was asked for before a time without an answer since."""
        return frozenset(scope for scope, ask in self._asks.items() if ask.since < before) - self._base

    def follow(self, scopes: frozenset[Scope], unwatched: Collection[Place], now: float) -> None:
        """List these from now on; those that are `unwatched` not at once, but when `list_again` says so."""
        new = scopes - self._scopes
        self._scopes = scopes
        self._seen &= scopes
        self._failed &= scopes
        self._asks = {scope: ask for scope, ask in self._asks.items() if scope in scopes}
        for scope in new:
            if place(scope) not in unwatched:
                self._ask(scope, now)

    def list_again(self, where: Place, now: float) -> None:
        """List a collection anew, also one that is being listed just now."""
        for scope in self._scopes:
            if place(scope) == where:
                self._ask(scope, now)

    def request_round(self, now: float, since: float) -> None:
        """List everything soon, unless a round that began at `since` or later is about to."""
        if self._round_began is not None and self._lists_all and self._round_began >= since:
            return
        self._requested = True
        self._next_round = min(self._next_round, now + REQUESTED_ROUND_SECONDS)

    def take(self, now: float) -> list[Scope]:
        """Return what to list now; each of these is to be `answered` or to have `failed` later."""
        if self._round_is_due(now):
            self._begin_round(now)
        taken = []
        # What was asked for again and again waits behind what was never listed yet, or that might never be.
        for scope, _ in sorted(
            self._asks.items(), key=lambda ask: (ask[0] not in self._base, ask[1].since, place(ask[0]))
        ):
            if self._may_begin(scope, now):
                self._under_way[place(scope)] = scope
                taken.append(scope)
        return taken

    def next_time(self, now: float) -> float:
        """When `take` may have more to return though nothing has happened by then."""
        round_at = self._next_round
        if self._round_began is not None:
            round_at = max(round_at, self._round_began + ROUND_SECONDS)
        return min([at for at in (round_at, self._retry_at) if at > now], default=float("inf"))

    def answered(self, scope: Scope, began: float, now: float) -> float | None:
        """A LIST that began then is complete; return when the round began that this completes, None if none.

        One that took so long that what it says is too old is no answer: it is asked for anew.
        """
        self._end(scope)
        self._failed.discard(scope)
        if not self._failed:
            self._backoff.succeeded()
        if scope in self._scopes:
            self._seen.add(scope)
        ask = self._asks.get(scope)
        if ask and ask.at <= began and now - began < BLIND_SECONDS:
            del self._asks[scope]
        elif ask:
            ask.since = max(ask.since, began)
        return None if self._asks.keys() & self._base else self._end_round(now)

    def failed(self, scope: Scope, at_least_seconds: float, now: float) -> None:
        """A LIST came to nothing: it is begun anew after a while, together with others that have failed."""
        self._end(scope)
        if scope not in self._scopes:
            return
        self._failed.add(scope)
        wait = at_least_seconds if now < self._retry_at else self._backoff.failed(at_least_seconds)
        self._retry_at = max(self._retry_at, now + wait)

    def _ask(self, scope: Scope, now: float) -> None:
        self._asks.setdefault(scope, _Ask(now, now)).at = now

    def _may_begin(self, scope: Scope, now: float) -> bool:
        """Whether its turn has come. The base waits for no other LIST, or one that hangs would make all grow old."""
        under_way = self._under_way.values()
        if place(scope) in self._under_way or (scope in self._failed and now < self._retry_at):
            return False
        if scope.kind is Kind.POD and sum(other.kind is Kind.POD for other in under_way) >= PODS_AT_ONCE:
            return False
        return scope in self._base or len(under_way) < AT_ONCE

    def _end(self, scope: Scope) -> None:
        del self._under_way[place(scope)]

    def _round_is_due(self, now: float) -> bool:
        """One that is not complete for long begins anew, so that its parts are of one time; what is slow may end."""
        if self._round_began is None:
            return now >= self._next_round
        is_old = now >= max(self._next_round, self._round_began + ROUND_SECONDS)
        return is_old and self._base.isdisjoint(self._under_way.values())

    def _begin_round(self, now: float) -> None:
        self._rounds_to_followed -= 1
        begins_anew = self._round_began is not None
        self._lists_all = (
            self._requested or self._rounds_to_followed <= 0 or (begins_anew and self._lists_all)
        )
        if self._lists_all:
            self._rounds_to_followed = FOLLOWED_ROUNDS
        self._requested = False
        self._round_began = now
        for scope in self._scopes:
            if self._lists_all or scope.kind not in FOLLOWED:
                self._ask(scope, now)

    def _end_round(self, now: float) -> float | None:
        began, self._round_began = self._round_began, None
        if began is not None:
            # Not all operators and their restarts at the same second of each minute. What was asked for
            # during this round may be about something that it had listed already.
            wait = REQUESTED_ROUND_SECONDS if self._requested else ROUND_SECONDS * _random.uniform(0.8, 1)
            self._next_round = now + wait
        return began


def place(scope: Scope) -> Place:
    """Where it is; also a good order to name scopes in."""
    return scope.kind, scope.namespace
