"""Who owns which bucket: a pure function of an epoch and a view (rules 9 and 10 of the membership).

All nodes compute it alike. Views differ while a death spreads, but an incarnation that one node counts dead
serves no more, so that whatever two of them compute, no bucket has two owners that serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from lbless_api.buckets import BucketSet
from lbless_nodeagent.dataplane.membership.epoch import Epoch
from lbless_nodeagent.dataplane.membership.view import View

NOTHING = BucketSet()


def owned(epoch: Epoch, view: View, node: str) -> BucketSet:
    """The buckets of `epoch`'s ClusterIP that are `node`'s in `view`; `epoch` is the document that it uses.

    Where all that live are held, one that was alone keeps what it has taken over.
    """
    use = view.use.get(epoch.uid)
    if use is None or use.document != epoch.number:
        return NOTHING
    if use.acting is not None:
        return _firsts(epoch.ip, BucketSet.full(epoch.buckets) - epoch.reserved, node, use.acting)
    mine, orphaned = NOTHING, NOTHING
    successors: list[str] = []
    holding: list[str] = []
    for one in epoch.assignments:
        if (one.node, one.incarnation) not in view.living:
            orphaned |= one.buckets
            continue
        if one.name == node:
            mine = one.buckets
        (holding if one.node in view.held else successors).append(one.name)
    if orphaned:
        mine |= _firsts(epoch.ip, orphaned, node, successors or holding)
    return mine - epoch.reserved


def follow(epoch: Epoch, view: View, node: str, present: BucketSet) -> BucketSet:
    """What the kernel is to have where it has `present`: losing is at once, gaining when the view allows it."""
    wanted = owned(epoch, view, node)
    use = view.use.get(epoch.uid)
    return wanted if use and use.gain else wanted & present


def _firsts(ip: str, buckets: Iterable[int], node: str, nodes: Sequence[str]) -> BucketSet:
    """Those of `buckets` for which `node` comes first in `lbless_api.successors.rank`."""
    if node not in nodes:
        return NOTHING
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
