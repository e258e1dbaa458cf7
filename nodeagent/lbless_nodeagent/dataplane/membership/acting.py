"""Rule 10: nodes that serve although no epoch names anyone who lives, until an epoch comes into use."""

from __future__ import annotations

from lbless_nodeagent.dataplane.membership.agreeing import Agreeing
from lbless_nodeagent.dataplane.membership.state import Standing


class Acting(Agreeing):
    """After a power cut of the whole site, with or without an API server."""

    def rule10_act(self, standing: Standing) -> None:
        """Say *acting* after hearing nobody serve for DEAD - 3 TICKs, and 3 TICKs later share the buckets."""
        if not self.rule10_vacant(standing):
            standing.vacant = standing.acting = None
            standing.sharing = False
            return
        if standing.acting is None:
            if self.rule10_someone_acts(standing):
                standing.vacant = None
                return
            if standing.vacant is None:
                standing.vacant = self.rule10_unserved_since(standing)
            if self.now - standing.vacant >= self.times.dead - self.times.steady:
                standing.acting = self.now
                self.events.append(f"{standing.uid}: acts, for nobody serves.")
        if standing.acting is not None and not standing.sharing:
            standing.sharing = self.listening is None and self.rule10_announced(standing.acting)

    def rule10_vacant(self, standing: Standing) -> bool:
        """Whether this node could serve, and no owner by an epoch does.

        In doubt it does not: while a peer's reports are not all here; nor, where no peer was ever heard on
        this interface, if the newest epoch names this very incarnation beside others: whoever wrote it knew
        them alive, so that their silence is the segment's.
        """
        newest = standing.newest
        if (
            newest is None
            or self.node not in newest.incarnations
            or self.deaf
            or self.leaving
            or self.stopping
        ):
            return False
        if not self.ever_heard and self.rule10_filtered(standing):
            return False
        present = standing.present
        if present is not None and self.someone_lives(present):
            return False
        return not self.rule10_owner_heard(standing)

    def rule10_owner_heard(self, standing: Standing) -> bool:
        """Whether a living peer owns buckets by an epoch, or may: not all that it says has arrived."""
        for peer in self.living():
            report = standing.reports.get(peer.node)
            if report is None:
                if peer.lately and not peer.complete:
                    return True
            elif report.owns and not report.acting:
                return True
        return False

    def rule10_unserved_since(self, standing: Standing) -> float:
        """Since when nobody who serves was heard: those who served last are dead by now."""
        return max(
            (self.peers[n].heard for n, said in standing.reports.items() if said.owns), default=self.now
        )

    def rule10_filtered(self, standing: Standing) -> bool:
        """Whether the newest epoch names this incarnation and others, none of which was ever heard."""
        newest = standing.newest
        return (
            newest is not None
            and standing.acting is None
            and newest.names(self.node, self.incarnation)
            and any(newest.names(*peer.key) for peer in self.living())
        )

    def rule10_someone_acts(self, standing: Standing) -> bool:
        """Whether a living peer acts already: then it serves everything."""
        return any(report.acting and not self.peers[node].dead for node, report in standing.reports.items())

    def rule10_announced(self, since: float) -> bool:
        """Whether it has said so for 3 TICKs: who acts at the same time has heard it by now."""
        return self.now - since >= self.times.steady

    def acting_nodes(self, standing: Standing) -> list[str] | None:
        """The names of those who share the buckets; None while the name of one is not known."""
        nodes = [node for node, said in standing.reports.items() if said.acting and not self.peers[node].dead]
        names = [self.names.get(node) for node in (self.node, *nodes)]
        known = [name for name in names if name is not None]
        return sorted(known) if len(known) == len(names) else None
