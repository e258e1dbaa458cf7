"""What came over a wire and is to be believed: authentic, new, not this node's own, and not too much.

Owns the order of the checks, cheapest first, and the count of each that failed. Nothing is read of a frame
before its tag is checked, and of a replayed one nothing but whose it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from lbless_api.heartbeat import Message
from lbless_api.heartbeat_frame import Refused, Stamp, parse, stamp
from lbless_nodeagent.dataplane.tick.freshness import Freshness
from lbless_nodeagent.dataplane.tick.wire import Arrived, Wire

PER_NODE = 128
"""Messages of one node that are read at once: 32 pieces of a document and 9 s of heartbeats, the newest."""


class Drop(StrEnum):
    """Why a frame was dropped, besides `heartbeat_frame.Reason`; a counter's label.

    OWN: this node's, so that the network has a loop or another node its name.
    """

    FILTERED = "Filtered"
    OVERFLOW = "Overflow"
    REPLAYED = "Replayed"
    OWN = "Own"
    EXCESS = "Excess"


class Received(NamedTuple):
    """A message and when it arrived (`time.monotonic_ns`)."""

    message: Message
    at_ns: int


class Inbox:
    """The messages of one wire. `trustworthy` is false while frames were lost or are left, as after a long
    pause in a flood: then that nothing was heard of a peer says nothing about it."""

    def __init__(self, wire: Wire, own: bytes, known: Iterable[Stamp] = ()) -> None:
        """`own` is this node's id; `known` the newest of each node that a former process knew."""
        self.trustworthy = True
        self._wire = wire
        self._own = own
        self._freshness = Freshness(known)
        self._dropped: Counter[str] = Counter()

    def take(self, keys: Sequence[bytes]) -> list[Received]:
        """Drain the wire; return what one of `keys` signed, in the order of its arrival."""
        drained = self._wire.drain()
        self.trustworthy = not drained.lost and not drained.behind
        self._dropped[Drop.OVERFLOW] += drained.lost
        admitted = [(sender.node, frame) for frame in drained.frames if (sender := self._admit(frame, keys))]
        return [received for frame in self._newest(admitted) if (received := self._read(frame))]

    def newest(self) -> tuple[Stamp, ...]:
        """The newest frame of each node, for a successor."""
        return self._freshness.newest()

    def dropped(self) -> Mapping[str, int]:
        """How many frames were dropped since the beginning, by why."""
        self._dropped[Drop.FILTERED] += self._wire.refused()
        return +self._dropped

    def _admit(self, frame: Arrived, keys: Sequence[bytes]) -> Stamp | None:
        try:
            sender = stamp(frame.payload, keys)
        except Refused as refused:
            self._dropped[refused.reason] += 1
            return None
        if sender.node == self._own:
            self._dropped[Drop.OWN] += 1
            return None
        if not self._freshness.admit(sender):
            self._dropped[Drop.REPLAYED] += 1
            return None
        return sender

    def _newest(self, admitted: list[tuple[bytes, Arrived]]) -> list[Arrived]:
        """Leave out what is more than PER_NODE of a node, the oldest of it."""
        if len(admitted) <= PER_NODE:
            return [frame for _, frame in admitted]
        excess = Counter(node for node, _ in admitted)
        excess.subtract(dict.fromkeys(excess, PER_NODE))
        kept = []
        for node, frame in admitted:
            if excess[node] > 0:
                excess[node] -= 1
                self._dropped[Drop.EXCESS] += 1
            else:
                kept.append(frame)
        return kept

    def _read(self, frame: Arrived) -> Received | None:
        try:
            # All of a batch were admitted first: what they say of each other is hardly ever news.
            return Received(parse(frame.payload, self._freshness.admitted), frame.at_ns)
        except Refused as refused:
            self._dropped[refused.reason] += 1
            return None
