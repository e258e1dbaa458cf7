"""The ClusterIP object as frozen values: one address that several nodes answer for, each its share.

Owns reading it from the API's or a state file's JSON, with every fault one sentence, and the parts of
its status that nodes act on. Whether an address may be used on a network is `lbless_api.refusal`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import TypeVar

from lbless_api.buckets import BucketSet
from lbless_api.fields import MAX_INTEGER, Invalid, integer, ipv4, items, mapping, text
from lbless_api.hashing import MAX_BUCKETS, HashFunction, HashMode
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.mac import default_mac, parse_mac, unicast_mac
from lbless_api.selectors import LabelSelector, parse_labels

DEFAULT_BUCKETS = 256
DEFAULT_DRAIN_TIMEOUT_SECONDS = 300
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,62}", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_GLOB = re.compile(r"[0-9A-Za-z_.:@*?\[\]!-]{1,32}", re.ASCII)


E = TypeVar("E", bound=StrEnum)


class Protocol(StrEnum):
    """A protocol of spec.ports."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class SourceMAC(StrEnum):
    """The Ethernet source of replies."""

    NODE = "Node"
    CLUSTER = "Cluster"


class Weighting(StrEnum):
    """What a node's share is proportional to."""

    EQUAL = "Equal"
    READY_PODS = "ReadyPods"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last` of a protocol, both included."""

    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True, order=True)
class HashParameters:
    """All that decides a packet's bucket. ClusterIPs with equal ones share their rules on a node."""

    function: HashFunction
    mode: HashMode
    seed: int
    buckets: int
    prefix_length: int


@dataclass(frozen=True, slots=True)
class PodWorkload:
    """A node is eligible while it has a ready pod, in the ClusterIP's namespace, that this selects."""

    selector: LabelSelector


@dataclass(frozen=True, slots=True)
class ServiceWorkload:
    """A node is eligible while it has a ready endpoint of the Service, in the ClusterIP's namespace."""

    name: str


@dataclass(frozen=True, slots=True)
class Spec:
    """ClusterIP.spec, complete: defaults are filled in."""

    ip: IPv4Address
    mac: str
    hash: HashParameters
    reserved: BucketSet
    """Buckets that machines outside lbless answer for; at least one is left to the nodes."""
    interfaces: tuple[str, ...]
    ports: tuple[PortRange, ...] | None
    source_mac: SourceMAC
    node_selector: Mapping[str, str]
    workload: PodWorkload | ServiceWorkload | None
    weighting: Weighting
    drain_timeout_seconds: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a node owns in an epoch. Named with no buckets: it holds the address and keeps no packet.

    `address` is the node's own on the interface with the shared one, None where that is not known: others send on to
    it what they no longer keep.
    """

    node: str
    incarnation: int
    buckets: BucketSet
    address: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Buckets on their way from a living owner to another, until every node has confirmed."""

    buckets: BucketSet
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What names a ClusterIP; readable even where its spec is not."""

    namespace: str
    name: str
    uid: str
    created: str
    generation: int

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def age_order(self) -> tuple[str, str]:
        """Sorts older ones first: of two with one address the first works."""
        return (self.created, self.uid)


@dataclass(frozen=True, slots=True)
class ClusterIP:
    """A ClusterIP with what its status says nodes are to do. Epoch 0: nothing was ever assigned."""

    identity: Identity
    spec: Spec
    epoch: int
    assignments: tuple[Assignment, ...]
    moves: tuple[Move, ...]

    def assigned_to(self, node: str) -> Assignment | None:
        """The assignment that names `node`, or None."""
        return next((a for a in self.assignments if a.node == node), None)


def parse_identity(obj: object) -> Identity:
    """Read metadata; raises Invalid, also where a UID or a name could not be a file's name."""
    metadata = mapping(mapping(obj, "object").get("metadata"), "metadata")
    uid = text(metadata.get("uid"), "metadata.uid")
    if not is_uid(uid):
        raise Invalid(f"metadata.uid {uid[:80]!r} is malformed.")
    return Identity(
        namespace=_object_name(metadata.get("namespace"), "metadata.namespace"),
        name=_object_name(metadata.get("name"), "metadata.name"),
        uid=uid,
        created=text(metadata.get("creationTimestamp"), "metadata.creationTimestamp", limit=64),
        generation=integer(metadata.get("generation", 0), "metadata.generation", 0, MAX_INTEGER),
    )


def is_uid(text: str) -> bool:
    """Whether `text` can be a UID: no more than such a name is ever made part of a file's name."""
    return _UID.fullmatch(text) is not None


def parse_clusterip(obj: object) -> ClusterIP:
    """Read a whole ClusterIP as the API or a state file has it.

    Raises Invalid with one sentence for the first fault found. Unknown fields are ignored: the API
    server prunes them.
    """
    whole = mapping(obj, "object")
    spec = parse_spec(whole.get("spec"))
    status = mapping(whole.get("status") or {}, "status")
    assignments = tuple(
        _parse_assignment(entry, f"status.assignments[{i}]", spec.hash.buckets)
        for i, entry in enumerate(items(status.get("assignments") or [], "status.assignments"))
    )
    _check_exclusive(assignments)
    return ClusterIP(
        identity=parse_identity(whole),
        spec=spec,
        epoch=integer(status.get("epoch", 0), "status.epoch", 0, MAX_NUMBER),
        assignments=assignments,
        moves=tuple(
            _parse_move(entry, f"status.moves[{i}]", spec.hash.buckets)
            for i, entry in enumerate(items(status.get("moves") or [], "status.moves"))
        ),
    )


def parse_spec(value: object) -> Spec:
    """Read ClusterIP.spec and fill in its defaults; raises Invalid."""
    spec = mapping(value, "spec")
    ip = ipv4(spec.get("ip"), "spec.ip")
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_reserved or ip.is_link_local:
        raise Invalid(f"spec.ip {ip} cannot be a shared address: use a unicast address of the nodes' subnet.")
    source_mac = _choice(SourceMAC, spec.get("sourceMAC", SourceMAC.NODE), "spec.sourceMAC")
    buckets = integer(spec.get("buckets", DEFAULT_BUCKETS), "spec.buckets", 1, MAX_BUCKETS)
    return Spec(
        ip=ip,
        mac=_parse_mac(spec.get("mac"), ip, source_mac),
        hash=HashParameters(
            function=_choice(HashFunction, spec.get("hashFunction", HashFunction.JHASH), "spec.hashFunction"),
            mode=_choice(HashMode, spec.get("hashMode", HashMode.SOURCE_IP_SOURCE_PORT), "spec.hashMode"),
            seed=integer(spec.get("hashSeed", 0), "spec.hashSeed", 0, 0xFFFFFFFF),
            buckets=buckets,
            prefix_length=integer(spec.get("sourcePrefixLength", 32), "spec.sourcePrefixLength", 1, 32),
        ),
        reserved=_parse_reserved(_given(spec, "reservedBuckets", ""), buckets),
        interfaces=tuple(_glob(g) for g in items(_given(spec, "interfaces", []), "spec.interfaces")),
        ports=_parse_ports(spec["ports"]) if spec.get("ports") is not None else None,
        source_mac=source_mac,
        node_selector=parse_labels(_given(spec, "nodeSelector", {}), "spec.nodeSelector"),
        workload=_parse_workload(spec["workload"]) if spec.get("workload") is not None else None,
        weighting=_choice(Weighting, spec.get("weighting", Weighting.EQUAL), "spec.weighting"),
        drain_timeout_seconds=integer(
            spec.get("drainTimeoutSeconds", DEFAULT_DRAIN_TIMEOUT_SECONDS),
            "spec.drainTimeoutSeconds",
            0,
            86400,
        ),
    )


def _given(spec: Mapping[str, object], field: str, default: object) -> object:
    """A field, or its default where it is absent or null; anything else, empty or not, is what was given."""
    value = spec.get(field)
    return default if value is None else value


def _parse_mac(value: object, ip: IPv4Address, source: SourceMAC) -> str:
    if value is None:
        return default_mac(ip)
    try:
        mac = parse_mac(text(value, "spec.mac"))
        if source is SourceMAC.CLUSTER:
            unicast_mac(mac)  # that it has one
        return mac
    except Invalid:
        raise
    except ValueError as error:
        raise Invalid(f"spec.mac: {error}") from None


def _parse_reserved(value: object, buckets: int) -> BucketSet:
    reserved = _bucket_set(value, "spec.reservedBuckets", buckets)
    if len(reserved) == buckets:
        raise Invalid(
            f"spec.reservedBuckets {reserved} leaves the nodes none of the {buckets} buckets: "
            f"leave out at least one, or delete the ClusterIP."
        )
    return reserved


def _parse_ports(value: object) -> tuple[PortRange, ...]:
    """Sorted, and merged where they overlap or touch, as the kernel's interval sets want them."""
    ranges = []
    for index, entry in enumerate(items(value, "spec.ports")):
        here = f"spec.ports[{index}]"
        port = mapping(entry, here)
        protocol = _choice(Protocol, port.get("protocol", Protocol.TCP), f"{here}.protocol")
        first = integer(port.get("port"), f"{here}.port", 1, 65535)
        last = first
        if port.get("endPort") is not None:
            last = integer(port["endPort"], f"{here}.endPort", 1, 65535)
        if last < first:
            raise Invalid(f"{here}.endPort {last} is below port {first}: swap them.")
        ranges.append(PortRange(protocol, first, last))
    if not ranges:
        raise Invalid("spec.ports is empty: name at least one port, or leave the field out to open all.")
    merged: list[PortRange] = []
    for new in sorted(ranges):
        if merged and merged[-1].protocol is new.protocol and new.first <= merged[-1].last + 1:
            merged[-1] = PortRange(new.protocol, merged[-1].first, max(merged[-1].last, new.last))
        else:
            merged.append(new)
    return tuple(merged)


def _parse_workload(value: object) -> PodWorkload | ServiceWorkload:
    workload = mapping(value, "spec.workload")
    pods, service = workload.get("podSelector"), workload.get("serviceRef")
    if (pods is None) == (service is None):
        raise Invalid("spec.workload must name exactly one of podSelector and serviceRef.")
    if pods is not None:
        return PodWorkload(LabelSelector.parse(pods, "spec.workload.podSelector"))
    name = mapping(service, "spec.workload.serviceRef").get("name")
    return ServiceWorkload(_object_name(name, "spec.workload.serviceRef.name"))


def _parse_assignment(value: object, where: str, buckets: int) -> Assignment:
    entry = mapping(value, where)
    return Assignment(
        node=_object_name(entry.get("node"), f"{where}.node"),
        incarnation=integer(entry.get("incarnation", 0), f"{where}.incarnation", 0, MAX_NUMBER),
        buckets=_bucket_set(entry.get("buckets", ""), f"{where}.buckets", buckets),
        address=ipv4(entry["address"], f"{where}.address") if entry.get("address") else None,
    )


def _parse_move(value: object, where: str, buckets: int) -> Move:
    entry = mapping(value, where)
    return Move(
        buckets=_bucket_set(entry.get("buckets", ""), f"{where}.buckets", buckets),
        source=_object_name(entry.get("from"), f"{where}.from"),
        destination=_object_name(entry.get("to"), f"{where}.to"),
    )


def _check_exclusive(assignments: tuple[Assignment, ...]) -> None:
    taken, seen = BucketSet(), set()
    for assignment in assignments:
        if assignment.node in seen:
            raise Invalid(f"status.assignments names node {assignment.node} twice.")
        if not taken.isdisjoint(assignment.buckets):
            raise Invalid(f"status.assignments gives buckets {taken & assignment.buckets} to two nodes.")
        seen.add(assignment.node)
        taken |= assignment.buckets


def _bucket_set(value: object, where: str, buckets: int) -> BucketSet:
    try:
        return BucketSet.parse(text(value, where, limit=32768), buckets=buckets)
    except Invalid:
        raise
    except ValueError as error:
        raise Invalid(f"{where}: {error}") from None


def _choice(kind: type[E], value: object, where: str) -> E:
    written = text(value, where)
    try:
        return kind(written)
    except ValueError:
        raise Invalid(f"{where} {written[:40]!r} is unknown: use {' or '.join(kind)}.") from None


def _object_name(value: object, where: str) -> str:
    name = text(value, where)
    if not _NAME.fullmatch(name):
        raise Invalid(f"{where} {name[:80]!r} is not a Kubernetes name.")
    return name


def _glob(value: object) -> str:
    glob = text(value, "spec.interfaces")
    if not _GLOB.fullmatch(glob):
        raise Invalid(
            f"spec.interfaces {glob[:40]!r} is malformed: write a name or a glob such as eth* or ens3."
        )
    return glob
