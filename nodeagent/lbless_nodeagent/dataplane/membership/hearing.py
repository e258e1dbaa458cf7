"""Rule 1, the receiving half, and rule 2: what a heartbeat says, and what it is evidence of."""

from __future__ import annotations

from lbless_api.heartbeat import EpochReport, Flag, Heartbeat, PeerReport
from lbless_nodeagent.dataplane.membership.state import Peer, Standing, State

# Of each frame, so as integers: the operators of an enumeration cost a microsecond each.
_DECIDING = int(Flag.LISTENING | Flag.HELD | Flag.LEAVING | Flag.DEAF | Flag.ACTING | Flag.UNFENCED)
_DEAF, _LEAVING, _VALID = int(Flag.DEAF), int(Flag.LEAVING), int(Flag.VALID)
_MAX_PEERS = 256
"""A segment has 64 nodes; who has been dead for longest is forgotten first."""
_MAX_CLUSTERIPS = 8192
"""More than that are not kept, whatever a peer reports."""


class Hearing(State):
    """Takes in what arrives. Decides nothing but what is older and what is newer."""

    def heard(self, heartbeat: Heartbeat, arrived: float) -> bool:
        """Rule 1: take in an authentic heartbeat; returns False where it is dropped, and counts why."""
        self.heard_traffic(arrived)
        if heartbeat.node == self.node:
            self.drop("own")
            if heartbeat.incarnation > self.incarnation:
                self.outdated = max(self.outdated, heartbeat.incarnation)
            return False
        if not self.rule1_in_order(heartbeat):
            self.drop("stale")
            return False
        if not self.ever_heard:
            self.ever_heard = True
            self.rule2_heard_at_last(arrived)
        peer = self.rule2_evidence(heartbeat.node, heartbeat.incarnation, heartbeat.sequence, arrived)
        peer.heard, peer.heard_sequence = max(peer.heard, arrived), heartbeat.sequence
        self._take_flags(peer, heartbeat)
        peers = self.peers
        for report in heartbeat.peers:
            known = peers.get(report.node)
            if (
                known is not None
                and report.sequence <= known.sequence
                and report.incarnation == known.incarnation
                and known.shown
            ):
                continue  # no newer than what is known: nearly always so, as all have heard each other
            if report.node == self.node:
                self._take_acknowledgement(peer, report)
            elif report.node != peer.node:
                self.rule2_report(report.node, report.incarnation, report.sequence, arrived, report.age_ms)
        peer.accused.update((verdict.node, verdict.incarnation) for verdict in heartbeat.verdicts)
        if (self.node, self.incarnation) in peer.accused:
            peer.dispute = self.stirred = True
        elif peer.dead:
            self.answer = self.stirred = True
        for said in heartbeat.epochs:
            self._take_report(peer, said)
        complete = peer.digest == heartbeat.digest
        if complete != peer.complete:
            peer.complete = complete
            self.touch_all()
        return True

    def heard_traffic(self, arrived: float) -> None:
        """Rule 4: a frame of any kind has arrived on the interface."""
        if arrived > self.last_frame:
            if arrived - self.last_frame > self.silence:
                self.unbroken_since = arrived
            self.last_frame = arrived
            self.stirred = self.stirred or self.deaf

    def rule1_in_order(self, heartbeat: Heartbeat) -> bool:
        """An older or equal (incarnation, sequence) than one that was heard is dropped."""
        peer = self.peers.get(heartbeat.node)
        if peer is None:
            return True
        return (heartbeat.incarnation, heartbeat.sequence) > (peer.incarnation, peer.heard_sequence)

    def rule2_evidence(self, node: bytes, incarnation: int, sequence: int, learnt: float) -> Peer:
        """Note when a sequence became known: only a newer one counts, and never as earlier than an older one.
        A newer incarnation makes all older ones dead. Returns the peer."""
        peer = self.peers.get(node)
        if peer is None or incarnation > peer.incarnation:
            peer = self._begin(node, incarnation, learnt)
        if incarnation == peer.incarnation and (sequence > peer.sequence or not peer.shown):
            peer.sequence, peer.evidence = sequence, max(peer.evidence, learnt) if peer.shown else learnt
            peer.shown = True
        return peer

    def rule2_heard_at_last(self, arrived: float) -> None:
        """Until now nothing was heard of anyone, and silence meant nothing: it counts from here on, for those too that
        only epochs have named."""
        for peer in self.peers.values():
            if not peer.shown:
                peer.evidence = max(peer.evidence, arrived)

    def rule2_report(self, node: bytes, incarnation: int, sequence: int, arrived: float, age_ms: int) -> None:
        """A peer heard it directly: that is evidence as old as the peer says."""
        self.rule2_evidence(node, incarnation, sequence, arrived - age_ms / 1000)

    def rule2_named(self, node: bytes, incarnation: int) -> None:
        """An epoch names it: until something is heard of it, it may have been alive when the epoch came."""
        peer = self.peers.get(node)
        if node != self.node and incarnation > 0 and (peer is None or incarnation > peer.incarnation):
            self._begin(node, incarnation, self.now)

    def _begin(self, node: bytes, incarnation: int, learnt: float) -> Peer:
        former = self.peers.get(node)
        if former is not None:
            for standing in self.standings.values():
                standing.reports.pop(node, None)
                standing.ready.pop(node, None)
            self.events.append(
                f"{self.call(node)} has a new incarnation, {incarnation}: the former one is dead."
            )
        elif len(self.peers) >= _MAX_PEERS:
            gone = min(self.peers.values(), key=lambda other: (not other.dead, other.evidence))
            del self.peers[gone.node]
        peer = self.peers[node] = Peer(node, incarnation, learnt)
        self.touch_all()
        self.repeat_reports(-1)
        return peer

    def _take_flags(self, peer: Peer, heartbeat: Heartbeat) -> None:
        former, flags = int(peer.flags), int(heartbeat.flags)
        peer.deaf_frames = peer.deaf_frames + 1 if flags & _DEAF else 0
        if (former ^ flags) & _DECIDING or flags & _LEAVING or peer.deaf_frames == 2:
            self.touch_all()
        peer.flags = heartbeat.flags
        peer.lease, peer.hold = heartbeat.lease_ms / 1000, heartbeat.hold_ms / 1000
        valid = bool(flags & _VALID)
        peer.rank = (not valid, -heartbeat.group_size, heartbeat.smallest_member, peer.node)

    def _take_acknowledgement(self, peer: Peer, report: PeerReport) -> None:
        if report.incarnation == self.incarnation:
            peer.acknowledged = max(peer.acknowledged, report.sequence)
            if report.direct:
                peer.heard_me = max(peer.heard_me, report.sequence)
                if not report.complete:
                    self.repeat_reports(report.sequence)
        elif report.incarnation > self.incarnation:
            self.outdated = max(self.outdated, report.incarnation)
            self.stirred = True

    def _take_report(self, peer: Peer, report: EpochReport) -> None:
        standing = self.standings.get(report.clusterip)
        if standing is None:
            if not report.held or len(self.standings) >= _MAX_CLUSTERIPS:
                return
            standing = self.standings[report.clusterip] = Standing("", report.clusterip)
        known = standing.reports.get(peer.node)
        if known is report or known == report:
            return
        peer.digest ^= (known.mark() if known else 0) ^ report.mark()
        if report.held:
            standing.reports[peer.node] = report
            if report.ready:
                standing.ready[peer.node] = report.held
        else:
            standing.reports.pop(peer.node, None)
        self.dirty.add(report.clusterip)
        self.stirred = True

    def repeat_reports(self, sequence: int) -> None:
        """Tell where this node is with every ClusterIP: a peer lacks some as of `sequence` of this node."""
        raise NotImplementedError
