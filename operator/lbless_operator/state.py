"""Everything the operator knows, and whom a piece of news concerns.

Owned by the reconciler's thread alone. News come in as `Seen` and `Listing`; out go the keys of the
ClusterIPs to look at again, and what is known of one of them as a `Situation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from lbless_api.node import NodeStatus
from lbless_api.refusal import Taken, refusal
from lbless_operator import taken
from lbless_operator.agents import Agents, Freshness
from lbless_operator.claims import Claims
from lbless_operator.confirmations import Confirmations
from lbless_operator.decision import Situation
from lbless_operator.drains import Drains
from lbless_operator.eligibility import Candidate, judge
from lbless_operator.facts import (
    AgentFact,
    ClusterIPFact,
    Kind,
    LeaseFact,
    NodeFact,
    PodFact,
    RangeFact,
    Scope,
    Seen,
    SliceFact,
    node_of_lease,
    renewal_time,
)
from lbless_operator.interest import Asked
from lbless_operator.moves import Underway, pace_seconds
from lbless_operator.seating import Segments
from lbless_operator.segment import SILENT
from lbless_operator.shelf import Change, Shelf
from lbless_operator.workloads import FOLLOWED, Workloads


@dataclass(frozen=True, slots=True)
class Listing:
    """A completed LIST of a scope, asked for at `began`; `version` is the resource version of the whole.

    `unread` are the keys of what it has shown, and nobody could read.
    """

    scope: Scope
    began: float
    version: int
    objects: tuple[Seen, ...]
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of a piece of news: monotonic seconds, and seconds since 1970."""

    now: float
    wall: float


