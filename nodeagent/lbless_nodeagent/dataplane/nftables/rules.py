"""The rule texts: the three tables, the chains of a group, the chain of an interface. Pure.

Only structure is written here; what differs between addresses are set elements, which are
`elements`' and `transactions`'. Expressions are parenthesised as libnftables 1.0.6 can take it: some
other ways of writing the same abort the process in an assertion.
"""

from dataclasses import dataclass
from itertools import chain

from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.nftables import lease
from lbless_nodeagent.dataplane.nftables.names import (
    LOCAL_SOURCES,
    MACS,
    PORT_RANGES,
    PORTS,
    SEAL,
    SHARED,
    SOURCE_MACS,
    TABLE,
    VIPS,
    Family,
    egress_chain,
    entry_chain,
    group_name,
    owned_set,
)

_FORMAT = "lbless nftables 3"
"""Raise the number with any change of a text below: then a new version replaces what it finds instead of
adopting it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tables are built on this node. `conntrack`: connection tracking has fragments reassembled.
    `lease`: nothing is kept on an interface without one."""

    conntrack: bool = True
    lease: bool = False

    @property
    def comment(self) -> str:
        """The comment of each table: one of another layout is replaced, like that of another version."""
        return f"{_FORMAT}{' conntrack' if self.conntrack else ''}{' lease' if self.lease else ''}"


REASSEMBLY = {True: "ct state invalid drop", False: "meta l4proto tcp tproxy to :1"}
"""What makes the kernel reassemble fragments, by `Layout.conntrack`, though no packet comes there: an
expression anywhere in the table whose module asks for it. Without one every second fragment would be hashed
by garbage. `ct` also has each packet of the node tracked, which costs as much as all else that is done with
it; `tproxy` (CONFIG_NFT_TPROXY) has not."""

_ICMP_ERRORS = "{ destination-unreachable, time-exceeded, parameter-problem }"
_ERROR_CLIENT = "@th,192,32"
_EMBEDDED_WITH_PORTS = "{ 6, 17, 33, 132, 136 }"
_FOREIGN = "counter name foreign drop"
_TO_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "esp")

# Each table has a set `seal` with one element, 128 bits written as an IPv6 address: the digest of the
# structure as the kernel gave it back (see `readback`). A table whose seal is not right was left half
# built or was changed by somebody else.
_HEAD = f""" set {SEAL} {{ type ipv6_addr; }}"""

_IP = f"""{_HEAD}
 set {SHARED} {{ type ipv4_addr; }}
 map {VIPS} {{ type ifname . ipv4_addr : verdict; }}
 set {PORTS} {{ type ipv4_addr . inet_proto . inet_service; }}
 set {PORT_RANGES} {{ type ipv4_addr . inet_proto . inet_service; flags interval; }}
 set {LOCAL_SOURCES} {{ type ipv4_addr; flags interval; }}
 counter kept {{ }}
 counter foreign {{ }}
 counter closed_port {{ }}
 counter other_interface {{ }}
 chain keep {{
  meta pkttype set host counter name kept accept
 }}
 chain to_shared {{
  iifname . ip daddr vmap @{VIPS}
  iifname "lo" accept
  ip saddr @{LOCAL_SOURCES} accept
  counter name other_interface drop
 }}
 chain prerouting {{ type filter hook prerouting priority -350; policy accept;
  ip daddr @{SHARED} goto to_shared
 }}"""
# keep: a packet in a multicast frame has to become one for this host, or TCP and forwarding discard it.
# prerouting: after defragmentation (-400), so that a datagram is hashed whole, and before conntrack
# (-200), so that what is dropped here leaves no entry there. What is moving between nodes is to pass a
# second stage at -190.

_ARP = f"""{_HEAD}
 set {SHARED} {{ type ipv4_addr; }}
 set {VIPS} {{ type ifname . ipv4_addr; }}
 counter other_interface {{ }}
 chain input {{ type filter hook input priority 0; policy accept;
  arp operation request arp daddr ip @{SHARED} iifname . arp daddr ip != @{VIPS} counter name other_interface drop
 }}"""
