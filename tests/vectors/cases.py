"""What is asked of every kernel, and the answers on file: cases, the packets of each, and the file's form.

A case is a function, a mode, a protocol, a number of buckets and a seed; its answers are the buckets of the same
`TUPLES` packets. The answers are what kernels said (see README.md), never what lbless computes.
"""

import lzma
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path

from lbless_api.hashing import AH, ESP, ICMP, SCTP, TCP, UDP, HashFunction, HashMode

TUPLES = 5000
GRE = 47
PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": ICMP, "esp": ESP, "ah": AH, "gre": GRE}
SEEDS = {7: 0, 16: 0x5EED, 32: 1, 256: 0xFFFFFFFF, 4096: 0x12345678}
"""The seed of each number of buckets."""

DATA = Path(__file__).with_name("vectors.txt.xz")


@dataclass(frozen=True, order=True)
class Case:
    """One question, answered with a bucket for each of `tuples()`."""

    function: str
    mode: str
    protocol: str
    buckets: int

    @property
    def seed(self) -> int:
        """The hash's initial value."""
        return SEEDS[self.buckets]


@dataclass(frozen=True)
class Tuple:
    """What of a packet may be hashed; for ESP and AH the ports are the halves of the SPI."""

    source: IPv4Address
    source_port: int
    destination_port: int


@cache
def tuples() -> tuple[Tuple, ...]:
    """The packets, the same for every case: from SHA-256, so that no version of Python makes others."""
    found = []
    for number in range(TUPLES):
        first, rest, source_port, destination_port = struct.unpack_from(
            "!BxxxIHH", sha256(f"lbless {number}".encode()).digest()
        )
        network = 1 + first % 222  # unicast, without 0 and 127: every second has its first bit set
        address = (network + (network >= 127)) << 24 | rest & 0xFFFFFF
        # Port 0 and SPIs below 256 mean something else to some kernels.
        found.append(Tuple(IPv4Address(address), source_port or 1, destination_port or 1))
    return tuple(found)


def nft_cases() -> list[Case]:
    """What nftables can: everything but 32 buckets, which are there for xt_cluster."""
    return [
        Case(function, mode, protocol, buckets)
        for function in HashFunction
        for mode in HashMode
        for protocol in PROTOCOLS
        for buckets in SEEDS
        if buckets != 32 or (function, mode) == (HashFunction.JHASH, HashMode.SOURCE_IP)
    ]


def clusterip_cases() -> list[Case]:
    """What the CLUSTERIP target can: its own function, and at most 16 buckets."""
    return [c for c in nft_cases() if c.function == HashFunction.LEGACY_CLUSTERIP and c.buckets <= 16]


def cluster_cases() -> list[Case]:
    """What xt_cluster can: the source address alone, and at most 32 buckets."""
    jhash = (HashFunction.JHASH, HashMode.SOURCE_IP)
    return [c for c in nft_cases() if (c.function, c.mode) == jhash and c.buckets <= 32]


Answers = Mapping[Case, tuple[int, ...]]


def read() -> dict[Case, tuple[int, ...]]:
    """The answers on file."""
    with lzma.open(DATA, "rt", encoding="ascii") as file:
        return dict(parse(line for line in file if not line.startswith("#")))


def write(answers: Answers, origin: Iterable[str]) -> None:
    """Replace the answers on file; `origin` are lines that say which kernels gave them."""
    with lzma.open(DATA, "wt", encoding="ascii", preset=9 | lzma.PRESET_EXTREME) as file:
        file.writelines(f"# {line}\n" for line in origin)
        file.writelines(render(answers))


def render(answers: Answers) -> Iterator[str]:
    """A line a case: function, mode, protocol, number of buckets, seed, and all buckets in hexadecimal."""
    for case in sorted(answers):
        width = len(f"{case.buckets - 1:x}")
        digits = "".join(f"{number:0{width}x}" for number in answers[case])
        yield f"{case.function} {case.mode} {case.protocol} {case.buckets} {case.seed} {digits}\n"


def parse(lines: Iterable[str]) -> Iterator[tuple[Case, tuple[int, ...]]]:
    """What `render` wrote. Raises ValueError for lines that are not of these cases."""
    for line in lines:
        function, mode, protocol, buckets, seed, digits = line.split()
        case = Case(function, mode, protocol, int(buckets))
        width = len(f"{case.buckets - 1:x}")
        answers = tuple(int(digits[at : at + width], 16) for at in range(0, len(digits), width))
        if case.seed != int(seed) or len(answers) != TUPLES:
            raise ValueError(f"{case} is answered with seed {seed} and {len(answers)} buckets")
        yield case, answers
