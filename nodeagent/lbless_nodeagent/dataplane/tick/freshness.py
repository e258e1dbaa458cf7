"""Which frames are new: of each node the newest (incarnation, sequence) that was taken, across all kinds.

Owns that number. It is the one place that refuses replays; membership sees each frame once, in rising order
of a node, and decides by its content. What a process knows at its end its successor begins with, whether that
goes on as the same incarnation or not: to one that knew nothing, the recorded frames of a dead node showed a
peer with a lease that acknowledges nothing, before which a living node gives way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbless_api.heartbeat_frame import Stamp

MAX_NODES = 256
"""More than a segment may have. Only who has a key adds one."""


class Freshness:
    """The newest of each node; the one unheard for longest is forgotten when there are too many."""

    def __init__(self, known: Iterable[Stamp] = ()) -> None:
        """`known` is what a former process knew."""
        self._newest: dict[bytes, Stamp] = {}
        self._admitted: dict[bytes, Stamp] = {}
        for stamp in known:
            self.admit(stamp)
        self._admitted.clear()

    @property
    def admitted(self) -> Mapping[bytes, Stamp]:
        """The newest of each node by its id, at any time, but for those that only a former process has heard: what
        others report of these may be news to this one."""
        return self._admitted

    def newest(self) -> tuple[Stamp, ...]:
        """Of each node the newest, the one unheard for longest first."""
        return tuple(self._newest.values())

    def admit(self, stamp: Stamp) -> bool:
        """Whether an authentic frame is newer than all of its node so far; if so, it is the newest now."""
        last = self._newest.get(stamp.node)
        if last is not None:
            if stamp <= last:
                return False
            del self._newest[stamp.node]
        self._newest[stamp.node] = self._admitted[stamp.node] = stamp
        if len(self._newest) > MAX_NODES:
            gone = next(iter(self._newest))
            del self._newest[gone]
            self._admitted.pop(gone, None)
        return True
