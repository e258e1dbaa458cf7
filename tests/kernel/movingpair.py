"""Two nodes of a LAN that share an address, each with an engine and no dataplane: a test takes every step of a move."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address

from kernel.segment import entered
from lab.host import Host
from lab.lan import Lan
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import bucket
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

ENDING_SECONDS = 0.02
HANDSHAKE_SECONDS = 0.1
"""Longer than an answer takes to the client and back."""
OPEN = {"ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"}
"""States of conntrack in which a packet is still to come."""
LONGEST_GAP_SECONDS = 0.02
"""What passes between two nodes' steps, at random up to this: heartbeats take a millisecond, a busy node ten."""


class Member:
    """One node: its engine, and the shared address as it is there."""

    def __init__(self, host: Host, vip: Vip, engine: NftablesEngine) -> None:
        self.host, self.engine, self.vip = host, engine, vip

    def owns(self, owned: BucketSet, moving: Moving) -> None:
        """Apply that."""
        self.vip = replace(self.vip, owned=owned, moving=moving)
        with entered(self.host.namespace):
            self.engine.apply(Wanted({self.vip.ip: self.vip}, frozenset()))

    def counters(self) -> dict[str, int]:
        """The engine's."""
        with entered(self.host.namespace):
            return dict(self.engine.counters())


class Pair:
    """The two, and the ways of a bucket from one to the other. A bucket that nobody owns is the first one's."""

    def __init__(self, lan: Lan, first: Member, second: Member) -> None:
        self.lan, self.first, self.second = lan, first, second
        self.address = str(first.vip.ip)
        self.hash = first.vip.hash
        self._random = random.Random(self.address)

    def move(self, source: Member, to: Member, buckets: BucketSet, *, redirect: bool) -> None:
        """All steps up to where the new owner takes new flows and the old one keeps its own."""
        ways = ((IPv4Address(to.host.address), buckets),) if redirect else ()
        gained, given = to.vip.moving, source.vip.moving
        to.owns(to.vip.owned, replace(gained, standby=gained.standby | buckets))
        self._gap()
        draining = replace(given, drain=given.drain | buckets)
        source.owns(source.vip.owned - buckets, replace(draining, redirect=ways))
        self._gap()
        to.owns(to.vip.owned, replace(gained, fresh=gained.fresh | buckets))
        self._gap()
        source.owns(source.vip.owned, draining)

    def end(self, source: Member, to: Member, buckets: BucketSet) -> None:
        """The drain, in two steps, and what is left is the new owner's."""
        given, gained = source.vip.moving, to.vip.moving
        drain = given.drain - buckets
        source.owns(source.vip.owned, replace(given, drain=drain, ending=given.ending | buckets))
        time.sleep(ENDING_SECONDS)
        source.owns(source.vip.owned, replace(given, drain=drain))
        self._gap()
        to.owns(to.vip.owned | buckets, replace(gained, fresh=gained.fresh - buckets))

    def bucket_of(self, source: str, source_port: int, port: int) -> int:
        """Of a TCP flow."""
        return bucket(
            self.hash.function,
            self.hash.mode,
            IPv4Address(source),
            source_port,
            port,
            buckets=self.hash.buckets,
            seed=self.hash.seed,
            prefix_length=self.hash.prefix_length,
        )

    def flows(self, buckets: BucketSet, port: int, count: int, *, from_port: int) -> list[tuple[str, int]]:
        """So many of the client's addresses with ports from `from_port` on, of flows in these buckets."""
        addresses = self.lan.client.addresses
        found: list[tuple[str, int]] = []
        for number in range(from_port, 65536):
            source = addresses[number % len(addresses)]
            if self.bucket_of(source, number, port) in buckets:
                found.append((source, number))
                if len(found) == count:
                    return found
        raise AssertionError(f"there are only {len(found)} flows in buckets {buckets}")

    def open_flows(self, member: Member) -> set[tuple[str, int, int]]:
        """Client's address and port, and port, of the TCP flows that a node has and whose end it has not seen.

        Not those that are half open: where the client has gone on with the new owner, they last for a minute.
        """
        found = set()
        for line in self.lan.conntrack(member.host, self.address):
            words = line.split()
            if "tcp" in words and not OPEN.isdisjoint(words):
                fields = dict(reversed([word.split("=", 1) for word in words if "=" in word]))
                found.add((fields["src"], int(fields["sport"]), int(fields["dport"])))
        return found

    def await_drained(self, member: Member, buckets: BucketSet, seconds: float = 10) -> None:
        """Wait until a node has no open flow in these buckets, and none that it just answered."""
        deadline = time.monotonic() + seconds
        time.sleep(HANDSHAKE_SECONDS)
        while any(self.bucket_of(*flow) in buckets for flow in self.open_flows(member)):
            assert time.monotonic() < deadline, "flows do not end"
            time.sleep(0.05)

    def _gap(self) -> None:
        time.sleep(self._random.uniform(0, LONGEST_GAP_SECONDS))


@contextmanager
def pair(lan: Lan, group: HashParameters) -> Iterator[Pair]:
    """The first two nodes of `lan`: the first owns all buckets, and nothing else of lbless is there."""
    ip = IPv4Address(lan.vip())
    vip = Vip(ip, "eth0", default_mac(ip), group, None, BucketSet())
    members = []
    with ExitStack() as opened:
        for host in lan.nodes[:2]:
            with entered(host.namespace):
                engine = NftablesEngine()
                opened.callback(engine.close)
                members.append(Member(host, vip, engine))
                members[-1].owns(BucketSet(), Moving())
            host.run(["ip", "address", "add", f"{ip}/32", "dev", "eth0"])
            host.run(["ip", "maddress", "add", vip.mac, "dev", "eth0"])
        members[0].owns(BucketSet.full(group.buckets), Moving())
        yield Pair(lan, *members)
