"""Who owns which buckets while some that an epoch names are dead, as nodes compute it: for who plans the next.

Pure. Who lives, holds and acts is for membership to say, and for the caller to know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Assignment
from lbless_api.successors import rank

_NONE = BucketSet()


def effective_owners(
    ip: IPv4Address | str,
    buckets: int,
    assignments: Iterable[Assignment],
    *,
    living: Set[str],
    held: Collection[str] = (),
    acting: Collection[str] = (),
    reserved: BucketSet = _NONE,
) -> dict[str, BucketSet]:
    """Return node → what it owns in effect, for every node that `assignments` name.

    `living` are those that live in the incarnation they are named with: they own what is assigned to them.
    What the others leave goes bucket by bucket to the first of `rank(…)` among the living that are not `held`,
    or among all living where all are. Where none lives, those of the named that are `acting` share all
    `buckets` in the same way; where none does either, nobody owns anything. `reserved` buckets are inherited
    by nobody.
    """
    named = list(assignments)
    owners = {a.node: a.buckets if a.node in living else _NONE for a in named}
    left = _NONE
    for assignment in named:
        if assignment.node not in living:
            left |= assignment.buckets
    heirs = [a.node for a in named if a.node in living]
    heirs = [node for node in heirs if node not in held] or heirs
    if not heirs:
        heirs, left = [a.node for a in named if a.node in acting], BucketSet.full(buckets)
    inherited: dict[str, list[int]] = {heir: [] for heir in heirs}
    if heirs:
        for bucket in left - reserved:
            inherited[rank(ip, bucket, heirs)[0]].append(bucket)
    return owners | {heir: owners[heir] | BucketSet(gained) for heir, gained in inherited.items()}
