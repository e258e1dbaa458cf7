"""What a node's links, addresses and routes say: its interfaces, and what of it is already in use.

Pure values and questions about them. Reading and changing the kernel is `rtnetlink`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from lbless_api.interfaces import Interface
from lbless_api.refusal import Taken, on_link_edges

AddressKey = tuple[int, IPv4Address]
"""A shared address on a link: the link's index, and the address, always as a /32."""

GroupKey = tuple[int, str]
"""A link-layer group that a link has joined: the link's index, and the MAC in lower case."""


KUBE_IPVS = "kube-ipvs0"
"""The interface without a wire on which kube-proxy, in its IPVS mode, keeps every address of a Service that a
node is to take packets for, also external ones: to share such an address is no conflict, but the use of it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. `ethernet` only where frames have MACs and ARP finds them."""

    index: int
    name: str
    mac: str
    ethernet: bool
    carrier: bool
    kind: str = ""
    enslaved: bool = False
    arp_announce: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of a link. `deprecated`: never chosen as a source, as shared ones must not be."""

    index: int
    ip: IPv4Address
    prefix_length: int
    deprecated: bool = False

    @property
    def interface(self) -> IPv4Interface:
        """The address with its prefix length."""
        return IPv4Interface((self.ip, self.prefix_length))


@dataclass(frozen=True, slots=True)
class Network:
    """All of a node's links by index, their addresses, the gateways of the main table, joined groups."""

    links: Mapping[int, Link] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()
    gateways: frozenset[tuple[int, IPv4Address]] = frozenset()
    groups: frozenset[GroupKey] = frozenset()

    def as_shared(self) -> dict[AddressKey, Address]:
        """The addresses that have the form of shared ones: a /32."""
        return {(a.index, a.ip): a for a in self.addresses if a.prefix_length == 32}


def own_addresses(network: Network, shared: Iterable[AddressKey]) -> tuple[Address, ...]:
    """Return the addresses that are the node's own: all but those of `shared`, which are a /32, and those
    that kube-proxy keeps for IPVS."""
    ours = set(shared)
    ipvs = {link.index for link in network.links.values() if link.name == KUBE_IPVS}
    return tuple(
        a
        for a in network.addresses
        if a.index not in ipvs and (a.prefix_length < 32 or (a.index, a.ip) not in ours)
    )


def interfaces(network: Network, own: Iterable[Address]) -> tuple[Interface, ...]:
    """Return the interfaces that can carry a shared address, by name, with the node's `own` addresses.

    Left out, unless it has an on-link prefix: a port of a bridge or bond, because the bridge or bond is
    the interface; and a veth, because it is a pod's other end (network plugins give it no address or a
    /32), and there may be hundreds.
    """
    by_link: dict[int, list[IPv4Interface]] = {}
    for address in own:
        by_link.setdefault(address.index, []).append(address.interface)
    gateways: dict[int, list[IPv4Address]] = {}
    for index, gateway in sorted(network.gateways):
        gateways.setdefault(index, []).append(gateway)
    found = []
    for link in network.links.values():
        addresses = tuple(by_link.get(link.index, ()))
        on_link = any(a.network.prefixlen < 32 for a in addresses)
        if link.ethernet and (on_link or not (link.enslaved or link.kind == "veth")):
            reachable = tuple(gateways.get(link.index, ()))
            found.append(Interface(link.name, link.mac, addresses, reachable, carrier=link.carrier))
    return tuple(sorted(found, key=lambda i: i.name))


def taken(network: Network, own: Iterable[Address], pod_cidrs: Iterable[IPv4Network]) -> Taken:
    """Return what the node knows to be in use: its `own` addresses on any link, gateways, pod ranges."""
    held = list(own)
    holders = on_link_edges(a.interface.network for a in held)
    for index, gateway in network.gateways:
        holders[gateway] = f"a gateway of this node on {_name(network, index)}"
    for address in held:
        holders[address.ip] = f"this node ({address.interface} on {_name(network, address.index)})"
    return Taken(holders, dict.fromkeys(pod_cidrs, "this node's pod range"))


def _name(network: Network, index: int) -> str:
    link = network.links.get(index)
    return link.name if link else f"interface {index}"
