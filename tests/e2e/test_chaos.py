"""Agents that are killed at random points while ClusterIPs come, change and go: no connection is answered by two nodes,
and in the end kernel and API agree."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any

import pytest

from lab import takeover, verdict
from lab.errors import LabError
from lab.host import Host
from lab.installation import DATAPLANE, SYNC, Installation
from lab.kernelstate import Share, groups, leases, shares
from lab.prober import Log, Prober, Sources
from lab.progress import Silence
from lab.rest import ApiError
from lab.servers import TCP_PORT
from lbless_api.clusterip import ClusterIP, Protocol, SourceMAC, parse_clusterip
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import unicast_mac
from lbless_nodeagent.dataplane.nftables.names import entry_chain

pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(900)]

KILLS, SOAK_KILLS = 40, 200
CLUSTERIPS = 50
KILLS_A_REST = 40
SETTLE_SECONDS = 60
BUCKETS = 16
ATTEMPTS_PER_SECOND = 100
ROUND_SECONDS = 90
"""A node whose lease has ended does not hear that a client has given up, and sends its SYN-ACK again for half a minute:
it must not be taken for an answer to the next one from that port."""
REST_SECONDS, GRACE_SECONDS = 2.0, 10.0
BACK_SECONDS = 30
UNSERVED_SECONDS = 1.5
"""Nodes that all come back at once and find nobody alive serve a second later, and this one is busy."""
NAMES = [f"chaos-{number}" for number in range(CLUSTERIPS)]

FOREIGN_RULES = """
table ip foreign {
  set lbless { type ipv4_addr; elements = { 10.80.2.1, 10.80.4.7 }; }
  chain prerouting { type filter hook prerouting priority -340; policy accept; ip saddr 192.0.2.77 drop; }
}
table arp foreign {
  chain input { type filter hook input priority 1; policy accept; }
}
table netdev foreign {
  chain in { type filter hook ingress device "eth0" priority 5; policy accept; }
}
"""
FOREIGN_ADDRESSES = (("10.80.4.7/32", "lo"), ("10.80.5.9/32", "eth0"), ("10.99.0.1/24", "mgmt0"))
FOREIGN_GROUP = "03:bf:0a:50:05:63"


@pytest.mark.parametrize("kills", [KILLS, pytest.param(SOAK_KILLS, marks=pytest.mark.soak)])
def test_after_kills_amid_changes_kernel_and_api_agree_and_nothing_foreign_was_touched(lbless, vip, kills):
    seed = int(os.environ.get("LBLESS_SEED") or random.randrange(2**32))
    print(f"LBLESS_SEED={seed}")
    lbless.create("steady", {"ip": vip, "buckets": BUCKETS})
    steady = lbless.wait_ready("steady")
    sources = Sources(steady.spec.hash, TCP_PORT, lbless.lan.client.addresses)
    prober = Prober(
        lbless.lan.client,
        vip,
        TCP_PORT,
        sources,
        lbless.lan.owner_of,
        per_second=ATTEMPTS_PER_SECOND,
        round_seconds=ROUND_SECONDS,
    )
    before = {}
    for node in lbless.lan.nodes:
        make_foreign(node)
        before[node.name] = foreign(node)
    try:
        with prober as log, churning(lbless, random.Random(seed)) as deeds:
            kill_again_and_again(lbless, random.Random(seed + 1), log, kills)
        print(f"{kills} kills amid {dict(deeds)}")
        probes = log.probes()
        print(f"{len(probes)} attempts, {sum(p.answerer is None for p in probes)} not answered")
        assert takeover.doubles(probes) == []
        assert all(
            deeds[kind] > CLUSTERIPS * kills / SOAK_KILLS for kind in ("created", "changed", "deleted")
        )
        settled = time.monotonic()
        await_agreement(lbless)
        print(f"kernel and API agreed {time.monotonic() - settled:.1f} s after the last of it")
        assert {node.name: foreign(node) for node in lbless.lan.nodes} == before
        assert verdict.tcp(lbless.lan, lbless.wait_ready("steady"), 300).faults == ()
        for name in existing(lbless):
            lbless.delete(name)
        await_agreement(lbless)
        assert {node.name: foreign(node) for node in lbless.lan.nodes} == before
        assert not any(shares(node) for node in lbless.lan.nodes)
    finally:
        for name in existing(lbless):
            lbless.delete(name)
        for node in lbless.lan.nodes:
            remove_foreign(node)


def kill_again_and_again(lbless: Installation, draw: random.Random, log: Log, kills: int) -> None:
    """Kill and start agents; now and then let all come back, and see that an address that nobody changes is served."""
    begun = {node.name: 0 for node in lbless.lan.nodes}
    unserved = []
    for number in range(1, kills + 1):
        node = draw.choice(lbless.lan.nodes)
        victims = draw.choice([[DATAPLANE], [DATAPLANE], [SYNC], [SYNC], [DATAPLANE, SYNC]])
        # A span: some are to die while they start, some at work. A start takes about half a second.
        time.sleep(draw.uniform(0, draw.choice([0.3, 1.2])))
        for program in victims:
            lbless.stop(program, node, signal.SIGKILL)
        if DATAPLANE in victims:
            begun[node.name] = lbless.serving(node)
        for program in victims:
            lbless.start(program, node)
        if number % KILLS_A_REST == 0:
            Silence().until(
                "every dataplane to be back",
                lambda: all(lbless.serving(node) > begun[node.name] for node in lbless.lan.nodes),
                timeout_seconds=BACK_SECONDS,
            )
            unserved.append(unserved_seconds(log, time.monotonic()))
            assert unserved[-1] < UNSERVED_SECONDS, f"after {number} kills"
    print(f"with all back, some bucket was without an answer for {max(unserved):.2f} s at worst")


def unserved_seconds(log: Log, since: float) -> float:
    """For how long a bucket was not answered at worst from a time on; infinity where that has not ended."""
    deadline = time.monotonic() + REST_SECONDS + GRACE_SECONDS
    while True:
        probes = log.probes(since)
        by_bucket = [[p for p in probes if p.bucket == number] for number in range(BUCKETS)]
        rested = all(own and own[-1].started > since + REST_SECONDS for own in by_bucket)
        unserved = max(takeover.unserved_seconds(own, since) for own in by_bucket)
        if (rested and unserved < inf) or time.monotonic() > deadline:
            return unserved
        time.sleep(0.05)


@contextmanager
def churning(lbless: Installation, draw: random.Random) -> Iterator[Mapping[str, int]]:
    """Create, change and delete ClusterIPs in a thread until the end of the block; count what was done."""
    deeds = {"created": 0, "changed": 0, "deleted": 0}
    stop = threading.Event()
    failure: list[Exception] = []

    def churn() -> None:
        try:
            while not stop.wait(0.03):
                deeds[act(lbless, draw)] += 1
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            failure.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield deeds
    finally:
        stop.set()
        thread.join(60)
    if failure:
        raise failure[0]


def act(lbless: Installation, draw: random.Random) -> str:
    """One change of one ClusterIP; return what kind of deed it was."""
    name = draw.choice(NAMES)
    path = f"/apis/lbless.dev/v1alpha1/namespaces/default/clusterips/{name}"
    try:
        lbless.create(name, {"ip": f"10.80.3.{1 + NAMES.index(name)}", **hashing(draw), **changeable(draw)})
    except ApiError as error:
        if error.status != 409:
            raise
    else:
        return "created"
    if draw.random() < 0.4:
        lbless.delete(name)
        return "deleted"
    lbless.control_plane.api(
        "PATCH", path, {"spec": {"nodeSelector": None, "ports": None, "sourceMAC": None, **changeable(draw)}}
    )
    return "changed"


def hashing(draw: random.Random) -> dict[str, Any]:
    """The immutable part of a spec."""
    return {
        "hashFunction": draw.choice(list(HashFunction)).value,
        "hashMode": draw.choice(list(HashMode)).value,
        "buckets": draw.choice([7, 64, 256]),
        "hashSeed": draw.choice([0, 5]),
    }


def changeable(draw: random.Random) -> dict[str, Any]:
    """What may be changed: the ports, which nodes serve, and where their answers come from."""
    spec: dict[str, Any] = {}
    if draw.random() < 0.5:
        spec["ports"] = [
            {"port": port, "protocol": protocol, **({"endPort": port + 9} if draw.random() < 0.5 else {})}
            for port, protocol in draw.sample([(80, "TCP"), (443, "TCP"), (53, "UDP"), (5000, "SCTP")], 2)
        ]
    if draw.random() < 0.5:
        spec["nodeSelector"] = {"kubernetes.io/hostname": draw.choice(["n1", "n2", "n3"])}
    if draw.random() < 0.5:
        spec["sourceMAC"] = draw.choice(["Node", "Cluster"])
    return spec


def existing(lbless: Installation) -> dict[str, ClusterIP]:
    """All ClusterIPs by name."""
    objects = lbless.control_plane.api("GET", "/apis/lbless.dev/v1alpha1/clusterips")["items"]
    return {c.identity.name: c for c in map(parse_clusterip, objects)}


def await_agreement(lbless: Installation) -> None:
    """Wait until every node's kernel holds exactly what the API assigns to it, and the API says so; and the API
    assigns to each node that may serve its share, as the incarnation that it is now."""
    wrong: list[str] = []

    def agreed() -> bool:
        wrong[:] = disagreements(lbless)
        return not wrong

    try:
        Silence().until("agreement", agreed, timeout_seconds=SETTLE_SECONDS, interval_seconds=0.3)
    except LabError:
        raise AssertionError(f"{len(wrong)} disagreements: {wrong[:5]}") from None


def disagreements(lbless: Installation) -> list[str]:
    """A sentence for each difference between the kernels and the API."""
    clusterips, incarnations = existing(lbless), lbless.incarnations()
    wrong = []
    for name, clusterip in clusterips.items():
        wrong += misassignments(clusterip, incarnations)
        for kind in ("Ready", "Programmed"):
            condition = lbless.condition(name, kind)
            if condition.get("status") != "True":
                wrong.append(f"{name} is not {kind}: {condition.get('message')}")
    for node in lbless.lan.nodes:
        if leases(node) != {"eth0"}:
            wrong.append(f"{node.name} has leases on {leases(node)}")
        held, wanted = shares(node), {}
        joined = groups(node, "eth0") - {FOREIGN_GROUP}
        for clusterip in clusterips.values():
            assignment = clusterip.assigned_to(node.name)
            if assignment:
                wanted[str(clusterip.spec.ip)] = share(clusterip, node)
        macs = {one.mac for one in wanted.values()}
        wrong += [
            f"{node.name} has {held.get(ip)} of {ip}, wanted is {wanted.get(ip)}"
            for ip in sorted(held.keys() | wanted.keys())
            if held.get(ip) != wanted.get(ip)
        ]
        if joined != macs:
            wrong.append(f"{node.name} has joined {sorted(joined)}, wanted are {sorted(map(str, macs))}")
    return wrong


def misassignments(clusterip: ClusterIP, incarnations: Mapping[str, int]) -> list[str]:
    """A sentence for each node that has not its fair share, or has it as an incarnation that is over."""
    selected = clusterip.spec.node_selector.get("kubernetes.io/hostname")
    expected = [selected] if selected else sorted(incarnations)
    named = {one.node: one for one in clusterip.assignments}
    wrong = [
        f"{clusterip.identity.name} names {name} as {one.incarnation}, which is {incarnations[name]}"
        for name, one in named.items()
        if one.incarnation != incarnations[name]
    ]
    sizes = {name: len(one.buckets) for name, one in named.items()}
    if sorted(sizes) != expected or max(sizes.values()) - min(sizes.values()) > 1:
        wrong.append(f"{clusterip.identity.name} is spread over {sizes}, not evenly over {expected}")
    return wrong


def share(clusterip: ClusterIP, node: Host) -> Share:
    """What the node's kernel is to hold of a ClusterIP that names it."""
    assignment = clusterip.assigned_to(node.name)
    assert assignment is not None
    spec = clusterip.spec
    names = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.SCTP: "sctp"}
    return Share(
        filtered_on="eth0",
        chain=entry_chain(spec.hash, with_ports=spec.ports is not None),
        ports=frozenset((names[p.protocol], p.first, p.last) for p in spec.ports)
        if spec.ports is not None
        else None,
        buckets=assignment.buckets,
        arp_on="eth0",
        mac=spec.mac,
        source_mac=unicast_mac(spec.mac) if spec.source_mac is SourceMAC.CLUSTER else None,
        on_link=frozenset({("eth0", True)}),
    )