# The kernel would answer for any of its addresses on every interface, with that one's own MAC.

_NETDEV = f"""{_HEAD}
 map {MACS} {{ type ipv4_addr : ether_addr; }}
 map {SOURCE_MACS} {{ type ipv4_addr : ether_addr; }}"""

_TABLES = {Family.IP: _IP, Family.ARP: _ARP, Family.NETDEV: _NETDEV}


def table(family: Family, layout: Layout) -> str:
    """Replace whatever table of ours there is by an empty one; `add` first, as `delete` needs one."""
    name = f"{family} {TABLE}"
    reassembly = (
        f" chain reassemble {{\n  {REASSEMBLY[layout.conntrack]}\n }}\n" if family is Family.IP else ""
    )
    body = f'comment "{layout.comment}";\n{_TABLES[family]}\n{reassembly}'
    text = f"add table {name}\ndelete table {name}\ntable {name} {{ {body}}}\n"
    if layout.lease and family is Family.IP:
        # All that is kept on the segment comes through there, and last: what is foreign pays nothing for it.
        text += f"{lease.structure(TABLE)}insert rule {name} keep {lease.UNLEASED}\n"
    return text


def add_egress(interface: str) -> str:
    """What leaves the interface from a shared address, whoever made the frame, names the cluster.

    ARP says the cluster's MAC, in replies and requests alike: a request teaches its receivers just as well.
    Its frame comes from the node's own, always: nobody looks at that, and each node answers each request.
    The frames of IPv4 come from the MAC in the map, where there is one for the address.
    """
    return f"""table {Family.NETDEV} {TABLE} {{
 chain {egress_chain(interface)} {{ type filter hook egress device "{interface}" priority 0; policy accept;
  ether type arp arp saddr ether set arp saddr ip map @{MACS}
  ether type ip ether saddr set ip saddr map @{SOURCE_MACS}
 }}
}}
"""


def remove_egress(interface: str) -> str:
    """Take an interface's chain away."""
    return f"delete chain {Family.NETDEV} {TABLE} {egress_chain(interface)}\n"


def add_group(group: HashParameters) -> str:
    """The set and the chains of a group, which serve any number of addresses."""
    chains = "\n".join(f" chain {name} {{\n  {body}\n }}" for name, body in _group_chains(group).items())
    owned = f" set {owned_set(group)} {{ typeof ip daddr . numgen inc mod {group.buckets}; }}"
    # The key's second part is typed as numgen and not as jhash: listing a set of the latter kills nft 1.0.6.
    return f"table {Family.IP} {TABLE} {{\n{owned}\n{chains}\n}}\n"


def remove_group(group: HashParameters) -> str:
    """Take a group's chains and set away; nothing in `vips` may lead there any more."""
    chains = [f"{Family.IP} {TABLE} {name}" for name in _group_chains(group)]
    emptied = "".join(f"flush chain {chain}\n" for chain in chains)  # they refer to each other
    deleted = "".join(f"delete chain {chain}\n" for chain in chains)
    return f"{emptied}{deleted}delete set {Family.IP} {TABLE} {owned_set(group)}\n"


def _group_chains(group: HashParameters) -> dict[str, str]:
    """Name and rules of each chain of a group, each before those that lead to it."""
    name = group_name(group)
    portless = (group.seed + 4 * (group.mode.words - 1)) & 0xFFFFFFFF
    # A port that is absent counts as a zero word. jhash starts from seed + length, so that leaving the
    # word out and adding its 4 bytes to the seed is the same.
    to_ports = ", ".join(f"{protocol} : goto {name}_l4" for protocol in _TO_PORTS)
    return {
        f"{name}_l4": _hashed(group, "ip saddr", ("th sport", "th dport"), group.seed),
        # AH's SPI follows 4 bytes of header; ESP's stands where others have their ports.
        f"{name}_ah": _hashed(group, "ip saddr", ("@th,32,16", "@th,48,16"), group.seed),
        f"{name}_portless": _hashed(group, "ip saddr", (), portless),
        **_errors(group, portless),
        f"{name}_icmp": f"icmp type != {_ICMP_ERRORS} goto {name}_portless\n  goto {name}_error",
        name: "\n  ".join(
            (
                f"meta l4proto vmap {{ {to_ports}, ah : goto {name}_ah, icmp : goto {name}_icmp }}",
                f"goto {name}_portless",
            )
        ),
        entry_chain(group, with_ports=True): "\n  ".join(
            (
                f"ip daddr . meta l4proto . th dport @{PORTS} goto {name}",
                # A set with ranges costs milliseconds to change when it is big, so it holds ranges only.
                f"ip daddr . meta l4proto . th dport @{PORT_RANGES} goto {name}",
                f"icmp type {{ echo-request, {_ICMP_ERRORS[2:-2]} }} goto {name}",
                "counter name closed_port drop",
            )
        ),
    }


