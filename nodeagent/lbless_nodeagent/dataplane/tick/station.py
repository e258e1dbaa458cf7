"""One interface's part of the tick: its wire, its membership, its lease, and the exchange of its epochs.

Owns the order of a turn: first all that has arrived is taken in, then membership decides, then the lease ends,
frames go out, and the lease is renewed. What any of it means is the other modules'.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from lbless_api.fields import Invalid
from lbless_api.heartbeat import EpochPiece, EpochRequest, Heartbeat, Message, clusterip_id, node_id
from lbless_api.heartbeat_frame import encode
from lbless_nodeagent.dataplane.clocks import seconds_ahead
from lbless_nodeagent.dataplane.membership import Membership, Memory, Turn, Use
from lbless_nodeagent.dataplane.tick.exchange import Exchange
from lbless_nodeagent.dataplane.tick.inbox import Inbox
from lbless_nodeagent.dataplane.tick.lateness import Lateness
from lbless_nodeagent.dataplane.tick.messages import (
    Applied,
    Attach,
    Begin,
    Ended,
    Figures,
    FromTick,
    Happened,
    Known,
    Learnt,
    RulesGone,
    Seen,
    Segment,
)
from lbless_nodeagent.dataplane.tick.renewal import Lease, Renewal
from lbless_nodeagent.dataplane.tick.wire import Wire
from lbless_nodeagent.files import boottime_seconds as now

MEMORY_SECONDS = 10.0
"""After a crash, recorded frames that are newer than what was told last pass at the successor."""

Send = Callable[[FromTick], None]


class Station:
    """The node on one interface. `wake` is when `turn` is to be called at the latest, once it has `begun`: before,
    it only takes in. While it is `calm`, only the `bell` need wake it."""

    def __init__(self, begin: Begin, attach: Attach, send: Send) -> None:
        """Raises WireError."""
        self.interface, self.index = attach.interface, attach.index
        self.begun = self.ended = self.calm = False
        self.wake = now()
        self._send = send
        self._wire = Wire(attach.interface, attach.index)
        self._inbox = Inbox(self._wire, node_id(begin.node), attach.newest)
        self._lease = Lease(attach.interface)
        self._fenced = attach.fenced
        self.membership = Membership(
            begin.node,
            _incarnation(attach, self.wake),
            begin.times,
            self.wake,
            resumed=attach.resumed,
            lease_end=attach.lease_end,
            fenced=attach.fenced,
            next_incarnation=_next_incarnation,
        )
        self._exchange = Exchange(self.membership)
        self._lateness = Lateness()
        self._drained_at = self.wake
        self._renewed: float | None = None
        """Until when the lease in the kernel reaches, as far as is known; None: it does not run."""
        self._renew_anew = True
        self._rules_gone = False
        self._version = 0
        self._uses: dict[str, Use] = {}
        self._kernel_changed = True
        self._remember_at = self.wake
        self._sent = self._unsent = self._lapses = 0
        self._valid = False
        self._invalid = 0
        self._told: object = None

    def fileno(self) -> int:
        """For poll()."""
        return self._wire.fileno()

    @property
    def bell(self) -> int:
        """For poll() while it is calm: readable when something urgent may have come."""
        return self._wire.bell

    def close(self) -> None:
        """Let go of the sockets; the lease in the kernel runs out as it would."""
        self._lease.close()
        self._wire.close()

    @property
    def is_gone(self) -> bool:
        """Whether the interface was removed or renamed."""
        return self._wire.gone

    # What is told by the programming process

    def known(self, message: Known) -> None:
        """An epoch that this node holds."""
        self._exchange.hold(message.epoch.clusterip, message.epoch.number, message.pieces)
        self.membership.learn(message.epoch, now())

    def forgotten(self, uid: str) -> None:
        """A ClusterIP that is none of this interface."""
        self._exchange.forget(clusterip_id(uid))
        self._uses.pop(uid, None)
        self.membership.forget(uid)

    def applied(self, message: Applied) -> None:
        """What the kernel follows; its rules may be new, and then they know of no lease."""
        if message.version is not None:
            self.membership.followed_view(message.version)
        for uid, kept in message.clusterips:
            self.membership.applied(uid, kept)
        self._kernel_changed = self._renew_anew = True

    # What happens by itself

    def take_in(self, keys: Sequence[bytes]) -> bool:
        """Take in all that has arrived; returns whether anything of it was to be believed."""
        before, self._drained_at = self._drained_at, now()
        ahead = seconds_ahead(time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC)
        received = self._inbox.take(keys)
        if not self._inbox.trustworthy:
            self.membership.overrun(self._drained_at)
        if self._wire.vip_traffic():
            # When it came is not known, only that it was since then.
            self.membership.heard_traffic(before)
        for message, at_ns in received:
            self._take(message, at_ns / 1e9 + ahead)
        return bool(received)

    def turn(self, key: bytes) -> None:
        """Decide, and do what was decided; nothing where neither time nor what has arrived decides anything."""
        began = now()
        if began < self.wake and not (
            self.membership.stirred or self._kernel_changed or self._exchange.has_more
        ):
            return
        turn = self.membership.tick(began)
        if turn.lease_end is None or not self._fenced:
            self._end_lease()
        late_ms = (began - self.wake) * 1000
        if turn.heartbeats and self._sent:
            self._lateness.add(late_ms)
        for heartbeat in turn.heartbeats:
            self._transmit(heartbeat, key)
        if turn.lease_end is not None and self._fenced:
            self._renew(turn.lease_end, ticks=bool(turn.heartbeats))
        for frame in self._exchange.frames(turn.wanted):
            self._transmit(frame, key)
        for sentence in turn.events:
            self._send(Happened(self.interface, sentence))
        self._show(turn)
        self._tell_segment(turn)
        self.calm = turn.calm
        self.wake = min(turn.wake, began + 0.002) if self._exchange.has_more else turn.wake
        valid = turn.lease_end is not None
        if self._valid and not valid and not self.membership.stopping:
            self._lapses += 1
            self._send(
                Happened(
                    self.interface, f"has no lease any more: this turn came {max(0, late_ms):.0f} ms late."
                )
            )
        self._valid = valid
        if turn.done:
            self.ended = True
            self._send(Ended(self.interface, self._memory()))

    def figures(self) -> Figures:
        """What was counted, for people."""
        dropped = Counter(self._inbox.dropped())
        for reason, count in self.membership.dropped.items():
            dropped[reason.capitalize()] += count
        dropped["InvalidDocument"] += self._invalid
        return Figures(
            interface=self.interface,
            sent=self._sent,
            unsent=self._unsent,
            lapses=self._lapses,
            dropped=+dropped,
            late=self._lateness.cumulative(),
            late_sum_ms=self._lateness.sum_ms,
            late_worst_ms=self._lateness.worst_ms,
        )

    def _tell_segment(self, turn: Turn) -> None:
        membership = self.membership
        recent = now() - membership.times.dead
        heard = frozenset(p.key for p in membership.peers.values() if not p.dead and p.heard >= recent)
        dead = frozenset(p.key for p in membership.peers.values() if p.dead)
        told = membership.incarnation, turn.conditions, heard, dead, len(membership.names)
        if told != self._told:
            self._told = told
            self._send(Segment(self.interface, *told[:4], dict(membership.names)))

    def _take(self, message: Message, arrived: float) -> None:
        if isinstance(message, Heartbeat):
            self.membership.heard(message, arrived)
            return
        self.membership.heard_traffic(arrived)
        if isinstance(message, EpochRequest):
            self._exchange.asked(message)
        elif isinstance(message, EpochPiece):
            try:
                document = self._exchange.gathered(message)
            except Invalid as fault:
                self._invalid += 1
                if self._invalid.bit_count() == 1:
                    self._send(Happened(self.interface, str(fault)))
                return
            if document is not None:
                self._send(Learnt(self.interface, document))

    def _transmit(self, message: Message, key: bytes) -> None:
        if self._wire.send(encode(message, key)):
            self._unsent += 1
        else:
            self._sent += 1

    def _renew(self, ends_at: float, *, ticks: bool) -> None:
        if ends_at == self._renewed and not (ticks or self._renew_anew):
            return
        result = self._lease.renew(ends_at - seconds_ahead(time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC))
        gone = result is Renewal.RULES_GONE
        if gone and not self._rules_gone:
            self._send(RulesGone(self.interface))
        self._rules_gone = gone
        self._renewed = ends_at if result is Renewal.RENEWED else None
        self._renew_anew = False

    def _end_lease(self) -> None:
        if self._renewed is not None or self._renew_anew:
            self._lease.end()
            self._renewed, self._renew_anew = None, False

    def _show(self, turn: Turn) -> None:
        view = turn.view
        if view.version == self._version and not self._kernel_changed and now() < self._remember_at:
            return
        self._version, self._kernel_changed = view.version, False
        changed = {uid: use for uid, use in view.use.items() if self._uses.get(uid) != use}
        unused = tuple(uid for uid in self._uses if uid not in view.use)
        self._uses = dict(view.use)
        told = type(view)(view.version, view.incarnation, view.living, view.held, changed)
        self._remember_at = now() + MEMORY_SECONDS
        self._send(Seen(self.interface, told, unused, self._memory()))

    def _memory(self) -> Memory:
        return replace(self.membership.memory(), newest=self._inbox.newest())


def _incarnation(attach: Attach, at: float) -> int:
    """The one to begin as: another than the former process' where its lease is over by now."""
    if attach.resumed and (attach.lease_end is None or attach.lease_end <= at):
        return _next_incarnation(attach.incarnation)
    return attach.incarnation


def _next_incarnation(last: int) -> int:
    """Never used before: the programming process writes down each that it is told of, and begins above it."""
    return max(last + 1, time.time_ns() // 1_000_000)
