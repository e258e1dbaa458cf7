"""What a node reports: the parts that ClusterIPNode.status and observed.json have in common.

Owns their types and both directions of their JSON. Who writes which file is `lbless_api.state`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface

from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability, parse_capabilities, render_capabilities
from lbless_api.digest import parse_marks, render_marks
from lbless_api.fields import MAX_INTEGER, Invalid, boolean, integer, ipv4, items, mapping, text
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.interfaces import Interface
from lbless_api.segment import parse_segment, render_segment

JSON = dict[str, object]


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Whether a netfilter engine works on this node, if not why not, and what it can do.

    `message` also says why one that works cannot do all that it could, as for a setting of the node.
    `active`: dataplane uses it; any other was only tried. Without capabilities it is an older version's.
    `unfenced`: why it can have no lease though one is wanted, so that nobody may take over from this node by
    its silence; empty if it has one or none is wanted.
    """

    name: str
    available: bool
    message: str = ""
    active: bool = True
    capabilities: tuple[Capability, ...] = ()
    unfenced: str = ""


def active_engine(engines: Iterable[EngineReport]) -> EngineReport | None:
    """The engine that a node uses, None where it has not said."""
    return next((engine for engine in engines if engine.active), None)


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A ClusterIP whose epoch is not in the kernel: waiting (`pending`) or refused (`failures`)."""

    uid: str
    clusterip: str
    epoch: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Buckets of a ClusterIP that a node has given up, and of which it still finishes so many TCP flows."""

    uid: str
    clusterip: str
    buckets: BucketSet
    flows: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """ClusterIPNode.status. `applied_digest` is over all that is neither pending nor failed.

    `unlisted` has the marks (`lbless_api.digest`) of what is pending or failed and not listed for lack of room, and
    `unlisted_drains` those of ClusterIPs of which this node drains buckets without room to list it.
    """

    kernel: str
    engines: tuple[EngineReport, ...]
    interfaces: tuple[Interface, ...]
    applied_digest: str
    pending: tuple[Outstanding, ...]
    failures: tuple[Outstanding, ...]
    unlisted: frozenset[bytes] = frozenset()
    drains: tuple[Drain, ...] = ()
    unlisted_drains: frozenset[bytes] = frozenset()


def parse_node_status(value: object) -> NodeStatus:
    """Read ClusterIPNode.status; raises Invalid."""
    status = mapping(value, "status")
    return NodeStatus(
        kernel=text(status.get("kernel", ""), "status.kernel"),
        engines=parse_engines(status.get("engines") or [], "status.engines"),
        interfaces=parse_interfaces(status.get("interfaces") or [], "status.interfaces"),
        applied_digest=text(status.get("appliedDigest", ""), "status.appliedDigest"),
        pending=parse_outstanding(status.get("pending") or [], "status.pending"),
        failures=parse_outstanding(status.get("failures") or [], "status.failures"),
        unlisted=parse_marks(status.get("unlisted", ""), "status.unlisted"),
        drains=parse_drains(status.get("drains") or [], "status.drains"),
        unlisted_drains=parse_marks(status.get("unlistedDrains", ""), "status.unlistedDrains"),
    )


def render_node_status(status: NodeStatus) -> JSON:
    """ClusterIPNode.status without its conditions."""
    return {
        "kernel": status.kernel,
        "engines": render_engines(status.engines),
        "interfaces": render_interfaces(status.interfaces),
        "appliedDigest": status.applied_digest,
        "pending": render_outstanding(status.pending),
        "failures": render_outstanding(status.failures),
        "unlisted": render_marks(status.unlisted),
        "drains": render_drains(status.drains),
        "unlistedDrains": render_marks(status.unlisted_drains),
    }


def parse_engines(value: object, where: str) -> tuple[EngineReport, ...]:
    """Read a list of engines; raises Invalid."""
    engines = []
    for entry in items(value, where):
        engine = mapping(entry, where)
        engines.append(
            EngineReport(
                name=text(engine.get("name"), f"{where}.name"),
                available=boolean(engine.get("available"), f"{where}.available"),
                message=text(engine.get("message", ""), f"{where}.message"),
                # An older version reports only the engine that it uses, and not that it does.
                active=boolean(engine.get("active", True), f"{where}.active"),
                capabilities=parse_capabilities(engine.get("capabilities") or [], f"{where}.capabilities"),
                unfenced=text(engine.get("unfenced", ""), f"{where}.unfenced"),
            )
        )
    return tuple(engines)


