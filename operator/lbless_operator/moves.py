"""Moves of buckets between living nodes: which run, how they go on when others follow, and when they have ended.

Pure. Which node owns what is `assignment`'s; how a node hands over is its own matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Move
from lbless_operator.confirmations import Confirmation
from lbless_operator.phrases import LISTED, name

MAX_MOVES = 256
"""Entries that status.moves holds."""
MAX_BYTES = 64 * 1024
"""What they take at most: nodes give each other an epoch in a document of 128 KiB, with the assignments."""
FIGURES_SECONDS = 10.0
"""How much is left to drain is written at most so often, unless something else is to be written."""
FIGURES_APART_SECONDS = 0.25
"""And of all ClusterIPs together so often: each write goes to every node."""

_NONE = BucketSet()


@dataclass(frozen=True, slots=True)
class Underway:
    """What is known of a ClusterIP's moves besides themselves.

    `drains`: node → how many TCP flows it has left in buckets that it has given up, None where it does not say;
    without an entry it has ended. `said_seconds`: for how long that has been in the status as it is. `pace_seconds`:
    how long it is to be. `since_seconds`: how long ago the first of the moves began, None where nobody saw that.
    """

    drains: Mapping[str, int | None] = field(default_factory=dict)
    said_seconds: float = 0.0
    pace_seconds: float = FIGURES_SECONDS
    since_seconds: float | None = None


def pace_seconds(moving: int) -> float:
    """How far apart the figures of a ClusterIP are written, where so many have some."""
    return max(FIGURES_SECONDS, FIGURES_APART_SECONDS * moving)


def follow(
    moves: Iterable[Move],
    before: Mapping[str, BucketSet],
    after: Mapping[str, BucketSet],
    lost: Collection[str] = (),
) -> tuple[Move, ...]:
    """Return the moves that run once ownership has gone from `before` to `after`; sorted, one for each pair of nodes.

    A bucket's flows may be with everyone who has owned it, since no flow goes along. So who gives a bucket up is the
    source of a move to its new owner, and earlier sources of it now move to that one as well: after A→B→C there are
    A→C and B→C, after A→B→A there is B→A. The `lost` have no flows any more: they are dead, or have begun another life.
    Beyond what the status holds those with the fewest buckets are left out: flows of these end with the move.
    """
    destinations: dict[tuple[str, str], BucketSet] = {}

    def add(buckets: BucketSet, source: str, destination: str) -> None:
        pair = source, destination
        destinations[pair] = destinations.get(pair, _NONE) | buckets

    for move in moves:
        if move.source in lost:
            continue
        for destination, buckets in _owners(move, after):
            if destination != move.source:
                add(buckets, move.source, destination)
    gained = {node: new for node, owned in after.items() if (new := owned - before.get(node, _NONE))}
    for source, had in before.items():
        given_up = had - after.get(source, _NONE)
        if given_up and source not in lost:
            for destination, new in gained.items():
                if taken := given_up & new:
                    add(taken, source, destination)
    return _bounded(Move(buckets, *pair) for pair, buckets in destinations.items())


def _owners(move: Move, after: Mapping[str, BucketSet]) -> Iterator[tuple[str, BucketSet]]:
    """Who owns the buckets of a move, mostly its destination; what nobody owns any more is left out."""
    left = move.buckets
    for node in chain([move.destination], after):
        if not left:
            return
        if owned := left & after.get(node, _NONE):
            yield node, owned
            left -= owned


def _bounded(moves: Iterable[Move]) -> tuple[Move, ...]:
    room, kept = MAX_BYTES, []
    for move in sorted(moves, key=lambda m: (-len(m.buckets), m.source, m.destination))[:MAX_MOVES]:
        room -= len(str(move.buckets)) + len(move.source) + len(move.destination) + 40
        if room < 0:
            break
        kept.append(move)
    return tuple(sorted(kept, key=lambda m: (m.source, m.destination)))


def part(
    moves: Iterable[Move], epoch: int, confirmations: Mapping[str, Confirmation], drains: Collection[str]
) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """Return the moves that run still, and those that have ended.

    One has ended when both nodes have the epoch in their kernels and the source is not among who `drains`.
    """
    confirmed = {node for node, one in confirmations.items() if one.epoch == epoch}
    known = tuple(moves)
    ended = tuple(m for m in known if {m.source, m.destination} <= confirmed and m.source not in drains)
    return tuple(m for m in known if m not in ended), ended


def count(moves: Iterable[Move]) -> int:
    """How many buckets move; one with several sources is one."""
    return len(_union(moves))


def print_running(moves: Iterable[Move], drains: Mapping[str, int | None]) -> str:
    """Sentences on what moves and what is left to drain, of the first few sources; empty where nothing moves.

    "85 buckets move from n1 to n2: n1 still finishes 212 connections."
    """
    sources = _by_source(moves)
    said = [
        f"{_print_buckets(ones, 'moves', 'move')}: {source} {_print_flows(source, drains)}."
        for source, ones in list(sources.items())[:LISTED]
    ]
    rest = len(sources) - len(said)
    if rest:
        said.append(f"{rest} more node{' gives' if rest == 1 else 's give'} up buckets.")
    return " ".join(said)


def print_begun(
    moves: Collection[Move], unable: Collection[str], moved: int, drain_timeout_seconds: int
) -> str:
    """What becomes of the connections in the buckets of `moves`, of the `moved` ones that an Event tells of.

    The `unable` are nodes that can neither finish connections nor leave them to others.
    """
    if not moves:
        return ""
    if not drain_timeout_seconds:
        return "Established connections in them end, as spec.drainTimeoutSeconds is 0."
    among = count(m for m in moves if m.source not in unable and m.destination not in unable)
    if not among:
        return "Established connections in them end."
    where = "" if among >= moved else f" in {among} of them"
    return f"Established connections{where} stay where they are for up to {drain_timeout_seconds} s."


def print_ended(moves: Iterable[Move], since_seconds: float | None) -> str:
    """What has moved, and how long that took; empty where nothing has."""
    said = [_print_buckets(ones, "has moved", "have moved") for ones in _by_source(moves).values()]
    if not said:
        return ""
    after = f", {since_seconds:.0f} s after they began to" if since_seconds is not None else ""
    return f"{name(said)}{after}: no connection is left where they were."


def _print_flows(source: str, drains: Mapping[str, int | None]) -> str:
    if source not in drains:
        return "has not said yet what is left there"
    flows = drains[source]
    if flows is None:
        return "still finishes connections"
    return f"still finishes {flows} connection{'' if flows == 1 else 's'}"


def _print_buckets(moves: Collection[Move], singular: str, plural: str) -> str:
    """Return "85 buckets move from n1 to n2 (43) and n3 (42)", of moves with one source."""
    number = count(moves)
    (source,) = {move.source for move in moves}
    gains = [(move.destination, len(move.buckets)) for move in moves]
    to = gains[0][0] if len(gains) == 1 else name(f"{node} ({gained})" for node, gained in gains)
    return f"{number} bucket{f' {singular}' if number == 1 else f's {plural}'} from {source} to {to}"


def _by_source(moves: Iterable[Move]) -> dict[str, list[Move]]:
    sources: dict[str, list[Move]] = {}
    for move in moves:
        sources.setdefault(move.source, []).append(move)
    return sources


def _union(moves: Iterable[Move]) -> BucketSet:
    union = _NONE
    for move in moves:
        union |= move.buckets
    return union
