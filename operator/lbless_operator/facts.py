"""What of each watched object matters to the operator, as small frozen values, parsed at the edge.

Two facts that are equal mean that nothing changed that matters. Everything else of an object (a Node's
heartbeat times, a Pod's containers) is dropped here and costs neither memory nor a reconcile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from sys import intern

from lbless_api import AGENT_LEASE_PREFIX, WEIGHT_ANNOTATION
from lbless_api.clusterip import Identity, Spec, parse_identity, parse_spec
from lbless_api.fields import Invalid, items, mapping, text
from lbless_api.node import NodeStatus, parse_node_status
from lbless_api.selectors import parse_labels
from lbless_operator.interest import NOTHING, Interest
from lbless_operator.status import Status, parse_epoch, parse_status

SERVICE_LABEL = "kubernetes.io/service-name"
DEFAULT_WEIGHT = 100
MAX_WEIGHT = 1000
_WEIGHT = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)


class Kind(StrEnum):
    """The kinds that the operator watches."""

    CLUSTERIP = "ClusterIP"
    AGENT = "ClusterIPNode"
    NODE = "Node"
    LEASE = "Lease"
    POD = "Pod"
    SLICE = "EndpointSlice"
    SERVICE_RANGE = "ServiceCIDR"


@dataclass(frozen=True, slots=True)
class ClusterIPFact:
    """A ClusterIP. Where its spec breaks the contract, `spec` is None and `fault` says why.

    `address` is spec.ip as far as it can be read. A status that somebody garbled counts as empty; its
    epoch is kept if that can be read.
    """

    identity: Identity
    version: str
    spec: Spec | None
    fault: Invalid | None
    address: IPv4Address | None
    status: Status


@dataclass(frozen=True, slots=True)
class NodeFact:
    """A Node. `weight` is its annotation as written, `no_execute` the keys of such taints."""

    name: str
    uid: str
    labels: Mapping[str, str]
    weight: str | None
    no_execute: tuple[str, ...]
    ready: bool
    addresses: tuple[IPv4Address, ...]
    pod_ranges: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class AgentFact:
    """What a node's agent reported last, None before its first report or, with a `fault`, if it is garbled."""

    node: str
    report: NodeStatus | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class LeaseFact:
    """An agent's Lease. `renewed` is its renewTime as written: only that it changes counts."""

    node: str
    renewed: str


@dataclass(frozen=True, slots=True)
class PodFact:
    """A Pod. Ready: on a node, condition Ready true, not terminating."""

    labels: Mapping[str, str]
    node: str
    ready: bool


@dataclass(frozen=True, slots=True)
class SliceFact:
    """An EndpointSlice: of which Service, and its endpoints as (node, which one): the ready ones, and those that
    end and still serve."""

    service: str
    ready: frozenset[tuple[str, str]]
    ending: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class RangeFact:
    """A ServiceCIDR."""

    ranges: tuple[IPv4Network, ...]


Fact = ClusterIPFact | NodeFact | AgentFact | LeaseFact | PodFact | SliceFact | RangeFact


@dataclass(frozen=True, slots=True)
class Scope:
    """A collection that is listed as one: of all namespaces if `namespace` is empty.

    Of pods and slices only those that `interest` covers are ours.
    """

    kind: Kind
    namespace: str = ""
    interest: Interest = NOTHING

    def admits(self, seen: Seen) -> bool:
        """Whether an object is there for us; one that is deleted is not."""
        match seen.fact:
            case PodFact():
                return self.interest.covers_pod(seen.namespace, seen.fact.labels)
            case SliceFact():
                return self.interest.covers_service(seen.namespace, seen.fact.service)
            case _:
                return seen.fact is not None


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as seen at a resource version; `fact` None: it is deleted, or none of ours."""

    kind: Kind
    namespace: str
    name: str
    version: int
    fact: Fact | None

    @property
    def key(self) -> str:
        """``namespace/name``, or the name alone of what has no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def parse(kind: Kind, obj: object, *, deleted: bool = False) -> Seen:
    """Read an object of the API; raises Invalid for what no API server would send."""
    whole = mapping(obj, kind)
    metadata = _metadata(whole)
    version = text(metadata.get("resourceVersion"), "metadata.resourceVersion")
    if not version.isdecimal():
        # Kubernetes promises since 1.35 that they are numbers that grow; they always were.
        raise Invalid(f"metadata.resourceVersion {version[:40]!r} is not a number.")
    return Seen(
        kind=kind,
        namespace=intern(text(metadata.get("namespace", ""), "metadata.namespace")),
        name=_name(whole),
        version=int(version),
        fact=None if deleted else _READERS[kind](whole),
    )


