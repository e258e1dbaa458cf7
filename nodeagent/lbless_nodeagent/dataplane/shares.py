"""A node's share of each ClusterIP, moment by moment: by which epoch and which living nodes it owns which buckets.

Owns the way between what is desired and what is decided for the kernel: each ClusterIP is given out as it is to
be followed now, with the buckets that are this node's now as its only assignment, and when the kernel has it so,
the tick process is told. Nothing is decided here: that is membership's, and `ownership`'s.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Assignment, ClusterIP, parse_clusterip
from lbless_api.epoch_document import split
from lbless_api.fields import Invalid
from lbless_api.interfaces import Interface, choose_interface
from lbless_nodeagent.dataplane.desired import Document
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.membership import Epoch, Use, epoch_of, follow, owned
from lbless_nodeagent.dataplane.ports import Port, Ports
from lbless_nodeagent.dataplane.tick.messages import Applied, Forgotten, Known, Learnt

NOTHING = BucketSet()
KEPT_EPOCHS = 8
"""Beside the one in use; membership keeps as many."""

_LOG = logging.getLogger(__name__)

Vips = Mapping[IPv4Address, Vip]


@dataclass(frozen=True, slots=True)
class _Followed:
    """A ClusterIP as it is followed, by which document and epoch, and from what that was computed.

    `complete`: the newest epoch by which this node was to have all that is its own; what it is still to gain by a newer
    one waits for others to lose it.
    """

    cause: tuple[object, ...]
    clusterip: ClusterIP
    document: Document
    epoch: int
    complete: int


class Shares:
    """All ClusterIPs of a node that has heartbeats."""

    def __init__(self, node: str, ports: Ports) -> None:
        self._node = node
        self.ports = ports
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

    def confirm(self, installed: Vips, decided: Mapping[str, Vip], applications: int) -> None:
        """Tell the tick process what the kernel follows. `decided` are the Vips that were wanted, by UID;
        `applications` counts how often the kernel was written."""
        self._holders = {vip.ip: uid for uid, vip in decided.items()}
        written, self._applications = applications != self._applications, applications
        entries: dict[str, list[tuple[str, int, bool]]] = {name: [] for name, _ in self.ports.items()}
        behind: set[str] = set()
        for uid, followed in self._followed.items():
            interface = self._placed[uid][1]
            port = self.ports.get(interface)
            if interface is None or port is None or not port.view.version:
                continue
            has = self._has(followed.clusterip, installed)
            wanted = followed.clusterip.assigned_to(self._node)
            if has is None or not has.issubset(wanted.buckets if wanted else NOTHING):
                behind.add(interface)
            elif uid in port.use:
                said = port.view.incarnation, followed.epoch, bool(has)
                if port.confirmed.get(uid) != said:
                    port.confirmed[uid] = said
                    entries[interface].append((uid, followed.epoch, bool(has)))
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
        has = self._has(document.clusterip, installed)
        cause = (not port.view.version, port.view.living, port.view.held, use, has, document, newest)
        last = self._followed.get(uid)
        if last and _same(last.cause, cause):
            return last.clusterip
        mine, complete = self._owned(uid, use, port, has or NOTHING)
        followed = _as_followed(document.clusterip, newest.clusterip, self._node, mine)
        if last and last.clusterip == followed:
            followed = last.clusterip
        completed = use.epoch if complete else (last.complete if last else 0)
        self._followed[uid] = _Followed(cause, followed, document, use.epoch, completed)
        return followed

    def _has(self, clusterip: ClusterIP, installed: Vips) -> BucketSet | None:
        """The buckets that the kernel keeps of it; None where it keeps some of another way to hash."""
        spec = clusterip.spec
        vip = installed.get(spec.ip)
        if vip is None or not vip.owned or self._holders.get(spec.ip, uid := clusterip.identity.uid) != uid:
            return NOTHING
        return vip.owned if vip.hash == spec.hash else None

    def _owned(self, uid: str, use: Use, port: Port, present: BucketSet) -> tuple[BucketSet, bool]:
        """What of a ClusterIP this node is to have where the kernel has `present`; whether that is its whole share."""
        epoch = self._epochs.get((uid, use.document)) if port.view.version else None
        if epoch is None:
            return (NOTHING if port.view.version else present), True
        view = replace(port.view, use={uid: use})
        mine = follow(epoch, view, self._node, present)
        return mine, use.gain or mine == owned(epoch, view, self._node)

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


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return all(a is b or a == b for a, b in zip(one, other, strict=True))


def _as_followed(clusterip: ClusterIP, newest: ClusterIP, node: str, mine: BucketSet) -> ClusterIP:
    """The ClusterIP with what this node owns as its only assignment. It is named, if only without buckets,
    where this epoch or the newest one names it, so that its address and rules are there when it gains some."""
    named = clusterip.assigned_to(node) or newest.assigned_to(node)
    if not named and not mine:
        return replace(clusterip, assignments=())
    return replace(clusterip, assignments=(Assignment(node, named.incarnation if named else 0, mine),))


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
