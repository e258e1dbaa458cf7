"""Which of a node's interfaces carries a shared address, and which address of its own the node has there.

One decision for the operator and the node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Interface

from lbless_api.fields import Invalid
from lbless_api.segment import SegmentReport


@dataclass(frozen=True, slots=True)
class Interface:
    """An Ethernet interface of a node. `incarnation` 0: none was given yet.

    `addresses` are the node's own with their prefix lengths; shared addresses are not among them.
    `gateways` are the next hops of routes through it. `segment` None: no heartbeats run on it.
    """

    name: str
    mac: str
    addresses: tuple[IPv4Interface, ...]
    gateways: tuple[IPv4Address, ...] = ()
    carrier: bool = True
    incarnation: int = 0
    segment: SegmentReport | None = None


def choose_interface(ip: IPv4Address, globs: Sequence[str], interfaces: Sequence[Interface]) -> Interface:
    """Return the one interface of a node that carries `ip`.

    Without globs: the one whose on-link prefix contains the address (the longest prefix, then the first
    name). With globs: among those that match, the same, and where no prefix contains the address the
    first match in the order of the globs. Raises Invalid, reason `NoMatchingInterface`, where none does.
    """

    def prefix(interface: Interface) -> int:
        lengths = [
            a.network.prefixlen for a in interface.addresses if ip in a.network and a.network.prefixlen < 32
        ]
        return max(lengths, default=-1)

    def glob_order(interface: Interface) -> int:
        return next((i for i, glob in enumerate(globs) if fnmatchcase(interface.name, glob)), len(globs))

    candidates = [i for i in interfaces if glob_order(i) < len(globs)] if globs else list(interfaces)
    found = ", ".join(i.name for i in interfaces) or "none"
    if not candidates:
        raise Invalid(
            f"No interface matches spec.interfaces {', '.join(globs)} (the node has {found}): correct the globs.",
            "NoMatchingInterface",
        )
    best = min(candidates, key=lambda i: (-prefix(i), glob_order(i), i.name))
    if not globs and prefix(best) < 0:
        raise Invalid(
            f"No interface has an on-link prefix that contains {ip} (the node has {found}): "
            f"use an address of the nodes' subnet, or name the interfaces in spec.interfaces.",
            "NoMatchingInterface",
        )
    return best


def own_address(ip: IPv4Address, interface: Interface) -> IPv4Address | None:
    """Return the address by which other nodes of the segment reach this one, None where it has none.

    The one whose prefix contains the shared address `ip` (the longest prefix, then the first), else the first.
    An address with the prefix length 32 is nobody's on the link: a shared one that was left behind looks like it.
    """
    own = [a for a in interface.addresses if a.network.prefixlen < 32 and a.ip != ip]
    return max(own, key=lambda a: a.network.prefixlen if ip in a.network else -1).ip if own else None
