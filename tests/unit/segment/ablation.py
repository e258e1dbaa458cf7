"""Membership without one clause at a time; what then goes wrong is in `clauses`."""

# Each override has the signature of the rule that it replaces, whether or not it looks at what it is given.
# ruff: noqa: ARG002, ARG005

from __future__ import annotations

from dataclasses import replace

from lbless_api.heartbeat import Flag, Heartbeat
from lbless_nodeagent.dataplane.membership import Epoch, Membership, Use
from lbless_nodeagent.dataplane.membership.state import NEVER, Peer, Standing


class AnyOrder(Membership):
    """1: an older or equal (incarnation, sequence) is dropped."""

    def rule1_in_order(self, heartbeat: Heartbeat) -> bool:
        peer = self.peers.get(heartbeat.node)
        if peer and heartbeat.incarnation == peer.incarnation:
            peer.evidence = self.now
        return peer is None or heartbeat.incarnation >= peer.incarnation


class NoRepeats(Membership):
    """1: who lacks some of a peer's epochs has all of them told anew."""

    def repeat_reports(self, sequence: int) -> None:
        pass


class RumoursCount(Membership):
    """2: only a newer sequence counts."""

    def heard(self, heartbeat: Heartbeat, arrived: float) -> bool:
        taken = super().heard(heartbeat, arrived)
        for report in heartbeat.peers if taken else ():
            peer = self.peers.get(report.node)
            if peer and (report.incarnation, report.sequence) == (peer.incarnation, peer.sequence):
                peer.evidence = max(peer.evidence, self.now)
        return taken


class NoReports(Membership):
    """2: peers' reports are evidence."""

    def rule2_report(self, node: bytes, incarnation: int, sequence: int, arrived: float, age_ms: int) -> None:
        pass


class ReportsWithoutAge(Membership):
    """2: a report's evidence is as old as the peer says."""

    def rule2_report(self, node: bytes, incarnation: int, sequence: int, arrived: float, age_ms: int) -> None:
        super().rule2_report(node, incarnation, sequence, arrived, 0)


class NamedIsNothing(Membership):
    """2: who is named and was never heard may live, for DEAD."""

    def rule2_named(self, node: bytes, incarnation: int) -> None:
        pass


class UnheardDie(Membership):
    """2: where no peer was ever heard, nobody is counted dead, and after 60 s nobody waited for."""

    def rule3_silent(self, peer: Peer) -> bool:
        return self.now - peer.evidence > self.silence_allowed(peer)


class WaitsForUnheard(Membership):
    """2: after 60 s, nobody waits for the hold of those who were never heard."""

    def rule2_waited(self, peer: Peer) -> bool:
        return False


class JudgesAtOnce(Membership):
    """3: judges only after hearing without a gap for 3 TICKs."""

    @property
    def steady(self) -> bool:
        return not self.deaf


class SilenceIsNoGap(Membership):
    """3, 5: a time without any frame is a gap, too."""

    def heard_traffic(self, arrived: float) -> None:
        super().heard_traffic(arrived)
        self.unbroken_since = NEVER


class DeafAreBelieved(Membership):
    """3: the deaf give no verdicts."""

    @property
    def steady(self) -> bool:
        since = max(self.steady_since, self.unbroken_since)
        return self.now - since >= self.times.steady


class NoGivingUp(Membership):
    """3: who says deaf or leaving is dead at once."""

    def rule3_gave_up(self, peer: Peer) -> bool:
        return False


class DeafOnce(Membership):
    """3: deaf in two frames running, not in one."""

    def rule3_gave_up(self, peer: Peer) -> bool:
        return peer.says(Flag.LEAVING | Flag.DEAF)


class LapsedJudge(Membership):
    """3: only who has a lease believes deaf and leaving."""

    def rule3_believes(self) -> bool:
        return True


class HoldsAreSilence(Membership):
    """3: one that holds may be silent for longer."""

    def silence_allowed(self, peer: Peer) -> float:
        return self.times.dead


class HearsayIsEnough(Membership):
    """3: whom it never heard directly, it counts dead when a peer does, or after a hold."""

    def _condemned_by_another(self, peer: Peer) -> bool:
        return True


