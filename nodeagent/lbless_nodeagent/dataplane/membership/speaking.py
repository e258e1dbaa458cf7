"""Rule 1, the sending half: what heartbeats say, and how the epochs of many ClusterIPs share their room."""

from __future__ import annotations

from lbless_api.heartbeat import EpochReport, Flag, Heartbeat, PeerReport, Verdict
from lbless_api.heartbeat_frame import (
    EPOCH_BYTES,
    HEARTBEAT_BYTES,
    MAX_BYTES,
    MAX_PEERS,
    PEER_BYTES,
    VERDICT_BYTES,
)
from lbless_nodeagent.dataplane.membership.state import NEVER, Peer, Standing
from lbless_nodeagent.dataplane.membership.stopping import Stopping

SETTLED_REPORTS = 4
"""Reports that have not changed in each frame, in rotation: the digest tells a peer if it has missed one."""
REPEATS = 2
"""In how many frames running a changed report is, before the peers' digests are relied on."""
REPEAT_TICKS = 3
"""All are told anew no more often: where frames overtake each other, that would never end."""
BURST_FRAMES = 24
"""More frames than that are not sent in one turn."""
CHANGE_GAP, ANSWER_GAP = 0.002, 0.02
MAX_VERDICTS = 32


class Speaking(Stopping):
    """Says what the rules have decided."""

    def _setup(self) -> None:
        super()._setup()
        self.urgent = False
        """Whether the frames of this turn are to be read at once."""
        self.told: dict[bytes, EpochReport] = {}
        self.digest = 0
        self.queue: dict[bytes, int] = {}
        """ClusterIPs whose report the peers may lack, and in how many frames more it is to be."""
        self.rotation: list[bytes] = []
        self.repeating = False
        self.repeated, self.repeated_at = -1, NEVER
        """The last sequence of the last burst: what a peer lacked before it, it may have by now."""

    def report(self, standing: Standing) -> None:
        """Note what the peers are to know of a ClusterIP."""
        newest, present = standing.newest, standing.present
        held = self.handing_shown(standing)
        me = (self.node, self.incarnation)
        said = EpochReport(
            clusterip=standing.clusterip,
            held=held,
            in_use=standing.kernel_epoch,
            owns=standing.kernel.owns,
            named=any(epoch is not None and epoch.names(*me) for epoch in (newest, present)),
            acting=standing.acting is not None,
            ready=held > 0 and standing.kernel.ready == held,
            gained=standing.kernel.gained,
            sends=standing.kernel.sends,
            drains=standing.kernel.drains,
        )
        former = self.told.get(standing.clusterip)
        if said != former and (former or said.held):
            self.digest ^= (former.mark() if former else 0) ^ said.mark()
            self.told[standing.clusterip] = said
            self.queue[standing.clusterip] = REPEATS
            self.changed = True

    def withdraw_report(self, clusterip: bytes) -> None:
        """Tell the peers that this node has nothing of the ClusterIP any more."""
        former = self.told.pop(clusterip, None)
        if former:
            self.digest ^= former.mark()
            self.queue[clusterip] = REPEATS
            self.changed = True

    def repeat_reports(self, sequence: int) -> None:
        """Tell everything anew, unless that has happened after `sequence` (-1: a peer that has heard nothing)."""
        if sequence >= 0 and (self.repeating or sequence <= self.repeated):
            return
        if sequence >= 0 and self.now - self.repeated_at < REPEAT_TICKS * self.times.tick:
            return
        for clusterip in (*self.told, *self.forgotten):
            self.queue.setdefault(clusterip, 1)
        self.repeating = self.changed = self.stirred = True

    def rule1_due(self) -> bool:
        """Whether to send: each TICK, at once after a change, and in a dispute 20 ms apart."""
        since = self.now - self.last_sent
        if since >= self.times.tick - 0.0005 or (self.changed and since >= CHANGE_GAP):
            return True
        return (self.answer or self.leaving) and since >= ANSWER_GAP

    def rule1_heartbeats(self) -> tuple[Heartbeat, ...]:
        """The frames of this turn: one, or as many as the changed epochs need."""
        if not self.rule1_due():
            return ()
        peers = tuple(self._peer_report(p) for p in self._reported())[:MAX_PEERS]
        dead = [p for p in self.peers.values() if p.dead]
        dead.sort(key=lambda p: p.heard, reverse=True)
        verdicts = tuple(Verdict(*p.key) for p in dead[:MAX_VERDICTS])
        room = MAX_BYTES - HEARTBEAT_BYTES - PEER_BYTES * len(peers)
        verdicts = verdicts[: max(0, room // VERDICT_BYTES)]
        room -= VERDICT_BYTES * len(verdicts)
        # Deaf is believed in the second frame that says so, and the second that has a change is for those who missed
        # the first: they are news, too.
        self.urgent = self.changed or self.answer or self.leaving or self.deaf or bool(self.queue)
        frames = [self._heartbeat(peers, verdicts, self._epochs(room // EPOCH_BYTES, SETTLED_REPORTS))]
        whole = (MAX_BYTES - HEARTBEAT_BYTES) // EPOCH_BYTES
        while len(frames) < BURST_FRAMES and self._untold(frames):
            frames.append(self._heartbeat((), (), self._epochs(whole, 0)))
        self.changed = len(frames) == BURST_FRAMES and bool(self.queue)
        if not self.changed and (self.repeating or len(frames) > 1):
            self.repeating, self.repeated, self.repeated_at = False, self.sequence, self.now
        self.answer = False
        self.last_sent = self.now
        if self.leaving:
            self.left_frames += 1
        return tuple(frames)

    def _untold(self, frames: list[Heartbeat]) -> bool:
        """Whether a report waits that is in none of these frames; a repeat can wait for the next turn."""
        said = {report.clusterip for frame in frames for report in frame.epochs}
        return any(clusterip not in said for clusterip in self.queue)

    def _reported(self) -> list[Peer]:
        recent = self.now - 2 * self.times.dead
        return [p for p in self.peers.values() if p.shown and (not p.dead or p.evidence >= recent)]

    def _peer_report(self, peer: Peer) -> PeerReport:
        age_ms = max(0, int((self.now - peer.evidence) * 1000))
        direct = peer.heard_sequence == peer.sequence
        return PeerReport(peer.node, peer.incarnation, peer.sequence, age_ms, peer.complete, direct)

    def _epochs(self, room: int, settled: int) -> tuple[EpochReport, ...]:
        """Up to `room` reports: changed ones first, then `settled` others."""
        chosen = list(self.queue)[:room]
        for clusterip in chosen:
            left = self.queue.pop(clusterip) - 1
            if left:
                self.queue[clusterip] = left
        for _ in range(min(settled, room - len(chosen), len(self.told))):
            if not self.rotation:
                self.rotation = list(self.told)
            chosen.append(self.rotation.pop())
        said = {one: self.told.get(one) or EpochReport(one, 0, 0, owns=False, named=False) for one in chosen}
        return tuple(said.values())

    def _heartbeat(
        self,
        peers: tuple[PeerReport, ...],
        verdicts: tuple[Verdict, ...],
        epochs: tuple[EpochReport, ...],
    ) -> Heartbeat:
        self.sequence = self.next_sequence()
        self.sent[self.sequence] = self.now
        group = self.group()
        holds = self.stopping is not None and self.held
        hold = self.times.hold if holds else max(0.0, self.hold_end - self.now)
        return Heartbeat(
            node=self.node,
            incarnation=self.incarnation,
            sequence=self.sequence,
            flags=self.flags(),
            lease_ms=round(self.times.lease * 1000),
            hold_ms=round(hold * 1000),
            group_size=len(group),
            smallest_member=group[0],
            peers=peers,
            verdicts=verdicts,
            epochs=epochs,
            digest=self.digest,
        )

    def flags(self) -> Flag:
        """What this node is at the moment."""
        states = (
            (self.listening is not None, Flag.LISTENING),
            (self.deaf, Flag.DEAF),
            (self.leaving, Flag.LEAVING),
            (bool(self.acting), Flag.ACTING),
            (self.held, Flag.HELD),
            (self.valid, Flag.VALID),
            (not self.fenced, Flag.UNFENCED),
            (self.urgent, Flag.URGENT),
        )
        flags = Flag(0)
        for state, flag in states:
            if state:
                flags |= flag
        return flags
