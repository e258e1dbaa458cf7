"""Legacy tables as bytes, as libiptc lays them out and the kernel hands them back: rules of the engine and others'.

Written from the kernel's headers, not from the code that takes such tables apart.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lbless_api.clusterip import PortRange, Protocol
from lbless_api.hashing import HashMode
from lbless_nodeagent.dataplane.iptables.arp import ArpRule
from lbless_nodeagent.dataplane.iptables.rules import Chains, Cluster, Clusterip, Icmp, Rule

VERDICTS = {"DROP": -1, "ACCEPT": -2, "QUEUE": -4, "RETURN": -5}
ANY_IP, ANY_ARP = bytes(84), bytes(164)
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_MODES = tuple(HashMode)


@dataclass(frozen=True)
class Raw:
    """A rule's bytes: selector, matches, and the name of its target with data; `to` is a verdict or a chain."""

    to: str = ""
    selector: bytes = ANY_IP
    matches: Sequence[bytes] = ()
    target: bytes = b""
    packets: int = field(default=0, compare=False)


def table(built_in: Sequence[Raw], chains: Mapping[str, Sequence[Raw]], *, arp: bool = False) -> bytes:
    """A table with one built-in chain that accepts what its rules leave, and chains of users."""
    selector = ANY_ARP if arp else ANY_IP
    items: list[tuple[str, Raw]] = [("", rule) for rule in (*built_in, Raw("ACCEPT", selector))]
    for name, rules in chains.items():
        items.append((name, Raw(selector=selector, target=_error(name))))
        items += [("", rule) for rule in (*rules, Raw("RETURN", selector))]
    items.append(("", Raw(selector=selector, target=_error("ERROR"))))
    heads, at = {}, 0
    for name, rule in items:
        at += len(_entry(rule, 0, arp))
        if name:
            heads[name] = at
    return b"".join(_entry(rule, VERDICTS.get(rule.to, heads.get(rule.to, 0)), arp) for _, rule in items)


def ip_table(chains: Chains, built_in: Sequence[Raw] = (Raw("LBLESS"),)) -> bytes:
    """The engine's chains, and what leads to them."""
    return table(built_in, {name: [ip_rule(rule) for rule in rules] for name, rules in chains.items()})


def ip_rule(rule: Rule) -> Raw:
    """One rule of the engine."""
    matches, protocol = [], 0
    if rule.comment:
        matches.append(extension("comment", rule.comment.encode().ljust(256, b"\0")))
    match rule.match:
        case Cluster(total, nodes, seed):
            mask = sum(1 << node for node in nodes)
            matches.append(extension("cluster", struct.pack("<IIII", total, mask, seed, 0)))
        case Icmp(kind):
            protocol = 1
            matches.append(extension("icmp", struct.pack("<BBBB", kind, 0, 255, 0)))
        case PortRange(name, first, last):
            protocol = _NUMBERS[name]
            plain = struct.pack("<HHHH", 0, 65535, first, last)
            data = {
                Protocol.TCP: plain + bytes(4),
                Protocol.UDP: plain + bytes(2),
                Protocol.SCTP: struct.pack("<HHHH", first, last, 0, 0)
                + bytes(276)
                + struct.pack("<II", 2, 0),
            }
            matches.append(extension(name.lower(), data[name]))
    selector = struct.pack(
        ">IIII",
        int(rule.source.network_address) if rule.source else 0,
        int(rule.destination or 0),
        int(rule.source.netmask) if rule.source else 0,
        0xFFFFFFFF if rule.destination else 0,
    )
    interface = rule.interface.encode()
    selector += interface.ljust(16, b"\0") + bytes(16) + covering(interface) + bytes(16)
    selector += struct.pack("<HBB", protocol, 2 if rule.goto else 0, 0)
    if isinstance(rule.target, str):
        return Raw(rule.target, selector, matches)
    return Raw("", selector, matches, _clusterip(rule.target))


def arp_rule(rule: ArpRule) -> Raw:
    """One rule of the engine's in arptables."""
    ip, interface = int(rule.ip), rule.interface.encode()
    every = 0xFFFFFFFF
    addresses = struct.pack(">IIII", *((ip, 0, every, 0) if rule.mac else (0, ip, 0, every)))
    length = bytes((6, 255)) if rule.mac else bytes(2)
    name, mask = interface.ljust(16, b"\0"), covering(interface)
    none = bytes(16)
    interfaces = (none, name, none, mask) if rule.mac else (name, none, mask, none)
    inverted = 0 if rule.mac else 1
    selector = addresses + length + bytes(76) + b"".join(interfaces) + bytes(2) + struct.pack("<H", inverted)
    selector = selector.ljust(164, b"\0")
    if not rule.mac:
        return Raw("DROP", selector)
    mac = bytes.fromhex(rule.mac.replace(":", ""))
    # struct arpt_mangle: two hardware addresses of 16 bytes, two IP addresses, flags, the verdict ACCEPT
    data = mac.ljust(16, b"\0") + bytes(24) + struct.pack("<Bxxxi", 1, -2)
    return Raw("", selector, (), extension("mangle", data))


def covering(interface: bytes) -> bytes:
    """The mask of a whole interface name."""
    return (b"\xff" * (len(interface) + 1)).ljust(16, b"\0") if interface else bytes(16)


def extension(name: str, data: bytes) -> bytes:
    """A match or a target, padded as XT_ALIGN does."""
    data += bytes(-len(data) % 8)
    return struct.pack("<H29sB", 32 + len(data), name.encode(), 0) + data


def _clusterip(target: Clusterip) -> bytes:
    numbers = [node + 1 for node in target.nodes]
    data = struct.pack("<I", 1) + bytes.fromhex(target.mac.replace(":", ""))
    data += struct.pack("<HH", target.total, len(numbers))
    data += struct.pack("<16H", *numbers, *[0] * (16 - len(numbers))) + bytes(2)
    return extension(
        "CLUSTERIP", data + struct.pack("<II", _MODES.index(target.mode), target.seed) + bytes(8)
    )


def _error(name: str) -> bytes:
    return extension("ERROR", name.encode(errors="surrogateescape").ljust(32, b"\0"))


def _entry(rule: Raw, verdict: int, arp: bool) -> bytes:
    elements = 192 if arp else 112
    head = rule.selector.ljust(164 if arp else 88, b"\0")
    matches, target = b"".join(rule.matches), rule.target or extension("", struct.pack("<i", verdict))
    target_at = elements + len(matches)
    head += struct.pack("<HHI", target_at, target_at + len(target), 0)
    return head.ljust(elements - 16, b"\0") + struct.pack("<QQ", rule.packets, 0) + matches + target