class NeverDeaf(Membership):
    """4: who hears nothing gives up its lease."""

    def rule4_deaf(self) -> None:
        pass


class CarrierUnseen(Membership):
    """4: who has no carrier is deaf at once."""

    def linked(self, up: bool, now: float) -> None:
        pass


class NoAcknowledgement(Membership):
    """5: the lease reaches as far as the peers' acknowledgements."""

    def rule5_acknowledged(self, members: list[Peer]) -> float:
        return self.last_sent


class NewestAcknowledgement(Membership):
    """5: what counts is the oldest acknowledgement, not the newest."""

    def rule5_acknowledged(self, members: list[Peer]) -> float:
        sent = max(self.sent.get(member.acknowledged, NEVER) for member in members)
        return sent if sent >= self.deaf_ended else NEVER


class OldAcknowledgements(Membership):
    """5: what was sent before deafness ended does not count."""

    def rule5_acknowledged(self, members: list[Peer]) -> float:
        return min(self.sent.get(member.acknowledged, NEVER) for member in members)


class AllAcknowledge(Membership):
    """5: the silent, the listening, the deaf and the leaving need not acknowledge."""

    def rule5_members(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.shown and not peer.dead]


class NoBridge(Membership):
    """5: while peers are silent and not dead yet, a lease that runs goes on."""

    def rule5_bridged(self) -> bool:
        return False


class BlindBridge(Membership):
    """5: but only if other frames have arrived all the while."""

    def rule5_bridged(self) -> bool:
        return self.valid


class AloneAtOnce(Membership):
    """5: whose lease has lapsed waits 3 TICKs before it trusts that it is alone."""

    def rule5_alone(self) -> bool:
        return True


class AloneAmongSilent(Membership):
    """5: who is alone by silence alone has no lease before the silent ones are dead."""

    def rule5_nobody_left(self) -> bool:
        return True


class NoDispute(Membership):
    """6: whom a peer counts dead steps down, or counts the peer dead."""

    def rule6_dispute(self) -> str | None:
        return None


class AlwaysYield(Membership):
    """6: in a dispute rank decides who steps down."""

    def rule6_dispute(self) -> str | None:
        if any(peer.dispute for peer in self.peers.values()):
            return "anybody counts it dead"
        return self.rule6_untold()


class NeverUntold(Membership):
    """6: one that is counted dead and cannot be told makes this node step down."""

    def rule6_untold(self) -> str | None:
        return None


class NoListening(Membership):
    """7: a new incarnation listens for DEAD."""

    def rule7_listening_ends(self) -> None:
        if self.followed >= self.followed_from:
            self.listening = None


class ListensUnconfirmed(Membership):
    """7: listening does not end before the kernel is known to own nothing."""

    def rule7_listening_ends(self) -> None:
        self.followed_from = 0
        super().rule7_listening_ends()


class KeepsVerdicts(Membership):
    """7: a new incarnation forgets verdicts."""

    def rule7_forget_verdicts(self, peer: Peer) -> None:
        pass


class OldIncarnation(Membership):
    """7: one whose peers know a newer incarnation of it takes a newer one still."""

    def rule7_outdated(self) -> str | None:
        return None


class EpochAtOnce(Membership):
    """8: an epoch comes into use when all whom it concerns hold it."""

    def rule8_agreed(self, standing: Standing, epoch: Epoch) -> bool:
        return True


class NotByPeers(Membership):
    """8: an epoch comes into use when a living peer uses it."""

    def rule8_used_by_peer(self, standing: Standing) -> int:
        return 0


class OnlyByName(Membership):
    """8: not only the named are concerned, also who owns or acts."""

    def rule8_concerned(self, standing: Standing, epoch: Epoch, peer: Peer) -> bool:
        return self._names(standing, epoch, peer)


class NamedListeners(Membership):
    """8: those that an epoch names no longer listen."""

    def rule8_heard_out(self, epoch: Epoch, peer: Peer) -> bool:
        return True


class EpochOfTheDead(Membership):
    """8: never an epoch none of whose incarnations lives."""

    def rule8_epoch(self, standing: Standing) -> None:
        self.someone_lives = lambda epoch: True  # type: ignore[method-assign]
        super().rule8_epoch(standing)
        del self.someone_lives


