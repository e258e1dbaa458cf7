"""Which frames are new: of each node the newest (incarnation, sequence) that was taken, across all kinds.

Owns that number. It is the one place that refuses replays; membership sees each frame once, in rising order
of a node, and decides by its content. A process that has just started knows nothing: until a node's first own
frame comes, an old one of it passes, once.
"""

from __future__ import annotations

from lbless_api.heartbeat_frame import Stamp

MAX_NODES = 256
"""More than a segment may have. Only who has a key adds one."""


class Freshness:
    """The newest of each node; the one unheard for longest is forgotten when there are too many."""

    def __init__(self) -> None:
        self._newest: dict[bytes, Stamp] = {}

    def admit(self, stamp: Stamp) -> bool:
        """Whether an authentic frame is newer than all of its node so far; if so, it is the newest now."""
        last = self._newest.get(stamp.node)
        if last is not None:
            if stamp <= last:
                return False
            del self._newest[stamp.node]
        self._newest[stamp.node] = stamp
        if len(self._newest) > MAX_NODES:
            del self._newest[next(iter(self._newest))]
        return True
