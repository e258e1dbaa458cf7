"""Who owns which bucket: a pure function of an epoch and a view (rules 9 and 10 of the membership).

All nodes compute it alike, and the operator, too (`lbless_api.ownership`). Views differ while a death spreads,
but an incarnation that one node counts dead serves no more, so that whatever two of them compute, no bucket
has two owners that serve.
"""

from __future__ import annotations

from lbless_api.buckets import BucketSet
from lbless_api.ownership import act, divide
from lbless_nodeagent.dataplane.membership.epoch import Epoch
from lbless_nodeagent.dataplane.membership.view import View

NOTHING = BucketSet()


def owned(epoch: Epoch, view: View, node: str) -> BucketSet:
    """The buckets of `epoch`'s ClusterIP that are `node`'s in `view`; `epoch` is the document that it uses.

    Incarnation 0 is that of a node without heartbeats: nobody takes over from it, and it keeps its share when it
    begins to send some.
    """
    use = view.use.get(epoch.uid)
    if use is None or use.document != epoch.number:
        return NOTHING
    if use.acting is not None:
        mine = act(epoch.buckets, use.acting, reserved=epoch.reserved).owned(epoch.ip, node)
        if use.unheard and any(
            o.name == node and o.incarnation == view.incarnation for o in epoch.assignments
        ):
            # Whoever wrote it knew all of them alive: that nothing is heard of them is the segment's fault.
            for one in epoch.assignments:
                if one.name not in use.acting and (one.node, one.incarnation) in view.living:
                    mine -= one.buckets
        return mine
    division = divide(
        {one.name: one.buckets for one in epoch.assignments},
        living={
            one.name
            for one in epoch.assignments
            if one.incarnation == 0 or (one.node, one.incarnation) in view.living
        },
        held={one.name for one in epoch.assignments if one.node in view.held},
        reserved=epoch.reserved,
    )
    return division.owned(epoch.ip, node) - epoch.reserved
