"""The bytes of heartbeats on the wire: the payload of an Ethernet frame, version 1.

Owns layout, authentication and ranges. What a message means is `heartbeat`'s and membership's, sockets are
the dataplane's. All integers are big-endian and unsigned; u48, u40 and u24 are six, five and three bytes
long, and bit 0 is the lowest.

    head       every message
     0  u8     version, 1
     1  u8     kind: 1 heartbeat, 2 epoch request, 3 epoch piece
     2  8      node id of the sender
    10  u48    incarnation
    16  u40    sequence (milliseconds since boot: enough for 34 years)

    heartbeat  after the head                  peer report           21 bytes
    21  u8     flags (bit 7: urgent)            0  8    node id
    22  u16    lease, ms                        8  u48  incarnation
    24  u16    hold, ms                        14  u40  sequence
    26  u8     group size                      19  u16  bit 15: complete, 14: direct,
    27  8      smallest member                          the others: age, ms; 16383: that or older
    35  u24    digest                          verdict               14 bytes
    38  u8     number of peer reports           0  8    node id
    39  u8     number of verdicts               8  u48  incarnation
    40         peer reports, then verdicts,    epoch report          21 bytes
               then epoch reports up to         0  8    ClusterIP id
               the tail                         8  u48  epoch held
                                               14  u48  epoch in use
                                               20  u8   bit 0: owns, 1: named, 2: acting,
                                                        3: ready, 4: gained, 5: sends, 6: drains

    epoch request, after the head              epoch piece, after the head
    21         for each that is wanted,        21  8    ClusterIP id
               14 bytes:                       29  u48  epoch
                0  8    ClusterIP id           35  u8   index
                8  u48  epoch                  36  u8   count
                                               37       data, at least one byte

    tail       every message: the first 16 bytes of the HMAC-SHA256 of all that is before them
               (RFC 2104, section 5, allows half of the hash and no less than 80 bits)

The length of the frame says where the tail is: no message is so short that Ethernet pads it (46 bytes), nor
longer than 1,400 bytes, so that it fits where an overlay takes its part of the 1,500. A node that hears 63 peers
still reports an epoch beside them: 40 bytes, 63 peer reports, that one and the tail are 1,400 to the byte. That is
why a digest has 24 bits, and why no field counts the epoch reports.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum, StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from lbless_api.heartbeat import (
    ID_BYTES,
    EpochPiece,
    EpochReport,
    EpochRequest,
    Flag,
    Heartbeat,
    Message,
    PeerReport,
    Verdict,
)

VERSION = 1
MAX_BYTES = 1400
MAX_SEQUENCE = 2**40 - 1
MAX_PEERS = 63
TAG_BYTES = 16


class Kind(IntEnum):
    """What a frame is."""

    HEARTBEAT = 1
    EPOCH_REQUEST = 2
    EPOCH_PIECE = 3


class Reason(StrEnum):
    """Why a frame is refused; a counter's label."""

    TRUNCATED = "Truncated"
    TOO_LONG = "TooLong"
    VERSION = "Version"
    UNAUTHENTICATED = "Unauthenticated"
    KIND = "Kind"
    MALFORMED = "Malformed"


