"""The token with which a bucket's former owner opens it at the new one, from kernel to kernel. Pure.

Where nothing is sent on, new flows wait from when the former owner has given a bucket up until the new one knows. That
word goes through four processes (`membership`), each of which waits for a processor. So it goes from kernel to kernel,
too: a datagram with a token that only who has the key can make, and that nobody has seen before it is sent. Both
kernels have been told what that token is about: with it the former owner's rules close the buckets as it leaves, and
the new one's open them when it has come, without any process between the one and the other.
"""

from __future__ import annotations

import hmac
import sys
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet

PORT = 0x88B5
"""Of UDP, to the group of all hosts (`ladder.GROUP`); the number is the ethertype of the heartbeats."""
TOKEN_BYTES = 16
GUARD_SECONDS = 0.003
"""From a token's arrival until the buckets are open, at least. What the former owner has kept just before may arrive at
the new one later than the token: the kernels of three nodes took up the copies of a frame 0.03 ms apart, at worst
0.6 ms (`docs/decisions/moving.md`)."""

_CONTEXT = b"lbless opening 2\0"
# Raise the number when what a node does by a token changes: then nodes of two versions tell each other by heartbeat.


def token(key: bytes, uid: str, epoch: int, way: tuple[bytes, bytes], buckets: BucketSet) -> bytes:
    """Says that of a ClusterIP the first node of `way` (ids) took just these buckets until then, of those that move
    from it to the second one by that epoch, and takes none of them any more."""
    said = (uid.encode(), b"\0", *way, epoch.to_bytes(8, "big"), str(buckets).encode())
    made = hmac.digest(key, _CONTEXT + b"".join(said), "sha256")[:TOKEN_BYTES]
    return made if any(made[:4]) else b"\1" + made[1:]  # a mark of 0 is none


def mark(made: bytes) -> int:
    """The packet mark, never 0, by which the rules know what a token opens. It is on no packet that leaves them."""
    return int.from_bytes(made[:4], sys.byteorder)


def datagram(ip: IPv4Address, made: bytes) -> bytes:
    """The payload: whose buckets, and the token."""
    return ip.packed + made
