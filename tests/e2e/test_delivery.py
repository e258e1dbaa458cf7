"""What is not simply a packet of a flow reaches that flow's owner all the same: ICMP errors, and fragments whole."""

import errno
import random
import re
from collections.abc import Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from itertools import cycle

import pytest

from lab import deliveries, servers, traffic
from lab.deliveries import Datagram
from lab.host import Host
from lab.installation import Installation, owner
from lab.lan import Lan
from lbless_api.clusterip import ClusterIP
from lbless_api.hashing import UDP, HashFunction, HashMode

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

FLOWS = DATAGRAMS = 200
TRANSFERS = 60
PORT, LONG_PORT = 7000, 8081
NARROW_MTU = 1300
# RFC 792, codes of "destination unreachable".
HOST_UNREACHABLE, PORT_UNREACHABLE, FRAGMENTATION_NEEDED = 1, 3, 4


@pytest.fixture(scope="module", params=list(HashFunction), ids=str)
def function(request: pytest.FixtureRequest) -> HashFunction:
    return request.param


@pytest.fixture(scope="module", params=list(HashMode), ids=str)
def clusterip(
    lbless: Installation, function: HashFunction, request: pytest.FixtureRequest
) -> Iterator[ClusterIP]:
    """A ClusterIP of each function and mode, for all tests of this module."""
    name = "delivery"
    ip = Lan.vip(250)
    lbless.create(name, {"ip": ip, "hashFunction": function, "hashMode": request.param})
    made = lbless.wait_ready(name)
    for client in (lbless.lan.client, lbless.lan.routed_client):
        # Who does not know his neighbour yet keeps only so many packets for him.
        assert all(echo.replies for echo in traffic.ping(client, ip, requests=64))
    yield made
    lbless.delete(name)


@pytest.fixture(scope="module")
def outspoken(lbless: Installation) -> Iterator[None]:
    """Hosts that send every ICMP error: otherwise the kernel sends each client's node one a second."""
    hosts = (lbless.lan.router, lbless.lan.routed_client)
    usual = [host.run(["sysctl", "-n", "net.ipv4.icmp_ratemask"]).stdout.strip() for host in hosts]
    for host in hosts:
        host.run(["sysctl", "-q", "-w", "net.ipv4.icmp_ratemask=0"])
    yield
    for host, mask in zip(hosts, usual, strict=True):
        host.run(["sysctl", "-q", "-w", f"net.ipv4.icmp_ratemask={mask}"])


@contextmanager
def narrowed(lan: Lan) -> Iterator[None]:
    """The link behind the router takes smaller packets than all others; what nodes learnt of it is forgotten after."""
    lan.router.run(["ip", "link", "set", "eth1", "mtu", str(NARROW_MTU)])
    try:
        yield
    finally:
        lan.router.run(["ip", "link", "set", "eth1", "mtu", "1500"])
        forget(lan)


@contextmanager
def unreachable(lan: Lan, ip: str) -> Iterator[None]:
    """The router refuses to send on what comes from an address. (A route that does so has a limit of its own.)"""
    rule = f"ip saddr {ip} reject with icmp type host-unreachable"
    chain = f"chain forward {{ type filter hook forward priority 0; {rule}\n }}"
    lan.router.run(["nft", "-f", "-"], stdin=f"table ip delivery {{ {chain}\n }}\n")
    try:
        yield
    finally:
        lan.router.run(["nft", "delete", "table", "ip", "delivery"])


def forget(lan: Lan) -> None:
    """Make the nodes forget what MTU a path has."""
    for node in lan.nodes:
        node.run(["ip", "route", "flush", "cache"])


def owner_of(clusterip: ClusterIP, datagram: Datagram) -> str:
    return owner(clusterip, datagram.source, datagram.source_port, PORT, UDP)


def unreachables(node: Host) -> int:
    """How many errors "destination unreachable" the node's stack got; what a filter drops does not count."""
    lines = node.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(dict(zip(names, values, strict=True))["InDestUnreachs"])


def path_mtus(node: Host) -> dict[str, int]:
    """What the node has learnt of the paths to clients behind the router: their MTU by address."""
    learnt = node.run(["ip", "-o", "route", "show", "cache"]).stdout
    return {found[1]: int(found[2]) for found in re.finditer(r"^(\S+) .* mtu (\d+)", learnt, re.MULTILINE)}


