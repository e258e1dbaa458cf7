"""What the nodes of a segment tell each other: the values. Their bytes are `heartbeat_frame`'s.

Owns names and shapes alone. What follows from a heartbeat is membership's. The parts of which a frame has many are
tuples: a segment of 16 nodes has each of them read 3,000 a second, and a tuple is made in a third of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from hashlib import sha256
from typing import NamedTuple

ID_BYTES = 8
MAX_NUMBER = 2**48 - 1
"""The largest incarnation and epoch: frames have six bytes for one. Unix time in ms reaches it in 10889."""


def node_id(name: str) -> bytes:
    """A node's id in frames: the first 8 bytes of the SHA-256 of its name."""
    return sha256(name.encode()).digest()[:ID_BYTES]


def clusterip_id(uid: str) -> bytes:
    """A ClusterIP's id in frames: the first 8 bytes of the SHA-256 of its UID."""
    return sha256(uid.encode()).digest()[:ID_BYTES]


class Flag(IntFlag):
    """What the sender is at the moment. `VALID`: its lease runs. `UNFENCED`: its kernel has no lease, so
    that nobody may count it dead by its silence; the operator moves its buckets. `URGENT`: something has changed
    that a receiver should know at once; it may leave any other heartbeat unread until its own next one is due."""

    LISTENING = 1
    DEAF = 2
    LEAVING = 4
    ACTING = 8
    HELD = 16
    VALID = 32
    UNFENCED = 64
    URGENT = 128


class PeerReport(NamedTuple):
    """The newest frame of a peer of which the sender knows, and when it learnt of it, in ms before this was sent.

    `direct`: it heard that frame itself; otherwise another peer's report told of it. `complete`: what the sender
    knows of the peer's epochs agrees with the digest in that frame. If not, the peer tells all of them anew.
    """

    node: bytes
    incarnation: int
    sequence: int
    age_ms: int
    complete: bool = True
    direct: bool = True


class Verdict(NamedTuple):
    """An incarnation that the sender counts dead."""

    node: bytes
    incarnation: int


class EpochReport(NamedTuple):
    """Where the sender is with one ClusterIP. `held`: the newest epoch it has; `in_use`: the one its kernel
    follows, 0 for none; `owns` a bucket; `named`: in the epoch in use or the one held; `acting`: it serves,
    or is about to, without an epoch that names a living node. One with `held` 0 tells that it was forgotten.

    Of moves: `ready`, to be sent on what the former owners of buckets that it gains by `held` no longer take;
    `gained`, it has all that is its own by `in_use`; `sends`, it still sends something on; `drains`, it still
    finishes flows in buckets that it has given up."""

    clusterip: bytes
    held: int
    in_use: int
    owns: bool
    named: bool
    acting: bool = False
    ready: bool = False
    gained: bool = False
    sends: bool = False
    drains: bool = False

    def mark(self) -> int:
        """This report as 24 bits of a digest: that of several is the exclusive or of theirs; forgotten ones are
        left out. One lost change in 2**24 goes unnoticed, until the rotation comes to it.
        Against loss alone: who could forge one could forge the frame."""
        if not self.held:
            return 0
        states = self[3:]
        said = f"{self.held},{self.in_use},{states}"
        return int.from_bytes(sha256(self.clusterip + said.encode()).digest()[:3], "big")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One heartbeat. `sequence` grows with each of an incarnation; `lease_ms` is the sender's LEASE, `hold_ms`
    how long its lease may outlast its silence from now on (0: not held). `group_size` and `smallest_member`
    belong to its rank. `peers` and `epochs` need not be all: changed epochs come first, the rest in rotation,
    and `digest` over all of the sender's (`EpochReport.mark`) tells the receiver whether it has missed any."""

    node: bytes
    incarnation: int
    sequence: int
    flags: Flag
    lease_ms: int
    hold_ms: int
    group_size: int
    smallest_member: bytes
    peers: tuple[PeerReport, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    epochs: tuple[EpochReport, ...] = ()
    digest: int = 0


@dataclass(frozen=True, slots=True)
class EpochRequest:
    """The sender lacks these epochs, and asks who has them: (ClusterIP id, epoch) each."""

    node: bytes
    incarnation: int
    sequence: int
    wanted: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class EpochPiece:
    """Part `index` of `count` of a ClusterIP's document at an epoch, as JSON and compressed."""

    node: bytes
    incarnation: int
    sequence: int
    clusterip: bytes
    epoch: int
    index: int
    count: int
    data: bytes


Message = Heartbeat | EpochRequest | EpochPiece
