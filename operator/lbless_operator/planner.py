"""Which node owns which buckets next: from what nodes own now, and the weights of those that may own.

Pure and deterministic. Who is eligible, who is pinned, and what becomes of the result is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import IPv4Address
from itertools import chain, islice

from lbless_api.buckets import BucketSet
from lbless_api.successors import rank

_NONE = BucketSet()


def plan(
    ip: IPv4Address | str,
    buckets: int,
    owners: Mapping[str, BucketSet],
    weights: Mapping[str, int],
    *,
    pinned: Collection[str] = (),
    reserved: BucketSet = _NONE,
    moved: BucketSet = _NONE,
) -> dict[str, BucketSet]:
    """Return the next owner of every bucket, as node → its buckets.

    `owners` is what nodes effectively own now: it may leave buckets out and name nodes that are no longer
    eligible. `weights` are the eligible nodes; those of weight 0 or less count as not eligible. Buckets of
    `pinned` nodes stay with them and these gain none, whether they have a weight or not. `reserved` buckets
    belong to nobody here. `moved` buckets have just come to their owners: who must give up some gives up
    others first, so that as few as possible move twice.

    In the result every bucket that is not reserved has exactly one owner, and a reserved one has none but a
    pinned node that had it already. What these leave is shared by the others: each
    share is the weighted ideal rounded down or up, and no other choice of shares would move fewer buckets.
    A bucket that moves goes to the first of `rank(ip, bucket, …)` among the nodes that still lack some;
    buckets that nobody had are dealt in runs, so that a first assignment reads as 0-84, 85-170 and so on.
    Eligible nodes whose share is nothing are named with the empty set. Without any eligible node
    `owners` is returned as it is, but for what is reserved.
    """
    eligible = {node: weight for node, weight in weights.items() if weight > 0 and node not in pinned}
    owners = without_reserved(owners, reserved, pinned)
    if not eligible:
        return owners
    held = _exclusive(owners, pinned, BucketSet.full(buckets))
    result = {node: held[node] for node in pinned if node in held}
    loose = vacant = BucketSet.full(buckets) - reserved
    for fixed in result.values():
        loose -= fixed
    for had in held.values():
        vacant -= had
    shares = _shares(ip, buckets, len(loose), eligible, held)
    lacking: dict[str, int] = {}
    for node, share in shares.items():
        own = held.get(node, _NONE)
        # Giving up the highest numbers keeps the printed ranges short; which ones go is all the same to balance.
        kept = own if len(own) <= share else BucketSet(islice(chain(own & moved, own - moved), share))
        result[node] = kept
        loose -= kept
        if len(kept) < share:
            lacking[node] = share - len(kept)
    for node, gained in _place(ip, loose - vacant, lacking).items():
        result[node] |= gained
        lacking[node] -= len(gained)
    runs = iter(vacant)
    for node in sorted(lacking):
        result[node] |= BucketSet(islice(runs, lacking[node]))
    return dict(sorted(result.items()))


def without_reserved(
    owners: Mapping[str, BucketSet], reserved: BucketSet, pinned: Collection[str]
) -> dict[str, BucketSet]:
    """`owners` without the `reserved` buckets; `pinned` nodes, which cannot be told, keep theirs."""
    return {node: had if node in pinned else had - reserved for node, had in owners.items()}


def _exclusive(
    owners: Mapping[str, BucketSet], pinned: Collection[str], full: BucketSet
) -> dict[str, BucketSet]:
    """`owners` cut to the buckets there are, each to one owner: pinned nodes first, then by name."""
    taken, exclusive = _NONE, {}
    for node in sorted(owners, key=lambda name: (name not in pinned, name)):
        exclusive[node] = (owners[node] & full) - taken
        taken |= exclusive[node]
    return exclusive


def _shares(
    ip: IPv4Address | str, buckets: int, loose: int, weights: Mapping[str, int], held: Mapping[str, BucketSet]
) -> dict[str, int]:
    """How many of the `loose` buckets each node gets: its ideal rounded down, and for some rounded up.

    Rounding up a node that holds more than its rounded-down share saves one move; no other choice saves
    any, so these come first. Then the larger remainder, and last a draw that differs between addresses,
    so that the spare buckets of many ClusterIPs do not all fall to the same node.
    """
    total = sum(weights.values())
    shares = {node: loose * weight // total for node, weight in weights.items()}
    remainders = {node: loose * weight % total for node, weight in weights.items()}
    draw = {node: place for place, node in enumerate(rank(ip, buckets, weights))}
    by_claim = sorted(
        (node for node in weights if remainders[node]),
        key=lambda node: (len(held.get(node, _NONE)) <= shares[node], -remainders[node], draw[node]),
    )
    for node in by_claim[: loose - sum(shares.values())]:
        shares[node] += 1
    return shares


def _place(ip: IPv4Address | str, loose: BucketSet, lacking: dict[str, int]) -> dict[str, BucketSet]:
    """Give each loose bucket, in ascending order, to its first successor that still lacks some."""
    gained: dict[str, list[int]] = {node: [] for node in lacking}
    still = dict(lacking)
    for bucket in loose:
        node = rank(ip, bucket, still)[0]
        gained[node].append(bucket)
        still[node] -= 1
        if not still[node]:
            del still[node]
    return {node: BucketSet(members) for node, members in gained.items()}