def key_of(obj: object) -> str:
    """The key of an object that may not be read otherwise; raises Invalid where not even its name can be."""
    whole = mapping(obj, "object")
    namespace = text(_metadata(whole).get("namespace", ""), "metadata.namespace")
    return f"{namespace}/{_name(whole)}" if namespace else _name(whole)


def parse_weight(annotation: str | None) -> int | None:
    """A Node's weight: the default without the annotation, None if that is not an integer 0 – 1000."""
    if annotation is None:
        return DEFAULT_WEIGHT
    if not _WEIGHT.fullmatch(annotation) or int(annotation) > MAX_WEIGHT:
        return None
    return int(annotation)


def node_of_lease(name: str) -> str:
    """The node whose agent has the Lease of this name, empty if it is no agent's."""
    return name.removeprefix(AGENT_LEASE_PREFIX) if name.startswith(AGENT_LEASE_PREFIX) else ""


def renewal_time(renewed: str) -> datetime | None:
    """The time in a Lease's renewTime, None if it is none."""
    try:
        time = datetime.fromisoformat(renewed)
    except ValueError:
        return None
    return time if time.tzinfo else None


def _clusterip(whole: Mapping[str, object]) -> ClusterIPFact:
    spec, fault = None, None
    try:
        spec = parse_spec(whole.get("spec"))
    except Invalid as error:
        fault = error
    try:
        status = parse_status(whole.get("status"))
    except Invalid:
        status = Status(epoch=_epoch(whole.get("status")))
    return ClusterIPFact(
        identity=parse_identity(whole),
        version=text(_metadata(whole).get("resourceVersion"), "metadata.resourceVersion"),
        spec=spec,
        fault=fault,
        address=spec.ip if spec else _claimed(whole.get("spec")),
        status=status,
    )


def _claimed(spec: object) -> IPv4Address | None:
    """The address of a spec that is refused, as far as it has one."""
    return _address(spec.get("ip")) if isinstance(spec, Mapping) else None


def _epoch(status: object) -> int:
    try:
        return parse_epoch(status)
    except Invalid:
        return 0


def _agent(whole: Mapping[str, object]) -> AgentFact:
    status = whole.get("status")
    try:
        return AgentFact(_name(whole), parse_node_status(status) if status else None)
    except Invalid as fault:
        return AgentFact(_name(whole), None, str(fault))


def _lease(whole: Mapping[str, object]) -> LeaseFact | None:
    node = node_of_lease(_name(whole))
    if not node:
        return None
    renewed = _part(whole, "spec").get("renewTime") or ""
    return LeaseFact(node, text(renewed, "spec.renewTime"))


def _service_range(whole: Mapping[str, object]) -> RangeFact:
    return RangeFact(_networks(_part(whole, "spec").get("cidrs")))


def _node(whole: Mapping[str, object]) -> NodeFact:
    metadata = _metadata(whole)
    spec, status = _part(whole, "spec"), _part(whole, "status")
    addresses = (_address(entry.get("address")) for entry in _entries(status, "addresses"))
    return NodeFact(
        name=_name(whole),
        uid=text(metadata.get("uid"), "metadata.uid"),
        labels=parse_labels(metadata.get("labels") or {}, "metadata.labels"),
        weight=_weight_annotation(metadata),
        no_execute=tuple(
            sorted(
                {str(t.get("key", "")) for t in _entries(spec, "taints") if t.get("effect") == "NoExecute"}
            )
        ),
        ready=_is_ready(status),
        addresses=tuple(sorted({address for address in addresses if address})),
        pod_ranges=_networks(spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])),
    )


