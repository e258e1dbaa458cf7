"""The rule texts: the three tables, the chains of a group, the chain of an interface. Pure.

Only structure is written here; what differs between addresses are set elements, which are
`footprint`'s and `transactions`'. What concerns buckets between two owners is `movingrules`'.
"""

from itertools import chain

from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashMode
from lbless_nodeagent.dataplane.nftables import lease, movingrules
from lbless_nodeagent.dataplane.nftables.keys import (
    AH,
    ERROR_PORTLESS,
    PORTED,
    PORTLESS,
    Fields,
    error_with_ports,
    keys,
)
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.movingrules import FOREIGN, ICMP_ERRORS
from lbless_nodeagent.dataplane.nftables.names import (
    LOCAL_SOURCES,
    MACS,
    MOVING,
    PORT_RANGES,
    PORTS,
    SEAL,
    SHARED,
    SOURCE_MACS,
    TABLE,
    VIPS,
    Family,
    Role,
    bucket_set,
    egress_chain,
    entry_chain,
    group_name,
    opening_map,
    redirect_map,
)

_EMBEDDED_WITH_PORTS = "{ 6, 17, 33, 132, 136 }"
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
{movingrules.STRUCTURE}
 chain to_shared {{
  iifname . ip daddr vmap @{VIPS}
  iifname "lo" accept
  ip saddr @{LOCAL_SOURCES} accept
  counter name other_interface drop
 }}
 chain prerouting {{ type filter hook prerouting priority -350; policy accept;
  ip daddr @{SHARED} goto to_shared
  {movingrules.TAKES_TOKENS}
 }}"""
# keep: a packet in a multicast frame has to become one for this host, or TCP and forwarding discard it.
# prerouting: after defragmentation (-400), so that a datagram is hashed whole, and before conntrack
# (-200), so that what is dropped here leaves no entry there. What is moving between nodes passes a second
# stage behind it, whose rules also have the kernel reassemble fragments: without any expression that asks for
# that, every second one would be hashed by garbage.

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
    body = f'comment "{layout.comment}";\n{_TABLES[family]}\n'
    if family is Family.IP:
        body += f"{movingrules.opening(layout)}\n"
    text = f"add table {name}\ndelete table {name}\ntable {name} {{ {body}}}\n"
    if layout.lease and family is Family.IP:
        # All that is kept on the segment comes through there, and last: what is foreign pays nothing for it.
        text += f"{lease.structure(TABLE)}insert rule {name} keep {lease.UNLEASED}\n"
        text += f"insert rule {name} {movingrules.CLOSING} {movingrules.NEEDS_LEASE}\n"
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


def add_group(group: HashParameters, layout: Layout) -> str:
    """The sets and the chains of a group, which serve any number of addresses."""
    chains = "\n".join(f" chain {name} {{\n  {body}\n }}" for name, body in _chains(group, layout).items())
    # The key's second part is typed as numgen and not as jhash: listing a set of the latter kills nft 1.0.6.
    key = f"typeof ip daddr . numgen inc mod {group.buckets}"
    sets = "".join(f" set {bucket_set(group, role)} {{ {key}; }}\n" for role in Role)
    redirect = f" map {redirect_map(group)} {{ {key} : ip daddr; }}\n"
    opening = f" map {opening_map(group)} {{ {key} : meta mark; }}\n"
    return f"table {Family.IP} {TABLE} {{\n{sets}{redirect}{opening}{chains}\n}}\n"


def remove_group(group: HashParameters) -> str:
    """Take a group's chains and sets away; no map may lead there any more."""
    where = f"{Family.IP} {TABLE}"
    chains = list(_chains(group, Layout()))  # of the same names in every layout
    emptied = "".join(f"flush chain {where} {chain}\n" for chain in chains)  # they refer to each other
    deleted = "".join(f"delete chain {where} {chain}\n" for chain in chains)
    sets = "".join(f"delete set {where} {bucket_set(group, role)}\n" for role in Role)
    maps = "".join(f"delete map {where} {one}\n" for one in (redirect_map(group), opening_map(group)))
    return f"{emptied}{deleted}{sets}{maps}"


def _chains(group: HashParameters, layout: Layout) -> dict[str, str]:
    """Name and rules of each chain of a group, each before those that lead to it."""
    name = group_name(group)
    to_ports = ", ".join(f"{protocol} : goto {name}_l4" for protocol in _TO_PORTS)
    requests = {f"{name}_l4": PORTED, f"{name}_ah": AH, f"{name}_portless": PORTLESS}
    return {
        **movingrules.chains(group, layout, requests, _errors(group)),
        **{leaf: _leaf(group, leaf, fields) for leaf, fields in (requests | _errors(group)).items()},
        **_error_chains(group),
        f"{name}_icmp": f"icmp type != {ICMP_ERRORS} goto {name}_portless\n  goto {name}_error",
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
                f"icmp type {{ echo-request, {ICMP_ERRORS[2:-2]} }} goto {name}",
                "counter name closed_port drop",
            )
        ),
    }


def _errors(group: HashParameters) -> dict[str, Fields]:
    """The chains that keep ICMP errors by their buckets, and where these find what is hashed."""
    name = f"{group_name(group)}_error"
    if group.mode is HashMode.SOURCE_IP:
        return {name: ERROR_PORTLESS}
    return {f"{name}_portless": ERROR_PORTLESS, f"{name}_l4": error_with_ports(5)}


def _error_chains(group: HashParameters) -> dict[str, str]:
    """What leads to the chains of `_errors`, and the chain for errors whose packet's header has options."""
    name = f"{group_name(group)}_error"
    if group.mode is HashMode.SOURCE_IP:
        return {}
    # Between 6 and 15 words: the header has options, and the ports are behind them.
    options = (_kept(group, error_with_ports(words), f"@th,64,8 {0x40 | words} ") for words in range(6, 16))
    return {
        # While anything moves all of these are kept: the second stage tells by the flow whose they are.
        f"{name}_options": "\n  ".join(
            (*chain.from_iterable(options), f"ip daddr @{MOVING} goto keep", FOREIGN)
        ),
        name: "\n  ".join(
            (
                f"@th,136,8 != {_EMBEDDED_WITH_PORTS} goto {name}_portless",
                f"@th,64,8 0x45 goto {name}_l4",
                f"goto {name}_options",
            )
        ),
    }


def _leaf(group: HashParameters, name: str, fields: Fields) -> str:
    """Rules that keep a packet if its bucket is owned, and drop any other unless something moves."""
    moving = f"ip daddr @{MOVING} goto {movingrules.moving_chain(name)}"
    return "\n  ".join((*_kept(group, fields), moving, FOREIGN))


def _kept(group: HashParameters, fields: Fields, condition: str = "") -> list[str]:
    """Rules that keep a packet if `condition` holds and its bucket is owned."""
    owned = bucket_set(group, Role.OWNED)
    return [f"{condition}{half}{key} @{owned} goto keep" for half, key in keys(group, fields)]
