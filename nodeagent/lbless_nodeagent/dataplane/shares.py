"""A node's share of each ClusterIP, moment by moment: by which epoch and which living nodes it owns which buckets.

Owns the way between what is desired and what is decided for the kernel: each ClusterIP is given out as it is to
be followed now, with the buckets that are this node's now as its only assignment and those that move beside it, and
when the kernel has it so, the tick process is told. Nothing is decided here: that is membership's and `handover`'s.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Assignment, ClusterIP, parse_clusterip
from lbless_api.epoch_document import split
from lbless_api.fields import Invalid
from lbless_api.heartbeat import node_id
from lbless_api.interfaces import Interface, choose_interface
from lbless_nodeagent.dataplane.desired import Document
from lbless_nodeagent.dataplane.draining import Drains
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.handover import (
    Order,
    Share,
    Takers,
    expected,
    given_up,
    order_of,
    step,
    takers,
    without_moves,
)
from lbless_nodeagent.dataplane.keyfile import KeyFile
from lbless_nodeagent.dataplane.membership import Epoch, Kept, Use, View, epoch_of
from lbless_nodeagent.dataplane.moving import AT_REST, Moving
from lbless_nodeagent.dataplane.opener import Opener
from lbless_nodeagent.dataplane.opening import GUARD_SECONDS, token
from lbless_nodeagent.dataplane.ports import Port, Ports
from lbless_nodeagent.dataplane.tick.messages import Applied, Forgotten, Known, Learnt

NOTHING = Share()
MOST_OPENED = 2_000
"""Buckets of one address that tokens may open, here or elsewhere: each is two more elements, and with more of them a
change of the address would not be a single transaction."""
KEPT_EPOCHS = 8
"""Beside the one in use; membership keeps as many."""

_LOG = logging.getLogger(__name__)

Vips = Mapping[IPv4Address, Vip]


@dataclass(frozen=True, slots=True)
class _Followed:
    """A ClusterIP as it is followed, by which document, epoch and order, and from what that was computed.

    `share` is what the kernel is to do. `complete`: the newest epoch by which this node was to have all that is its own
    and nothing else; what it is still to gain or lose by a newer one waits for others. `by` is the
    epoch of the document, None where none is in use; `had` says who took what when that came into use.
    """

    cause: tuple[object, ...]
    clusterip: ClusterIP
    document: Document
    epoch: int
    order: Order
    share: Share
    complete: int
    by: Epoch | None
    had: Takers


class Shares:
    """All ClusterIPs of a node that has heartbeats."""

    def __init__(self, node: str, ports: Ports, drains: Drains, keys: KeyFile | None = None) -> None:
        """`keys`: without them what moves is never opened at once (`opening`)."""
        self._node, self._id = node, node_id(node)
        self._keys = keys
        self._opener = Opener()
        self.ports = ports
        self.drains = drains
        self.can_move = True
        """Whether the kernel can do what `Moving` says; where it cannot, buckets are lost and gained at once."""
        self.can_redirect = True
        """Whether it can send on what it has given up: then nothing waits for the new owners."""
        self._documents: dict[str, dict[int, Document]] = {}
        self._epochs: dict[tuple[str, int], Epoch] = {}
        self._placed: dict[str, tuple[ClusterIP, str | None]] = {}
        """By UID: the newest, and its interface."""
        self._interfaces: Sequence[Interface] = ()
        self._learnt: dict[str, Document] = {}
        self._followed: dict[str, _Followed] = {}
        self._result: Mapping[str, ClusterIP] = {}
        self._holders: dict[IPv4Address, str] = {}
        """Whose each address was in the last decision: of two ClusterIPs with one address only one has it."""
        self._applications = 0

    def documents(self, desired: Mapping[str, Document], *, complete: bool) -> Mapping[str, Document]:
        """The newest document of each ClusterIP: sync's, or one that a peer has sent.

        Of a ClusterIP that sync has no file of, a peer's counts only until sync has listed all: later it is
        one that was deleted.
        """
        for message in self.ports.learnt:
            self._learn(message)
        self.ports.learnt.clear()
        for uid, document in list(self._learnt.items()):
            if desired[uid].clusterip.epoch >= document.clusterip.epoch if uid in desired else complete:
                del self._learnt[uid]
                if uid not in desired and uid not in self._placed:
                    for name, _ in self.ports.items():
                        self.ports.send(Forgotten(name, uid))  # so that it is not asked for again
        return {**desired, **self._learnt} if self._learnt else desired

    def follow(
        self,
        counted: Mapping[str, ClusterIP],
        documents: Mapping[str, Document],
        former: Mapping[str, ClusterIP],
        interfaces: Sequence[Interface],
        indexes: Mapping[str, int],
        installed: Vips,
    ) -> Mapping[str, ClusterIP]:
        """Return each of `counted` as it is to be followed now. `former` are the last good states, `indexes`
        those of the interfaces by name."""
        self._place(counted, documents, former, interfaces)
        self.ports.attach(
            interfaces, indexes, {interface for _, interface in self._placed.values() if interface}
        )
        for uid in counted:
            self._tell(uid)
        self.ports.begin()
        result = {uid: self._follow(uid, clusterip, installed) for uid, clusterip in counted.items()}
        last = self._result
        if len(result) != len(last) or any(last.get(uid) is not one for uid, one in result.items()):
            self._result = result
        return self._result

    def document(self, uid: str) -> Document | None:
        """The document by which a ClusterIP is followed; None where it has no interface."""
        followed = self._followed.get(uid)
        return followed.document if followed else None

    def epoch(self, clusterip: ClusterIP) -> int:
        """The newest epoch of a ClusterIP by which this node has lost and gained what it is to, 0 for none."""
        followed = self._followed.get(clusterip.identity.uid)
        return followed.complete if followed else clusterip.epoch

    def moving(self, uid: str) -> Moving:
        """The buckets of a ClusterIP that move, and what the kernel is to do there."""
        followed = self._followed.get(uid)
        return followed.share.moving if followed else AT_REST

    def open_elsewhere(self, installed: Vips) -> bool:
        """Send the tokens of what this node's kernel gives up as they leave; return whether there were any: what they
        are about can be written as given up from then on, whether they have left or not."""
        found = [
            (port.index, followed.clusterip.spec.ip, made)
            for uid, followed in self._followed.items()
            if followed.share.moving.openings
            if (port := self.ports.get(self._placed[uid][1])) and port.view.version
            if (has := self._has(followed.clusterip, installed))
            for made, buckets in has.moving.openings
            if buckets.issubset(has.moving.drain) and (made, buckets) in followed.share.moving.openings
        ]
        left = [self._opener.send(*one) for one in found]
        if any(left):
            time.sleep(GUARD_SECONDS)  # nor by heartbeat is it open sooner
        return bool(found)

    def confirm(self, installed: Vips, decided: Mapping[str, Vip], applications: int) -> None:
        """Tell the tick process what the kernel follows. `decided` are the Vips that were wanted, by UID;
        `applications` counts how often the kernel was written."""
        self._holders = {vip.ip: uid for uid, vip in decided.items()}
        written, self._applications = applications != self._applications, applications
        entries: dict[str, list[tuple[str, Kept]]] = {name: [] for name, _ in self.ports.items()}
        behind: set[str] = set()
        for uid, followed in self._followed.items():
            has = self._has(followed.clusterip, installed)
            self.drains.note(uid, followed.clusterip, has.moving if has else AT_REST)
            interface = self._placed[uid][1]
            port = self.ports.get(interface)
            if interface is None or port is None or not port.view.version:
                continue
            kept = _kept(followed, has) if has else None
            if kept is None or kept.epoch is None:
                behind.add(interface)
            if kept and uid in port.use and port.confirmed.get(uid) != (port.view.incarnation, kept):
                port.confirmed[uid] = port.view.incarnation, kept
                entries[interface].append((uid, kept))
        for name, port in self.ports.items():
            version = port.view.version if name not in behind and port.view.version > port.followed else None
            port.followed = version or port.followed
            if entries[name] or version or written:
                self.ports.send(Applied(name, version, tuple(entries[name])))

    def _follow(self, uid: str, clusterip: ClusterIP, installed: Vips) -> ClusterIP:
        port = self.ports.get(self._placed[uid][1])
        if port is None:
            self._followed.pop(uid, None)
            return clusterip
        held = self._documents[uid]
        newest = held[max(held)]
        use = port.use.get(uid, Use())
        # Until a view has come nothing is known: the kernel stays as the former process has left it.
        document = held.get(use.document, newest) if port.view.version else next(iter(held.values()))
        has = self._has(document.clusterip, installed) or Share()
        elapsed = self.drains.elapsed(uid)
        cause = (not port.view.version, port.view.living, port.view.held, use, has, elapsed, document, newest)
        last = self._followed.get(uid)
        if last and _same(last.cause, cause):
            return last.clusterip
        order = self._order(uid, use, port, last)
        share = step(has, order, elapsed) if port.view.version else has
        by, had = self._used(uid, use, last, has)
        if by and use.acting is None and (order.leaving or share.moving.standby):
            share = self._opening(uid, has, share, by, had)
        followed = _as_followed(document.clusterip, newest.clusterip, self._node, share)
        if last and last.clusterip == followed and last.share.moving == share.moving:
            followed = last.clusterip
        complete = share.taking == order.mine and not share.moving.uncertain
        completed = use.epoch if complete else (last.complete if last else 0)
        self._followed[uid] = _Followed(
            cause, followed, document, use.epoch, order, share, completed, by, had
        )
        return followed

    def _used(self, uid: str, use: Use, last: _Followed | None, has: Share) -> tuple[Epoch | None, Takers]:
        """The epoch by which a ClusterIP is followed, and who took what when that came into use."""
        by = self._epochs.get((uid, use.epoch)) if use.epoch else None
        if last is None or _number(by) == _number(last.by):
            return by, last.had if last else {}
        return by, takers(last.by, last.had, has.taking, self._id, unbegun=use.unbegun) if last.by else {}

    def _opening(self, uid: str, has: Share, share: Share, epoch: Epoch, had: Takers) -> Share:
        """Return this step with the tokens for what it gives up, and for what others are to open here."""
        if not (self._keys and self._keys.keys) or not self.can_move:
            return share
        ways = share.moving.redirect if self.can_redirect else ()
        sent_on = BucketSet(bucket for _, buckets in ways for bucket in buckets)
        coming, going = expected(share, epoch, had, self._id), given_up(has, share, epoch, self._id)
        moving = [((source, self._id), buckets) for source, buckets in coming.items()]
        if len(share.moving.standby) > MOST_OPENED:
            moving = []
        room = MOST_OPENED - sum(len(buckets) for _, buckets in moving)
        can_go = share.moving.drain - sent_on
        if sum(map(len, going.values())) <= room:
            moving += [((self._id, to), buckets) for to, buckets in going.items() if buckets.issubset(can_go)]
        if not moving:
            return share
        key = self._keys.keys[0]
        openings = sorted((token(key, uid, epoch.number, way, buckets), buckets) for way, buckets in moving)
        return replace(share, moving=replace(share.moving, openings=tuple(openings)))

    def _has(self, clusterip: ClusterIP, installed: Vips) -> Share | None:
        """What the kernel does of it; None where it keeps something of another way to hash."""
        spec = clusterip.spec
        vip = installed.get(spec.ip)
        if vip is None or self._holders.get(spec.ip, uid := clusterip.identity.uid) != uid:
            return NOTHING
        if not vip.owned and vip.moving == AT_REST:
            return NOTHING
        return Share(vip.owned, vip.moving) if vip.hash == spec.hash else None

    def _order(self, uid: str, use: Use, port: Port, last: _Followed | None) -> Order:
        """What is to be done with a ClusterIP by the epoch in use."""
        epoch = self._epochs.get((uid, use.document)) if port.view.version else None
        if epoch is None:
            return Order()
        anew = last is None or last.epoch != use.epoch
        view = port.view
        view = View(view.version, view.incarnation, view.living, view.held, {uid: use})
        order = order_of(epoch, view, self._node, anew=anew)
        return order if self.can_move else without_moves(order)

    def _place(
        self,
        counted: Mapping[str, ClusterIP],
        documents: Mapping[str, Document],
        former: Mapping[str, ClusterIP],
        interfaces: Sequence[Interface],
    ) -> None:
        """Note what there is, and on which interface."""
        for uid in [uid for uid in self._placed if uid not in counted]:
            self._forget(uid, self._placed.pop(uid)[1])
            self._followed.pop(uid, None)
            self.drains.forget(uid)
            for number in self._documents.pop(uid):
                del self._epochs[uid, number]
        moved = _where(interfaces) != _where(self._interfaces)
        self._interfaces = interfaces
        for uid, clusterip in counted.items():
            placed = self._placed.get(uid)
            if placed is None or placed[0] is not clusterip or moved:
                interface = _interface(clusterip, interfaces)
                if placed and placed[1] != interface:
                    self._forget(uid, placed[1])
                self._placed[uid] = clusterip, interface
                if placed is None and uid in former and former[uid].epoch != clusterip.epoch:
                    self._hold(
                        uid, former[uid], {}
                    )  # first: it is what the kernel follows, maybe a newer one
                self._hold(uid, clusterip, documents)

    def _hold(self, uid: str, clusterip: ClusterIP, documents: Mapping[str, Document]) -> None:
        document = documents.get(uid)
        if document is None or document.clusterip is not clusterip:
            document = Document(clusterip, b"")
        self._documents.setdefault(uid, {})[clusterip.epoch] = document
        self._epochs[uid, clusterip.epoch] = epoch_of(clusterip)

    def _tell(self, uid: str) -> None:
        held, interface = self._documents[uid], self._placed[uid][1]
        port = self.ports.get(interface)
        if interface is None or port is None or port.refused:
            return
        if len(held) > 1:
            self._prune(uid, held, port.use.get(uid, Use()))
        for number, document in held.items():
            if (
                number
                and (uid, number) not in port.told
                and (len(held) == 1 or _interface(document.clusterip, self._interfaces) == interface)
            ):
                port.told.add((uid, number))
                self.ports.send(Known(interface, self._epochs[uid, number], _pieces(document)))

    def _prune(self, uid: str, held: dict[int, Document], use: Use) -> None:
        """Forget epochs that are older than those in use, and of those that never came into use the oldest."""
        needed = {use.document, use.epoch} & held.keys()
        kept = {n for n in held if n >= min(needed, default=0)}
        kept = {*sorted(kept)[-KEPT_EPOCHS:], *needed}
        for number in held.keys() - kept:
            del held[number]
            del self._epochs[uid, number]

    def _forget(self, uid: str, interface: str | None) -> None:
        port = self.ports.get(interface)
        if interface and port:
            port.forget(uid)
            self.ports.send(Forgotten(interface, uid))

    def _learn(self, message: Learnt) -> None:
        """Take a peer's document if it is newer than all of its ClusterIP that are known here."""
        try:
            clusterip = parse_clusterip(message.document)
        except Invalid as fault:
            _LOG.warning("%s: a document from another node is left aside: %s", message.interface, fault)
            return
        uid = clusterip.identity.uid
        if clusterip.epoch > max(self._documents.get(uid, {0: None})):
            self._learnt[uid] = Document(clusterip, json.dumps(message.document).encode())
            key = clusterip.identity.key
            _LOG.info("%s: epoch %d of %s came from a peer.", message.interface, clusterip.epoch, key)


