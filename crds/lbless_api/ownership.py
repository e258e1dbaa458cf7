"""Who owns which buckets while some that an epoch names are dead: the same for nodes and for who plans the next.

Pure. Who lives, holds and acts is for membership to say, and for the caller to know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.successors import rank

_NONE = BucketSet()


@dataclass(frozen=True, slots=True)
class Division:
    """Of an epoch what the living keep, and what others have left to be shared out among `heirs`, by name."""

    kept: Mapping[str, BucketSet]
    left: BucketSet
    heirs: tuple[str, ...]

    def owned(self, ip: IPv4Address | str, node: str) -> BucketSet:
        """The buckets of one node: what it keeps, and for which of the rest it is the first of `rank(…)`."""
        return self.kept.get(node, _NONE) | _firsts(ip, self.left, node, self.heirs)

    def owners(self, ip: IPv4Address | str) -> dict[str, BucketSet]:
        """Those of all that keep or inherit any; with less work than asking for each."""
        inherited: dict[str, list[int]] = {heir: [] for heir in self.heirs}
        for bucket in self.left if inherited else ():
            inherited[rank(ip, bucket, self.heirs)[0]].append(bucket)
        gained = {heir: self.kept.get(heir, _NONE) | BucketSet(got) for heir, got in inherited.items()}
        return {**self.kept, **gained}


def divide(
    assigned: Mapping[str, BucketSet],
    *,
    living: Set[str],
    held: Collection[str] = (),
    reserved: BucketSet = _NONE,
) -> Division:
    """Return who has what while only the `living` of those that an epoch names live in the named incarnation.

    They keep what is assigned to them. What the others leave goes to the living that are not `held`, or to all
    of them where all are: one that was alone keeps what it has taken over. Where none lives, nobody owns
    anything until some act. `reserved` buckets nobody inherits.
    """
    kept = {node: buckets for node, buckets in assigned.items() if node in living}
    left = _NONE
    for node, buckets in assigned.items():
        if node not in living:
            left |= buckets
    heirs = tuple(node for node in kept if node not in held) or tuple(kept)
    return Division(kept, left - reserved, heirs)


def act(buckets: int, acting: Iterable[str], *, reserved: BucketSet = _NONE) -> Division:
    """Return who has what where no named node lives: those that act share everything that is not `reserved`."""
    return Division({}, BucketSet.full(buckets) - reserved, tuple(acting))


def _firsts(ip: IPv4Address | str, buckets: Iterable[int], node: str, nodes: Sequence[str]) -> BucketSet:
    """Those of `buckets` for which `node` comes first in `lbless_api.successors.rank`."""
    if node not in nodes:
        return _NONE
    mine = f"/{node}".encode()
    others = [f"/{name}".encode() for name in nodes if name != node]
    taken = []
    for bucket in buckets:
        prefix = f"{ip}/{bucket}".encode()
        score = sha256(prefix + mine).digest()
        # Stops at the first that comes before: most buckets are someone else's.
        if all(sha256(prefix + other).digest() < score for other in others):
            taken.append(bucket)
    return BucketSet(taken)