def _weight_annotation(metadata: Mapping[str, object]) -> str | None:
    """The one annotation that counts: others may be of any size, and must not keep the Node from being read."""
    written = mapping(metadata.get("annotations") or {}, "metadata.annotations").get(WEIGHT_ANNOTATION)
    return written if isinstance(written, str) else None


def _pod(whole: Mapping[str, object]) -> PodFact | None:
    metadata = _metadata(whole)
    node = _part(whole, "spec").get("nodeName")
    if not node:
        return None  # not scheduled: it matters once it is
    labels = parse_labels(metadata.get("labels") or {}, "metadata.labels")
    return PodFact(
        labels={intern(key): intern(value) for key, value in labels.items()},
        node=intern(text(node, "spec.nodeName")),
        ready=not metadata.get("deletionTimestamp") and _is_ready(_part(whole, "status")),
    )


def _slice(whole: Mapping[str, object]) -> SliceFact | None:
    labels = parse_labels(_metadata(whole).get("labels") or {}, "metadata.labels")
    service = labels.get(SERVICE_LABEL)
    if not service:
        return None
    ready: set[tuple[str, str]] = set()
    ending: set[tuple[str, str]] = set()
    for endpoint in _entries(whole, "endpoints"):
        conditions = mapping(endpoint.get("conditions") or {}, "endpoints.conditions")
        node = endpoint.get("nodeName")
        # The API: "nil should be interpreted as true".
        is_ready = conditions.get("ready") in {True, None}
        if node and (
            is_ready or (conditions.get("serving") is True and conditions.get("terminating") is True)
        ):
            target = mapping(endpoint.get("targetRef") or {}, "endpoints.targetRef").get("uid")
            # A dual-stack Service has the same pod in two slices: count it once, by its UID.
            addresses = items(endpoint.get("addresses") or [], "endpoints.addresses")
            which = intern(text(node, "endpoints.nodeName")), str(target or addresses)
            (ready if is_ready else ending).add(which)
    return SliceFact(service, frozenset(ready), frozenset(ending))


def _is_ready(status: Mapping[str, object]) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in _entries(status, "conditions"))


def _metadata(whole: Mapping[str, object]) -> Mapping[str, object]:
    return mapping(whole.get("metadata"), "metadata")


def _name(whole: Mapping[str, object]) -> str:
    return text(_metadata(whole).get("name"), "metadata.name")


def _part(whole: Mapping[str, object], field: str) -> Mapping[str, object]:
    return mapping(whole.get(field) or {}, field)


def _entries(part: Mapping[str, object], field: str) -> Sequence[Mapping[str, object]]:
    return [mapping(entry, field) for entry in items(part.get(field) or [], field)]


def _address(value: object) -> IPv4Address | None:
    """An IPv4 address; None for host names and IPv6, which are no shared address's concern."""
    try:
        return IPv4Address(value) if isinstance(value, str) else None
    except AddressValueError:
        return None


def _networks(value: object) -> tuple[IPv4Network, ...]:
    networks = []
    for entry in items(value or [], "ranges"):
        try:
            networks.append(IPv4Network(text(entry, "ranges"), strict=False))
        except (AddressValueError, NetmaskValueError):
            continue  # the IPv6 half of a dual-stack cluster
    return tuple(networks)


_READERS: Mapping[Kind, Callable[[Mapping[str, object]], Fact | None]] = {
    Kind.CLUSTERIP: _clusterip,
    Kind.AGENT: _agent,
    Kind.NODE: _node,
    Kind.LEASE: _lease,
    Kind.POD: _pod,
    Kind.SLICE: _slice,
    Kind.SERVICE_RANGE: _service_range,
}