class NoExchange(Membership):
    """8: a node asks peers for an epoch that it lacks."""

    def rule8_wanted(self, standing: Standing) -> int:
        return 0


class GainsAtOnce(Membership):
    """9: gaining waits until the others have lost."""

    def rule9_wait(self, standing: Standing, peer: Peer) -> bool:
        return False


class HeardAtLast(Membership):
    """2: where nobody was ever heard, silence counts from the first frame on."""

    def rule2_heard_at_last(self, arrived: float) -> None:
        pass


class GainsUnheard(Membership):
    """9: where nobody hears anybody, gaining waits for DEAD."""

    def rule9_minds(self, peer: Peer) -> bool:
        return peer.shown


class HeldNotAwaited(Membership):
    """9: gaining waits for those that hold, too, and DEAD for those that it does not hear."""

    def rule9_wait(self, standing: Standing, peer: Peer) -> bool:
        return peer.lately


class OwnerAheadIgnored(Membership):
    """9: nothing is gained while a living owner uses a newer epoch."""

    def rule9_owner_ahead(self) -> bool:
        return False


class HeldTakeOver(Membership):
    """9: the held take over nothing."""

    def rule9_held(self, peer: Peer) -> bool:
        return False


class NoActing(Membership):
    """10: nodes act where nobody serves."""

    def rule10_act(self, standing: Standing) -> None:
        pass


class ActsUnannounced(Membership):
    """10: who acts says so for 3 TICKs before it serves."""

    def rule10_announced(self, since: float) -> bool:
        return True


class ActsBesideOthers(Membership):
    """10: nobody begins to act while someone acts."""

    def rule10_someone_acts(self, standing: Standing) -> bool:
        return False


class ActsBesideOwners(Membership):
    """10: nobody acts beside an owner."""

    def rule10_owner_heard(self, standing: Standing) -> bool:
        return False


class ActsUnheard(Membership):
    """10: where heartbeats may be filtered nobody acts, or leaves the others their share."""

    def rule10_filtered(self, standing: Standing) -> bool:
        return False

    def rule9_use(self, standing: Standing) -> Use:
        return replace(super().rule9_use(standing), unheard=False)


class HoldsUnacknowledged(Membership):
    """12: a hold needs the acknowledgement of all."""

    def rule12_asked(self, peer: Peer) -> bool:
        return False


class HoldsAnyway(Membership):
    """12: nobody becomes held, or ceases to be, while something is taken over."""

    def rule12_nothing_taken(self) -> bool:
        return True


class BackAtOnce(Membership):
    """12: after a hold it takes over when all have acknowledged its end."""

    def rule12_hold_ends(self) -> None:
        if not self.stopping and self.held:
            self.held, self.changed = False, True
            self.touch_all()


class AlwaysHeld(Membership):
    """12: a hold ends when the successor is there."""

    def rule12_hold_ends(self) -> None:
        pass


class GivesUpAtOnce(Membership):
    """Moves: the former owner gives up when the new ones stand by."""

    def handing_lose(self, standing: Standing) -> bool:
        return True


class SendsNothingOn(Membership):
    """Moves: what the former owner takes no more it sends on until the new ones have gained it."""

    def handing_settled(self, standing: Standing) -> bool:
        return True


class OwnsAtOnce(Membership):
    """Moves: a bucket is fresh until those that had it before have no flows there any more."""

    def handing_unfinished(self, standing: Standing) -> frozenset[bytes]:
        return frozenset()


class Supersedes(Membership):
    """Moves: an epoch supersedes another when nothing is sent on by that one."""

    def handing_quiet(self, standing: Standing) -> bool:
        return True


class BeginsSuperseded(Membership):
    """Moves: who holds a newer epoch begins no move of the one in use."""

    def handing_superseded(self, standing: Standing) -> bool:
        return False


class ShowsAtOnce(Membership):
    """Moves: while any are under way no newer epoch is shown."""

    def handing_shown(self, standing: Standing) -> int:
        return standing.newest.number if standing.newest else 0


class WaitsUnheard(Membership):
    """Moves: nobody waits to give up where not all hear each other."""

    def handing_all_hear(self, epoch: Epoch) -> bool:
        return True
