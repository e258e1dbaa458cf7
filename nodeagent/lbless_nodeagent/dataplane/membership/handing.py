"""Moves between living nodes: when the former owner may give up, when it need not send on any more, and whose flows
may still be under way. Which buckets that are is `handover`'s."""

from __future__ import annotations

from lbless_nodeagent.dataplane.membership.acting import Acting
from lbless_nodeagent.dataplane.membership.epoch import Epoch
from lbless_nodeagent.dataplane.membership.state import NEVER, Peer, Standing

PATIENT_TICKS, HURRIED_TICKS = 50, 5
"""How long a former owner waits for the new ones to stand by: it serves all that while. Where a node that the epoch
names is dead, or another one has given up already, others wait for this one before they gain. For one that does not
hear it they wait no longer than DEAD (rule 9): then it does not wait at all."""


class Handing(Acting):
    """Says it of each ClusterIP as a whole: of all buckets that move in it the slowest decides."""

    def handing_lose(self, standing: Standing) -> bool:
        """Whether what moves from this node may be given up by the epoch in use."""
        epoch = standing.present
        if epoch is None or not self.valid or not self._heirs(epoch):
            return True
        if standing.giving_up == epoch.number or not self.handing_all_hear(epoch):
            return True
        sources = {move.source for move in epoch.moves} - {self.node}
        begun = any(s.in_use >= epoch.number for node, s in standing.reports.items() if node in sources)
        hurried = begun or not all(self.lives(one.node, one.incarnation) for one in epoch.assignments)
        ticks = HURRIED_TICKS if hurried else PATIENT_TICKS
        if self.now - standing.in_use_since >= ticks * self.times.tick:
            return True
        return self.handing_ready(standing) and (hurried or not self.handing_superseded(standing))

    def handing_leaves(self, standing: Standing) -> bool:
        """Whether anything moves from this node to a living one by the epoch in use."""
        epoch = standing.present
        return epoch is not None and bool(self._heirs(epoch))

    def handing_superseded(self, standing: Standing) -> bool:
        """Whether a newer epoch is held: then no move of the one in use is begun any more. The newer one comes into
        use as soon as all have shown that they hold it, and this node that it has given nothing up."""
        newest = standing.newest
        return newest is not None and newest.number > standing.in_use

    def handing_shown(self, standing: Standing) -> int:
        """The epoch that this node shows as its newest, 0 for none. None newer than the one in use while moves of that
        are under way, as far as this node knows: the peers would take it into use amid them."""
        newest = standing.newest
        if newest is None:
            return 0
        return newest.number if self.handing_quiet(standing) else standing.in_use

    def handing_ready(self, standing: Standing) -> bool:
        """Whether all that live of those to whom buckets move from this node stand by, and there are such."""
        epoch = standing.present
        heirs = self._heirs(epoch) if epoch else []
        return epoch is not None and bool(heirs) and all(self._is_ready(standing, epoch, p) for p in heirs)

    def handing_settled(self, standing: Standing) -> bool:
        """Whether all that live of those to whom buckets move from this node have gained them."""
        epoch = standing.present
        if epoch is None:
            return True
        reports = (standing.reports.get(peer.node) for peer in self._heirs(epoch))
        return all(said is not None and said.gained and said.in_use >= epoch.number for said in reports)

    def handing_unfinished(self, standing: Standing) -> frozenset[bytes]:
        """The nodes that may still keep flows in buckets that move from them: those that say so, and those of which
        it is not known yet that they have given the buckets up. The dead keep none."""
        epoch = standing.present
        if epoch is None or not epoch.moves:
            return frozenset()
        peers = (self.peers.get(source) for source in {move.source for move in epoch.moves})
        return frozenset(
            p.node for p in peers if p and not p.dead and not self._is_finished(standing, epoch, p)
        )

    def handing_quiet(self, standing: Standing) -> bool:
        """Whether all that live of those that give or get buckets by the epoch in use have got what is their own and
        send nothing on any more; flows may go on for long. Another epoch in between would have to give up what is
        sent on, and with it new flows. It waits only while all goes well."""
        epoch = standing.present
        if epoch is None or not epoch.moves or not self.valid:
            return True
        if self.now - standing.in_use_since >= PATIENT_TICKS * self.times.tick:
            return True
        if not self.handing_all_hear(epoch) or not all(
            self.lives(one.node, one.incarnation) for one in epoch.assignments
        ):
            return True
        if not self.handing_begun(standing):
            return True
        number, kernel = epoch.number, standing.kernel
        through = {self.node: kernel.epoch == number and kernel.gained and not kernel.sends}
        for peer in self._movers(standing, epoch):
            said = standing.reports.get(peer.node)
            follows = said is not None and said.in_use >= number
            through[peer.node] = follows and bool(said and said.gained and not said.sends)
        concerned = {node for move in epoch.moves for node in (move.source, move.destination)}
        return all(through.get(node, True) for node in concerned)

    def handing_begun(self, standing: Standing) -> bool:
        """Whether somebody has given something up by the epoch in use, as far as this node knows; where nothing moves
        by it, whatever it changes counts as done."""
        epoch = standing.present
        if epoch is None or not epoch.moves:
            return True
        sources = {move.source for move in epoch.moves}
        if self.node in sources and epoch.number in (standing.kernel.epoch, standing.giving_up):
            return True
        reports = [standing.reports.get(p.node) for p in self._movers(standing, epoch) if p.node in sources]
        return any(said is not None and said.in_use >= epoch.number for said in reports)

    def _movers(self, standing: Standing, epoch: Epoch) -> list[Peer]:
        """The living peers that may give or get buckets by the epoch in use: not an incarnation that has come since."""
        return [
            peer
            for peer in self.living()
            if epoch.names(*peer.key) or peer.key in standing.prior or standing.prior_unknown
        ]

    def _heirs(self, epoch: Epoch) -> list[Peer]:
        """The living nodes to which buckets move from this one."""
        if not epoch.moves:
            return []
        heirs = {move.destination for move in epoch.moves if move.source == self.node}
        return [p for p in map(self.peers.get, heirs) if p and not p.dead and epoch.names(*p.key)]

    def handing_all_hear(self, epoch: Epoch) -> bool:
        """Whether this node and each living one that the epoch names hear each other."""
        recent = self.now - self.times.heard
        return all(
            peer.heard >= recent and self.sent.get(peer.heard_me, NEVER) >= recent
            for peer in self.living()
            if epoch.names(*peer.key)
        )

    def _is_ready(self, standing: Standing, epoch: Epoch, peer: Peer) -> bool:
        report = standing.reports.get(peer.node)
        if report is None:
            return False
        if standing.ready.get(peer.node, 0) >= epoch.number:
            return True
        # It follows this epoch: it stands by, unless it says that it does not yet.
        return report.in_use >= epoch.number and (report.gained or report.held > epoch.number)

    def _is_finished(self, standing: Standing, epoch: Epoch, peer: Peer) -> bool:
        report = standing.reports.get(peer.node)
        if report is None:
            return peer.complete  # it has said all, and nothing of this one
        return report.in_use >= epoch.number and not report.drains
