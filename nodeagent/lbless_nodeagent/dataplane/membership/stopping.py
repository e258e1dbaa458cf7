"""Rule 12: how a node keeps its share while its process is replaced, and how it gives the share up."""

from __future__ import annotations

from lbless_api.heartbeat import Flag
from lbless_nodeagent.dataplane.membership.handing import Handing
from lbless_nodeagent.dataplane.membership.state import NEVER, Peer
from lbless_nodeagent.dataplane.membership.view import Intent

LEAVING_FRAMES = 3
"""How often a node says that it leaves before it goes: a frame may be lost."""


class Stopping(Handing):
    """A held node takes over nothing, because it cannot react. So that nobody else is surprised, it becomes
    held, and ceases to be, only while nothing is taken over."""

    def stop(self, intent: Intent, now: float) -> None:
        """The process is to end; `Turn.done` says when it may."""
        self.now = max(self.now, now)
        if self.stopping is not None:
            return
        self.stopping, self.stop_began, self.changed, self.stirred = intent, self.now, True, True
        if intent is Intent.HOLD and self.rule12_may_hold():
            self.held = True
            self.returning = None
            self.stop_sequence = self.next_sequence()
            self.touch_all()
        else:
            self.leave("")

    def leave(self, why: str) -> None:
        """Give the lease up and say so; the peers take over at once."""
        self.leaving, self.held, self.lease_end, self.changed = True, False, None, True
        self.left_frames = 0
        self.touch_all()
        self.events.append(f"leaves{why}.")

    def rule12_may_hold(self) -> bool:
        """Only if it has a lease, is steady, acts nowhere, and every node that bears buckets lives."""
        return self.valid and self.steady and not self.acting and self.rule12_nothing_taken()

    def rule12_stop(self) -> tuple[bool, float | None]:
        """Whether the process may end, and when the lease then is to end: at the end of a hold that every
        living peer has acknowledged, at once otherwise (then the peers have been told)."""
        if self.leaving:
            return self.left_frames >= LEAVING_FRAMES, None
        if self.stopping is not Intent.HOLD:
            return False, None
        acknowledged = [peer.heard_me for peer in self.living() if self.rule12_asked(peer)]
        if (
            all(sequence >= self.stop_sequence for sequence in acknowledged)
            and self.sequence >= self.stop_sequence
        ):
            oldest = min((self.sent.get(one, NEVER) for one in acknowledged), default=self.last_sent)
            return True, oldest + self.times.hold
        if self.deaf or self.listening is not None or self.now - self.stop_began > 6 * self.times.tick:
            self.leave(": not all peers have acknowledged that it holds")
        return False, None

    def rule12_asked(self, peer: Peer) -> bool:
        """Whether a hold needs this peer's acknowledgement: that of every living one, unless nothing has ever
        shown it."""
        return peer.shown

    def rule12_nothing_taken(self) -> bool:
        """Whether no one has taken over a bucket of a dead node, as far as can be known: neither this node
        nor a living peer counts an incarnation dead that bears buckets.

        Held peers are no exception: where all that live are held they share such buckets (`ownership`), so
        that one more that holds changes the shares. Who is alone shares with nobody, and keeps all.
        """
        bearers = self.bearing()
        others = [p for p in self.living() if p.shown and not p.says(Flag.LISTENING | Flag.LEAVING)]
        if any(not bearers.isdisjoint(peer.accused) for peer in others):
            return False
        return not others or all(self.lives(*key) for key in bearers)

    def bearing(self) -> frozenset[tuple[bytes, int]]:
        """The incarnations that have buckets by an epoch in use."""
        if self.bearers is None:
            self.bearers = frozenset(
                (one.node, one.incarnation)
                for standing in self.standings.values()
                if (epoch := standing.present)
                for one in epoch.assignments
                if one.buckets
            )
        return self.bearers

    def rule12_hold_ends(self) -> None:
        """After a restart: first say that the hold is over, so that the others reckon with this node; take
        over again only when all have acknowledged that and none has taken over anything meanwhile."""
        if self.stopping or not (self.held or self.returning is not None):
            return
        safe = self.steady and self.valid and self.rule12_nothing_taken()
        if self.held and safe:
            self.held, self.returning, self.changed = False, self.next_sequence(), True
            self.touch_all()
        elif self.returning is not None and not safe:
            self.held, self.returning, self.changed = True, None, True
            self.touch_all()
        elif self.returning is not None and all(
            peer.heard_me >= self.returning for peer in self.living() if peer.shown
        ):
            self.returning = None
            self.touch_all()

    def take_sequence(self) -> int:
        """A sequence for a frame that is no heartbeat: of one sender each number comes once."""
        self.sequence = self.next_sequence()
        return self.sequence

    def next_sequence(self) -> int:
        """The sequence of the next frame: ms of a clock that goes on between processes, so that a successor
        needs none stored."""
        return max(self.sequence + 1, int(self.now * 1000))
