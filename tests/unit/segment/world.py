"""A simulated segment: an event queue, a LAN with every fault that a scenario asks for, and its clients.

All randomness is from one seed. Time is real seconds; each node has a clock of its own.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import Heartbeat
from lbless_nodeagent.dataplane.membership import Epoch, Membership, Moved, Named, Times
from unit.segment.node import Node
from unit.segment.record import Record

BUCKETS = 16


@dataclass
class Lan:
    """What happens to frames. A pair is (sender, receiver) by name; delays are in seconds."""

    delay: Callable[[random.Random], float] = lambda r: r.uniform(0.0001, 0.001)
    overtaking: bool = False
    """Whether frames of one sender may overtake each other."""
    loss: dict[str, float] = field(default_factory=dict)
    """The share of heartbeats lost at a receiver; "" is for all."""
    cut: set[tuple[str, str]] = field(default_factory=set)
    side: dict[str, int] = field(default_factory=dict)
    """Nodes and clients of different sides hear nothing of each other."""
    client_sides: set[int] = field(default_factory=lambda: {0})

    def carries(self, sender: str, receiver: str) -> bool:
        """Whether a heartbeat could arrive."""
        return self.side.get(sender, 0) == self.side.get(receiver, 0) and (sender, receiver) not in self.cut


def moved(
    former: Epoch | None, taking: Iterable[tuple[bytes, BucketSet]], named: Iterable[Named]
) -> tuple[Moved, ...]:
    """The moves to another assignment: from whom was given the buckets, or has them in effect, and from whom they were
    still moving to that one."""
    sources = list(taking)
    if former is not None:
        sources += [(m.source, m.buckets) for m in former.moves]
        sources += [(one.node, one.buckets) for one in former.assignments]
    found: dict[tuple[bytes, bytes], BucketSet] = {}
    for source, buckets in sources:
        for one in named:
            both = buckets & one.buckets
            if both and one.node != source:
                found[source, one.node] = found.get((source, one.node), BucketSet()) | both
    return tuple(Moved(source, heir, buckets) for (source, heir), buckets in sorted(found.items()))


class World:
    """Nodes on a LAN, from one seed."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        *,
        clusterips: int = 1,
        times: Times | None = None,
        machine: type[Membership] = Membership,
        traffic: bool = True,
        redirect: bool = True,
    ) -> None:
        """`redirect`: the kernels can send on what a node has given up; where not, new owners' are opened."""
        self.redirect = redirect
        self.random = random.Random(seed)
        self.seed, self.times, self.machine = seed, times or Times.of_tick(0.1), machine
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.lan = Lan()
        self.record = Record()
        self.uids = [f"uid-{number}" for number in range(clusterips)]
        self.epochs: dict[str, Epoch] = {}
        self.traffic = traffic
        self.frames = 0
        self._latest: dict[tuple[str, str], float] = {}
        self.sent: deque[Heartbeat] = deque(maxlen=400)
        self.nodes = {f"n{number}": Node(self, f"n{number}") for number in range(nodes)}
        self.record.addresses = {node.address: name for name, node in self.nodes.items()}
        self.after(0.01, self._client)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something happen later."""
        self._count += 1
        heapq.heappush(self.queue, (self.now + seconds, self._count, action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.queue and self.queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self.queue)
            action()
        self.now = end

    def note(self, who: str, text: str) -> None:
        """A line of the history."""
        self.record.note(self.now, who, text)

    def start(self, names: Iterable[str] | None = None, spread: float = 0.1) -> None:
        """Start nodes, each within `spread` seconds."""
        for name in names or self.nodes:
            self.after(self.random.uniform(0, spread), self.nodes[name].boot)

    def assignment(self, uid: str, shares: dict[str, float], number: int) -> Epoch:
        """An epoch that gives each named node about its share, of the incarnation it has now."""
        total = sum(shares.values()) or 1
        low, named, done = 0, [], 0.0
        for name, share in shares.items():
            done += share
            high = round(BUCKETS * done / total) if any(shares.values()) else 0
            node = self.nodes[name]
            named.append(Named(name, node.node, node.incarnation, BucketSet(range(low, high)), node.address))
            low = high
        ip = f"192.0.2.{1 + self.uids.index(uid)}"
        taking = [
            (node.node, share.taking | (share.moving.uncertain & share.moving.drain))
            for node in self.nodes.values()
            if node.on and (share := node.kernel.get(uid))
        ]
        moves = moved(self.epochs.get(uid), taking, named)
        return Epoch(uid, ip, number, BUCKETS, BucketSet(), tuple(named), moves)

    def assign(
        self,
        uid: str,
        shares: dict[str, float],
        *,
        to: Iterable[str] | None = None,
        spread: float = 0.0,
    ) -> Epoch:
        """The operator writes the next epoch, which reaches the nodes `to` (default: all) within `spread`."""
        former = self.epochs.get(uid)
        epoch = self.assignment(uid, shares, former.number + 1 if former else 1)
        self.epochs[uid] = epoch
        self.note("operator", f"{uid}: epoch {epoch.number}: {self.shares(epoch)}")
        for name in self.nodes if to is None else to:
            self.after(self.random.uniform(0.0, spread), lambda n=name: self.nodes[n].desire(epoch))
        return epoch

    def shares(self, epoch: Epoch) -> str:
        """An assignment as a person reads it."""
        return " ".join(f"{one.name}/{one.incarnation}={one.buckets}" for one in epoch.assignments)

    def settle(self, *, spread: float = 0.1, uneven: bool = False) -> None:
        """Start all nodes, assign equal shares, and wait until everything is served."""
        self.start(spread=spread)
        self.run(1.2 + spread)
        for uid in self.uids:
            self.assign(uid, {name: self.random.uniform(0.5, 2) if uneven else 1 for name in self.nodes})
        self.run(1.0)

    def broadcast(self, sender: Node, heartbeat: Heartbeat) -> None:
        """A heartbeat leaves a node, for every other one that the LAN lets it reach."""
        self.frames += 1
        self.sent.append(heartbeat)
        if not sender.can_send or sender.frozen:
            return
        for node in self.nodes.values():
            if node is sender or not self.lan.carries(sender.name, node.name):
                continue
            if self.random.random() < self.lan.loss.get(node.name, self.lan.loss.get("", 0.0)):
                continue
            arrival = self.now + self.lan.delay(self.random)
            if not self.lan.overtaking:
                arrival = max(arrival, self._latest.get((sender.name, node.name), 0.0))
                self._latest[sender.name, node.name] = arrival
            self.after(arrival - self.now, lambda n=node: n.arrive(heartbeat))

    def open(self, sender: Node, token: bytes) -> None:
        """A datagram that opens buckets leaves a node's kernel."""
        if not sender.can_send:
            return
        for node in self.nodes.values():
            if node is sender or not self.lan.carries(sender.name, node.name):
                continue
            if self.random.random() >= self.lan.loss.get(node.name, self.lan.loss.get("", 0.0)):
                self.after(self.lan.delay(self.random), lambda n=node: n.take(token))

    def replay(self, heartbeat: Heartbeat) -> None:
        """Somebody sends a frame again that was heard before."""
        for node in self.nodes.values():
            self.after(self.lan.delay(self.random), lambda n=node: n.arrive(heartbeat))

    def ask(self, asker: Node, clusterip: bytes, number: int) -> None:
        """An epoch request leaves a node; whoever has the epoch and hears it, answers."""
        for node in self.nodes.values():
            reached = self.lan.carries(asker.name, node.name) and self.lan.carries(node.name, asker.name)
            if node is asker or not reached or not (asker.can_send and asker.can_receive):
                continue
            if self.random.random() < self.lan.loss.get("", 0.0):
                continue
            epoch = node.document(clusterip, number)
            if epoch and node.can_send and node.can_receive:
                self.after(self.random.uniform(0.002, 0.01), lambda e=epoch: asker.desire(e))

    def _client(self) -> None:
        """Clients' packets reach every node of their side."""
        if self.traffic:
            for node in self.nodes.values():
                if self.lan.side.get(node.name, 0) in self.lan.client_sides and node.can_receive:
                    node.arrive(None)
        self.after(self.random.uniform(0.01, 0.04), self._client)
