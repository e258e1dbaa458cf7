"""Epochs that travel between nodes: asking for those that are lacking, and answering whoever asks.

Owns the pieces of the epochs that this node holds, who answers when several could, and how much is sent at a
time. Which epochs are lacking is membership's to say, what a document means is checked where it is used.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from hashlib import sha256

from lbless_api.epoch_document import Gathering
from lbless_api.heartbeat import EpochPiece, EpochRequest
from lbless_nodeagent.dataplane.membership import Membership

FRAMES_AT_ONCE = 8
"""Frames that are sent in one turn. While there is more a turn takes 5 ms: 18 Mbit/s."""
MAX_QUEUED = 2048
KEPT_EPOCHS = 4
"""Of a ClusterIP the newest; older ones nobody needs that lives."""
_ASKED_BY = 256
_KEPT_GATHERED = 1024

Key = tuple[bytes, int]
"""A ClusterIP's id and an epoch."""


class Exchange:
    """One interface's. Nothing in it waits; what is sent is bounded, whoever asks for how much."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._held: dict[bytes, dict[int, tuple[bytes, ...]]] = {}
        self._gathering = Gathering()
        self._gathered: dict[Key, None] = {}
        """Whose documents have come. One of them that this node still does not hold was of no use to it, and would
        be of none again."""
        self._queue: deque[tuple[Key, int]] = deque()
        self._queued: set[Key] = set()
        self._asked: Counter[tuple[bytes, Key]] = Counter()

    def hold(self, clusterip: bytes, number: int, pieces: tuple[bytes, ...]) -> None:
        """This node has the epoch, so that it can be asked for it. Without pieces: too large to be sent."""
        epochs = self._held.setdefault(clusterip, {})
        epochs[number] = pieces
        for old in sorted(epochs)[:-KEPT_EPOCHS]:
            del epochs[old]

    def forget(self, clusterip: bytes) -> None:
        """It is asked for no longer."""
        self._held.pop(clusterip, None)
        self._gathered = {key: None for key in self._gathered if key[0] != clusterip}

    def asked(self, request: EpochRequest) -> None:
        """Queue what a peer asks for, if it is this node's turn to answer.

        A request names no node: of those that hold the epoch the first by a hash answers; each time that it is
        asked for again, the next.
        """
        if len(self._asked) > _ASKED_BY:
            self._asked.clear()
        for key in request.wanted:
            if not self._held.get(key[0], {}).get(key[1]):
                continue
            times = self._asked[request.node, key]
            self._asked[request.node, key] += 1
            if self._turn(request.node, key, times) and key not in self._queued:
                self._enqueue(key)

    def gathered(self, piece: EpochPiece) -> Mapping[str, object] | None:
        """Take a piece; return the document if it is whole and not held yet. Raises Invalid."""
        if piece.epoch in self._held.get(piece.clusterip, {}):
            return None
        document = self._gathering.add(piece)
        if document is not None:
            self._gathered[piece.clusterip, piece.epoch] = None
            if len(self._gathered) > _KEPT_GATHERED:
                del self._gathered[next(iter(self._gathered))]
        return document

    def frames(self, wanted: Iterable[Key]) -> list[EpochRequest | EpochPiece]:
        """What to send in this turn: a request for `wanted`, and answers."""
        membership = self._membership
        made: list[EpochRequest | EpochPiece] = []
        lacking = tuple(key for key in wanted if key not in self._gathered)
        if lacking:
            sequence = membership.take_sequence()
            made.append(EpochRequest(membership.node, membership.incarnation, sequence, lacking))
        while self._queue and len(made) < FRAMES_AT_ONCE:
            key, index = self._queue.popleft()
            pieces = self._held.get(key[0], {}).get(key[1], ())
            if index + 1 >= len(pieces):
                self._queued.discard(key)
            if index < len(pieces):
                made.append(
                    EpochPiece(
                        membership.node,
                        membership.incarnation,
                        membership.take_sequence(),
                        *key,
                        index,
                        len(pieces),
                        pieces[index],
                    )
                )
        return made

    @property
    def has_more(self) -> bool:
        """Whether answers wait for the next turn."""
        return bool(self._queue)

    def _enqueue(self, key: Key) -> None:
        pieces = self._held[key[0]][key[1]]
        if len(self._queue) + len(pieces) <= MAX_QUEUED:
            self._queued.add(key)
            self._queue.extend((key, index) for index in range(len(pieces)))

    def _turn(self, asker: bytes, key: Key, times: int) -> bool:
        others = [node for node in self._membership.holders(*key) if node != asker]
        nodes = sorted([self._membership.node, *others], key=lambda node: sha256(node + asker).digest())
        return nodes[times % len(nodes)] == self._membership.node
