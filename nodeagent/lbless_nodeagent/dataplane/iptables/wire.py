"""What is wanted as JSON, from the engine to its child. Both are of one version, and nobody else is heard."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import Vip, Wanted


def render(wanted: Wanted) -> dict[str, object]:
    """For `parse`."""
    return {
        "vips": [_render(vip) for vip in wanted.vips.values()],
        "localSources": [str(source) for source in wanted.local_sources],
    }


def parse(value: Mapping[str, Any]) -> Wanted:
    """What `render` made."""
    vips = [_parse(vip) for vip in value["vips"]]
    sources = frozenset(IPv4Network(source) for source in value["localSources"])
    return Wanted({vip.ip: vip for vip in vips}, sources)


def _render(vip: Vip) -> dict[str, object]:
    wanted = vip.hash
    return {
        "ip": str(vip.ip),
        "interface": vip.interface,
        "mac": vip.mac,
        "hash": [wanted.function, wanted.mode, wanted.seed, wanted.buckets, wanted.prefix_length],
        "ports": None if vip.ports is None else [[p.protocol, p.first, p.last] for p in vip.ports],
        "owned": str(vip.owned),
    }


def _parse(value: Mapping[str, Any]) -> Vip:
    function, mode, *numbers = value["hash"]
    ports = value["ports"]
    return Vip(
        IPv4Address(value["ip"]),
        value["interface"],
        value["mac"],
        HashParameters(HashFunction(function), HashMode(mode), *numbers),
        None if ports is None else tuple(PortRange(Protocol(p), first, last) for p, first, last in ports),
        BucketSet.parse(value["owned"]),
    )
