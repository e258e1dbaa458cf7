"""The membership of one interface: what it decides at each turn, in which order. No socket, no clock, no I/O.

`Membership` is its rules, one layer a module: `state` (what it knows), `hearing` (1, 2), `judging` (3, 6),
`leasing` (4, 5, 7), `agreeing` (8, 9), `acting` (10), `handing` (moves), `stopping` (12), `speaking` (1); a rule's
clauses are methods named after it. The rules are those of the design, and these are what was decided where it left a
choice or the simulation showed that it must be otherwise:

- Rule 1: not every frame has every peer and ClusterIP. What a peer has not repeated still holds; a digest over
  its epochs shows whether some were missed, and whoever sees that has them told anew (`PeerReport.complete`).
  Peers are reported with what is known of them, not only if heard directly: else a node whose frames one peer
  does not hear is never acknowledged by that one and loses its lease for good. What only a direct hearer can
  know (that it holds, that it counts as dead) counts only direct reports (`PeerReport.direct`).
- Rule 1: a frame that tells something new is urgent. A node that is calm need read no other before its own next one
  is due (`Turn.calm`): frames have the times of their arrival, so that waiting changes no evidence.
- Rule 2, the 60 s: where no peer was ever heard, nobody is counted dead at all, so that filtered heartbeats
  make nobody take over; silence counts from the first frame on. After 60 s an epoch comes into use without those
  who never showed that they hold it.
- Rule 3: whom this node never heard directly, it counts dead when a living peer does, or after a hold; and it
  gives no verdicts while it listens, as rule 7 has it forget them.
- Rules 3 and 5: a time of 2 TICKs without a frame of any kind is a gap, too. Between HEARD and QUIET a flapping
  link otherwise extended leases, and judged, on nothing but a client's frame.
- Rule 4: a peer that was only ever named does not make deaf; else the first node of a site would never serve.
  No carrier makes deaf at once, where the surroundings can tell (`linked`).
- Rule 5, P empty: while some peer is silent and not yet dead, only a lease that runs is extended, and only if
  other frames have arrived all the while. A lease that has lapsed does not begin anew beside a node that acts
  for a ClusterIP that this one serves by an epoch.
- Rule 6: an acknowledgement is recent if it is of what was sent since the verdict, and within LEASE.
- Rule 7: listening also waits until the kernel is known to own nothing; a pause begins it anew.
- Rule 8: concerned is also who is named by an epoch between the one in use and the new one. A peer uses an epoch, too,
  that it has chosen and is ready for, before its kernel follows: it may have to wait for this node.
- Rule 9: gaining waits for a silent peer that holds, too; for one that only others hear, and where nobody ever
  heard a peer for each that was named, it waits DEAD, and there the hold as well. Losing is at once, or for what
  moves when the new owner stands by (`handing`), and *held* changes who takes over: so a node becomes held, and
  ceases to be, only while nothing is taken over, and takes over again when all have acknowledged the end
  (`stopping`).
- Rule 10: *acting* is said of each ClusterIP. It may be said while still listening, but shared only after.
  Not where no peer was ever heard and the epoch names this very incarnation beside others (rule 2); one that
  acts by then leaves those others what that epoch gives them.

Known limits: a node that starts while the only other one holds acts beside it until that one is back; two faults
that leave two nodes hearing each other in one direction only, one of them restarting, give up to 0.5 s with two
owners (rule 6 ends it); a link that flaps where no carrier tells was seen with 0.16 s of two owners at a time,
and with 0.35 s over twelve slow flaps; two sides that knew nothing of each other and meet with an epoch under
way were seen with 1.5 ms (`make soak` finds the last in some hundred random schedules).
"""

from __future__ import annotations

from lbless_nodeagent.dataplane.membership.speaking import ANSWER_GAP, CHANGE_GAP, Speaking
from lbless_nodeagent.dataplane.membership.state import NEVER, NOTHING_KEPT, Standing
from lbless_nodeagent.dataplane.membership.view import Condition, Memory, Turn, Use, View

MAX_WANTED = 64
"""Epochs that are asked for at a time."""
_EPSILON = 0.0005