def _number(epoch: Epoch | None) -> int:
    return epoch.number if epoch else 0


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return all(a is b or a == b for a, b in zip(one, other, strict=True))


def _kept(followed: _Followed, has: Share) -> Kept:
    """What the kernel does by an order where it has come to `has`."""
    order, moving = followed.order, has.moving
    may_take = has.taking | moving.uncertain if moving.openings else has.taking
    return Kept(
        epoch=followed.epoch if order.lose and may_take.issubset(order.mine) else None,
        owns=bool(may_take),
        ready=followed.epoch if (order.mine & order.arriving).issubset(has.taking | moving.standby) else 0,
        gained=order.gain and order.mine.issubset(has.taking),
        sends=bool(moving.redirect),
        drains=bool(moving.drain | moving.ending | (moving.standby - order.mine)),
    )


def _as_followed(clusterip: ClusterIP, newest: ClusterIP, node: str, share: Share) -> ClusterIP:
    """The ClusterIP with what this node owns as its only assignment. It is named, if only without buckets,
    where this epoch or the newest one names it, so that its address and rules are there when it gains some; and where
    it still finishes flows."""
    named = clusterip.assigned_to(node) or newest.assigned_to(node)
    if not named and share == NOTHING:
        return replace(clusterip, assignments=())
    return replace(clusterip, assignments=(Assignment(node, named.incarnation if named else 0, share.owned),))


def _interface(clusterip: ClusterIP, interfaces: Sequence[Interface]) -> str | None:
    try:
        return choose_interface(clusterip.spec.ip, clusterip.spec.interfaces, interfaces).name
    except Invalid:
        return None


def _where(interfaces: Sequence[Interface]) -> list[tuple[object, ...]]:
    """What of the interfaces decides which one carries an address."""
    return [(interface.name, interface.addresses) for interface in interfaces]


def _pieces(document: Document) -> tuple[bytes, ...]:
    """What a peer that asks is sent; nothing where the document is not there as it came, or is too large."""
    if not document.content:
        return ()
    try:
        return split(json.loads(document.content))
    except ValueError:
        return ()
