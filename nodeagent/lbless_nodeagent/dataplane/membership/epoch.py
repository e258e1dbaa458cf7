"""One ClusterIP's assignment at one epoch: what membership and ownership need of it, and no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP
from lbless_api.heartbeat import clusterip_id, node_id


@dataclass(frozen=True, slots=True)
class Named:
    """A node that an epoch names: an incarnation of it, and its buckets, possibly none."""

    name: str
    node: bytes
    incarnation: int
    buckets: BucketSet
    address: IPv4Address | None = None
    """The node's own on the interface, where it is known."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Buckets that a node (its id) gives up for another, and may still have flows in."""

    source: bytes
    destination: bytes
    buckets: BucketSet


@dataclass(frozen=True, slots=True)
class Epoch:
    """An assignment with its number, and the moves that it began or found under way. Buckets in `reserved` are
    nobody's here."""

    uid: str
    ip: str
    number: int
    buckets: int
    reserved: BucketSet
    assignments: tuple[Named, ...]
    moves: tuple[Moved, ...] = ()
    clusterip: bytes = field(init=False)
    incarnations: dict[bytes, int] = field(init=False, compare=False, repr=False)
    """The named incarnation by node id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "clusterip", clusterip_id(self.uid))
        object.__setattr__(self, "incarnations", {one.node: one.incarnation for one in self.assignments})

    def names(self, node: bytes, incarnation: int) -> bool:
        """Whether this very incarnation is named."""
        return self.incarnations.get(node) == incarnation


def epoch_of(clusterip: ClusterIP) -> Epoch:
    """The epoch of a ClusterIP as the API or a state file has it."""
    return Epoch(
        uid=clusterip.identity.uid,
        ip=str(clusterip.spec.ip),
        number=clusterip.epoch,
        buckets=clusterip.spec.hash.buckets,
        reserved=clusterip.spec.reserved,
        assignments=tuple(
            Named(one.node, node_id(one.node), one.incarnation, one.buckets, one.address)
            for one in clusterip.assignments
        ),
        moves=tuple(
            Moved(node_id(one.source), node_id(one.destination), one.buckets) for one in clusterip.moves
        ),
    )
