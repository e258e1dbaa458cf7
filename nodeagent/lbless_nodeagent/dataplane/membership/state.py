"""What a membership knows: of itself, of each peer, of each ClusterIP. The rules are in the other modules.

Node ids are those of frames (`lbless_api.heartbeat.node_id`), times are seconds of one clock of this node
that goes on while it sleeps (CLOCK_BOOTTIME).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lbless_api.heartbeat import EpochReport, Flag, clusterip_id, node_id
from lbless_nodeagent.dataplane.membership.epoch import Epoch
from lbless_nodeagent.dataplane.membership.times import Times
from lbless_nodeagent.dataplane.membership.view import Intent, Kept, Memory, Use, View

NEVER = float("-inf")
NOTHING_SAID = Flag(0)
NOT_FOLLOWED = Use()
NOTHING_KEPT = Kept(0, owns=False, gained=False)
Rank = tuple[bool, int, bytes, bytes]
"""(lease not valid, -group size, smallest member, node): the smaller one is the higher rank."""


@dataclass(slots=True)
class Peer:
    """The newest known incarnation of another node; all older ones are dead."""

    node: bytes
    incarnation: int
    evidence: float
    """When this node learnt of `sequence`, or of the peer's name if nothing has shown the peer yet."""
    shown: bool = False
    sequence: int = 0
    heard: float = NEVER
    """When its newest own frame arrived."""
    heard_sequence: int = -1
    flags: Flag = NOTHING_SAID
    lease: float = 0.0
    hold: float = 0.0
    rank: Rank | None = None
    acknowledged: int = -1
    """The newest sequence of this node's incarnation that it reported."""
    heard_me: int = -1
    """The newest that it heard itself, so that it knows what that frame said."""
    accused: set[tuple[bytes, int]] = field(default_factory=set)
    deaf_frames: int = 0
    dead: bool = False
    counted_dead: float = NEVER
    untold: float | None = None
    """Since when it is counted dead and shows in no frame that it knows."""
    lately: bool = False
    """Heard within DEAD, as of the last turn."""
    dispute: bool = False
    """It has sent a frame since the last turn that counts this node dead."""
    digest: int = 0
    complete: bool = False

    @property
    def key(self) -> tuple[bytes, int]:
        """(node id, incarnation)."""
        return (self.node, self.incarnation)

    def says(self, flags: Flag) -> bool:
        """Whether its newest frame says any of these."""
        return int.__and__(self.flags, flags) != 0  # a tenth of what `&` of enumerations costs


@dataclass(slots=True)
class Standing:
    """Where this node is with one ClusterIP."""

    uid: str
    clusterip: bytes
    epochs: dict[int, Epoch] = field(default_factory=dict)
    """The one in use and all newer ones, by number."""
    in_use: int = 0
    in_use_since: float = NEVER
    prior: frozenset[tuple[bytes, int]] = frozenset()
    """Whom the epochs before it named: they may still have buckets by one of those."""
    kernel: Kept = NOTHING_KEPT
    """What the kernel does; its `epoch` is never None."""
    giving_up: int = 0
    """The newest epoch in use by which this node was free to give up what moves from it."""
    unbegun: bool = False
    """Whether nothing had been given up yet by the epoch before the one in use, as far as this node knew."""
    vacant: float | None = None
    """Since when this node could act if it heard of no one who does (rule 10)."""
    acting: float | None = None
    """Since when this node says that it acts."""
    sharing: bool = False
    use: Use = NOT_FOLLOWED
    reports: dict[bytes, EpochReport] = field(default_factory=dict)
    """What each peer says about it, by node id."""
    ready: dict[bytes, int] = field(default_factory=dict)
    """The newest epoch for which each peer has said that it stands by, by node id: its reports say it of the newest one
    that it holds, and it stands by until it uses another."""
    prior_unknown: bool = False
    """Whether the epoch in use is a former process': whom those before it named is forgotten."""
    resumed: tuple[int, Kept, bool] | None = None
    """Which epoch a former process of this incarnation had in use, what its kernel did, and whether it acted, until the
    epoch is learnt."""

    @property
    def kernel_epoch(self) -> int:
        """The epoch by which the kernel has lost all that it must."""
        return self.kernel.epoch or 0

    @property
    def present(self) -> Epoch | None:
        """The epoch in use."""
        return self.epochs.get(self.in_use)

    @property
    def newest(self) -> Epoch | None:
        """The newest epoch held."""
        return self.epochs[max(self.epochs)] if self.epochs else None