class State:
    """The view of the cluster."""

    def __init__(self, api_server: str, lease_namespace: str, started: float) -> None:
        self._api_server = api_server
        self.base_scopes = frozenset(
            {
                Scope(Kind.CLUSTERIP),
                Scope(Kind.NODE),
                Scope(Kind.AGENT),
                Scope(Kind.SERVICE_RANGE),
                Scope(Kind.LEASE, lease_namespace),
            }
        )
        self._listed: set[Scope] = set()
        self._followed: frozenset[Scope] = frozenset()
        self._places: frozenset[tuple[Kind, str]] = frozenset()
        self._asked_at: dict[Asked, float] = {}
        self._covered: set[Asked] = set()
        self._shelves = {kind: Shelf() for kind in Kind}
        self._claims = Claims()
        self._workloads = Workloads()
        self._agents = Agents(started)
        self.confirmations = Confirmations()
        self._drains = Drains(self.confirmations.marked)
        self._candidates: tuple[Candidate, ...] | None = None
        self._segments = Segments()
        self._taken: Taken | None = None
        self._consequences: Mapping[Kind, Callable[[Change, Clock], set[str]]] = {
            Kind.CLUSTERIP: self._tell_clusterip,
            Kind.NODE: self._tell_everyone,
            Kind.SERVICE_RANGE: self._tell_everyone,
            Kind.AGENT: self._tell_agent,
            Kind.LEASE: self._tell_lease,
            Kind.POD: self._tell_pod,
            Kind.SLICE: self._tell_slice,
        }

    @property
    def keys(self) -> set[str]:
        """All ClusterIPs."""
        return self._claims.keys()

    def scopes(self) -> frozenset[Scope]:
        """The collections that matter: pods and slices only where a ClusterIP asks for them."""
        return self.base_scopes | self._workloads.scopes()

    @property
    def is_following(self) -> bool:
        """Whether what ClusterIPs ask for is what `follow` was told last."""
        return self._workloads.scopes() is self._followed

    def follow(self, now: float) -> None:
        """Everything in `scopes()` is told from `now` on; forget what nobody asks for any more."""
        followed = self._workloads.scopes()
        self._places = frozenset((scope.kind, scope.namespace) for scope in followed)
        for scope in self._followed:
            if (scope.kind, scope.namespace) not in self._places:
                self._shelves[scope.kind].drop_namespace(scope.namespace)
                self._workloads.drop_namespace(scope.kind, scope.namespace)
                # Where the whole cluster is followed instead, or no longer, all is learnt anew.
                for asked in scope.interest.asked:
                    self._asked_at.pop(asked, None)
        self._followed = followed
        wanted = {asked for scope in followed for asked in scope.interest.asked}
        self._covered &= wanted & self._asked_at.keys()
        self._asked_at = {asked: self._asked_at.get(asked, now) for asked in wanted}

    def is_complete(self) -> bool:
        """Whether each collection was listed that all ClusterIPs depend on; before that nothing may be decided."""
        return self.base_scopes <= self._listed

    def awaits(self, key: str) -> bool:
        """Whether what decides about a ClusterIP is not known as a whole yet: its pods or endpoints."""
        asked = self._workloads.asked_by(key)
        return asked is not None and asked not in self._covered

    def doubt(self, scopes: Iterable[Scope], since: float) -> None:
        """What is known of these is too old: who asks for it awaits a LIST that began at `since` or later."""
        for asked in (asked for scope in scopes for asked in scope.interest.asked):
            if asked in self._asked_at:
                self._asked_at[asked] = max(since, self._asked_at[asked])
                self._covered.discard(asked)

    def learn(self, seen: Seen, clock: Clock) -> set[str]:
        """Take in an event; return the ClusterIPs that it concerns."""
        if not self._follows(seen.kind, seen.namespace):
            return set()
        change = self._shelves[seen.kind].put(seen)
        return self._consequences[seen.kind](change, clock) if change else set()

    def learn_listing(self, listing: Listing, clock: Clock) -> set[str]:
        """Take in a completed LIST; return the ClusterIPs that its news concern.

        An object that cannot be read stays as it is known, so that nobody is robbed for it. Where nothing is known
        of it: an agent whose Lease it is may be alive; on a Node or a range nothing can be decided, and on a pod or
        EndpointSlice nothing about who has a workload in its namespace, until it was listed once without such; a
        ClusterIP or a report is not there.
        """
        scope = listing.scope
        concerned: set[str] = set()
        if scope.kind in FOLLOWED and scope not in self._followed:
            return concerned  # of what was asked for before: it would show less than there is
        shelf = self._shelves[scope.kind]
        for change in shelf.replace(scope.namespace, listing.version, listing.objects, listing.unread):
            concerned |= self._consequences[scope.kind](change, clock)
        unknown = {key for key in listing.unread if shelf.get(key) is None}
        if scope.kind in FOLLOWED:
            concerned |= self._cover(scope, listing.began, {key.partition("/")[0] for key in unknown})
        elif not unknown or scope.kind not in {Kind.NODE, Kind.SERVICE_RANGE}:
            self._listed.add(scope)
        if scope.kind is Kind.LEASE:
            self._agents.listed(listing.began)
            for node in filter(None, (node_of_lease(key.rpartition("/")[2]) for key in listing.unread)):
                self._agents.unread(node, clock.now)
        return concerned

    def tick(self, now: float) -> tuple[set[str], bool]:
        """Judge which agents are fresh, and whose reports are outdated; return the ClusterIPs concerned, and whether
        a LIST is needed."""
        changed, unsure = self._agents.tick(self._node_names(), now)
        outdated = self._segments.tick(now)
        if changed:
            self._forget_candidates()
            return self.keys, unsure
        otherwise = outdated and self._segments.change(self._all_candidates(), now)
        return (self.keys if otherwise else set()), unsure

    def confirm(self) -> set[str]:
        """Compare what nodes report with what is expected; return the ClusterIPs for which that changed."""
        return self._claims.keys_of(self.confirmations.evaluate())

    def nodes(self) -> Sequence[NodeFact]:
        """All Nodes."""
        return [fact for fact in self._shelves[Kind.NODE].facts() if isinstance(fact, NodeFact)]

    def situation(self, key: str, now: float, timestamp: str) -> Situation | None:
        """Everything that decides about a ClusterIP; None if it is deleted."""
        fact = self._claims.get(key)
        if fact is None:
            return None
        memory = self._claims.memory(fact)
        named = {a.node: a.incarnation for a in memory.status.assignments}
        readiness = self._workloads.readiness(key)
        candidates = self._all_candidates()
        known = {c.name for c in candidates}
        sources = {move.source for move in memory.status.moves}
        extra = (self._candidate(name) for name in sorted((named.keys() | sources) - known))
        segment = self._segments.of(fact.spec, candidates, now) if fact.spec else SILENT
        uid = fact.identity.uid
        return Situation(
            fact=fact,
            current=memory.status,
            tampered=memory.tampered,
            older=self._claims.older(key),
            refusal=refusal(fact.address, self._all_taken()) if fact.address else None,
            verdicts=tuple(
                judge(
                    fact.spec,
                    candidate,
                    readiness,
                    named=candidate.name in named,
                    incarnation=named.get(candidate.name, 0),
                    segment=segment,
                    first=not named,
                )
                for candidate in (*candidates, *extra)
            )
            if fact.spec
            else (),
            readiness=readiness,
            confirmations={node: self.confirmations.of(node, uid) for node in self.confirmations.nodes()},
            fresh=frozenset(c.name for c in candidates if c.freshness is Freshness.FRESH),
            epoch_age_seconds=now - memory.since,
            now=timestamp,
            segment=segment,
            underway=Underway(
                drains=self._drains.of(uid),
                said_seconds=now - memory.said_at,
                pace_seconds=pace_seconds(self._claims.moving),
                since_seconds=None if memory.moving_since is None else now - memory.moving_since,
            ),
        )

    def _follows(self, kind: Kind, namespace: str) -> bool:
        """Whether it is asked for; news may be on their way still when it is no longer."""
        return kind not in FOLLOWED or bool({(kind, namespace), (kind, "")} & self._places)

    def _cover(self, scope: Scope, began: float, unknown: Set[str]) -> set[str]:
        """Count as known what a LIST has shown that began after it was asked for; return who waited for it.

        But nothing in the namespaces `unknown`.
        """
        wanted = (asked for asked in scope.interest.asked if asked[0] not in unknown)
        new = {asked for asked in wanted if self._asked_at.get(asked, began + 1) <= began}
        new -= self._covered
        self._covered |= new
        return self._workloads.asking(new)

    def _tell_clusterip(self, change: Change, clock: Clock) -> set[str]:
        seen, old = change.seen, change.old
        fact = seen.fact if isinstance(seen.fact, ClusterIPFact) else None
        concerned = self._claims.learn(seen.key, fact, clock.now)
        self._workloads.follow(seen.key, seen.namespace, fact.spec.workload if fact and fact.spec else None)
        if isinstance(old, ClusterIPFact) and (fact is None or fact.identity.uid != old.identity.uid):
            self.confirmations.forget(old.identity.uid)
        if fact:
            self.confirmations.expect(fact.identity.uid, fact.status.epoch)
        return concerned

    def _tell_everyone(self, change: Change, _clock: Clock) -> set[str]:
        """A Node or a range: any ClusterIP may be concerned."""
        if change.seen.fact == change.old:
            return set()
        self._forget_candidates()
        self._taken = None
        return self.keys

    def _tell_agent(self, change: Change, clock: Clock) -> set[str]:
        report = change.seen.fact.report if isinstance(change.seen.fact, AgentFact) else None
        before = change.old.report if isinstance(change.old, AgentFact) else None
        if report == before:
            return set()
        concerned = self._claims.keys_of(self._drains.report(change.seen.name, report))
        if _without_drains(report) == _without_drains(before):
            return concerned  # as every 10 s, from each node that drains anything
        concerned |= self._claims.keys_of(self.confirmations.report(change.seen.name, report))
        if _decisive(report) != _decisive(before):
            self._forget_candidates()
            self._taken = None
            concerned |= self.keys
        elif _segments(report) != _segments(before):
            # One death is a report of each node; it concerns the ClusterIPs when it changes what is concluded.
            self._candidates = None
            if self._segments.change(self._all_candidates(), clock.now):
                concerned |= self.keys
        return concerned

    def _tell_lease(self, change: Change, clock: Clock) -> set[str]:
        """Nobody is concerned before `tick` finds that a node's freshness is another."""
        lease = change.seen.fact
        if isinstance(lease, LeaseFact):
            renewed = renewal_time(lease.renewed)
            age = clock.wall - renewed.timestamp() if renewed else None
            self._agents.renewed(lease.node, lease.renewed, age, clock.now)
        elif isinstance(change.old, LeaseFact):
            self._agents.removed(change.old.node, clock.now)
        return set()

    def _tell_pod(self, change: Change, _clock: Clock) -> set[str]:
        seen = change.seen
        pod = seen.fact if isinstance(seen.fact, PodFact) else None
        return self._workloads.pod(seen.namespace, seen.name, pod)

    def _tell_slice(self, change: Change, _clock: Clock) -> set[str]:
        seen = change.seen
        endpoints = seen.fact if isinstance(seen.fact, SliceFact) else None
        return self._workloads.slice(seen.namespace, seen.name, endpoints)

    def _forget_candidates(self) -> None:
        self._candidates = None
        self._segments.forget()

    def _all_candidates(self) -> tuple[Candidate, ...]:
        if self._candidates is None:
            self._candidates = tuple(self._candidate(name) for name in sorted(self._node_names()))
        return self._candidates

    def _candidate(self, name: str) -> Candidate:
        node = self._shelves[Kind.NODE].get(name)
        return Candidate(
            name=name,
            node=node if isinstance(node, NodeFact) else None,
            freshness=self._agents.freshness(name),
            report=self._report(name),
        )

    def _report(self, node: str) -> NodeStatus | None:
        fact = self._shelves[Kind.AGENT].get(node)
        return fact.report if isinstance(fact, AgentFact) else None

    def _all_taken(self) -> Taken:
        if self._taken is None:
            reports = {name: self._report(name) for name in self._shelves[Kind.AGENT]}
            self._taken = taken.collect(
                self._api_server,
                self.nodes(),
                {name: report for name, report in reports.items() if report},
                (f for f in self._shelves[Kind.SERVICE_RANGE].facts() if isinstance(f, RangeFact)),
            )
        return self._taken

    def _node_names(self) -> frozenset[str]:
        return frozenset(self._shelves[Kind.NODE]) | frozenset(self._shelves[Kind.AGENT])


def _decisive(report: NodeStatus | None) -> tuple[object, ...]:
    """What of a report decides about every ClusterIP by itself; all else is about some."""
    if report is None:
        return ()
    own = (i.segment and replace(i.segment, heard=(), dead=()) for i in report.interfaces)
    return tuple(replace(i, segment=s) for i, s in zip(report.interfaces, own, strict=True)), report.engines


def _without_drains(report: NodeStatus | None) -> NodeStatus | None:
    return report and replace(report, drains=(), unlisted_drains=frozenset())


def _segments(report: NodeStatus | None) -> tuple[object, ...]:
    """What a report says of segments, which decides together with what others say."""
    return tuple(i.segment for i in report.interfaces) if report else ()
