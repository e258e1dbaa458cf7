"""What a node's kernel holds of lbless, read with the system's own tools: buckets, addresses, MACs, rules.

Knows nothing of what should be there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.host import Host
from lbless_api.buckets import BucketSet

LEASE = "lease"
"""The set in lbless's table whose elements are the interfaces that have a valid lease."""


@dataclass(frozen=True)
class Traces:
    """Lines that mention a shared address or its MAC: of addresses, of link-layer groups, of rules."""

    addresses: tuple[str, ...]
    groups: tuple[str, ...]
    rules: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.addresses or self.groups or self.rules)


def traces(node: Host, ip: str, mac: str) -> Traces:
    """Everything on a node that mentions the address or the MAC."""

    def mentions(command: list[str]) -> tuple[str, ...]:
        lines = node.run(command).stdout.splitlines()
        words = (f"{ip} ", f"{ip}/", f"{ip},", mac)
        return tuple(line.strip() for line in lines if any(w in f"{line} " for w in words))

    return Traces(
        addresses=mentions(["ip", "-4", "-o", "address", "show"]),
        groups=mentions(["ip", "maddress", "show"]),
        rules=mentions(["nft", "list", "ruleset"]),
    )


def counters(node: Host) -> dict[str, int]:
    """How many packets met each end in the rules of a node, by the counter's name."""
    listing = node.run(["nft", "--json", "list", "counters", "table", "ip", "lbless"])
    found = (entry.get("counter") for entry in json.loads(listing.stdout)["nftables"])
    return {one["name"]: one["packets"] for one in found if one}


def owned_buckets(node: Host, ip: str) -> BucketSet:
    """The buckets of an address in which the node's rules take new flows: elements `address . bucket` of the sets of
    those that it owns, or has just gained."""
    listing = node.run(["nft", "--json", "list", "sets", "table", "ip", "lbless"], check=False)
    if listing.returncode != 0:
        return BucketSet()
    found = []
    for entry in json.loads(listing.stdout)["nftables"]:
        name = entry.get("set", {}).get("name", "")
        for element in entry["set"].get("elem", []) if name.endswith(("_owned", "_fresh")) else ():
            value = element.get("elem", {}).get("val", element) if isinstance(element, dict) else element
            match value:
                case {"concat": [str(address), int(number)]} if address == ip:
                    found.append(number)
                case _:
                    pass
    return BucketSet(found)


def leases(node: Host) -> frozenset[str] | None:
    """The interfaces on which the node's rules keep packets at the moment; None where no lease decides that."""
    sets = _sets(node, "ip")
    if LEASE not in sets:
        return None
    return frozenset(
        element["elem"]["val"] if isinstance(element, dict) else str(element) for element in sets[LEASE]
    )


@dataclass(frozen=True)
class Share:
    """All that one shared address has on a node; every part may be missing, as after an interrupted change.

    `ports` are (protocol, first, last), None where all are open; `on_link` are the interfaces that have the
    address, each with whether it is deprecated there, as a shared one must be.
    """

    filtered_on: str | None
    chain: str | None
    ports: frozenset[tuple[str, int, int]] | None
    buckets: BucketSet
    arp_on: str | None
    mac: str | None
    source_mac: str | None
    on_link: frozenset[tuple[str, bool]]


def shares(node: Host) -> dict[str, Share]:
    """Everything of lbless on a node by shared address: in its tables, or on a link in the form of one."""
    ip, arp, netdev = (_sets(node, family) for family in ("ip", "arp", "netdev"))
    entries = {key[1]: (key[0], value["goto"]["target"]) for key, value in map(_pair, ip.get("vips", []))}
    arp_on = {address: interface for interface, address in map(_parts, arp.get("vips", []))}
    macs = dict(map(tuple, netdev.get("macs", [])))
    source_macs = dict(map(tuple, netdev.get("source_macs", [])))
    ports: dict[str, set[tuple[str, int, int]]] = {}
    for address, protocol, port in map(_parts, [*ip.get("ports", []), *ip.get("port_ranges", [])]):
        first, last = port["range"] if isinstance(port, dict) else (port, port)
        ports.setdefault(address, set()).add((protocol, first, last))
    buckets: dict[str, list[int]] = {}
    for name, elements in ip.items():
        for address, number in map(_parts, elements) if name.endswith(("_owned", "_fresh")) else ():
            buckets.setdefault(address, []).append(number)
    on_link = _addresses(node)
    known = {
        *ip.get("shared", []),
        *arp.get("shared", []),
        *entries,
        *arp_on,
        *macs,
        *source_macs,
        *ports,
        *buckets,
        *on_link,
    }
    return {
        address: Share(
            *entries.get(address, (None, None)),
            frozenset(ports.get(address, ())) if _has_ports(entries, address) else None,
            BucketSet(buckets.get(address, ())),
            arp_on.get(address),
            macs.get(address),
            source_macs.get(address),
            frozenset(on_link.get(address, ())),
        )
        for address in known
    }


def groups(node: Host, interface: str) -> set[str]:
    """The link-layer groups that somebody joined on an interface by hand, as lbless does."""
    listed = json.loads(node.run(["ip", "-json", "maddress", "show", "dev", interface]).stdout)
    return {g["link"] for link in listed for g in link["maddr"] if g.get("features") == "static"}


def _has_ports(entries: Mapping[str, tuple[str, str]], address: str) -> bool:
    return address in entries and entries[address][1].endswith("_ports")


def _addresses(node: Host) -> dict[str, set[tuple[str, bool]]]:
    """Addresses that are a deprecated /32, by interface: what only lbless makes."""
    found: dict[str, set[tuple[str, bool]]] = {}
    for link in json.loads(node.run(["ip", "-json", "-4", "address", "show"]).stdout):
        for a in link.get("addr_info", []):
            if a["prefixlen"] == 32 and a.get("deprecated"):
                found.setdefault(a["local"], set()).add((link["ifname"], True))
    return found


def _sets(node: Host, family: str) -> dict[str, list[Any]]:
    """The elements of each set and map of lbless's table of a family; empty where there is no table."""
    listing = node.run(["nft", "--json", "list", "table", family, "lbless"], check=False)
    if listing.returncode != 0:
        return {}
    found = {}
    for entry in json.loads(listing.stdout)["nftables"]:
        for kind in ("set", "map"):
            if kind in entry:
                found[entry[kind]["name"]] = entry[kind].get("elem", [])
    return found


def _pair(element: Any) -> tuple[list[Any], Any]:
    """A map's element: the parts of its key, and its value."""
    key, value = element
    return _parts(key), value


def _parts(element: Any) -> list[Any]:
    parts: list[Any] = element["concat"]
    return parts
