"""The state directory: the only way between sync and dataplane, so that each can be away.

Owns its file names and the JSON of its files. Reading and writing them safely is the node agent's.

    desired/<uid>.json   sync       a ClusterIP: metadata, spec, status.epoch, .assignments, .moves
    desired/.complete    sync       the boot id, and the UIDs of what was written: sync has completed a LIST since boot
    desired/.intent      sync       what a SIGTERM of dataplane means: hold, handover or remove
    desired/.node.json   sync       what of the Node object the kernel needs: {"podCIDRs": […]}
    applied/<uid>.json   dataplane  the last good ClusterIP with the interface it is on
    journal.json         dataplane  its own: addresses and groups it added, settings it changed
    observed.json        dataplane  what is in the kernel, rewritten at least every 2 s
    identity.json        dataplane  the incarnation of each interface
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network

from lbless_api import API_VERSION
from lbless_api.fields import MAX_INTEGER, Invalid, integer, items, mapping, text
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.interfaces import Interface
from lbless_api.node import (
    JSON,
    Drain,
    EngineReport,
    Outstanding,
    parse_drains,
    parse_engines,
    parse_interfaces,
    parse_outstanding,
    render_drains,
    render_engines,
    render_interfaces,
    render_outstanding,
)

DEFAULT_DIRECTORY = "/var/lib/lbless"
DESIRED = "desired"
COMPLETE = ".complete"
INTENT = ".intent"
NODE = ".node.json"
APPLIED = "applied"
OBSERVED = "observed.json"
IDENTITY = "identity.json"


class Intent(StrEnum):
    """What ending dataplane is to mean for the node's share."""

    HOLD = "hold"
    HANDOVER = "handover"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class DesiredNode:
    """What of its Node object a node's kernel needs. Packets from `pod_cidrs` are served locally."""

    pod_cidrs: tuple[IPv4Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """observed.json. `boottime_seconds` is CLOCK_BOOTTIME at writing: with the boot id, its age.

    `applied` maps the UID of each ClusterIP to the epoch that the kernel has, also where that epoch does
    not name this node (then nothing of it is left here). `problems` are sentences about the whole node.
    `repairs` count, since dataplane started, what somebody else undid and it did again, by what it was. `drains` are
    of the same moment as `applied`: an epoch that takes buckets away is applied once what is left of them drains.
    """

    boot_id: str
    boottime_seconds: float
    kernel: str = ""
    engines: tuple[EngineReport, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    applied: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Outstanding, ...] = ()
    problems: tuple[str, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    repairs: Mapping[str, int] = field(default_factory=dict)
    drains: tuple[Drain, ...] = ()


def render_desired(obj: Mapping[str, object]) -> JSON:
    """Cut a ClusterIP as the API has it down to what a node needs; the spec is taken as it is."""
    metadata = mapping(obj.get("metadata"), "metadata")
    status = mapping(obj.get("status") or {}, "status")
    kept = ("namespace", "name", "uid", "creationTimestamp", "generation")
    return {
        "apiVersion": API_VERSION,
        "kind": "ClusterIP",
        "metadata": {k: metadata[k] for k in kept if k in metadata},
        "spec": obj.get("spec"),
        "status": {k: status[k] for k in ("epoch", "assignments", "moves") if k in status},
    }


def render_complete(boot_id: str, uids: Iterable[str]) -> str:
    """What desired/.complete says: in this boot these ClusterIPs' files are there, and no other is to be."""
    return "".join(f"{word}\n" for word in (boot_id, *sorted(uids)))


def parse_complete(value: str, boot_id: str) -> frozenset[str] | None:
    """The UIDs of all ClusterIPs that were written, or None where it was written before this boot.

    Only of a UID that is not among them does a missing file say that the ClusterIP was deleted; the file of
    one that is among them was lost.
    """
    written_in, *uids = value.split() or [""]
    return frozenset(uids) if written_in == boot_id else None


def parse_desired_node(value: object) -> DesiredNode:
    """Read desired/.node.json; raises Invalid."""
    cidrs = []
    for entry in items(mapping(value, NODE).get("podCIDRs") or [], "podCIDRs"):
        written = text(entry, "podCIDRs")
        if ":" in written:
            continue  # the IPv6 half of a dual-stack node: no IPv4 packet comes from it
        try:
            cidrs.append(IPv4Network(written))
        except ValueError:
            raise Invalid(f"podCIDRs {written[:60]!r} is not an IPv4 network.") from None
    return DesiredNode(tuple(cidrs))


def parse_observed(value: object) -> Observed:
    """Read observed.json; raises Invalid."""
    observed = mapping(value, OBSERVED)
    boottime = observed.get("boottimeSeconds")
    if not isinstance(boottime, (int, float)) or isinstance(boottime, bool):
        raise Invalid("boottimeSeconds must be a number.")
    return Observed(
        boot_id=text(observed.get("bootID"), "bootID"),
        boottime_seconds=float(boottime),
        kernel=text(observed.get("kernel", ""), "kernel"),
        engines=parse_engines(observed.get("engines") or [], "engines"),
        interfaces=parse_interfaces(observed.get("interfaces") or [], "interfaces"),
        applied=_integers(observed.get("applied") or {}, "applied", MAX_NUMBER),
        failures=parse_outstanding(observed.get("failures") or [], "failures"),
        problems=tuple(text(p, "problems") for p in items(observed.get("problems") or [], "problems")),
        counters=_integers(observed.get("counters") or {}, "counters", MAX_INTEGER),
        repairs=_integers(observed.get("repairs") or {}, "repairs", MAX_INTEGER),
        drains=parse_drains(observed.get("drains") or [], "drains"),
    )


def render_observed(observed: Observed) -> JSON:
    """The JSON of observed.json."""
    return {
        "bootID": observed.boot_id,
        "boottimeSeconds": round(observed.boottime_seconds, 3),
        "kernel": observed.kernel,
        "engines": render_engines(observed.engines),
        "interfaces": render_interfaces(observed.interfaces),
        "failures": render_outstanding(observed.failures),
        "problems": list(observed.problems),
        "counters": dict(observed.counters),
        "repairs": dict(observed.repairs),
        "drains": render_drains(observed.drains),
        "applied": dict(observed.applied),
    }


def _integers(value: object, where: str, high: int) -> dict[str, int]:
    return {k: integer(v, f"{where}.{k}", 0, high) for k, v in mapping(value, where).items()}
