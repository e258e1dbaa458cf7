"""Who is dead and who is heard on a segment: what the nodes say of each other, put together.

Pure. A node takes part where its agent is fresh and heartbeats run. What it said may be old all the same: an
agent counts as fresh for much longer than a node is dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from lbless_api.heartbeat import node_id
from lbless_api.segment import Condition, SegmentReport

Life = tuple[bytes, int]
"""A node's id and one of its incarnations."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """What a node with a fresh agent says of the segment, as the incarnation of its interface there."""

    node: str
    incarnation: int
    said: SegmentReport


@dataclass(frozen=True, slots=True)
class Segment:
    """What follows from all that is said. `speaks`: anybody said anything that counts.

    `dead` are the lives that the winning group counts dead. `heard` has, by node id, the newest incarnation of
    which anybody whose word counts has had a heartbeat, its own included, and `met` that of which others have.
    `held` and `acting` are names. `unanswered` are lives that another counts dead, and whose own report does not
    count that one dead in turn.
    """

    speaks: bool = False
    dead: frozenset[Life] = frozenset()
    heard: Mapping[bytes, int] = field(default_factory=dict)
    met: Mapping[bytes, int] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    acting: frozenset[str] = frozenset()
    unanswered: frozenset[Life] = field(default=frozenset(), compare=False)

    def counts_dead(self, node: str, incarnation: int) -> bool:
        """Whether this life is over: the winning group says so, or there is a newer one of the node."""
        life = node_id(node), incarnation
        return life in self.dead or self.heard.get(life[0], incarnation) > incarnation

    def has_successors(self, node: str, incarnation: int) -> bool:
        """Whether others know that this life is over, so that what it had is with them."""
        life = node_id(node), incarnation
        return life in self.dead or self.met.get(life[0], incarnation) > incarnation

    def hears(self, node: str) -> bool:
        """Whether anybody hears any life of the node that is not over."""
        life = node_id(node), self.heard.get(node_id(node), -1)
        return life[1] >= 0 and life not in self.dead


SILENT = Segment()
"""No heartbeats run, or nobody whose agent is fresh can tell of them."""


@dataclass(frozen=True, slots=True)
class _Word:
    """A report in ids."""

    name: str
    life: Life
    heard: frozenset[Life]
    dead: frozenset[Life]
    conditions: frozenset[Condition]
    is_reliable: bool


def listen(reporters: Iterable[Reporter], outdated: Set[Life] = frozenset()) -> Segment:
    """Put the reports of all fresh nodes on one segment together.

    A life is dead if somebody in the winning group counts it dead and nobody in that group hears it. Who is
    deaf, listens, leaves or has no lease counts nobody dead. Where nodes count each other dead the larger
    group wins, as on the segment itself (rule 6); of two equal ones that without anybody `unanswered`, then
    that with the smallest id.

    A group may be large only in words from before its members died. They may as well be about to contradict:
    those of them that had time enough, `outdated`, have no say any more while they are `unanswered`.
    """
    words = _current([_word(reporter) for reporter in reporters])
    unanswered = _unanswered(words)
    words = [word for word in words if word.life not in unanswered & outdated]
    hearing = [word for word in words if Condition.DEAF not in word.conditions]
    winners = _winning_group([word for word in words if word.is_reliable], unanswered)
    alive = {life for word in winners for life in (word.life, *word.heard)}
    return Segment(
        speaks=bool(words),
        dead=frozenset(life for word in winners for life in word.dead) - alive,
        heard=_newest(life for word in hearing for life in (word.life, *word.heard)),
        met=_newest(life for word in hearing for life in word.heard),
        held=frozenset(word.name for word in words if Condition.HELD in word.conditions),
        acting=frozenset(word.name for word in words if Condition.ACTING in word.conditions),
        unanswered=unanswered,
    )


def _word(reporter: Reporter) -> _Word:
    said = reporter.said
    return _Word(
        name=reporter.node,
        life=(node_id(reporter.node), reporter.incarnation),
        heard=frozenset(peer.life for peer in said.heard),
        dead=frozenset(peer.life for peer in said.dead),
        conditions=said.conditions,
        is_reliable=said.is_reliable,
    )


def _current(words: list[_Word]) -> list[_Word]:
    """Those that are not from before their sender began its present life."""
    newest = _newest(life for word in words for life in (word.life, *word.heard))
    return [word for word in words if newest[word.life[0]] == word.life[1]]


def _unanswered(words: list[_Word]) -> frozenset[Life]:
    """Who lives and is counted dead by another with a lease hears so within a tick, and then counts that one dead
    as well or begins a new life; and its report says so."""
    accusers: dict[Life, list[Life]] = {}
    for word in words:
        for life in word.dead if word.is_reliable else ():
            accusers.setdefault(life, []).append(word.life)
    return frozenset(word.life for word in words if not word.dead.issuperset(accusers.get(word.life, ())))


def _newest(lives: Iterable[Life]) -> dict[bytes, int]:
    """The newest incarnation of each node."""
    newest: dict[bytes, int] = {}
    for node, incarnation in lives:
        newest[node] = max(incarnation, newest.get(node, incarnation))
    return newest


def _winning_group(words: list[_Word], unanswered: Set[Life]) -> list[_Word]:
    """The words of the group with the highest rank, none where nobody's counts."""
    by_life = {word.life: word for word in words}

    def group(word: _Word) -> set[Life]:
        """It and whom it hears; of those whose word is known only who hears it, too."""
        mutual = {p for p in word.heard if p not in by_life or word.life in by_life[p].heard}
        return {word.life, *mutual}

    groups = [group(word) for word in words]
    best = min(groups, key=lambda g: (-len(g), not g.isdisjoint(unanswered), sorted(g)), default=set())
    return [by_life[life] for life in best if life in by_life]
