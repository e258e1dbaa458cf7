"""What a node's kernel holds of lbless, read with the system's own tools: buckets, addresses, MACs, rules.

Knows nothing of what should be there.
"""

import json
from dataclasses import dataclass

from lab.host import Host
from lbless_api.buckets import BucketSet


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


def owned_buckets(node: Host, ip: str) -> BucketSet:
    """The buckets of an address that the node's rules keep: elements `address . bucket` of its sets."""
    listing = node.run(["nft", "--json", "list", "sets", "table", "ip", "lbless"], check=False)
    if listing.returncode != 0:
        return BucketSet()
    found = []
    for entry in json.loads(listing.stdout)["nftables"]:
        for element in entry.get("set", {}).get("elem", []):
            value = element.get("elem", {}).get("val", element) if isinstance(element, dict) else element
            match value:
                case {"concat": [str(address), int(number)]} if address == ip:
                    found.append(number)
                case _:
                    pass
    return BucketSet(found)
