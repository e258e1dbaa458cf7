"""The engine's chains as values, in both directions: from a Vip, and from what the kernel has. Pure.

All stand in table mangle, hook PREROUTING: after connection tracking, which both ways of hashing ask, and
before NAT. How rules get into the kernel is the child's; how they are read back is `entries`'.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import parse_mac
from lbless_nodeagent.dataplane import engine
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.iptables import entries
from lbless_nodeagent.dataplane.iptables.entries import GOTO, Entry, Extension

TABLE = "mangle"
HOOK = "PREROUTING"
CHAIN = "LBLESS"
LOCAL = f"{CHAIN}-local"
FORMAT = "lbless 1"
"""Begins the comment of each address: raise the number with any change of the chains."""

MAX_LEGACY_BUCKETS = 16
"""`CLUSTERIP_MAX_NODES`: as many as a rule of the target can name."""
MAX_CLUSTER_BUCKETS = 32

DROP, RETURN = "DROP", "RETURN"
NO_BUCKETS = BucketSet()
_PORT_PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_ICMP = 1
_ICMP_TYPES = (3, 8, 11, 12)
"""Echo requests and errors are let in whatever the open ports are."""
_LEGACY_MODES = tuple(HashMode)
_ANY_INTERFACE = bytes(16)
_ANYWHERE = IPv4Network("0.0.0.0/0")
_SCTP_FLAGS_AT = 4 + 4 + 256 + 4 + 12 + 4


@dataclass(frozen=True, slots=True)
class Cluster:
    """The match xt_cluster. Nodes are its numbers less one, as in its mask: buckets."""

    total: int
    nodes: BucketSet
    seed: int


@dataclass(frozen=True, slots=True)
class Icmp:
    """The match on an ICMP type, with any code."""

    type: int


@dataclass(frozen=True, slots=True)
class Clusterip:
    """The target CLUSTERIP. `nodes` are its numbers less one when it begins; from then on procfs has them."""

    mac: str
    mode: HashMode
    total: int
    seed: int
    nodes: BucketSet


@dataclass(frozen=True, slots=True)
class Rule:
    """What a packet must be, and what becomes of it: a verdict, the name of a chain, or CLUSTERIP."""

    target: str | Clusterip
    destination: IPv4Address | None = None
    source: IPv4Network | None = None
    interface: str = ""
    match: Cluster | PortRange | Icmp | None = None
    comment: str = ""
    goto: bool = False


Chains = Mapping[str, tuple[Rule, ...]]
Nodes = Mapping[IPv4Address, BucketSet]
"""What procfs says: which buckets each address of the CLUSTERIP target has now."""


def chains(wanted: engine.Wanted) -> dict[str, tuple[Rule, ...]]:
    """All of the engine's chains; the first rule of the built-in one leads to `CHAIN`."""
    vips = [wanted.vips[ip] for ip in sorted(wanted.vips)]
    found = {CHAIN: tuple(_entrance(vip) for vip in vips), LOCAL: _local(wanted.local_sources)}
    for vip in vips:
        found |= vip_chains(vip)
    return found


def vip_chains(vip: Vip) -> dict[str, tuple[Rule, ...]]:
    """The two chains of one address: what may come in at all, and whose it is."""
    own = own_chain(vip.ip)
    if vip.ports is None:
        enter = [Rule(own, interface=vip.interface, goto=True)]
    else:
        allowed: list[PortRange | Icmp] = [*vip.ports, *(Icmp(kind) for kind in _ICMP_TYPES)]
        enter = [Rule(own, interface=vip.interface, match=match, goto=True) for match in allowed]
        enter.append(Rule(DROP, interface=vip.interface))
    return {vip_chain(vip.ip): (*enter, Rule(LOCAL, goto=True)), own: _own(vip)}


def vip_chain(ip: IPv4Address) -> str:
    """The name of an address's first chain."""
    return f"{CHAIN}-{int(ip):08x}"


def own_chain(ip: IPv4Address) -> str:
    """The name of the chain that keeps what is owned and drops the rest."""
    return f"{vip_chain(ip)}-own"


def is_ours(chain: str) -> bool:
    """Whether a chain is of this engine, whatever its version."""
    return chain == CHAIN or chain.startswith(f"{CHAIN}-")


def uses_target(vip: Vip) -> bool:
    """Whether the CLUSTERIP target does it. Owning nothing is a plain DROP, as it takes no empty list."""
    return vip.hash.function is HashFunction.LEGACY_CLUSTERIP and bool(vip.owned)


def legacy_target(vip: Vip) -> Clusterip:
    """The target of an address that `uses_target`."""
    return Clusterip(vip.mac, vip.hash.mode, vip.hash.buckets, vip.hash.seed, vip.owned)