def render_engines(engines: Sequence[EngineReport]) -> list[JSON]:
    """The JSON of a list of engines."""
    return [
        {
            "name": e.name,
            "available": e.available,
            "message": e.message,
            "active": e.active,
            "capabilities": render_capabilities(e.capabilities),
            **({"unfenced": e.unfenced} if e.unfenced else {}),
        }
        for e in engines
    ]


def parse_interfaces(value: object, where: str) -> tuple[Interface, ...]:
    """Read a list of interfaces; raises Invalid."""
    interfaces = []
    for entry in items(value, where):
        interface = mapping(entry, where)
        interfaces.append(
            Interface(
                name=text(interface.get("name"), f"{where}.name", limit=15),
                mac=text(interface.get("mac"), f"{where}.mac", limit=17),
                addresses=tuple(
                    _address(a, f"{where}.addresses") for a in _list(interface, "addresses", where)
                ),
                gateways=tuple(ipv4(g, f"{where}.gateways") for g in _list(interface, "gateways", where)),
                carrier=boolean(interface.get("carrier", True), f"{where}.carrier"),
                incarnation=integer(interface.get("incarnation", 0), f"{where}.incarnation", 0, MAX_NUMBER),
                segment=parse_segment(interface, where),
            )
        )
    return tuple(interfaces)


def render_interfaces(interfaces: Sequence[Interface]) -> list[JSON]:
    """The JSON of a list of interfaces."""
    return [
        {
            "name": i.name,
            "mac": i.mac,
            "addresses": [str(a) for a in i.addresses],
            "gateways": [str(g) for g in i.gateways],
            "carrier": i.carrier,
            "incarnation": i.incarnation,
            **render_segment(i.segment),
        }
        for i in interfaces
    ]


def parse_outstanding(value: object, where: str) -> tuple[Outstanding, ...]:
    """Read a list of pending or failed ClusterIPs; raises Invalid."""
    outstanding = []
    for entry in items(value, where):
        one = mapping(entry, where)
        outstanding.append(
            Outstanding(
                uid=text(one.get("uid"), f"{where}.uid"),
                clusterip=text(one.get("clusterIP", ""), f"{where}.clusterIP"),
                epoch=integer(one.get("epoch", 0), f"{where}.epoch", 0, MAX_NUMBER),
                reason=text(one.get("reason", ""), f"{where}.reason"),
                message=text(one.get("message", ""), f"{where}.message"),
            )
        )
    return tuple(outstanding)


def render_outstanding(outstanding: Sequence[Outstanding]) -> list[JSON]:
    """The JSON of a list of pending or failed ClusterIPs."""
    return [
        {"uid": o.uid, "clusterIP": o.clusterip, "epoch": o.epoch, "reason": o.reason, "message": o.message}
        for o in outstanding
    ]


def parse_drains(value: object, where: str) -> tuple[Drain, ...]:
    """Read a list of ClusterIPs of which a node drains buckets; raises Invalid."""
    drains = []
    for entry in items(value, where):
        one = mapping(entry, where)
        drains.append(
            Drain(
                uid=text(one.get("uid"), f"{where}.uid"),
                clusterip=text(one.get("clusterIP", ""), f"{where}.clusterIP"),
                buckets=_buckets(one.get("buckets", ""), f"{where}.buckets"),
                flows=integer(one.get("flows", 0), f"{where}.flows", 0, MAX_INTEGER),
            )
        )
    return tuple(drains)


def render_drains(drains: Sequence[Drain]) -> list[JSON]:
    """The JSON of a list of ClusterIPs of which a node drains buckets."""
    return [
        {"uid": d.uid, "clusterIP": d.clusterip, "buckets": str(d.buckets), "flows": d.flows} for d in drains
    ]


def _list(entry: Mapping[str, object], field: str, where: str) -> Sequence[object]:
    return items(entry.get(field) or [], f"{where}.{field}")


def _address(value: object, where: str) -> IPv4Interface:
    try:
        return IPv4Interface(text(value, where))
    except ValueError:
        raise Invalid(f"{where} {str(value)[:60]!r} is not an IPv4 address with a prefix length.") from None


def _buckets(value: object, where: str) -> BucketSet:
    try:
        return BucketSet.parse(text(value, where, limit=32768))
    except Invalid:
        raise
    except ValueError as error:
        raise Invalid(f"{where}: {error}") from None