def _errors(group: HashParameters, portless: int) -> dict[str, str]:
    """Chains for ICMP errors. One belongs to the flow of the packet in it, which this cluster sent: its
    destination is the client. Offsets are from the ICMP header, which has 8 bytes."""
    name = f"{group_name(group)}_error"
    if group.mode is HashMode.SOURCE_IP:
        return {name: _hashed(group, _ERROR_CLIENT, (), portless)}
    # Between 6 and 15 words: the header has options, and the ports are behind them.
    options = (
        _kept(group, _ERROR_CLIENT, _embedded_ports(words), group.seed, f"@th,64,8 {0x40 | words} ")
        for words in range(6, 16)
    )
    return {
        f"{name}_portless": _hashed(group, _ERROR_CLIENT, (), portless),
        f"{name}_options": "\n  ".join((*chain.from_iterable(options), _FOREIGN)),
        f"{name}_l4": _hashed(group, _ERROR_CLIENT, _embedded_ports(5), group.seed),
        name: "\n  ".join(
            (
                f"@th,136,8 != {_EMBEDDED_WITH_PORTS} goto {name}_portless",
                f"@th,64,8 0x45 goto {name}_l4",
                f"goto {name}_options",
            )
        ),
    }


def _hashed(group: HashParameters, client: str, ports: tuple[str, ...], seed: int) -> str:
    """Rules that keep a packet if its bucket is owned, and drop any other; see `_kept`."""
    return "\n  ".join((*_kept(group, client, ports, seed), _FOREIGN))


def _kept(
    group: HashParameters, client: str, ports: tuple[str, ...], seed: int, condition: str = ""
) -> list[str]:
    """Rules that keep a packet if `condition` holds and its bucket is owned: `client` is where its address
    is found, and `ports` where both ports are, or empty."""
    counted = {HashMode.SOURCE_IP: 0, HashMode.SOURCE_IP_SOURCE_PORT: 1}.get(group.mode, 2)
    rest = f"mod {group.buckets} seed {seed} @{owned_set(group)} goto keep"  # without seed: a random one
    rules = []
    for half, address in _client_words(group, client):
        words = " . ".join((address, *ports[:counted]))
        rules.append(f"{condition}{half}ip daddr . jhash {words} {rest}")
    return rules


def _embedded_ports(words: int) -> tuple[str, str]:
    """Where the client's and the cluster's port are in an ICMP error, if the IP header of the packet in it
    has so many words of 4 bytes: more than 5 if it has options."""
    at = 64 + 32 * words
    return f"@th,{at + 16},16", f"@th,{at},16"


def _client_words(group: HashParameters, client: str) -> list[tuple[str, str]]:
    """The client's address as the function takes it, as pairs of a condition and an expression.

    LegacyClusterIP takes it in host order. nft converts an operand that is shifted, and has no other way
    to say so; the top bit, which shifting left and right again loses, is given back in the upper half.
    """
    masked = client
    if group.prefix_length < 32:
        masked = f"({client} & {0xFFFFFFFF << (32 - group.prefix_length) & 0xFFFFFFFF:#010x})"
    if group.function is HashFunction.JHASH:
        return [("", masked)]
    half = f"(({masked} << 1) >> 1)"
    return [
        (f"{client} < 0x80000000 ", half),
        (f"{client} >= 0x80000000 ", f"({half} | 0x80000000)"),
    ]
