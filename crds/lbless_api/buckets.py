"""Sets of buckets: parsing, printing and set algebra. Nothing about who owns them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_RANGE = re.compile(r"(0|[1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3}))?", re.ASCII)


class BucketSet:
    """An immutable set of bucket numbers, 0 to 4095, printed as ranges: ``0-84,90``.

    Kept as one integer whose bits are the members, so that union, intersection and difference of 4096
    buckets are single operations.
    """

    __slots__ = ("_bits",)
    LIMIT = 4096

    def __init__(self, members: Iterable[int] = ()) -> None:
        """Raises ValueError for a member outside 0 – 4095."""
        bits = 0
        for member in members:
            if not 0 <= member < self.LIMIT:
                raise ValueError(f"bucket {member} is out of range: use 0 to {self.LIMIT - 1}.")
            bits |= 1 << member
        self._bits = bits

    @classmethod
    def parse(cls, text: str, *, buckets: int = LIMIT) -> BucketSet:
        """Read ``0-84,90``: ascending ranges below `buckets`; ``""`` is the empty set.

        Raises ValueError with one sentence for anything else.
        """
        bits, last = 0, -1
        for part in text.split(",") if text else ():
            match = _RANGE.fullmatch(part)
            if not match:
                raise ValueError(
                    f"bucket set {text[:80]!r} is malformed at {part[:20]!r}: write it as 0-84,90."
                )
            low = int(match[1])
            high = int(match[2]) if match[2] else low
            if low <= last or high < low:
                raise ValueError(f"bucket set {text[:80]!r} is not in ascending order at {part!r}.")
            if high >= buckets:
                raise ValueError(
                    f"bucket {high} in {text[:80]!r} is out of range: there are {buckets} buckets."
                )
            bits |= ((1 << (high - low + 1)) - 1) << low
            last = high
        return cls._of(bits)

    @classmethod
    def full(cls, buckets: int) -> BucketSet:
        """All of `buckets` buckets: 0 to `buckets` - 1."""
        if not 0 <= buckets <= cls.LIMIT:
            raise ValueError(f"{buckets} buckets are out of range: use 0 to {cls.LIMIT}.")
        return cls._of((1 << buckets) - 1)

    @classmethod
    def _of(cls, bits: int) -> BucketSet:
        made = cls.__new__(cls)
        made._bits = bits
        return made

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The members as (first, last) pairs, ascending and as few as possible."""
        bits, base = self._bits, 0
        while bits:
            gap = (bits & -bits).bit_length() - 1
            bits >>= gap
            run = (~bits & (bits + 1)).bit_length() - 1
            yield base + gap, base + gap + run - 1
            bits >>= run
            base += gap + run

    def __str__(self) -> str:
        return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in self.ranges())

    def __repr__(self) -> str:
        return f"BucketSet.parse({str(self)!r})"

    def __iter__(self) -> Iterator[int]:
        for low, high in self.ranges():
            yield from range(low, high + 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __contains__(self, member: object) -> bool:
        return isinstance(member, int) and member >= 0 and bool(self._bits >> member & 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketSet) and self._bits == other._bits

    def __hash__(self) -> int:
        return hash(self._bits)

    def __or__(self, other: BucketSet) -> BucketSet:
        return self._of(self._bits | other._bits)

    def __and__(self, other: BucketSet) -> BucketSet:
        return self._of(self._bits & other._bits)

    def __sub__(self, other: BucketSet) -> BucketSet:
        return self._of(self._bits & ~other._bits)

    def __xor__(self, other: BucketSet) -> BucketSet:
        return self._of(self._bits ^ other._bits)

    def isdisjoint(self, other: BucketSet) -> bool:
        """Whether the two share no bucket."""
        return not self._bits & other._bits

    def issubset(self, other: BucketSet) -> bool:
        """Whether every bucket of this set is in the other."""
        return not self._bits & ~other._bits