def _own(vip: Vip) -> tuple[Rule, ...]:
    if not vip.owned:
        return (Rule(DROP),)
    if uses_target(vip):
        # The target drops what is not owned and lets the rest go on. It demands address and interface.
        return (Rule(legacy_target(vip), destination=vip.ip, interface=vip.interface), Rule(RETURN))
    return (Rule(RETURN, match=Cluster(vip.hash.buckets, vip.owned, vip.hash.seed)), Rule(DROP))


def _entrance(vip: Vip) -> Rule:
    wanted = vip.hash
    words = (wanted.function, wanted.mode, wanted.seed, wanted.buckets, wanted.prefix_length, vip.mac)
    comment = " ".join((FORMAT, *map(str, words)))
    return Rule(vip_chain(vip.ip), destination=vip.ip, comment=comment, goto=True)


def _local(sources: Iterable[IPv4Network]) -> tuple[Rule, ...]:
    """Packets from elsewhere than the address's own interface."""
    return (
        Rule(RETURN, interface="lo"),
        *(Rule(RETURN, source=source if source.prefixlen else None) for source in sorted(sources)),
        Rule(DROP),
    )


def count(found: entries.Chains) -> dict[str, int]:
    """How many packets met each end, by the names that the counters of nftables have."""
    ends = dict.fromkeys(("kept", "foreign", "closed_port", "other_interface"), 0)
    for name, chain in found.items():
        if not is_ours(name):
            continue
        if name.endswith("-own"):
            kept = sum(entry.packets for entry in chain if entry.verdict == RETURN)
            ends["kept"] += kept
            # What the CLUSTERIP target drops it drops unseen: what it got and did not let go on.
            through = sum(entry.packets for entry in chain if entry.target.name == "CLUSTERIP")
            ends["foreign"] += max(0, through - kept) if through else 0
        dropped = sum(entry.packets for entry in chain if entry.verdict == DROP)
        own = "foreign" if name.endswith("-own") else "closed_port"
        ends["other_interface" if name == LOCAL else own] += dropped
    return ends


def decode(found: entries.Chains) -> dict[str, tuple[Rule, ...]]:
    """Our chains of a table. A rule that this engine never writes becomes one that is equal to none."""
    return {name: tuple(map(_decode, chain)) for name, chain in found.items() if is_ours(name)}


def is_entered(found: entries.Chains) -> bool:
    """Whether the first thing that happens to a packet in this table is our chain."""
    first = found[""][:1]
    return bool(first) and first[0].verdict == CHAIN and not any(first[0].selector) and not first[0].matches


def is_led_to(found: entries.Chains) -> bool:
    """Whether each packet that comes in gets to our chain, unless somebody's rule ends its way before."""
    for entry in found[""]:  # those of PREROUTING come first, and its policy ends them at the latest
        plain = not any(entry.selector) and not entry.matches
        if plain and entry.verdict in {CHAIN, DROP, RETURN, "ACCEPT"}:
            return entry.verdict == CHAIN
    return False


def understand(found: Chains, nodes: Nodes) -> engine.Wanted:
    """What the chains hold; an address that is there in part, or otherwise than this engine writes it, is left out."""
    vips = {}
    for rule in found.get(CHAIN, ()):
        vip = _understand(rule, found, nodes)
        if vip and _entrance(vip) == rule and _is_complete(vip, found):
            vips[vip.ip] = vip
    sources = (rule for rule in found.get(LOCAL, ()) if rule.target == RETURN and not rule.interface)
    return engine.Wanted(vips, frozenset(rule.source or _ANYWHERE for rule in sources))


def is_held(wanted: engine.Wanted, found: Chains, nodes: Nodes) -> bool:
    """Whether the chains are just what `wanted` comes to."""
    goal = chains(wanted)
    targets = [vip for vip in wanted.vips.values() if uses_target(vip)]
    return (
        found.keys() == goal.keys()
        and all(is_same(found[name], chain) for name, chain in goal.items())
        and all(nodes.get(vip.ip) == vip.owned for vip in targets)
    )


def is_same(former: tuple[Rule, ...], chain: tuple[Rule, ...]) -> bool:
    """Whether nothing but the nodes of a CLUSTERIP target differs, which procfs can change."""
    return [*map(without_nodes, former)] == [*map(without_nodes, chain)]


def without_nodes(rule: Rule) -> Rule:
    """A rule as it stays while only the nodes of its CLUSTERIP target change."""
    if not isinstance(rule.target, Clusterip):
        return rule
    return replace(rule, target=replace(rule.target, nodes=NO_BUCKETS))


def _is_complete(vip: Vip, found: Chains) -> bool:
    return all(is_same(found.get(name, ()), chain) for name, chain in vip_chains(vip).items())


