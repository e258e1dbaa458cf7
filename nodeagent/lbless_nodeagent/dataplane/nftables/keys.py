"""A packet's key in the sets of a group, as nft writes it: the shared address, and the bucket. Pure.

Expressions are parenthesised as libnftables 1.0.6 can take it: some other ways of writing the same abort the
process in an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a kind of packet has what is hashed: the client's address, and both ports, the client's first, or
    none. `shared` is where it has the shared address."""

    client: str
    ports: tuple[str, str] | None
    shared: str = "ip daddr"


_ERROR_CLIENT = "@th,192,32"

PORTED = Fields("ip saddr", ("th sport", "th dport"))
AH = Fields("ip saddr", ("@th,32,16", "@th,48,16"))
"""Its SPI follows 4 bytes of header; that of ESP stands where others have their ports."""
PORTLESS = Fields("ip saddr", None)
ANSWER = Fields("ip daddr", ("th dport", "th sport"), shared="ip saddr")
"""What goes the other way, from the shared address to the client."""
ERROR_PORTLESS = Fields(_ERROR_CLIENT, None)
"""An ICMP error belongs to the flow of the packet in it, which this cluster sent: its destination is the client.
Offsets are from the ICMP header, which has 8 bytes."""


def error_with_ports(words: int) -> Fields:
    """An ICMP error, if the IP header of the packet in it has so many words of 4 bytes: more than 5 if it has
    options."""
    at = 64 + 32 * words
    return Fields(_ERROR_CLIENT, (f"@th,{at + 16},16", f"@th,{at},16"))


def keys(group: HashParameters, fields: Fields) -> list[tuple[str, str]]:
    """The key as pairs of a condition, empty or with a space behind it, and an expression: one pair is of any
    packet."""
    counted = group.mode.words - 1
    # A port that is absent counts as a zero word. jhash starts from seed + length, so that leaving the
    # word out and adding its 4 bytes to the seed is the same.
    absent = 0 if fields.ports else counted
    seed = (group.seed + 4 * absent) & 0xFFFFFFFF
    found = []
    for half, address in _client_words(group, fields.client):
        words = " . ".join((address, *(fields.ports or ())[:counted]))
        # Without seed: a random one.
        found.append((half, f"{fields.shared} . jhash {words} mod {group.buckets} seed {seed}"))
    return found


def _client_words(group: HashParameters, client: str) -> list[tuple[str, str]]:
    """The client's address as the function takes it, as pairs of a condition and an expression.

    LegacyClusterIP takes it in host order. nft converts an operand that is shifted, and has no other way
    to say so; the top bit, which shifting left and right again loses, is given back in the upper half.
    """
    masked = client
    if group.prefix_length < 32:
        masked = f"({client} & {0xFFFFFFFF << (32 - group.prefix_length) & 0xFFFFFFFF:#010x})"
    if group.function is HashFunction.JHASH:
        return [("", masked)]
    half = f"(({masked} << 1) >> 1)"
    return [
        (f"{client} < 0x80000000 ", half),
        (f"{client} >= 0x80000000 ", f"({half} | 0x80000000)"),
    ]
