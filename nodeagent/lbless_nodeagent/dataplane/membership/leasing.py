"""Rules 4, 5 and 7: deafness, how far the lease reaches, and what a new incarnation begins with."""

from __future__ import annotations

from lbless_api.heartbeat import Flag
from lbless_nodeagent.dataplane.membership.judging import Judging
from lbless_nodeagent.dataplane.membership.state import NEVER, NOTHING_KEPT, Peer


class Leasing(Judging):
    """Decides how long this node may serve."""

    def gap(self) -> None:
        """After a pause of its own longer than LEASE a node has not heard what happened meanwhile."""
        if self.now - self.last_turn > self.times.lease:
            self.steady_since = self.now
            if self.listening is not None:
                self.listening = self.now
        self.last_turn = self.now

    def overrun(self, now: float) -> None:
        """Frames were lost before they could be read, or are not read yet: what was not heard says nothing, and
        is a gap until then."""
        self.now = max(self.now, now)
        self.steady_since = self.now

    def rule4_deaf(self) -> None:
        """Deaf is who hears no frame of any kind for QUIET though a peer counts as living; a frame ends it.
        Deaf is also who has no carrier: whoever lives, no client reaches it either.

        A peer that only an epoch has named does not make deaf, nor does a silent one that may be dead
        without ever being counted so (UNFENCED).
        """
        silent = self.now - self.last_frame >= self.times.quiet
        deaf = self.unlinked or (silent and self._missing_someone())
        if self.deaf == deaf:
            return
        self.deaf, self.changed = deaf, True
        if deaf:
            self.lease_end = None
            self.events.append("is deaf: it gives up its lease and judges nobody.")
        else:
            self.deaf_ended = self.steady_since = self.now
            self.events.append("hears again.")
        self.touch_all()

    def linked(self, up: bool, now: float) -> None:
        """The interface has lost or got back its carrier; a surrounding that cannot tell need not call this."""
        self.now = max(self.now, now)
        if self.unlinked == up:
            self.unlinked, self.stirred = not up, True
            if up and self.listening is not None:
                self.listening = self.now

    def _missing_someone(self) -> bool:
        recent = self.now - self.times.dead
        return any(p.shown and not (p.says(Flag.UNFENCED) and p.evidence < recent) for p in self.living())

    def rule5_lease(self) -> None:
        """Extend the lease, never shorten it: what it was extended for still holds."""
        if self.listening is not None or self.deaf or self.leaving:
            return
        members = self.rule5_members()
        if members:
            reach = self.rule5_acknowledged(members)
        elif self.rule5_alone() if self.rule5_nobody_left() else self.rule5_bridged():
            reach = self.last_sent
        else:
            reach = NEVER
        end = reach + self.times.lease
        if end > self.now and end > (self.lease_end or NEVER):
            if not self.valid:
                if self.rule5_replaced() or self.rule5_outrun():
                    return
                self.changed = True
                self.events.append("has a lease.")
            self.lease_end = end

    def rule5_members(self) -> list[Peer]:
        """P: the peers heard within HEARD that are not listening, deaf or leaving."""
        recent, absent = self.now - self.times.heard, Flag.LISTENING | Flag.DEAF | Flag.LEAVING
        return [p for p in self.peers.values() if p.heard >= recent and not p.says(absent)]

    def rule5_acknowledged(self, members: list[Peer]) -> float:
        """When this node sent the oldest of its sequences that a member reports as its newest.

        NEVER where a member reports none of this incarnation, or one from before deafness ended: the member
        may already have counted it dead.
        """
        sent = min(self.sent.get(member.acknowledged, NEVER) for member in members)
        return sent if sent >= self.deaf_ended else NEVER

    def rule5_replaced(self) -> bool:
        """Whether a peer acts for a ClusterIP that this node serves by an epoch: it began while this node was
        silent, without counting it dead, and stops when it learns of that epoch in use. Until then a lease
        that has lapsed does not begin anew."""
        return any(
            (said.acting or (said.owns and not said.in_use)) and not self.peers[node].dead
            for standing in self.standings.values()
            if standing.in_use and standing.acting is None
            for node, said in standing.reports.items()
        )

    def rule5_outrun(self) -> bool:
        """Whether the kernel still keeps buckets by an epoch that is older than the one in use here or at a peer
        that lives: while this node's lease had lapsed nobody waited for it, so that others may have them. Until
        the kernel has lost them a lease does not begin anew. Nodes that act share by no epoch, so that among them
        none is ahead."""
        return any(
            standing.kernel.owns
            and standing.kernel_epoch
            < max(
                standing.in_use,
                *(
                    said.in_use
                    for node, said in standing.reports.items()
                    if not self.peers[node].dead and not (standing.sharing and said.acting)
                ),
                0,
            )
            for standing in self.standings.values()
        )

    def rule5_nobody_left(self) -> bool:
        """Whether no peer that could acknowledge counts as living."""
        absent = Flag.LISTENING | Flag.DEAF | Flag.LEAVING
        return not any(peer.shown and not peer.says(absent) for peer in self.living())

    def rule5_alone(self) -> bool:
        """Who is alone needs no acknowledgement, if its lease runs or it has heard without a gap for 3 TICKs."""
        return self.valid or self.steady

    def rule5_bridged(self) -> bool:
        """Peers are silent and not dead yet: a lease that runs goes on if the silence is theirs, because other
        frames have arrived all the while."""
        newest = max((peer.heard for peer in self.peers.values()), default=NEVER)
        audible = self.now - self.last_frame <= self.silence
        return self.valid and audible and self.unbroken_since <= newest

    def rule7_new_incarnation(self, why: str) -> None:
        """Step down: the lease ends at once, nothing is owned, views and verdicts are forgotten, and it
        listens for DEAD as one that was never here."""
        self.events.append(f"steps down: {why}.")
        self.incarnation = self.next_incarnation(max(self.incarnation, self.outdated))
        self.lease_end = None
        self.listening = self.steady_since = self.now
        self.deaf = self.held = False
        self.returning, self.hold_end, self.outdated = None, NEVER, -1
        self.followed_from = self.view.version + 1
        self.sent.clear()
        for peer in self.peers.values():
            peer.acknowledged = peer.heard_me = -1
            peer.untold, peer.dispute = None, False
            self.rule7_forget_verdicts(peer)
        for standing in self.standings.values():
            standing.in_use, standing.prior, standing.prior_unknown = 0, frozenset(), False
            standing.kernel = NOTHING_KEPT
            standing.vacant = standing.acting = standing.resumed = None
            standing.sharing = False
        self.bearers = None
        self.changed = True
        self.touch_all()

    def rule7_outdated(self) -> str | None:
        """Peers know a newer incarnation of this node than its own, so that they drop all that it says."""
        return "peers know a newer incarnation of it" if self.outdated > self.incarnation else None

    def rule7_forget_verdicts(self, peer: Peer) -> None:
        """A verdict of a former incarnation is none of this one."""
        peer.dead = False

    def rule7_listening_ends(self) -> None:
        """After DEAD without a gap, and never before the kernel is known to own nothing of a former one."""
        if self.listening is None or self.followed < self.followed_from:
            return
        if self.now - self.listening >= self.times.dead:
            self.listening = None
            self.changed = True
            self.touch_all()
            self.events.append("has listened long enough.")
