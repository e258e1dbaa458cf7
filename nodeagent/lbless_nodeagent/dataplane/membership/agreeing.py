"""Rules 8 and 9: which epoch of each ClusterIP is in use, and when buckets may be gained by it."""

from __future__ import annotations

from lbless_api.heartbeat import EpochReport, Flag, clusterip_id
from lbless_nodeagent.dataplane.membership.epoch import Epoch
from lbless_nodeagent.dataplane.membership.leasing import Leasing
from lbless_nodeagent.dataplane.membership.state import Peer, Standing
from lbless_nodeagent.dataplane.membership.view import Kept

_KEPT_EPOCHS = 8
"""Newest epochs kept beside the one in use; a peer that uses one of those left out still has it."""
_KEPT_FORGOTTEN = 1024


class Agreeing(Leasing):
    """Each ClusterIP by itself: nothing about one waits for another."""

    def learn(self, epoch: Epoch, now: float) -> None:
        """Rule 8: an epoch, from the API or a peer. One that is not newer than the one in use is ignored."""
        self.now = max(self.now, now)
        standing = self.standings.setdefault(epoch.clusterip, Standing(epoch.uid, epoch.clusterip))
        standing.uid = epoch.uid
        self.forgotten.pop(epoch.clusterip, None)
        if epoch.number <= standing.in_use or epoch.number in standing.epochs:
            return
        standing.epochs[epoch.number] = epoch
        for number in sorted(standing.epochs)[:-_KEPT_EPOCHS]:
            if number != standing.in_use:
                del standing.epochs[number]
        for one in epoch.assignments:
            self.names[one.node] = one.name
            self.rule2_named(one.node, one.incarnation)
        self.dirty.add(epoch.clusterip)
        self.stirred = True

    def forget(self, uid: str) -> None:
        """The ClusterIP is deleted: say so, and ask no peer for it. What the kernel has is not minded here."""
        clusterip = clusterip_id(uid)
        former = self.standings.get(clusterip)
        if former is not None:
            # What the peers say about it is kept: their digests are over that, too.
            self.standings[clusterip] = Standing("", clusterip, reports=former.reports)
        self.dirty.add(clusterip)
        self.acting.discard(clusterip)
        self.waiting.discard(clusterip)
        self.forgotten[clusterip] = None
        while len(self.forgotten) > _KEPT_FORGOTTEN:
            del self.forgotten[next(iter(self.forgotten))]
        self.bearers = self.outlook = None
        self.withdraw_report(clusterip)
        self.stirred = True

    def applied(self, uid: str, kept: Kept) -> None:
        """What the kernel does of the ClusterIP.

        Ignored until the view in which a new incarnation owns nothing is followed: it is about a former one.
        """
        standing = self.standings.get(clusterip_id(uid))
        if standing is None or self.followed < self.followed_from:
            return
        former = standing.kernel
        now = kept._replace(epoch=former.epoch, gained=former.gained) if kept.epoch is None else kept
        if (now.epoch or 0) > standing.in_use:
            return
        if now != former:
            standing.kernel = now
            self.dirty.add(standing.clusterip)
            self.stirred = True

    def followed_view(self, version: int) -> None:
        """The kernel has lost all that it must lose by the view of this version, for every ClusterIP."""
        if version > self.followed:
            self.followed = version
            self.stirred = True

    def rule8_epoch(self, standing: Standing) -> None:
        """Choose the epoch in use: never while listening, never one that names nobody alive."""
        if self.listening is not None:
            return
        self._resume_use(standing)
        newest = standing.newest
        if newest is None or newest.number <= standing.in_use:
            return
        chosen = self.rule8_used_by_peer(standing)
        if (
            self.someone_lives(newest)
            and self.rule8_agreed(standing, newest)
            and self.handing_quiet(standing)
        ):
            chosen = newest.number
        if chosen > standing.in_use:
            standing.unbegun = standing.present is not None and not self.handing_begun(standing)
            older = [epoch for number, epoch in standing.epochs.items() if number < chosen]
            standing.prior = frozenset(key for epoch in older for key in epoch.incarnations.items())
            standing.in_use, standing.in_use_since = chosen, self.now
            standing.prior_unknown = False
            standing.epochs = {n: e for n, e in standing.epochs.items() if n >= chosen}
            standing.vacant = standing.acting = None
            standing.sharing = False
            self.bearers = None
            self.events.append(f"{standing.uid}: epoch {chosen} is in use.")

    def _resume_use(self, standing: Standing) -> None:
        """Rule 12: what a former process of this incarnation had in use, it uses."""
        if standing.resumed is None or not standing.epochs:
            return
        number, kept, acted = standing.resumed
        standing.resumed = None
        # The one in use may not have come to the disk; the one that the kernel follows was there before.
        found = next((n for n in (number, kept.epoch or 0) if n in standing.epochs), 0)
        if found:
            standing.in_use, standing.kernel = found, kept._replace(epoch=min(found, kept.epoch or 0))
            standing.in_use_since, standing.prior_unknown = self.now, True
        if acted:
            standing.acting, standing.sharing = self.now, True

    def rule8_used_by_peer(self, standing: Standing) -> int:
        """The newest epoch that a living peer uses and this node holds, 0 if none."""
        used = 0
        for node, report in standing.reports.items():
            # Who is ready has chosen it, and may have to wait before its kernel follows.
            number = report.held if report.ready else report.in_use
            epoch = standing.epochs.get(number)
            if number > used and epoch and not self.peers[node].dead and self.someone_lives(epoch):
                used = number
        return used

    def rule8_agreed(self, standing: Standing, epoch: Epoch) -> bool:
        """Whether all whom the change from the epoch in use to `epoch` concerns hold exactly `epoch`."""
        return all(
            self._shows(standing, epoch, peer)
            for peer in self.living()
            if self.rule8_concerned(standing, epoch, peer)
        )

    def rule8_concerned(self, standing: Standing, epoch: Epoch, peer: Peer) -> bool:
        """Whether a peer is named in the one in use, in `epoch` or in one between them, acts, or owns something;
        or may, because not all that it says has arrived."""
        if not peer.shown and self.rule2_waited(peer):
            return False
        report = standing.reports.get(peer.node)
        if report is None:
            return self._names(standing, epoch, peer) or (peer.lately and not peer.complete)
        return report.owns or report.acting or report.named or self._names(standing, epoch, peer)

    def rule2_waited(self, peer: Peer) -> bool:
        """Whether 60 s have passed for one that was only ever named, where no peer was ever heard."""
        return not self.ever_heard and self.now - peer.evidence >= self.times.unheard

    def _names(self, standing: Standing, epoch: Epoch, peer: Peer) -> bool:
        """Whether `epoch` or one before it names a peer: that one may be in use there."""
        return any(one.names(*peer.key) for number, one in standing.epochs.items() if number <= epoch.number)

    def _shows(self, standing: Standing, epoch: Epoch, peer: Peer) -> bool:
        report = standing.reports.get(peer.node)
        if report is None or report.held != epoch.number:
            return False
        return self.rule8_heard_out(epoch, peer)

    def rule8_heard_out(self, epoch: Epoch, peer: Peer) -> bool:
        """Whether a peer that `epoch` names no longer listens, so that it can take its share."""
        return not (peer.says(Flag.LISTENING) and epoch.names(*peer.key))

    def rule9_gain(self, standing: Standing) -> bool:
        """Whether buckets may be gained: not before all peers that may have them have lost them.

        Nodes that act share by their names alone, whatever epoch each had in use before; their wait is that
        they announce it (rule 10).
        """
        if standing.sharing:
            return True
        for peer in self.living():
            report = standing.reports.get(peer.node)
            if report and report.in_use == standing.in_use:
                continue
            if report and report.owns and report.in_use > standing.in_use and self.rule9_owner_ahead():
                return False
            if self.rule9_minds(peer) and self._may_have(standing, peer, report):
                shown = report.in_use if report else -1
                if shown < standing.in_use and self.rule9_wait(standing, peer):
                    return False
        return True

    def rule9_held(self, peer: Peer) -> bool:
        """Whether a peer takes over nothing, because its process may be away."""
        return peer.says(Flag.HELD)

    def rule9_minds(self, peer: Peer) -> bool:
        """One that only an epoch names may have buckets where nobody hears anybody."""
        return peer.shown or not self.ever_heard

    def rule9_wait(self, standing: Standing, peer: Peer) -> bool:
        """Gaining waits for each living peer that may have the buckets and shows an older epoch.

        One that this node itself does not hear, though others may, it cannot wait for: then it gives it DEAD
        to follow the epoch. A silent one that holds is heard, for that long. Where nobody was ever heard each
        has the epoch from the API alone, and one that holds is not told of: they are given the hold, too.
        """
        unheard = self.now - peer.heard > self.silence_allowed(peer)
        allowed = self.times.dead if self.ever_heard else self.times.dead + self.times.hold
        return not unheard or self.now - standing.in_use_since < allowed

    def rule9_owner_ahead(self) -> bool:
        """Nothing is gained while a living owner uses a newer epoch, which this node lacks."""
        return True

    def _may_have(self, standing: Standing, peer: Peer, report: EpochReport | None) -> bool:
        if report and (report.owns or report.acting):
            return True
        if standing.prior_unknown and report is None and peer.lately and not peer.complete:
            return True  # not all that it says has arrived
        present = standing.present
        return peer.key in standing.prior or (present is not None and present.names(*peer.key))

    def rule8_wanted(self, standing: Standing) -> int:
        """The newest epoch that a living peer shows and this node lacks, 0 if none."""
        newest = max(standing.epochs, default=0)
        shown = newest
        for node, report in standing.reports.items():
            if (report.held > shown or report.in_use > shown) and not self.peers[node].dead:
                shown = max(report.held, report.in_use)
        return shown if shown > newest else 0

    def holders(self, clusterip: bytes, number: int) -> list[bytes]:
        """The living peers that show the epoch as their newest."""
        standing = self.standings.get(clusterip)
        if standing is None:
            return []
        return [n for n, said in standing.reports.items() if said.held == number and not self.peers[n].dead]

    def handing_quiet(self, standing: Standing) -> bool:
        """Whether the moves of the epoch in use are so far that another may supersede it."""
        raise NotImplementedError

    def handing_begun(self, standing: Standing) -> bool:
        """Whether somebody has given something up by the epoch in use."""
        raise NotImplementedError

    def withdraw_report(self, clusterip: bytes) -> None:
        """Tell the peers that this node has nothing of the ClusterIP any more."""
        raise NotImplementedError