def _understand(rule: Rule, found: Chains, nodes: Nodes) -> Vip | None:
    ip = rule.destination
    words = rule.comment.split(" ")
    if ip is None or " ".join(words[:2]) != FORMAT or len(words) != 8:
        return None
    enter, own = found.get(vip_chain(ip), ()), found.get(own_chain(ip), ())
    if len(enter) < 2 or not own:
        return None
    try:
        function, mode = HashFunction(words[2]), HashMode(words[3])
        seed, buckets, prefix_length = (int(word) for word in words[4:7])
        mac = parse_mac(words[7])
    except ValueError:
        return None
    ports = tuple(r.match for r in enter if isinstance(r.match, PortRange)) if len(enter) > 2 else None
    owned = BucketSet()
    if isinstance(own[0].target, Clusterip):
        owned = nodes.get(ip, owned)
    elif isinstance(own[0].match, Cluster):
        owned = own[0].match.nodes
    hashed = HashParameters(function, mode, seed, buckets, prefix_length)
    return Vip(ip, enter[0].interface, mac, hashed, ports, owned)


_UNKNOWN = Rule("?")


def _decode(entry: Entry) -> Rule:
    try:
        return _decoded(entry)
    except (ValueError, struct.error):
        return _UNKNOWN


def _decoded(entry: Entry) -> Rule:
    source, destination, source_mask, mask = struct.unpack_from(">IIII", entry.selector)
    interface, out, in_mask, out_mask = (entry.selector[at : at + 16] for at in range(16, 80, 16))
    protocol, flags, inverted = struct.unpack_from("<HBB", entry.selector, 80)
    name = interface.split(b"\0")[0]
    whole = name.ljust(16, b"\0")
    covered = (b"\xff" * (len(name) + 1)).ljust(16, b"\0") if name else _ANY_INTERFACE
    plain = (
        interface == whole
        and in_mask == covered
        and not any(out + out_mask)
        and not inverted
        and not flags & ~GOTO
        and mask in {0, 0xFFFFFFFF}
    )
    target = entry.verdict if entry.verdict is not None else _decode_target(entry.target)
    comments = [m for m in entry.matches if m.name == "comment"]
    others = [m for m in entry.matches if m.name != "comment"]
    match = _decode_match(others[0], protocol) if others else None
    known = plain and target is not None and len(comments) <= 1 and len(others) <= 1
    if not known or target is None or (others and match is None) or (protocol and not others):
        return _UNKNOWN
    network = IPv4Network((source, source_mask.bit_count())) if source_mask else None
    if network and int(network.netmask) != source_mask:
        return _UNKNOWN
    return Rule(
        target=target,
        destination=IPv4Address(destination) if mask else None,
        source=network,
        interface=name.decode("ascii"),
        match=match,
        comment=comments[0].data.split(b"\0")[0].decode("ascii") if comments else "",
        goto=bool(flags & GOTO),
    )


def _decode_match(match: Extension, protocol: int) -> Cluster | PortRange | Icmp | None:
    """None for what this engine does not write."""
    if match.name == "cluster" and not protocol:
        total, mask, seed, flags = struct.unpack_from("<IIII", match.data)
        nodes = BucketSet(bit for bit in range(32) if mask >> bit & 1)
        return None if flags else Cluster(total, nodes, seed)
    if match.name == "icmp" and protocol == _ICMP:
        kind, low, high, inverted = struct.unpack_from("<BBBB", match.data)
        return Icmp(kind) if (low, high, inverted) == (0, 255, 0) else None
    for name, number in _PORT_PROTOCOLS.items():
        if match.name == name.lower() and protocol == number:
            ports = _decode_ports(name, match.data)
            return PortRange(name, *ports) if ports else None
    return None


def _decode_ports(protocol: Protocol, data: bytes) -> tuple[int, int] | None:
    """The destination ports, where nothing else is looked at."""
    if protocol is Protocol.SCTP:
        # struct xt_sctp_info: dpts, spts, chunkmap, chunk_match_type, flag_info, flag_count, flags, invflags
        first, last = struct.unpack_from("<HH", data)
        flags, inverted = struct.unpack_from("<II", data, _SCTP_FLAGS_AT)
        return (first, last) if (flags, inverted) == (2, 0) else None
    low, high, first, last = struct.unpack_from("<HHHH", data)
    return (first, last) if (low, high) == (0, 0xFFFF) and not any(data[8:]) else None


def _decode_target(target: Extension) -> Clusterip | None:
    """struct ipt_clusterip_tgt_info, as far as it is the caller's."""
    if target.name != "CLUSTERIP":
        return None
    flags, mac, total, count = struct.unpack_from("<I6sHH", target.data)
    nodes = struct.unpack_from("<16H", target.data, 14)[:count]
    mode, seed = struct.unpack_from("<II", target.data, 48)
    if mode >= len(_LEGACY_MODES) or not flags & 1 or 0 in nodes:
        return None
    numbers = BucketSet(node - 1 for node in nodes)
    return Clusterip(mac.hex(":"), _LEGACY_MODES[mode], total, seed, numbers)