class Membership(Speaking):
    """See the module. Calls: `heard`, `heard_traffic`, `linked`, `learn`, `forget`, `applied`, `followed_view`, `stop`
    as things happen, in any order; then `tick`, after every wake-up and no later than its last `Turn.wake`."""

    def _setup(self) -> None:
        super()._setup()
        self._deadline = self.now
        self._lacking: dict[bytes, tuple[int, float]] = {}
        """Epochs that peers show and this node lacks, and when it last asked."""

    def tick(self, now: float) -> Turn:
        """Decide, and return what is to be done. `now` never goes back."""
        self.now = max(now, self.now)
        self.gap()
        done, end = False, None
        due = self.now >= min(self._deadline, self.last_sent + self.times.tick - _EPSILON)
        if self.stirred or due or self.stopping:
            self.stirred = False
            done, end = self._decide()
            self._deadline = self._next_deadline()
        wanted = self._wanted()
        heartbeats = self.rule1_heartbeats()
        events, self.events = tuple(self.events), []
        lease_end = end if done else self.lease_end
        if lease_end is not None and lease_end <= self.now:
            lease_end = None
        return Turn(
            heartbeats=heartbeats,
            lease_end=lease_end,
            view=self.view,
            wanted=wanted,
            wake=self._wake(),
            calm=self._calm(),
            conditions=self.conditions(),
            events=events,
            done=done,
        )

    def _decide(self) -> tuple[bool, float | None]:
        self._forget_sent()
        self._notice_lately()
        self.rule4_deaf()
        self.rule3_dead()
        why = self.rule6_dispute() or self.rule7_outdated()
        if why and not self.leaving:
            self.rule7_new_incarnation(why)
        self.rule7_listening_ends()
        self._decide_clusterips()
        self.rule5_lease()
        self.rule12_hold_ends()
        done, end = self.rule12_stop()
        self._update_view()
        return done, end

    def _forget_sent(self) -> None:
        horizon = self.now - 2 * self.times.lease - self.times.tick
        for sequence in [one for one, at in self.sent.items() if at < horizon]:
            del self.sent[sequence]

    def _notice_lately(self) -> None:
        recent = self.now - self.times.dead
        for peer in self.peers.values():
            if peer.lately != (peer.heard >= recent):
                peer.lately = not peer.lately
                self.touch_all()

    def _decide_clusterips(self) -> None:
        due, self.dirty = self.dirty | self.waiting, set()
        for clusterip in due:
            standing = self.standings.get(clusterip)
            if standing is None:
                continue
            self._note_lacking(standing)
            if not standing.uid:
                if not standing.reports:
                    del self.standings[clusterip]
                continue
            self.rule8_epoch(standing)
            self.rule10_act(standing)
            _put(self.acting, clusterip, standing.acting is not None)
            use = self.rule9_use(standing)
            if use != standing.use:
                standing.use = use
                self.outlook = None
            _put(self.waiting, clusterip, self._time_decides(standing))
            self.report(standing)

    def _time_decides(self, standing: Standing) -> bool:
        """Whether time alone may change something: rules 9 and 10 wait for so long, rule 2 for 60 s, and moves."""
        if (standing.vacant is not None and not standing.sharing) or (
            standing.in_use and not (standing.use.gain and standing.use.lose)
        ):
            return True
        newest = standing.newest
        if newest is None or newest.number <= standing.in_use:
            return False
        return not self.ever_heard or not self.handing_quiet(standing)

    def rule9_use(self, standing: Standing) -> Use:
        """How the ClusterIP is to be followed by rules 8 to 10."""
        if standing.sharing and standing.newest:
            nodes = self.acting_nodes(standing)
            gain = nodes is not None and self.rule9_gain(standing)
            acting = tuple(nodes or (self.name,))
            return Use(standing.in_use, standing.newest.number, gain, acting, unheard=not self.ever_heard)
        if not standing.in_use:
            return Use()
        lose = self.handing_lose(standing)
        if lose and self.handing_leaves(standing):
            standing.giving_up = standing.in_use
        return Use(
            standing.in_use,
            standing.in_use,
            self.rule9_gain(standing),
            lose=lose,
            ready=self.handing_ready(standing),
            settled=self.handing_settled(standing),
            unfinished=self.handing_unfinished(standing),
            unbegun=standing.unbegun,
        )

    def _update_view(self) -> None:
        living = {peer.key for peer in self.living()}
        if self.listening is None:
            living.add((self.node, self.incarnation))
        held = {peer.node for peer in self.living() if self.rule9_held(peer)}
        if self.held or self.returning is not None:
            held.add(self.node)
        now = (self.incarnation, living, held)
        if now != self.outlook:
            self.outlook = now
            self.view = View(
                version=self.view.version + 1,
                incarnation=self.incarnation,
                living=frozenset(living),
                held=frozenset(held),
                use={standing.uid: standing.use for standing in self.standings.values() if standing.uid},
            )

    def _note_lacking(self, standing: Standing) -> None:
        number = self.rule8_wanted(standing) if standing.clusterip not in self.forgotten else 0
        if not number:
            self._lacking.pop(standing.clusterip, None)
        elif self._lacking.get(standing.clusterip, (0, NEVER))[0] != number:
            self._lacking[standing.clusterip] = (number, NEVER)

    def _wanted(self) -> tuple[tuple[bytes, int], ...]:
        """Rule 8: what peers show and this node lacks; the same again only after two TICKs."""
        wanted: list[tuple[bytes, int]] = []
        for clusterip, (number, asked) in self._lacking.items():
            if len(wanted) < MAX_WANTED and self.now - asked >= 2 * self.times.tick:
                self._lacking[clusterip] = (number, self.now)
                wanted.append((clusterip, number))
        return tuple(wanted)

    def _next_deadline(self) -> float:
        """When a rule decides otherwise though nothing arrives; the rest can wait for the next TICK."""
        ends = [peer.evidence + self.silence_allowed(peer) for peer in self.living()]
        ends.append(self.last_frame + self.times.quiet)
        if self.listening is not None:
            ends.append(self.listening + self.times.dead)
        return min((end for end in ends if end > self.now), default=NEVER) + _EPSILON

    def _wake(self) -> float:
        wake = self.last_sent + self.times.tick
        if self._deadline > self.now:
            wake = min(wake, self._deadline)
        if self.stirred or self.changed:
            wake = min(wake, max(self.now, self.last_sent) + CHANGE_GAP)
        elif self.answer or self.leaving:
            wake = min(wake, self.last_sent + ANSWER_GAP)
        return max(wake, self.now + _EPSILON)

    def _calm(self) -> bool:
        """Whether frames that are not urgent can wait for the next TICK: it has a lease that runs for longer, lacks
        nothing, and none of them may be of one that it counts dead."""
        return (
            self.lease_end is not None
            and self.lease_end - self.now > 2 * self.times.tick
            and self.steady
            and self.listening is None
            and not (self.stopping or self.held or self.returning is not None or self._lacking)
            and not any(peer.dead for peer in self.peers.values())
        )

    def conditions(self) -> frozenset[Condition]:
        """What is worth telling a person."""
        expected = any(
            not peer.shown and self.now - peer.evidence >= self.times.unheard for peer in self.peers.values()
        )
        served = self.listening is None and not self.deaf and not self.stopping
        states = (
            (self.listening is not None, Condition.LISTENING),
            (self.deaf, Condition.DEAF),
            (not self.ever_heard and expected, Condition.NO_PEERS_HEARD),
            (bool(self.acting), Condition.ACTING),
            (self.held, Condition.HELD),
            (self.leaving, Condition.LEAVING),
            (served and not self.valid, Condition.LEASE_LAPSED),
        )
        return frozenset(condition for state, condition in states if state)

    def memory(self) -> Memory:
        """What a successor process resumes from."""
        return Memory(
            incarnation=self.incarnation,
            peers=tuple(peer.key for peer in self.peers.values() if peer.shown),
            verdicts=tuple(peer.key for peer in self.peers.values() if peer.dead),
            holding=tuple((p.node, p.heard + p.hold) for p in self.living() if self.rule9_held(p) or p.hold),
            kernel=tuple(
                (standing.uid, standing.in_use, standing.kernel, standing.sharing)
                for standing in self.standings.values()
                if standing.uid and (standing.in_use or standing.kernel != NOTHING_KEPT)
            ),
            held=self.held or self.returning is not None,
        )


def _put(members: set[bytes], one: bytes, belongs: bool) -> None:
    if belongs:
        members.add(one)
    else:
        members.discard(one)
