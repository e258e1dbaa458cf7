"""Rules 3 and 6: which peers are dead, and who gives way when two count each other dead."""

from __future__ import annotations

from lbless_api.heartbeat import Flag
from lbless_nodeagent.dataplane.membership.hearing import Hearing
from lbless_nodeagent.dataplane.membership.state import Peer, Rank
from lbless_nodeagent.dataplane.membership.times import MARGIN_SECONDS


class Judging(Hearing):
    """Gives verdicts, and takes those of others. A verdict is for good: only a new incarnation lives again."""

    def rule3_dead(self) -> None:
        """Count dead whose evidence is too old, and who said that it serves no more."""
        if self.listening is not None:
            return
        for peer in self.living():
            if self.steady and self.rule3_silent(peer):
                self._condemn(peer, f"nothing new of it for {self.now - peer.evidence:.2f} s")
            elif self.rule3_believes() and self.rule3_gave_up(peer):
                self._condemn(peer, "it says that it serves no more")

    def rule3_silent(self, peer: Peer) -> bool:
        """Whether its evidence is older than its lease can be.

        Never where its kernel has no lease, nor while no peer was ever heard on this interface: heartbeats
        may be filtered there, so that silence means nothing (reason NoPeersHeard). Of one that was never
        heard directly, this node cannot know that it does not hold: unless a living peer has counted it
        dead, the hold must be over, too.
        """
        if peer.says(Flag.UNFENCED) or not self.ever_heard:
            return False
        return self.now - peer.evidence > self.silence_allowed(peer)

    def silence_allowed(self, peer: Peer) -> float:
        """For how many seconds a peer's evidence may not change before it is dead."""
        allowed = max(self.times.dead, peer.lease + MARGIN_SECONDS, peer.hold + MARGIN_SECONDS)
        if peer.shown and peer.heard_sequence < 0 and not self._condemned_by_another(peer):
            return max(allowed, self.times.hold + MARGIN_SECONDS)
        return allowed

    def rule3_believes(self) -> bool:
        """Whether it takes another's word that it serves no more: only with a lease of its own."""
        return self.valid

    def rule3_gave_up(self, peer: Peer) -> bool:
        """Whether it said *leaving*, or *deaf* in two frames running."""
        return peer.says(Flag.LEAVING) or (peer.deaf_frames >= 2 and not peer.says(Flag.UNFENCED))

    def _condemned_by_another(self, peer: Peer) -> bool:
        return any(peer.key in other.accused for other in self.living())

    def _condemn(self, peer: Peer, why: str) -> None:
        peer.dead, peer.counted_dead, peer.untold = True, self.now, None
        self.changed = True
        self.touch_all()
        self.events.append(f"{self.call(peer.node)} (incarnation {peer.incarnation}) counts as dead: {why}.")

    def rule6_dispute(self) -> str | None:
        """Settle with each that counts this incarnation dead; returns why this node is to step down."""
        for peer in list(self.peers.values()):
            if peer.dispute:
                peer.dispute = False
                self.answer = True
                if not self.valid or (peer.rank and peer.rank < self.rank()):
                    return f"{self.call(peer.node)} counts it dead"
                if not peer.dead:
                    self._condemn(peer, "it counts this node dead, and has the lower rank")
        return self.rule6_untold()

    def rule6_untold(self) -> str | None:
        """One that is counted dead, has a lease, and for 3 TICKs acknowledges nothing recent cannot be told
        that it is dead: then this node gives way. Recent is what was sent within LEASE and since the verdict."""
        for peer in self.peers.values():
            if not peer.dead or not peer.says(Flag.VALID) or self.now - peer.heard > self.times.heard:
                peer.untold = None
                continue
            sent = self.sent.get(peer.heard_me)
            if sent is not None and sent >= max(peer.counted_dead, self.now - self.times.lease):
                peer.untold = None
            elif peer.untold is None:
                peer.untold = self.now
            elif self.now - peer.untold >= self.times.steady:
                return f"{self.call(peer.node)} has a lease and cannot be told that it counts as dead"
        return None

    def group(self) -> list[bytes]:
        """This node and the peers heard within DEAD without a verdict either way."""
        me = (self.node, self.incarnation)
        recent = self.now - self.times.dead
        members = [p.node for p in self.living() if p.heard >= recent and me not in p.accused]
        return sorted([self.node, *members])

    def rank(self) -> Rank:
        """This node's rank in a dispute; the smaller value is the higher rank."""
        group = self.group()
        return (not self.valid, -len(group), group[0], self.node)
