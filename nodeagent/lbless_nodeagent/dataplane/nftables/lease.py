"""The lease of each interface as rule texts: what needs it, and what renews it. Pure.

A packet is kept only while the interface that it came in by has a lease. It is renewed not by transactions but by
datagrams that this host sends on that interface (`ladder`): the output chain takes them. Whoever sends them is
the only one who writes the set. No transaction may: the lease could have been ended since it was read.
"""

from __future__ import annotations

from lbless_nodeagent.dataplane.ladder import END_PORT, GROUP, RUNGS_MS
from lbless_nodeagent.dataplane.nftables.names import LEASE, Family

UNLEASED = f"iifname != @{LEASE} counter name unleased drop"
"""Drops what comes in where no lease runs."""

_RUNGS = "\n".join(f"  udp dport {ms} update @{LEASE} {{ oifname timeout {ms}ms }} drop" for ms in RUNGS_MS)
_STRUCTURE = f"""
 set {LEASE} {{ type ifname; size 1024; flags dynamic,timeout; timeout {RUNGS_MS[0]}ms; }}
 counter unleased {{ }}
 chain renew {{
{_RUNGS}
  udp dport {END_PORT} delete @{LEASE} {{ oifname }} drop
 }}
 chain renewal {{ type filter hook output priority -2147483648; policy accept;
  ip daddr {GROUP} ip ttl 0 meta l4proto udp meta skuid 0 goto renew
 }}"""
# lease: the timeout is for what somebody else adds without one, which would never expire.
# renew: each rule drops only what has renewed, so that the sender is told EPERM of that and of nothing else.
# renewal: before any chain that could drop the datagram for another reason, which would look the same. The process
# has to be root's. Nothing that arrives from the network, or is forwarded, passes an output hook.


def structure(table: str) -> str:
    """The set, its counter and the chains that renew it, for a table of IPv4."""
    return f"table {Family.IP} {table} {{{_STRUCTURE}\n}}\n"