class Refused(Exception):
    """A frame that says nothing. Of an authentic one (`KIND`, `MALFORMED`) the sender is at fault."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Stamp(NamedTuple):
    """Whose frame it is; a newer one of a node compares as greater."""

    node: bytes
    incarnation: int
    sequence: int


_NONE_KNOWN: Mapping[bytes, Stamp] = MappingProxyType({})


_HEAD = struct.Struct("!BB8sHIBI")
_HEARTBEAT = struct.Struct("!BHHB8sHBBB")
_PEER = struct.Struct("!8sHIBIH")
_NUMBERED = struct.Struct("!8sHI")  # a verdict, or a wanted epoch
_EPOCH = struct.Struct("!8sHIHIB")
_PIECE = struct.Struct("!8sHIBB")

KIND_AT, FLAGS_AT = 1, _HEAD.size
"""Where a frame has its kind, and a heartbeat its flags, a byte each."""
_RECORDS_AT = _HEAD.size + _HEARTBEAT.size
_DATA_AT = _HEAD.size + _PIECE.size
HEARTBEAT_BYTES = _RECORDS_AT + TAG_BYTES
"""The frame of a heartbeat that reports nothing; each report adds its own."""
PEER_BYTES, VERDICT_BYTES, EPOCH_BYTES = _PEER.size, _NUMBERED.size, _EPOCH.size
MIN_BYTES = _HEAD.size + _NUMBERED.size + TAG_BYTES
MAX_WANTED = (MAX_BYTES - _HEAD.size - TAG_BYTES) // _NUMBERED.size
MAX_DATA_BYTES = MAX_BYTES - _DATA_AT - TAG_BYTES

_ALL_FLAGS = sum(Flag)
_FLAGS = tuple(Flag(number) for number in range(2**8))
_LOW = 0xFFFFFFFF
_COMPLETE, _DIRECT = 0x8000, 0x4000
_MAX_AGE_MS = 0x3FFF
_EPOCHS_KNOWN = 16_384
"""At rest all peers say the same of a ClusterIP again and again: of a thousand that is 4 MB."""
# By what the last byte of an epoch report may be.
_STATES = {number: tuple(bool(number >> bit & 1) for bit in range(7)) for number in range(2**7)}


def fit(heartbeat: Heartbeat) -> Heartbeat:
    """Return what of a heartbeat one frame holds: peers, then verdicts, then epochs, each from the front.

    The peers of a segment of 64 nodes are always all in it; beside 15 peers there is room for 49 epochs,
    beside 63 for one.
    """
    peers = heartbeat.peers[:MAX_PEERS]
    room = MAX_BYTES - HEARTBEAT_BYTES - len(peers) * PEER_BYTES
    verdicts = heartbeat.verdicts[: room // VERDICT_BYTES]
    room -= len(verdicts) * VERDICT_BYTES
    return replace(heartbeat, peers=peers, verdicts=verdicts, epochs=heartbeat.epochs[: room // EPOCH_BYTES])


def encode(message: Message, key: bytes) -> bytes:
    """Return the frame of a message, signed; ages above 16,383 ms become that.

    Raises ValueError, one sentence, for a value out of its range and for more than one frame holds: see `fit`.
    """
    try:
        kind, body = _body(message)
        head = _HEAD.pack(
            VERSION,
            kind,
            _id(message.node),
            *_u48(message.incarnation),
            message.sequence >> 32,
            message.sequence & _LOW,
        )
    except struct.error as error:
        raise ValueError(f"A field of a {type(message).__name__} is out of its range ({error}).") from None
    signed = head + body
    if len(signed) + TAG_BYTES > MAX_BYTES:
        raise ValueError(f"A {type(message).__name__} of {len(signed)} bytes does not fit into one frame.")
    return signed + _tag(signed, key)


def decode(payload: bytes, keys: Sequence[bytes]) -> Message:
    """Return what a frame says that one of `keys` signed; raises Refused."""
    stamp(payload, keys)
    return parse(payload)


def stamp(payload: bytes, keys: Sequence[bytes]) -> Stamp:
    """Return whose frame it is if one of `keys` signed it, and read nothing else; raises Refused."""
    if len(payload) < MIN_BYTES:
        raise Refused(Reason.TRUNCATED)
    if len(payload) > MAX_BYTES:
        raise Refused(Reason.TOO_LONG)
    if payload[0] != VERSION:
        raise Refused(Reason.VERSION)
    signed, tag = payload[:-TAG_BYTES], payload[-TAG_BYTES:]
    for key in keys:
        if hmac.compare_digest(_tag(signed, key), tag):
            return _head(payload)[1]
    raise Refused(Reason.UNAUTHENTICATED)


def parse(payload: bytes, newest: Mapping[bytes, Stamp] = _NONE_KNOWN) -> Message:
    """Return what a frame says that `stamp` took for authentic; raises Refused. Peer reports that are no news, as
    `newest` (the newest frame of each node, by its id) has that sequence or a newer one, are left out."""
    kind, sender = _head(payload)
    if kind == Kind.HEARTBEAT:
        return _heartbeat(payload, sender, newest)
    if kind == Kind.EPOCH_REQUEST:
        return _request(payload, sender)
    if kind == Kind.EPOCH_PIECE:
        return _piece(payload, sender)
    raise Refused(Reason.KIND)


def _body(message: Message) -> tuple[Kind, bytes]:
    if isinstance(message, Heartbeat):
        return Kind.HEARTBEAT, _heartbeat_body(message)
    if isinstance(message, EpochRequest):
        if not message.wanted:
            raise ValueError("An EpochRequest that wants nothing cannot be sent.")
        return Kind.EPOCH_REQUEST, _numbered(message.wanted)
    if not message.data or message.index >= message.count:
        raise ValueError(f"An EpochPiece without data or beyond its count ({message.index}) cannot be sent.")
    head = _PIECE.pack(_id(message.clusterip), *_u48(message.epoch), message.index, message.count)
    return Kind.EPOCH_PIECE, head + message.data


def _heartbeat_body(heartbeat: Heartbeat) -> bytes:
    if heartbeat.flags & ~_ALL_FLAGS:
        raise ValueError(f"A Heartbeat has no flag {int(heartbeat.flags):#x}.")
    head = _HEARTBEAT.pack(
        heartbeat.flags,
        heartbeat.lease_ms,
        heartbeat.hold_ms,
        heartbeat.group_size,
        _id(heartbeat.smallest_member),
        heartbeat.digest >> 8,
        heartbeat.digest & 0xFF,
        len(heartbeat.peers),
        len(heartbeat.verdicts),
    )
    peers = b"".join(
        _PEER.pack(
            _id(peer.node),
            *_u48(peer.incarnation),
            peer.sequence >> 32,
            peer.sequence & _LOW,
            _age(peer),
        )
        for peer in heartbeat.peers
    )
    verdicts = _numbered((verdict.node, verdict.incarnation) for verdict in heartbeat.verdicts)
    epochs = b"".join(
        _EPOCH.pack(
            _id(epoch.clusterip),
            *_u48(epoch.held),
            *_u48(epoch.in_use),
            epoch.owns
            | epoch.named << 1
            | epoch.acting << 2
            | epoch.ready << 3
            | epoch.gained << 4
            | epoch.sends << 5
            | epoch.drains << 6,
        )
        for epoch in heartbeat.epochs
    )
    return head + peers + verdicts + epochs


def _numbered(pairs: Iterable[tuple[bytes, int]]) -> bytes:
    return b"".join(_NUMBERED.pack(_id(one), *_u48(number)) for one, number in pairs)


def _age(peer: PeerReport) -> int:
    """The last field of a peer report; struct refuses that of a negative age."""
    if peer.age_ms < 0:
        return -1
    return min(peer.age_ms, _MAX_AGE_MS) | peer.complete * _COMPLETE | peer.direct * _DIRECT


def _u48(number: int) -> tuple[int, int]:
    """The two fields of a number of six bytes; struct refuses the first of one that is longer."""
    return number >> 32, number & _LOW


def _id(value: bytes) -> bytes:
    if len(value) != ID_BYTES:  # struct would cut it or fill it up
        raise ValueError(f"An id in a frame has {ID_BYTES} bytes, not {len(value)}.")
    return value


def _tag(signed: bytes, key: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")[:TAG_BYTES]


def _head(payload: bytes) -> tuple[int, Stamp]:
    _, kind, node, high, low, sequence_high, sequence_low = _HEAD.unpack_from(payload)
    return kind, Stamp(node, high << 32 | low, sequence_high << 32 | sequence_low)


def _heartbeat(payload: bytes, sender: Stamp, newest: Mapping[bytes, Stamp]) -> Heartbeat:
    if len(payload) < HEARTBEAT_BYTES:
        raise Refused(Reason.MALFORMED)
    fields = _HEARTBEAT.unpack_from(payload, _HEAD.size)
    flags, lease_ms, hold_ms, group_size, smallest, digest_high, digest_low, peer_count, verdict_count = (
        fields
    )
    verdicts_at = _RECORDS_AT + peer_count * PEER_BYTES
    epochs_at = verdicts_at + verdict_count * VERDICT_BYTES
    end = len(payload) - TAG_BYTES
    if epochs_at > end or (end - epochs_at) % EPOCH_BYTES or peer_count > MAX_PEERS:
        raise Refused(Reason.MALFORMED)
    peers = _peers(payload[_RECORDS_AT:verdicts_at], newest)
    verdicts = _NUMBERED.iter_unpack(payload[verdicts_at:epochs_at])
    return Heartbeat(
        *sender,
        _FLAGS[flags],
        lease_ms,
        hold_ms,
        group_size,
        smallest,
        peers,
        tuple([Verdict(node, a << 32 | b) for node, a, b in verdicts]),
        _epochs(payload[epochs_at:end]),
        digest_high << 8 | digest_low,
    )


def _peers(records: bytes, newest: Mapping[bytes, Stamp]) -> tuple[PeerReport, ...]:
    new, known = tuple.__new__, newest.get  # a tuple with a name costs twice as much by its own constructor
    found = []
    for node, a, b, c, d, age in _PEER.iter_unpack(records):
        incarnation, sequence = a << 32 | b, c << 32 | d
        last = known(node)
        if last is None or last[2] < sequence or last[1] != incarnation:
            state = age & _MAX_AGE_MS, age >= _COMPLETE, age & _DIRECT != 0
            found.append(new(PeerReport, (node, incarnation, sequence, *state)))
    return tuple(found)


def _epochs(records: bytes) -> tuple[EpochReport, ...]:
    return tuple([_epoch(records[at : at + EPOCH_BYTES]) for at in range(0, len(records), EPOCH_BYTES)])


@lru_cache(maxsize=_EPOCHS_KNOWN)
def _epoch(record: bytes) -> EpochReport:
    clusterip, a, b, c, d, state = _EPOCH.unpack(record)
    if state not in _STATES:
        raise Refused(Reason.MALFORMED)
    return EpochReport(clusterip, a << 32 | b, c << 32 | d, *_STATES[state])


def _request(payload: bytes, sender: Stamp) -> EpochRequest:
    records = payload[_HEAD.size : -TAG_BYTES]
    if len(records) % _NUMBERED.size:
        raise Refused(Reason.MALFORMED)
    return EpochRequest(*sender, tuple([(one, a << 32 | b) for one, a, b in _NUMBERED.iter_unpack(records)]))


def _piece(payload: bytes, sender: Stamp) -> EpochPiece:
    data = payload[_DATA_AT:-TAG_BYTES]
    if not data:
        raise Refused(Reason.MALFORMED)
    clusterip, high, low, index, count = _PIECE.unpack_from(payload, _HEAD.size)
    if index >= count:
        raise Refused(Reason.MALFORMED)
    return EpochPiece(*sender, clusterip, high << 32 | low, index, count, data)
