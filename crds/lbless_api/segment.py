"""What a node says of its segment: whom it hears on an interface, whom it counts dead, what its word is worth.

Owns the values and both directions of their JSON, which are fields of an interface's. No sequence and no age
is part of it: it changes with what happens on the segment, never with a heartbeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from lbless_api.fields import Invalid, integer, items, mapping, text
from lbless_api.heartbeat import ID_BYTES, MAX_NUMBER, node_id

JSON = dict[str, object]

MAX_PEERS = 64
"""Peers in each of the two lists: more nodes a segment does not carry."""
_ID_SIGN = "#"
"""What an id begins with that stands where a name would; no name of a Node can hold it."""


class Condition(StrEnum):
    """What holds of a node on an interface's segment, beside that it takes part. Mostly nothing."""

    LISTENING = "Listening"
    DEAF = "Deaf"
    LEAVING = "Leaving"
    LEASE_LAPSED = "LeaseLapsed"
    """It neither listens nor is deaf, and still no peer's acknowledgement extends its lease."""
    ACTING = "Acting"
    HELD = "Held"
    NO_PEERS_HEARD = "NoPeersHeard"
    """Epochs name other nodes, and for a minute no heartbeat of any has arrived."""
    OTHER = "Other"
    """What only a later version has a word for."""


UNRELIABLE = frozenset(
    {Condition.LISTENING, Condition.DEAF, Condition.LEAVING, Condition.LEASE_LAPSED, Condition.OTHER}
)
"""Who is any of these may not serve, and its verdicts on others count for nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A life of another node. `node` is its name, or ``#`` and its id in hex where the name is not known."""

    node: str
    incarnation: int

    @property
    def life(self) -> tuple[bytes, int]:
        """Its id and incarnation, the same however it is written."""
        return peer_id(self.node), self.incarnation


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What a node says of the segment of one interface.

    `heard`: the lives whose heartbeats arrive here and that it does not count dead. `dead`: those that it
    counts dead, until it hears of a newer one of the same node.
    """

    conditions: frozenset[Condition] = frozenset()
    heard: tuple[Peer, ...] = ()
    dead: tuple[Peer, ...] = ()

    @property
    def only_listens(self) -> bool:
        """Whether it is about to take part, and nothing else is said."""
        return self.conditions == {Condition.LISTENING}

    @property
    def is_reliable(self) -> bool:
        """Whether it may serve, and its verdicts count."""
        return self.conditions.isdisjoint(UNRELIABLE)


@lru_cache(maxsize=4096)
def peer_id(written: str) -> bytes:
    """The id that a peer's name, or ``#`` and an id in hex, stands for."""
    if written.startswith(_ID_SIGN):
        return bytes.fromhex(written[1:])
    return node_id(written)


def by_id(peer: Peer) -> Peer:
    """The same life, written by its id: never more than 17 characters."""
    return Peer(_ID_SIGN + peer.life[0].hex(), peer.incarnation)


def name_peers(lives: Iterable[tuple[bytes, int]], names: Mapping[bytes, str]) -> tuple[Peer, ...]:
    """Lives as a report lists them: by name where `names` has the id, the newest of each node, in order."""
    newest: dict[bytes, int] = {}
    for node, incarnation in lives:
        newest[node] = max(incarnation, newest.get(node, 0))
    peers = (Peer(names.get(node, _ID_SIGN + node.hex()), number) for node, number in newest.items())
    return tuple(sorted(peers))[:MAX_PEERS]


def parse_segment(interface: Mapping[str, object], where: str) -> SegmentReport | None:
    """Read the fields of an interface that are about its segment, None where there are none; raises Invalid."""
    if "membership" not in interface:
        return None
    words = [
        text(word, f"{where}.membership", limit=63)
        for word in items(interface["membership"], f"{where}.membership")
    ]
    known = set(Condition)
    return SegmentReport(
        conditions=frozenset(Condition(word) if word in known else Condition.OTHER for word in words),
        heard=_peers(interface, "heardPeers", where),
        dead=_peers(interface, "deadPeers", where),
    )


def render_segment(report: SegmentReport | None) -> JSON:
    """The fields of an interface that are about its segment."""
    if report is None:
        return {}
    return {
        "membership": sorted(condition.value for condition in report.conditions),
        "heardPeers": [{"node": p.node, "incarnation": p.incarnation} for p in report.heard],
        "deadPeers": [{"node": p.node, "incarnation": p.incarnation} for p in report.dead],
    }


def _peers(interface: Mapping[str, object], field: str, where: str) -> tuple[Peer, ...]:
    here = f"{where}.{field}"
    entries = [mapping(entry, here) for entry in items(interface.get(field) or [], here)]
    if len(entries) > MAX_PEERS:
        raise Invalid(f"{here} has {len(entries)} entries: {MAX_PEERS} at most are possible.")
    return tuple(
        Peer(
            _node(entry.get("node"), f"{here}.node"),
            integer(entry.get("incarnation", 0), f"{here}.incarnation", 0, MAX_NUMBER),
        )
        for entry in entries
    )


def _node(value: object, where: str) -> str:
    written = text(value, where, limit=253)
    if written.startswith(_ID_SIGN):
        try:
            if len(bytes.fromhex(written[1:])) == ID_BYTES:
                return written
        except ValueError:
            pass
        raise Invalid(f"{where} {written[:60]!r} is not # and {2 * ID_BYTES} hexadecimal digits.")
    return written
