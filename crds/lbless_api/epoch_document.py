"""A ClusterIP's document at an epoch, on its way from a node that has it to one that lacks it.

Owns the way from a JSON object to the data of pieces and back, under limits. What is in the document is its
reader's to check; which are asked for is membership's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping

from lbless_api.fields import Invalid, mapping
from lbless_api.heartbeat import EpochPiece
from lbless_api.heartbeat_frame import MAX_DATA_BYTES

MAX_DOCUMENT_BYTES = 128 * 1024
"""64 nodes with the longest names that own 4,096 buckets in the worst order take 45 kB."""
MAX_PIECES = 32
"""What those take after compression is 20 pieces."""


def split(document: Mapping[str, object]) -> tuple[bytes, ...]:
    """Return the data of a document's pieces, in order. Raises ValueError for a document that is too large."""
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    packed = zlib.compress(text)
    pieces = tuple(packed[at : at + MAX_DATA_BYTES] for at in range(0, len(packed), MAX_DATA_BYTES))
    if len(text) > MAX_DOCUMENT_BYTES or len(pieces) > MAX_PIECES:
        raise ValueError(f"An epoch's document of {len(text)} bytes is too large to be sent to other nodes.")
    return pieces


def join(pieces: Iterable[bytes]) -> Mapping[str, object]:
    """Return the document whose pieces these are, all and in order; raises Invalid, one sentence."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(b"".join(pieces), MAX_DOCUMENT_BYTES + 1)
    except zlib.error:
        raise Invalid("An epoch's document from another node is not compressed data.") from None
    if len(text) > MAX_DOCUMENT_BYTES or not unpacking.eof or unpacking.unused_data:
        raise Invalid("An epoch's document from another node is too large, cut off or followed by more.")
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("An epoch's document from another node is not valid JSON.") from None
    return mapping(value, "An epoch's document from another node")


class Gathering:
    """Pieces that have come of documents that are not complete yet.

    Pieces of different senders never mix: each compresses for itself. Of a sender that contradicts itself the
    later word counts. At most `limit` documents are kept, 43 kB each; the one that waited longest goes.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._partial: dict[tuple[bytes, int, bytes, int], tuple[int, dict[int, bytes]]] = {}

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, piece: EpochPiece) -> Mapping[str, object] | None:
        """Take a piece; return the document if it is the last one of it. Raises Invalid, and forgets them."""
        key = piece.node, piece.incarnation, piece.clusterip, piece.epoch
        if not 0 <= piece.index < piece.count <= MAX_PIECES:
            raise Invalid(f"An epoch's document from another node has {piece.count} pieces.")
        count, held = self._partial.pop(key, (piece.count, {}))
        if count != piece.count or held.get(piece.index, piece.data) != piece.data:
            held = {}
        held[piece.index] = piece.data
        if len(held) == piece.count:
            return join(held[index] for index in range(piece.count))
        self._partial[key] = piece.count, held
        if len(self._partial) > self._limit:
            del self._partial[next(iter(self._partial))]
        return None
