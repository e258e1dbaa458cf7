"""Addresses that must not become shared ones because they already belong to somebody.

Asked by the operator with what it sees of the cluster, and by each node with what it sees of itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True)
class Taken:
    """What is known to be in use: single addresses, each with its holder in words, and ranges likewise."""

    addresses: Mapping[IPv4Address, str] = field(default_factory=dict)
    ranges: Mapping[IPv4Network, str] = field(default_factory=dict)


def refusal(ip: IPv4Address, taken: Taken) -> str | None:
    """Return one sentence why `ip` may not be shared, or None if nothing is known against it."""
    holder = taken.addresses.get(ip)
    if holder:
        return f"Address {ip} belongs to {holder}: choose an address that nothing on the segment uses."
    for network, name in taken.ranges.items():
        if ip in network:
            return f"Address {ip} lies in {name} {network}: choose an address of the nodes' subnet."
    return None


def on_link_edges(networks: Iterable[IPv4Network]) -> dict[IPv4Address, str]:
    """The network and broadcast addresses of on-link prefixes shorter than /31, which no host may have."""
    edges: dict[IPv4Address, str] = {}
    for network in networks:
        if network.prefixlen < 31:
            edges[network.network_address] = f"nobody, as the network address of {network}"
            edges[network.broadcast_address] = f"everybody, as the broadcast address of {network}"
    return edges
