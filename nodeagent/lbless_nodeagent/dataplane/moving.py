"""What a node does with the buckets of a ClusterIP that are on their way between living nodes. Values alone.

Which bucket is in which state is decided by `handover`; what the kernel does in each is the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet

_NONE = BucketSet()


@dataclass(frozen=True, slots=True)
class Moving:
    """Buckets in a state other than owned or foreign; no bucket is in two of them, nor owned at the same time.

    - `standby`: to be gained. Packets of this node's own TCP flows are kept; new flows, datagrams and echo requests
      only out of frames addressed to this node's own unicast MAC: those the former owner has sent on.
    - `fresh`: gained, while the former owner still finishes its flows. TCP is kept if it opens a flow or is of this
      node's own; datagrams and echo requests if they came in a multicast frame; all else is left to the former owner.
    - `drain`: given up. TCP of flows that this node has in connection tracking is kept, but never a SYN; answers to
      SYNs are stopped, unless these are sent on. What is not kept is sent on to the node of `redirect`, or dropped
      where that has none. With one of `openings`: as fresh until that leaves, and no answers are stopped.
    - `ending`: drained. As foreign, but what had passed the first stage as `drain` still finds its second stage.

    `redirect` is sorted, and its buckets are among `drain`: the node address of each new owner, with what goes to it.
    `openings` is sorted, and its buckets are among `standby` and `drain`, each once: a token (`opening`), with those in
    standby that are `fresh` from its arrival on, or those in drain that are until it leaves.
    """

    standby: BucketSet = _NONE
    fresh: BucketSet = _NONE
    drain: BucketSet = _NONE
    ending: BucketSet = _NONE
    redirect: tuple[tuple[IPv4Address, BucketSet], ...] = ()
    openings: tuple[tuple[bytes, BucketSet], ...] = ()

    @property
    def uncertain(self) -> BucketSet:
        """Those that may be fresh, by a token that has come or not left yet: the kernel alone knows."""
        return BucketSet(bucket for _, buckets in self.openings for bucket in buckets)

    @property
    def closed(self) -> Moving:
        """The same where each token that is to leave has left."""
        openings = tuple((one, buckets) for one, buckets in self.openings if buckets.issubset(self.standby))
        return replace(self, openings=openings) if openings != self.openings else self

    @property
    def buckets(self) -> BucketSet:
        """All of them."""
        return self.standby | self.fresh | self.drain | self.ending


AT_REST = Moving()
"""Nothing moves."""
