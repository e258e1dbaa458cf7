"""The rule texts for buckets on their way between two living owners. Pure.

A packet that no owned bucket keeps is dropped, unless something of its address moves: then its bucket's state
decides (`dataplane.moving`), and what is kept passes a second stage behind conntrack, where its flow decides. An
address at rest costs a lookup in a small set: for each packet dropped, and for each that passes the second stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbless_api.clusterip import HashParameters
from lbless_nodeagent.dataplane.ladder import GROUP
from lbless_nodeagent.dataplane.nftables import lease
from lbless_nodeagent.dataplane.nftables.keys import ANSWER, PORTED, Fields, keys
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.names import (
    ANSWERS,
    CLOSED,
    JUDGED,
    LEASE,
    LOCAL_SOURCES,
    MOVING,
    OPENED,
    REFUSED,
    TOKENS,
    WAITING,
    Role,
    answers_chain,
    bucket_set,
    group_name,
    judged_chain,
    opening_map,
    redirect_map,
)
from lbless_nodeagent.dataplane.opening import PORT, TOKEN_BYTES

ICMP_ERRORS = "{ destination-unreachable, time-exceeded, parameter-problem }"
FOREIGN = "counter name foreign drop"
_OPENS = "tcp flags & (fin | syn | rst | ack) == syn"
_OPENS_NOT = "tcp flags & (fin | syn | rst | ack) != syn"

MOST_MOVING = 16_384
"""Addresses of which something moves at a time. With a size, which takes 256 KiB, the kernel looks twice as quickly."""

_DATAGRAM = "ip saddr . ip daddr . @th,0,64"
"""What tells datagrams from each other: with UDP ports, length and checksum; with ICMP checksum and sequence."""
_MOST_REFUSED = 65_536
_REFUSED_FOR = "500ms"

_TOKEN = f"@th,64,{8 * (4 + TOKEN_BYTES)}"
"""The payload of a datagram that opens buckets: an address, and the token."""
_SAID, _ASKED = "@th,64,32 . meta mark", "@nh,128,32 . meta mark"
"""The address and the token's mark: of the datagram, and of a packet that has got the mark of its bucket's token."""
_MOST_NOTED = 65_536
_OPENED_FOR = "1m"
"""By then the new owner's processes have mostly heard of it as well. Where they have not, as another node cannot follow
the epoch, the buckets wait again."""
_CLOSED_FOR = "1h"
"""Until the former owner's process has written what it has given up: mostly some milliseconds, and longer where the
kernel refuses that."""
CLOSING = "closing"

STRUCTURE = f""" set {MOVING} {{ type ipv4_addr; size {MOST_MOVING}; }}
 set {REFUSED} {{ typeof {_DATAGRAM}; size {_MOST_REFUSED}; flags dynamic,timeout; timeout {_REFUSED_FOR}; }}
 map {JUDGED} {{ type ipv4_addr : verdict; }}
 map {ANSWERS} {{ type ipv4_addr : verdict; }}
 counter sent_on {{ }}
 counter taken_in {{ }}
 counter other_flow {{ }}
 counter untracked {{ }}
 counter unanswered {{ }}
 counter opened {{ }}
 counter closed {{ }}
 chain standby {{
  {_OPENS_NOT} goto keep
  meta pkttype host delete @{REFUSED} {{ {_DATAGRAM} }}
  meta pkttype host counter name taken_in goto keep
  meta l4proto != tcp update @{REFUSED} {{ {_DATAGRAM} }}
  {FOREIGN}
 }}
 chain fresh {{
  meta l4proto tcp goto keep
  {_DATAGRAM} @{REFUSED} goto fresh_refused
  meta pkttype != host goto keep
  {FOREIGN}
 }}
 chain fresh_refused {{
  delete @{REFUSED} {{ {_DATAGRAM} }}
  meta pkttype host counter name taken_in
  goto keep
 }}
 chain judge {{
  ct state established,related accept
  ct state untracked counter name untracked accept
  {_OPENS} accept
  counter name other_flow drop
 }}
 chain judge_shared {{
  iifname "lo" accept
  ip saddr @{LOCAL_SOURCES} accept
  ip daddr vmap @{JUDGED}
 }}
 chain judging {{ type filter hook prerouting priority -190; policy accept;
  ip daddr @{MOVING} goto judge_shared
 }}
 chain answer {{
  oifname "lo" accept
  ip daddr @{LOCAL_SOURCES} accept
  ip saddr vmap @{ANSWERS}
 }}
 chain answering {{ type filter hook postrouting priority 300; policy accept;
  tcp flags & (syn | ack) == (syn | ack) ip saddr @{MOVING} goto answer
 }}"""
# standby, fresh: a flow opens on one node only, since a frame is either multicast or for one host. A datagram whose
# multicast frame came in standby and is refused may be sent on by the former owner and come when the bucket is fresh:
# then that copy is taken. If another one that is equal to it comes in a multicast frame first, it is forgotten.
# judge: what is not tracked (NOTRACK) cannot be told by its flow, and dropping it would end it. A SYN was sorted
# by the first stage. A mid-flow packet of another node's flow leaves no conntrack entry when it is dropped.
# judging: behind conntrack (-200). Only what clients sent: what this host or its pods send there is theirs, whatever
# its bucket. Neither map of verdicts has interfaces, so that one that is renamed changes nothing of them.
# answering: behind source translation (100), so that the answer comes from the shared address again. Half open
# where the bucket was: were it answered from there, too, when its SYN comes again, the client would see two flows.

TAKES_TOKENS = f"ip daddr {GROUP} udp dport {PORT} meta mark 0 goto open"
"""Takes a token, in the chain of prerouting."""

NEEDS_LEASE = f"oifname != @{LEASE} drop"
"""In `CLOSING`: only who has a lease opens anything. Without one the buckets may have had another owner meanwhile."""


def opening(layout: Layout) -> str:
    """Sets and chains for the datagrams that open buckets, of which this node receives some and sends others."""
    noted = f"typeof {_SAID}; size {_MOST_NOTED}; flags dynamic,timeout"
    waits = f"add @{WAITING} {{ {_SAID} timeout {layout.guard_ms}ms }}"
    closes = f"update @{CLOSED} {{ {_SAID} }} counter name closed"
    opens = f"update @{OPENED} {{ {_SAID} }} counter name opened"
    tokens = f"map {TOKENS} {{ typeof {_TOKEN} : meta mark; }}"
    return f""" {tokens}
 set {OPENED} {{ {noted}; timeout {_OPENED_FOR}; }}
 set {WAITING} {{ {noted}; timeout {_OPENED_FOR}; }}
 set {CLOSED} {{ {noted}; timeout {_CLOSED_FOR}; }}
 chain by_token {{
  meta mark set 0
  goto fresh
 }}
 chain open {{
  meta mark set {_TOKEN} map @{TOKENS}
  meta mark 0 accept
  {_SAID} @{OPENED} drop
  {waits} {opens} drop
  drop
 }}
 chain {CLOSING} {{
  meta mark != 0 drop
  meta mark set {_TOKEN} map @{TOKENS}
  meta mark 0 drop
  {closes} meta mark set 0 accept
  drop
 }}
 chain closes {{ type filter hook output priority -2147483648; policy accept;
  ip daddr {GROUP} udp dport {PORT} goto {CLOSING}
 }}"""


# open: a datagram with another token, or none, is nothing of ours. A mark that is not in the map is 0, and never opens.
# One that comes again makes nothing wait again. What was kept by the former owner just before may come here after the
# token, by another receive queue: so it waits.
# closing: what is not closed here opens nothing elsewhere.


def chains(
    group: HashParameters, layout: Layout, requests: Mapping[str, Fields], errors: Mapping[str, Fields]
) -> dict[str, str]:
    """Name and rules of each chain of a group for what moves, each before those that lead to it.

    `requests` and `errors` are the chains that come before, where no bucket that is owned was found, and where
    each finds what is hashed.
    """
    found = {}
    for name, fields in requests.items():
        found[f"{name}_given_up"] = _given_up(group, layout, fields)
        found[f"{name}_drain"] = _drain(group, fields, f"{name}_given_up")
        found[f"{name}_standby"] = _standby(group, fields)
        found[moving_chain(name)] = _by_state(group, fields, ("fresh", f"{name}_drain", f"{name}_standby"))
    for name, fields in errors.items():  # to whose flow each belongs is told by the second stage
        found[moving_chain(name)] = _by_state(group, fields, ("keep", "keep", "keep"))
    judged_ported = f"{group_name(group)}_judged_l4"
    owned, leaving = bucket_set(group, Role.OWNED), bucket_set(group, Role.LEAVING)
    return {
        **found,
        judged_ported: _lines(
            *(f"{half}{key} @{owned} accept" for half, key in keys(group, PORTED)), "goto judge"
        ),
        # Datagrams and echo requests have no flow to be told by: the first stage has decided.
        judged_chain(group): _lines(
            f"meta l4proto tcp goto {judged_ported}", f"icmp type {ICMP_ERRORS} goto judge", "accept"
        ),
        answers_chain(group): _lines(
            *(f"{half}{key} @{leaving} counter name unanswered drop" for half, key in keys(group, ANSWER))
        ),
    }


def moving_chain(leaf: str) -> str:
    """Where the chain `leaf` sends what it does not keep, while something of the address moves."""
    return f"{leaf}_moving"


def _by_state(group: HashParameters, fields: Fields, chains: tuple[str, str, str]) -> str:
    """Rules that lead to one of `chains` by the state of the bucket: fresh, drain, standby."""
    return _lines(
        *(
            f"{half}{key} @{bucket_set(group, role)} goto {chain}"
            for role, chain in zip((Role.FRESH, Role.DRAIN, Role.STANDBY), chains, strict=True)
            for half, key in keys(group, fields)
        ),
        FOREIGN,
    )


def _standby(group: HashParameters, fields: Fields) -> str:
    """Rules for a request in standby: as in fresh from some milliseconds after the token has come."""
    return _by_token(group, fields, f"{_ASKED} @{OPENED} {_ASKED} != @{WAITING}", "standby")


def _drain(group: HashParameters, fields: Fields, given_up: str) -> str:
    """Rules for a request in a bucket that drains: as in fresh until the token has left."""
    return _by_token(group, fields, f"meta mark != 0 {_ASKED} != @{CLOSED}", given_up)


def _by_token(group: HashParameters, fields: Fields, condition: str, otherwise: str) -> str:
    """Rules that lead to fresh by the mark of the bucket's token, where it has one, or else to a chain. No packet
    keeps that mark; one that had another before waits until this node's processes know."""
    return _lines(
        f"meta mark != 0 goto {otherwise}",
        *(f"{half}meta mark set {key} map @{opening_map(group)}" for half, key in keys(group, fields)),
        f"{condition} goto by_token",
        "meta mark set 0",
        f"goto {otherwise}",
    )


def _given_up(group: HashParameters, layout: Layout, fields: Fields) -> str:
    """Rules for a request in a bucket that was given up: kept, if TCP and no SYN; sent on or dropped otherwise."""
    kept = [f"{_OPENS_NOT} goto keep"] if fields is PORTED else []
    sent = []
    if layout.redirect:
        # Who has no lease is dead to others: the bucket may have an owner that needs no second copy.
        sent = [lease.UNLEASED] if layout.lease else []
        # Where no node is named the lookup fails, and with it the rule.
        sent += [
            f"{half}dup to {key} map @{redirect_map(group)} counter name sent_on drop"
            for half, key in keys(group, fields)
        ]
    return _lines(*kept, *sent, FOREIGN)


def _lines(*rules: str) -> str:
    return "\n  ".join(rules)