def count(by_node: Mapping[str, Sized]) -> int:
    """How many all nodes have together."""
    return sum(map(len, by_node.values()))


def test_200_icmp_errors_of_each_kind_reach_the_socket_of_the_flows_owner_and_no_other_stack(
    lbless: Installation, clusterip: ClusterIP, outspoken: None
):
    lan, ip = lbless.lan, str(clusterip.spec.ip)
    forget(lan)
    seen = 0

    def check(number: int, code: int, value: int, offenders: set[str]) -> None:
        """Compare the errors that came since the last time with the flows of each node."""
        nonlocal seen
        seen += FLOWS
        found = receivers.await_that(f"{seen} errors", lambda r: count(r.errors) >= seen).errors
        for node in lan.nodes:
            own = {(d.source, d.source_port) for d in flows if owner_of(clusterip, d) == node.name}
            new = [e for e in found[node.name] if (e.errno, e.code) == (number, code)]
            assert sorted((e.source, e.source_port) for e in new) == sorted(own), node.name
            assert {(e.value, e.offender) for e in new} <= {(value, offender) for offender in offenders}
            assert len(own) > 20, "too few flows of this node to prove anything"
            assert unreachables(node) - before[node.name] == len(found[node.name]), node.name

    with deliveries.receiving(lan.nodes, ip, PORT) as receivers:
        with deliveries.sent(lan.routed_client, ip, PORT, [100] * FLOWS) as flows:
            receivers.await_that("all flows", lambda r: count(r.datagrams) >= FLOWS)
            before = {node.name: unreachables(node) for node in lan.nodes}
            with narrowed(lan):
                receivers.reply(NARROW_MTU)  # and 28 bytes of headers
                check(errno.EMSGSIZE, FRAGMENTATION_NEEDED, NARROW_MTU, {lan.router.address})
            with unreachable(lan, ip):
                receivers.reply(100)
                check(errno.EHOSTUNREACH, HOST_UNREACHABLE, 0, {lan.router.address})
        # The client's sockets are closed.
        receivers.reply(100)
        check(errno.ECONNREFUSED, PORT_UNREACHABLE, 0, {d.source for d in flows})


def test_a_path_with_a_smaller_mtu_is_discovered_through_the_address_by_the_owner_alone(
    lbless: Installation, clusterip: ClusterIP
):
    lan, ip = lbless.lan, str(clusterip.spec.ip)
    forget(lan)
    with servers.serving(lan.nodes, tcp=(), udp=(), long=(LONG_PORT,)), narrowed(lan):
        answers = traffic.tcp(lan.routed_client, ip, LONG_PORT, connections=TRANSFERS, timeout_seconds=10)
        for node in lan.nodes:
            served = {a.source for a in answers if a.node == node.name}
            assert served, "a node transferred nothing"
            assert path_mtus(node) == dict.fromkeys(served, NARROW_MTU), node.name
    expected = [owner(clusterip, a.source, a.source_port, LONG_PORT) for a in answers]
    assert [a.node for a in answers] == expected


def test_200_datagrams_in_fragments_arrive_once_and_whole_at_their_owners(
    lbless: Installation, clusterip: ClusterIP
):
    lan, ip, rng = lbless.lan, str(clusterip.spec.ip), random.Random(6)
    lengths = [rng.randrange(1473, 4500) for _ in range(DATAGRAMS)]
    datagrams: list[Datagram] = []
    with deliveries.receiving(lan.nodes, ip, PORT) as receivers, ExitStack() as sockets:
        # All at once the bridge's copies of all fragments could be more than a busy kernel's backlog of 1,000.
        for client, first in zip(
            cycle((lan.client, lan.routed_client)), range(0, DATAGRAMS, 40), strict=False
        ):
            sending = deliveries.sent(client, ip, PORT, lengths[first : first + 40])
            datagrams.extend(sockets.enter_context(sending))
            found = receivers.await_that(
                "all datagrams", lambda r: count(r.datagrams) >= len(datagrams)
            ).datagrams
    assert len(datagrams) == DATAGRAMS
    for node in lan.nodes:
        own = [d for d in datagrams if owner_of(clusterip, d) == node.name]
        assert own, "no datagram for this node"
        assert found[node.name] == sorted(own)