def make_foreign(node: Host) -> None:
    """Rules, addresses and a group that somebody else has on the node, some of them much like lbless's own."""
    node.run(["nft", "-f", "-"], stdin=FOREIGN_RULES)
    for address, interface in FOREIGN_ADDRESSES:
        node.run(["ip", "address", "add", address, "dev", interface])
    node.run(["ip", "maddress", "add", FOREIGN_GROUP, "dev", "eth0"])


def remove_foreign(node: Host) -> None:
    """Take them away again."""
    for family in ("ip", "arp", "netdev"):
        node.run(["nft", "delete", "table", family, "foreign"], check=False)
    for address, interface in FOREIGN_ADDRESSES:
        node.run(["ip", "address", "delete", address, "dev", interface], check=False)
    node.run(["ip", "maddress", "delete", FOREIGN_GROUP, "dev", "eth0"], check=False)


def foreign(node: Host) -> tuple[str, ...]:
    """What the node has that is not lbless's, as the system's own tools print it."""
    rules = [
        node.run(["nft", "-s", "list", "table", family, "foreign"]).stdout
        for family in ("ip", "arp", "netdev")
    ]
    addresses = node.run(["ip", "-4", "-o", "address", "show"]).stdout.splitlines()
    own = [line for line in addresses if "/32" not in line or "deprecated" not in line]
    return (*rules, *own, f"group {FOREIGN_GROUP in groups(node, 'eth0')}")
