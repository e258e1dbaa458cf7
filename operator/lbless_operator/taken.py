"""Addresses that a ClusterIP must not take because the cluster is known to use them.

Collects them from Nodes, agents' reports, ServiceCIDRs and the API server's URL. The judgement and its
sentence are `lbless_api.refusal`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from urllib.parse import urlsplit

from lbless_api.node import NodeStatus
from lbless_api.refusal import Taken, on_link_edges
from lbless_operator.facts import NodeFact, RangeFact


def collect(
    api_server: str,
    nodes: Iterable[NodeFact],
    reports: Mapping[str, NodeStatus],
    service_ranges: Iterable[RangeFact],
) -> Taken:
    """Return everything known to be in use; `api_server` is the URL that the operator talks to."""
    addresses: dict[IPv4Address, str] = {}
    ranges: dict[IPv4Network, str] = {}
    networks: set[IPv4Network] = set()
    for node, report in sorted(reports.items()):
        for interface in report.interfaces:
            for address in interface.addresses:
                networks.add(address.network)
                addresses[address.ip] = f"node {node} ({interface.name})"
            for gateway in interface.gateways:
                addresses.setdefault(gateway, f"the gateway of node {node}")
    for fact in nodes:
        for own in fact.addresses:
            addresses.setdefault(own, f"node {fact.name}")
        for pod_range in fact.pod_ranges:
            ranges[pod_range] = f"the pod range of node {fact.name}"
    for service_range in service_ranges:
        ranges.update(dict.fromkeys(service_range.ranges, "the Service range"))
    server = _host(api_server)
    if server:
        addresses.setdefault(server, "the API server")
    return Taken(addresses=on_link_edges(networks) | addresses, ranges=ranges)


def _host(url: str) -> IPv4Address | None:
    try:
        return IPv4Address(urlsplit(url).hostname or "")
    except AddressValueError:
        return None
