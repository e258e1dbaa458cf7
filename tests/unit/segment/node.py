"""A simulated node: its clock, its kernel, its tick process and its programming process."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import Flag, Heartbeat, node_id
from lbless_nodeagent.dataplane.handover import (
    Elapsed,
    Order,
    Share,
    Takers,
    expected,
    given_up,
    order_of,
    step,
    takers,
)
from lbless_nodeagent.dataplane.membership import Epoch, Intent, Kept, Membership, Memory, Use, View
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.opening import GUARD_SECONDS, token

if TYPE_CHECKING:
    from unit.segment.world import World


class Node:
    """`boot`, `crash`, `pause` and so on are what can happen to it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.node = world, name, node_id(name)
        self.incarnation = 1000
        self.offset = world.random.uniform(10, 1000)
        self.rate = 1 + world.random.uniform(-200e-6, 200e-6)
        self.lost_time = 0.0
        self.can_send = self.can_receive = self.plugged = self.carrier = True
        self.on = self.frozen = False
        self.machine: Membership | None = None
        self.memory: Memory | None = None
        self.paused = False
        self.pause_queue: list[tuple[Heartbeat | None, float]] = []
        self.socket: list[tuple[Heartbeat | None, float]] = []
        self.late = 0.002
        """How late the tick process wakes up at most, seconds."""
        self.programming_delay = 0.005
        self.programming_stuck = False
        self.address = IPv4Address("192.0.2.128") + int(name.removeprefix("n"))
        self.kernel: dict[str, Share] = {}
        self.flows_last = 1.0
        """How long the flows of a bucket go on after it was given up, seconds."""
        self.stepped: dict[str, int] = {}
        """By which epoch each ClusterIP was followed last."""
        self.followed: dict[str, tuple[Epoch | None, Takers]] = {}
        """The epoch by which it was followed last, and who took what when that came into use."""
        self.opened: dict[bytes, float] = {}
        """The tokens that its kernel has taken, and since when what they open is open."""
        self.closed: set[bytes] = set()
        """Those that its kernel has let out."""
        self.given_up: dict[tuple[str, int], float] = {}
        self.ending: dict[tuple[str, int], float] = {}
        self.lease_end: float | None = None
        """By its own clock."""
        self.documents: dict[str, dict[int, Epoch]] = {}
        """The state directory: it survives."""
        self.view = View()
        self.applying = False
        self.life = 0
        """Counts processes: an event of a former one is none of the present one."""
        self.woken: float | None = None
        self.drained = self.sleeps_until = 0.0
        self.calm = False
        """Whether only urgent frames wake it."""

    # The clock

    def clock(self) -> float:
        """Its own time in seconds."""
        return self.offset + (self.world.now - self.lost_time) * self.rate

    def real(self, at: float) -> float:
        """The real time of one of its own, as long as it does not freeze."""
        return (at - self.offset) / self.rate + self.lost_time

    # What can happen

    def boot(self) -> None:
        """Power on: the kernel has nothing; the state directory is still there."""
        if self.on:
            return
        self.on, self.frozen, self.paused = True, False, False
        self.kernel, self.lease_end, self.socket = {}, None, []
        self.opened, self.closed = {}, set()
        self.begin(None)

    def begin(self, resumed: Memory | None) -> None:
        """Start the processes; `resumed` counts if the lease still runs."""
        self.life += 1
        now = self.clock()
        runs = resumed is not None and self.lease_end is not None and self.lease_end > now
        if not runs:
            self.incarnation += 1
        self.machine = self.world.machine(
            self.name,
            self.incarnation,
            self.world.times,
            now,
            resumed=resumed if runs else None,
            lease_end=self.lease_end if runs else None,
            next_incarnation=lambda last: last + 1,
        )
        self.incarnation = self.machine.incarnation
        self.view, self.applying, self.paused, self.socket = View(), False, False, []
        self.followed = {}
        self.calm = False
        self.programming_stuck = False
        self.note(f"starts as incarnation {self.incarnation}{' again' if runs else ''}")
        for epochs in self.documents.values():
            for epoch in list(epochs.values()):
                self.machine.learn(epoch, now)
        self.wake_at(now)

    def crash(self) -> None:
        """Power off."""
        self.note("loses power")
        self.on, self.machine = False, None
        self.life += 1
        self.kernel, self.lease_end = {}, None
        self.changed()

    def kill(self) -> Memory | None:
        """kill -9 of both processes; the kernel goes on. Returns what a successor may resume."""
        self.note("its process is killed")
        self.machine = None
        self.life += 1
        return self.memory

    def pause(self, seconds: float) -> None:
        """SIGSTOP of the tick process, and SIGCONT."""
        self.note(f"its tick process pauses for {seconds:.2f} s")
        self.paused = True
        life = self.life
        self.world.after(seconds, lambda: self.life == life and self.resume())

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        self.note("its tick process goes on")
        self.wake_at(self.clock())

    def freeze(self, seconds: float) -> None:
        """A virtual machine is paused: its clock and its leases stand still."""
        self.note(f"is frozen for {seconds:.2f} s")
        self.frozen = True
        self.changed()
        self.world.after(seconds, lambda: self.thaw(seconds))

    def thaw(self, seconds: float) -> None:
        """The virtual machine goes on, with the rest of its lease."""
        self.lost_time += seconds
        self.frozen = False
        self.note("goes on")
        self.changed()
        rings = any(heartbeat and Flag.URGENT in heartbeat.flags for heartbeat, _ in self.socket)
        self.wake_at(self.sleeps_until if self.calm and not rings else self.clock())

    def cable(self, plugged: bool, *, seen: bool = True) -> None:
        """Its port goes down or up; `seen`: it has a carrier that tells."""
        self.can_send = self.can_receive = plugged
        if seen:
            self.plugged = plugged
            self.world.after(self.world.random.uniform(0.001, 0.02), self._linked)
        self.note("its cable is plugged in" if plugged else "its cable is pulled")
        self.changed()

    def _linked(self) -> None:
        """What is read after a notification is how it is then, whichever notification that was."""
        self.carrier = self.plugged
        if self.on:
            self.wake_at(self.clock())

    def desire(self, epoch: Epoch) -> None:
        """An epoch arrives, from the API or a peer: it is stored, and told to the tick process."""
        if not self.on or self.frozen:
            return
        known = self.documents.setdefault(epoch.uid, {})
        if epoch.number not in known:
            known[epoch.number] = epoch
            use = self.view.use.get(epoch.uid)
            for number in sorted(known)[:-8]:
                if use is None or number != use.document:
                    del known[number]
            life = self.life
            self.world.after(0.0005, lambda: self._learn(epoch, life))

    def _learn(self, epoch: Epoch, life: int) -> None:
        if self.machine and self.life == life:
            self.machine.learn(epoch, self.clock())
            self.wake_at(self.clock())

    def document(self, clusterip: bytes, number: int) -> Epoch | None:
        """An epoch for a peer that asks."""
        if self.machine is None or self.paused or self.frozen:
            return None
        for epochs in self.documents.values():
            for epoch in epochs.values():
                if epoch.clusterip == clusterip and epoch.number == number:
                    return epoch
        return None

    def holds(self) -> bool:
        """Whether its kernel serves without a process."""
        return (
            self.on and self.machine is None and self.lease_end is not None and self.lease_end > self.clock()
        )

    def stop(self, intent: Intent) -> None:
        """SIGTERM."""
        if self.machine:
            self.note(f"is to stop: {intent}")
            self.machine.stop(intent, self.clock())
            self.wake_at(self.clock())

    # The tick process

    def arrive(self, heartbeat: Heartbeat | None) -> None:
        """A frame arrives: a heartbeat, or a client's. A frozen machine's buffers keep the last few."""
        if not self.on or not self.can_receive:
            return
        self.socket.append((heartbeat, self.clock()))
        del self.socket[:-2000]
        if self.frozen:
            del self.socket[:-20]
        elif heartbeat is not None and (not self.calm or Flag.URGENT in heartbeat.flags):
            rest = self.world.times.tick / (20 if self.calm else 5)
            self.wake_at(max(self.clock(), self.drained + rest))

    def wake_at(self, at: float) -> None:
        """Have the tick process run at a time of its own clock, or a little later."""
        real = max(self.world.now, self.real(at)) + self.world.random.uniform(0, self.late)
        if self.woken is not None and self.woken <= real:
            return
        self.woken = real
        self.world.after(real - self.world.now, lambda: self._run(real))

    def _run(self, due: float) -> None:
        if self.woken != due:
            return
        self.woken = None
        if self.machine is None or self.paused or self.frozen:
            return
        machine = self.machine
        machine.linked(self.carrier, self.clock())
        for heartbeat, arrived in self.socket:
            if heartbeat is None:
                machine.heard_traffic(arrived)
            else:
                machine.heard(heartbeat, arrived)
        self.socket.clear()
        self.drained = self.clock()
        turn = machine.tick(self.clock())
        self.calm = turn.calm
        for event in turn.events:
            self.note(event)
        if turn.view.version != self.view.version:
            self.incarnation = turn.view.incarnation
            self._show(turn.view)
        self._lease(turn.lease_end)
        for heartbeat in turn.heartbeats:
            self.world.broadcast(self, heartbeat)
        for clusterip, number in turn.wanted:
            self.world.ask(self, clusterip, number)
        self.memory = machine.memory()
        if turn.done:
            self.note("its process has ended")
            self.machine = None
            self.life += 1
        else:
            self.sleeps_until = turn.wake
            self.wake_at(turn.wake)

    def _lease(self, end: float | None) -> None:
        if end != self.lease_end:
            self.lease_end = end
            self.changed()

    # The programming process

    def _show(self, view: View) -> None:
        self.view = view
        if not self.applying:
            self.applying = True
            self._apply_soon(self.life)

    def _apply_soon(self, life: int) -> None:
        delay = self.world.random.uniform(0.1, 1) * self.programming_delay
        self.world.after(delay, lambda: self._apply(life))

    def _apply(self, life: int) -> None:
        if self.life != life or not self.on:
            return
        if self.programming_stuck or self.frozen:
            self.world.after(0.01, lambda: self._apply(life))
            return
        self.applying = False
        view = self.view
        confirm: list[tuple[str, Kept]] = []
        again = False
        for uid in self.world.uids:
            use = view.use.get(uid)
            present = self.kernel.get(uid, Share())
            epoch = self.documents.get(uid, {}).get(use.document) if use else None
            anew = use is not None and self.stepped.get(uid) != use.epoch
            order = order_of(epoch, view, self.name, anew=anew) if epoch else Order()
            self.stepped[uid] = use.epoch if use else 0
            wanted = step(present, order, self._elapsed(uid, present))
            if not self.world.redirect:
                wanted = self._opening(uid, present, wanted, use or Use())
            if wanted != present:
                self.kernel[uid] = wanted
                self._note_abandoned(uid, present, wanted)
            moving = wanted.moving
            if use:
                may_take = wanted.taking | moving.uncertain
                lost = order.lose and may_take.issubset(order.mine)
                gained = order.gain and order.mine.issubset(wanted.taking)
                ready = (order.mine & order.arriving).issubset(wanted.taking | moving.standby)
                drains = bool(moving.drain | moving.ending | (moving.standby - order.mine))
                epoch_lost = use.epoch if lost else None
                confirm.append(
                    (
                        uid,
                        Kept(
                            epoch_lost,
                            bool(may_take),
                            use.epoch * ready,
                            gained,
                            bool(moving.redirect),
                            drains,
                        ),
                    )
                )
            again |= bool(moving.drain or moving.ending)
        self.changed()
        if sends := self._leaving():
            self.applying = True
            delay = self.world.random.uniform(0, 0.5) * self.programming_delay
            self.world.after(delay, lambda: self._open(life, sends))
        elif again and not self.applying:
            self.applying = True
            self.world.after(0.02, lambda: self._apply(life))
        delay = self.world.random.uniform(0.0001, 0.001)
        self.world.after(delay, lambda: self._confirmed(life, view.version, confirm))

    def _opening(self, uid: str, present: Share, wanted: Share, use: Use) -> Share:
        """As `shares` does: the step with the tokens for what it gives up, and those for what it awaits."""
        number = use.epoch if use.acting is None else 0
        by: Epoch | None = self.documents.get(uid, {}).get(number)
        had: Takers = {}
        last, before = self.followed.get(uid, (None, had))
        if last is not None:
            had = before
            if by is None or by.number != last.number:
                had = takers(last, before, present.taking, self.node, unbegun=use.unbegun)
        self.followed[uid] = by, had
        if by is None:
            return wanted
        moving = [((self.node, to), some) for to, some in given_up(present, wanted, by, self.node).items()]
        moving += [((at, self.node), some) for at, some in expected(wanted, by, had, self.node).items()]
        openings = sorted((token(b"", uid, number, way, buckets), buckets) for way, buckets in moving)
        return replace(wanted, moving=replace(wanted.moving, openings=tuple(openings)))

    def _leaving(self) -> list[bytes]:
        """The tokens of what its kernel gives up as they leave."""
        if not self.view.version:
            return []
        movings = [share.moving for share in self.kernel.values()]
        return [made for one in movings for made, buckets in one.openings if buckets.issubset(one.drain)]

    def _open(self, life: int, sends: list[bytes]) -> None:
        """The programming process sends tokens, which close what they are about as the kernel lets them out, and
        passes again."""
        if self.life != life or not self.on:
            return
        if self.programming_stuck or self.frozen:
            self.world.after(0.01, lambda: self._open(life, sends))
            return
        if self.leased():  # the rules let none out without
            self.closed.update(sends)
            self.changed()
            for made in sends:
                self.world.open(self, made)
        self._apply_soon(life)

    def take(self, made: bytes) -> None:
        """A datagram arrives that opens buckets: the kernel alone takes it."""
        known = {one for share in self.kernel.values() for one, _ in share.moving.openings}
        if self.on and self.can_receive and not self.frozen and made in known and made not in self.opened:
            wait = GUARD_SECONDS + self.world.random.uniform(0.001, 0.005)
            self.opened[made] = self.world.now + wait
            self.world.after(wait, self.changed)

    def leased(self) -> bool:
        """Whether its kernel has a lease."""
        return self.on and self.lease_end is not None and self.lease_end > self.clock()

    def _elapsed(self, uid: str, share: Share) -> Elapsed:
        """What time has decided about this node's buckets of a ClusterIP."""
        now = self.world.now
        moving = share.moving
        for buckets, since in ((moving.drain, self.given_up), (moving.ending, self.ending)):
            for bucket in range(BucketSet.LIMIT):
                if bucket in buckets:
                    since.setdefault((uid, bucket), now)
                else:
                    since.pop((uid, bucket), None)
        return Elapsed(
            drained=BucketSet(b for b in moving.drain if now - self.given_up[uid, b] >= self.flows_last),
            ended=BucketSet(b for b in moving.ending if now - self.ending[uid, b] >= 0.02),
        )

    def _note_abandoned(self, uid: str, before: Share, after: Share) -> None:
        """Flows that are dropped before they have ended."""
        kept, keeps = ((s.taking | s.moving.standby | s.moving.drain) for s in (before, after))
        ended = before.moving.drain & after.moving.ending
        done = BucketSet(b for b in ended if self.world.now - self.given_up[uid, b] >= self.flows_last)
        lost = kept - keeps - done
        if lost:
            self.world.record.abandon(self.world.now, self.name, uid, lost)

    def _confirmed(self, life: int, version: int, confirm: list[tuple[str, Kept]]) -> None:
        if self.life != life or self.machine is None:
            return
        for uid, kept in confirm:
            self.machine.applied(uid, kept)
        self.machine.followed_view(version)
        self.wake_at(self.clock())
        if self.view.version != version and not self.applying:
            self.applying = True
            self._apply_soon(life)

    # The record

    def changed(self) -> None:
        """What its kernel answers may have changed."""
        serves = self.on and not self.frozen
        lease = self.real(self.lease_end) if serves and self.lease_end is not None else float("-inf")
        self.world.record.kernel(
            self.world.now,
            self.name,
            {uid: self._effective(share) for uid, share in self.kernel.items()} if serves else {},
            lease,
            reached=self.can_receive,
            side=self.world.lan.side.get(self.name, 0),
        )

    def _effective(self, share: Share) -> Share:
        """What its kernel does where tokens have opened some of it, or not yet closed it."""
        if self.world.redirect:
            return share
        moving, now = share.moving, self.world.now
        opened = {one for one, at in self.opened.items() if at <= now}
        by_token = BucketSet(b for one, buckets in moving.openings if one in opened for b in buckets)
        by_token &= moving.standby
        closing = [buckets for one, buckets in moving.openings if one not in self.closed]
        by_token |= BucketSet(b for buckets in closing for b in buckets) & moving.drain
        standby, drain = moving.standby - by_token, moving.drain - by_token
        return replace(share, moving=Moving(standby, moving.fresh | by_token, drain, moving.ending))

    def note(self, text: str) -> None:
        """A line of the history."""
        self.world.note(self.name, text)
