"""The hash functions that map a packet to its bucket, equal to the kernel's bit for bit.

Owns the arithmetic and which fields of which protocol count. Knows nothing of rules: how nftables is
made to compute the same is the engine's.

`JHash` is nftables' ``jhash`` expression, and for `SourceIP` also xt_cluster's. `LegacyClusterIP` is
that of the iptables CLUSTERIP target (net/ipv4/netfilter/ipt_CLUSTERIP.c, removed in Linux 6.3). Both
are Bob Jenkins' lookup3 in the form of include/linux/jhash.h over one, two or three 32-bit words; they
differ in the byte order of the address only. Results are those of little-endian hosts.
"""

from enum import StrEnum
from ipaddress import IPv4Address

JHASH_INITVAL = 0xDEADBEEF
MAX_BUCKETS = 4096
_U32 = 0xFFFFFFFF

ICMP, TCP, UDP, DCCP, ESP, AH, SCTP, UDPLITE = 1, 6, 17, 33, 50, 51, 132, 136

PORT_PROTOCOLS = frozenset({TCP, UDP, DCCP, SCTP, UDPLITE})
"""IP protocols whose header begins with source and destination port."""

SPI_PROTOCOLS = frozenset({ESP, AH})
"""IP protocols whose SPI stands in for the ports: its upper half as source, its lower as destination."""


class HashFunction(StrEnum):
    """Which arithmetic; the values are those of ClusterIP.spec.hashFunction."""

    JHASH = "JHash"
    LEGACY_CLUSTERIP = "LegacyClusterIP"


class HashMode(StrEnum):
    """Which fields of a packet are hashed; the values are those of ClusterIP.spec.hashMode."""

    SOURCE_IP = "SourceIP"
    SOURCE_IP_SOURCE_PORT = "SourceIPSourcePort"
    SOURCE_IP_SOURCE_PORT_DEST_PORT = "SourceIPSourcePortDestPort"

    @property
    def words(self) -> int:
        """How many 32-bit words are hashed: 1, 2 or 3."""
        return _WORDS[self]


_WORDS = {
    HashMode.SOURCE_IP: 1,
    HashMode.SOURCE_IP_SOURCE_PORT: 2,
    HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT: 3,
}


def bucket(
    function: HashFunction | str,
    mode: HashMode | str,
    source: IPv4Address | str,
    source_port: int,
    destination_port: int,
    *,
    buckets: int,
    seed: int = 0,
    protocol: int = TCP,
    prefix_length: int = 32,
) -> int:
    """Return the bucket, 0 to `buckets` - 1, of a packet.

    `source` is masked to `prefix_length` leading bits first. The ports are 0 – 65535 in host order;
    for ESP and AH they are the upper and the lower half of the SPI; for every other protocol without
    ports (ICMP among them) they are ignored and hashed as zero. For an ICMP error give the fields of
    the flow it is about: the client's address and port, and the port on the shared address.

    Raises ValueError for an unknown function or mode and for any number out of its range.
    """
    function, mode = HashFunction(function), HashMode(mode)
    _check("buckets", buckets, 1, MAX_BUCKETS)
    _check("seed", seed, 0, _U32)
    _check("source port", source_port, 0, 0xFFFF)
    _check("destination port", destination_port, 0, 0xFFFF)
    _check("protocol", protocol, 0, 255)
    _check("prefix length", prefix_length, 0, 32)

    address = int(IPv4Address(source)) & _mask(prefix_length)
    if function is HashFunction.JHASH:
        address = _swap32(address)
    if protocol not in PORT_PROTOCOLS and protocol not in SPI_PROTOCOLS:
        source_port = destination_port = 0
    # Neither function converts the ports to host order: on a little-endian host the word is swapped.
    words = (address, _swap16(source_port), _swap16(destination_port))[: mode.words]
    return (_jhash(words, seed) * buckets) >> 32


def _jhash(words: tuple[int, ...], seed: int) -> int:
    """jhash_1word … jhash_3words of include/linux/jhash.h."""
    initial = (seed + JHASH_INITVAL + 4 * len(words)) & _U32
    a, b, c = ((initial + word) & _U32 for word in (*words, 0, 0)[:3])
    # __jhash_final
    c = ((c ^ b) - _rotate(b, 14)) & _U32
    a = ((a ^ c) - _rotate(c, 11)) & _U32
    b = ((b ^ a) - _rotate(a, 25)) & _U32
    c = ((c ^ b) - _rotate(b, 16)) & _U32
    a = ((a ^ c) - _rotate(c, 4)) & _U32
    b = ((b ^ a) - _rotate(a, 14)) & _U32
    return ((c ^ b) - _rotate(b, 24)) & _U32


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _U32


def _mask(prefix_length: int) -> int:
    return (_U32 << (32 - prefix_length)) & _U32


def _swap16(value: int) -> int:
    return int.from_bytes(value.to_bytes(2, "big"), "little")


def _swap32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "big"), "little")


def _check(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} {value} is out of range: use {low} to {high}.")
