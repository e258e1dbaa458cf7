"""The filters that the kernel runs on what comes in: classic BPF, as lists of instructions.

Owns which frames are worth waking up for. Offsets count from the payload's first byte; negative ones reach
the Ethernet header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from lbless_api.heartbeat import Flag
from lbless_api.heartbeat_frame import FLAGS_AT, KIND_AT, MAX_BYTES, MIN_BYTES, VERSION, Kind

ETHERTYPE = 0x88B5
"""The first of the two that IEEE 802 leaves to local experiments."""
ETHERTYPE_IPV4 = 0x0800
GROUP = bytes.fromhex("036c626c6573")
"""Where heartbeats go: a locally administered group (03:, then "lbles"), as a ClusterIP's MAC is one by
default, so that switches treat both alike."""


class Instruction(NamedTuple):
    """One of classic BPF: `struct sock_filter`."""

    code: int
    if_true: int
    if_false: int
    value: int


Program = tuple[Instruction, ...]


class _Code(IntEnum):
    LOAD_WORD = 0x20
    LOAD_HALF = 0x28
    LOAD_BYTE = 0x30
    LOAD_LENGTH = 0x80
    IF_EQUAL = 0x15
    IF_ABOVE = 0x25
    IF_AT_LEAST = 0x35
    IF_BITS = 0x45
    RETURN = 0x06


_LINK_LAYER = 0x1_0000_0000 - 0x20_0000  # SKF_LL_OFF
_WHOLE = 0xFFFF
_IPV4_DESTINATION = 16
_FIRST_MULTICAST = 224
_BROADCAST_START = 0xFFFFFFFF


class _Check(NamedTuple):
    """Load something, compare it, and refuse the frame unless that comes out as wanted; or, if that is `enough`,
    pass it where it does, and go on where it does not."""

    load: _Code
    at: int
    compare: _Code
    value: int
    wanted: bool = True
    enough: bool = False


_HEARTBEAT = (
    _Check(_Code.LOAD_LENGTH, 0, _Code.IF_AT_LEAST, MIN_BYTES),
    _Check(_Code.LOAD_LENGTH, 0, _Code.IF_ABOVE, MAX_BYTES, wanted=False),
    _Check(_Code.LOAD_BYTE, 0, _Code.IF_EQUAL, VERSION),
    _Check(_Code.LOAD_BYTE, KIND_AT, _Code.IF_AT_LEAST, min(Kind)),
    _Check(_Code.LOAD_BYTE, KIND_AT, _Code.IF_ABOVE, max(Kind), wanted=False),
    _Check(_Code.LOAD_HALF, _LINK_LAYER, _Code.IF_EQUAL, int.from_bytes(GROUP[:2], "big")),
    _Check(_Code.LOAD_WORD, _LINK_LAYER + 2, _Code.IF_EQUAL, int.from_bytes(GROUP[2:], "big")),
)

_URGENT = (
    *_HEARTBEAT,
    _Check(_Code.LOAD_BYTE, KIND_AT, _Code.IF_EQUAL, Kind.HEARTBEAT, wanted=False, enough=True),
    _Check(_Code.LOAD_BYTE, FLAGS_AT, _Code.IF_BITS, Flag.URGENT),
)

# Whatever MAC a ClusterIP has: a packet for one host in a frame for many is sent to no one else.
_VIP_TRAFFIC = (
    _Check(_Code.LOAD_BYTE, _LINK_LAYER, _Code.IF_BITS, 1),
    _Check(_Code.LOAD_WORD, _LINK_LAYER, _Code.IF_EQUAL, _BROADCAST_START, wanted=False),
    _Check(_Code.LOAD_BYTE, _IPV4_DESTINATION, _Code.IF_AT_LEAST, _FIRST_MULTICAST, wanted=False),
)


def _program(checks: tuple[_Check, ...], *, passed: int, refused: int) -> Program:
    """All checks one after the other, then the two ways to end; `passed` and `refused` are bytes to keep."""
    made = []
    for number, check in enumerate(checks):
        away = 2 * (len(checks) - number) - 1  # from the jump to the last instruction
        made.append(Instruction(check.load, 0, 0, check.at))
        as_wanted, otherwise = (away - 1, 0) if check.enough else (0, away)
        jumps = (as_wanted, otherwise) if check.wanted else (otherwise, as_wanted)
        made.append(Instruction(check.compare, *jumps, check.value))
    return (*made, Instruction(_Code.RETURN, 0, 0, passed), Instruction(_Code.RETURN, 0, 0, refused))


HEARTBEATS = _program(_HEARTBEAT, passed=_WHOLE, refused=0)
"""Of the ethertype: what may be a heartbeat, by length, version, kind and destination."""
URGENT = _program(_URGENT, passed=_WHOLE, refused=0)
"""Of the ethertype: of what may be a heartbeat, what should be read at once; all that is no heartbeat proper, too."""
NO_HEARTBEATS = _program(_HEARTBEAT, passed=0, refused=_WHOLE)
"""Of the ethertype: all the rest."""
VIP_TRAFFIC = _program(_VIP_TRAFFIC, passed=_WHOLE, refused=0)
"""Of IPv4: packets for shared addresses, those of other clusters too."""