class State:
    """The variables of a membership."""

    def __init__(
        self,
        node_name: str,
        incarnation: int,
        times: Times,
        now: float,
        *,
        resumed: Memory | None = None,
        lease_end: float | None = None,
        fenced: bool = True,
        next_incarnation: Callable[[int], int] = lambda last: last + 1,
    ) -> None:
        """`resumed` counts only with a lease that still runs, to `lease_end`; without, this is the incarnation after
        it. `next_incarnation` returns one that is larger than the given and was never used; `fenced`: whether
        the kernel has a lease."""
        self.name, self.node, self.times = node_name, node_id(node_name), times
        self.incarnation, self.fenced, self.next_incarnation = incarnation, fenced, next_incarnation
        self.now = now
        self._begin_alone()
        self._begin_unheard()
        if resumed and lease_end is not None and lease_end > now:
            self._resume(resumed, lease_end)
        elif resumed:
            # It ran when this process was begun. Rule 7: what has had verdicts must not begin again.
            self.incarnation = next_incarnation(max(incarnation, resumed.incarnation))
        self._setup()

    def _setup(self) -> None:
        """Where a layer above sets the variables that are its own."""

    def _begin_alone(self) -> None:
        now = self.now
        self.lease_end: float | None = None
        self.listening: float | None = now
        self.deaf = self.leaving = self.held = self.unlinked = False
        self.returning: int | None = None
        """The first sequence that said that the hold is over, until all have acknowledged it (rule 12)."""
        self.hold_end = NEVER
        self.stopping: Intent | None = None
        self.stop_began = NEVER
        self.stop_sequence = self.left_frames = 0
        self.steady_since = now
        self.deaf_ended = NEVER
        self.last_frame = self.unbroken_since = now
        self.silence = 2 * self.times.tick
        """A longer time without any frame is a gap in what was heard (rules 3 and 5)."""
        self.last_turn = now
        self.ever_heard = False
        self.outdated = -1
        """An incarnation of this node that peers know and that is newer than its own."""

    def _begin_unheard(self) -> None:
        self.peers: dict[bytes, Peer] = {}
        self.standings: dict[bytes, Standing] = {}
        self.forgotten: dict[bytes, None] = {}
        self.names: dict[bytes, str] = {self.node: self.name}
        self.acting: set[bytes] = set()
        """The ClusterIPs for which this node says that it acts."""
        self.waiting: set[bytes] = set()
        """Those about which time alone may decide (rule 10)."""
        self.bearers: frozenset[tuple[bytes, int]] | None = None

        self.sequence = 0
        self.sent: dict[int, float] = {}
        self.last_sent = NEVER
        self.view = View()
        self.outlook: object = None
        """What of the view was compared last; None: it has changed."""
        self.followed_from = 1
        """The version of the view in which this incarnation owns nothing."""
        self.followed = 0
        self.dirty: set[bytes] = set()
        """ClusterIPs of which something has changed that decides."""
        self.stirred = True
        """Something has happened that may not wait for the next tick."""
        self.changed = True
        """Something has changed that the peers are to know at once."""
        self.answer = False
        self.events: list[str] = []
        self.dropped: dict[str, int] = {}

    def _resume(self, memory: Memory, lease_end: float) -> None:
        """Rule 12: go on as the same incarnation."""
        self.incarnation, self.lease_end, self.listening = memory.incarnation, lease_end, None
        self.held, self.followed_from = memory.held, 0
        if memory.held:
            self.hold_end = lease_end
        for node, incarnation in memory.peers:
            self.peers[node] = Peer(node, incarnation, self.now, shown=True, heard=self.now, heard_sequence=0)
        for node, until in memory.holding:
            peer = self.peers.get(node)
            if peer is not None:
                peer.flags, peer.hold = Flag.HELD, max(0.0, until - self.now)
        self.ever_heard = bool(memory.peers)
        for uid, number, kept, acts in memory.kernel:
            # Its epoch counts once the document is known again: until then nothing says what it means.
            kernel = kept._replace(epoch=0)
            standing = Standing(uid, clusterip_id(uid), kernel=kernel, resumed=(number, kept, acts))
            self.standings[standing.clusterip] = standing
        for key in memory.verdicts:
            peer = self.peers.get(key[0])
            if peer is not None and peer.incarnation == key[1]:
                # Not as if just heard: one that is dead would have to acknowledge, and the lease lapses meanwhile.
                peer.dead, peer.heard = True, NEVER

    @property
    def valid(self) -> bool:
        """Whether the lease runs."""
        return self.lease_end is not None and self.lease_end > self.now

    @property
    def steady(self) -> bool:
        """Whether it has heard without a gap for 3 TICKs, and is not deaf."""
        since = max(self.steady_since, self.unbroken_since)
        return not self.deaf and self.now - since >= self.times.steady

    def living(self) -> list[Peer]:
        """The peers that are not counted dead."""
        return [peer for peer in self.peers.values() if not peer.dead]

    def lives(self, node: bytes, incarnation: int) -> bool:
        """Whether it is this node, or a peer, and is not counted dead. Incarnation 0 is that of a node without
        heartbeats: whoever it is, it serves what it was given, and nobody can tell whether it lives."""
        if incarnation == 0:
            return True
        if node == self.node:
            return incarnation == self.incarnation
        peer = self.peers.get(node)
        return peer is not None and peer.incarnation == incarnation and not peer.dead

    def someone_lives(self, epoch: Epoch) -> bool:
        """Whether any incarnation that the epoch names lives."""
        return any(self.lives(one.node, one.incarnation) for one in epoch.assignments)

    def call(self, node: bytes) -> str:
        """A node's name for a sentence: its id where no epoch has told the name."""
        return self.names.get(node) or node.hex()

    def drop(self, reason: str) -> None:
        """Count a frame that is not taken."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def touch_all(self) -> None:
        """What decides about every ClusterIP has changed: who lives, for one."""
        self.dirty.update(self.standings)
        self.stirred = True
