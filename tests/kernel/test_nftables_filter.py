"""What reaches the node besides the hash: ports, other interfaces, the node itself, ARP."""

import random
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from kernel.rawpackets import (
    ETHERTYPE_ARP,
    GRE,
    Fields,
    arp,
    arp_sender,
    ethernet,
    icmp_error,
    ipv4,
    transport,
)
from kernel.segment import Observer, Wire, link, mac_of, nft, ruleset, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol
from lbless_api.hashing import ICMP, SCTP, TCP, UDP, HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

pytestmark = pytest.mark.root

ONE_BUCKET = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 0, 1, 32)
VIP, OTHER, NODE = IPv4Address("10.8.0.100"), IPv4Address("10.8.0.101"), IPv4Address("10.8.0.1")
CLIENT, ROUTER = IPv4Address("10.8.0.50"), IPv4Address("10.8.0.254")
ALL = BucketSet([0])
CLUSTER_MAC = "03:bf:0a:08:00:64"
REQUEST, REPLY = 1, 2
ARP_SECONDS = 5


def wanted(*vips: Vip, local_sources: frozenset[IPv4Network] = frozenset()) -> Wanted:
    return Wanted({vip.ip: vip for vip in vips}, local_sources)


def make_vip(
    ip: IPv4Address = VIP, *, ports: tuple[PortRange, ...] | None = None, owned: BucketSet = ALL
) -> Vip:
    return Vip(ip, "eth0", CLUSTER_MAC, ONE_BUCKET, ports, owned)


@pytest.fixture
def second_wire(wire: Wire) -> Iterator[Wire]:
    """The far end of another interface of the host, eth1."""
    link("eth1", "wire1")
    made = Wire("wire1")
    yield made
    made.close()


def send(wire: Wire, identification: int, payload: bytes, protocol: int, **where: str) -> None:
    wire.send([ethernet(ipv4(CLIENT, VIP, protocol, payload, identification=identification), **where)])


def test_only_the_listed_ports_and_icmp_reach_the_node(
    engine: NftablesEngine, wire: Wire, observer: Observer
):
    ports = (
        PortRange(Protocol.TCP, 80, 80),
        PortRange(Protocol.TCP, 8000, 8010),
        PortRange(Protocol.UDP, 53, 53),
        PortRange(Protocol.SCTP, 1, 65535),
    )
    engine.apply(wanted(make_vip(ports=ports), make_vip(OTHER)))
    rest = bytes(16)
    listed = [(TCP, 80), (TCP, 8000), (TCP, 8007), (TCP, 8010), (UDP, 53), (SCTP, 1), (SCTP, 65535)]
    unlisted = [(TCP, 79), (TCP, 81), (TCP, 22), (TCP, 53), (TCP, 7999), (TCP, 8011), (UDP, 80), (UDP, 8000)]
    for identification, (protocol, port) in enumerate((*listed, *unlisted)):
        send(wire, identification, transport(Fields(CLIENT, 1234, port, protocol), rest), protocol)
    send(wire, 100, struct.pack("!BBHHH", 8, 0, 0, 1, 1), ICMP)
    send(wire, 101, icmp_error(random.Random(1), VIP, Fields(CLIENT, 1234, 80, TCP)), ICMP)
    send(wire, 102, struct.pack("!BBHHH", 13, 0, 0, 80, 80), ICMP)  # a timestamp request
    send(wire, 103, transport(Fields(CLIENT, 1234, 80, GRE), rest), GRE)
    wire.send(
        [ethernet(ipv4(CLIENT, OTHER, TCP, transport(Fields(CLIENT, 1234, 22, TCP), rest), identification=1))]
    )

    observer.await_arrival(len(listed) + len(unlisted) + 5)
    assert observer.kept() == {(VIP, n) for n in (*range(len(listed)), 100, 101)} | {(OTHER, 1)}
    assert engine.counters()["closed_port"] == len(unlisted) + 2


def test_changed_ports_take_effect_also_where_ranges_overlap_the_former(
    engine: NftablesEngine, wire: Wire, observer: Observer
):
    stages = [
        (PortRange(Protocol.TCP, 10, 20),),
        (PortRange(Protocol.TCP, 15, 25), PortRange(Protocol.TCP, 30, 30)),
        (PortRange(Protocol.TCP, 20, 20), PortRange(Protocol.TCP, 30, 31)),
        None,
        (PortRange(Protocol.TCP, 5, 40),),
    ]
    expected = set()
    for stage, ports in enumerate(stages):
        engine.apply(wanted(make_vip(ports=ports)))
        for port in range(1, 50):
            identification = stage * 100 + port
            send(wire, identification, transport(Fields(CLIENT, 1234, port, TCP), bytes(16)), TCP)
            if ports is None or any(p.first <= port <= p.last for p in ports):
                expected.add((VIP, identification))
    observer.await_arrival(len(stages) * 49)
    assert observer.kept() == expected


def test_packets_for_a_shared_address_that_come_in_elsewhere_are_dropped_unless_a_local_pod_sent_them(
    engine: NftablesEngine, wire: Wire, second_wire: Wire, observer: Observer
):
    engine.apply(wanted(make_vip(owned=BucketSet()), local_sources=frozenset({IPv4Network("10.244.3.0/24")})))
    unicast = {"to": mac_of("eth1")}
    data = transport(Fields(CLIENT, 1, 2, UDP), bytes(4))

    def from_(source: str, destination: IPv4Address, identification: int) -> bytes:
        packet = ipv4(IPv4Address(source), destination, UDP, data, identification=identification)
        return ethernet(packet, **unicast)

    second_wire.send([from_("10.9.0.7", VIP, 1), from_("10.244.4.0", VIP, 2), from_("10.244.2.255", VIP, 3)])
    second_wire.send([from_("10.244.3.0", VIP, 4), from_("10.244.3.255", VIP, 5)])
    second_wire.send([from_("10.9.0.7", OTHER, 6)])
    wire.send([ethernet(ipv4(IPv4Address("10.244.3.9"), VIP, UDP, data, identification=7))])
    observer.await_arrival(7)
    assert observer.kept() == {(VIP, 4), (VIP, 5), (OTHER, 6)}
    assert engine.counters()["other_interface"] == 3
    assert engine.counters()["foreign"] == 1, (
        "a pod's address on the shared address's own interface is a client's"
    )


def test_the_node_itself_reaches_a_shared_address_whose_buckets_it_does_not_own(
    engine: NftablesEngine, wire: Wire
):
    run("ip", "addr", "add", f"{VIP}/32", "dev", "eth0")
    engine.apply(wanted(make_vip(owned=BucketSet())))
    with socket.create_server((str(VIP), 8080)) as server:
        server.settimeout(5)
        with socket.create_connection((str(VIP), 8080), timeout=5) as client:
            accepted, _ = server.accept()
            accepted.sendall(b"here")
            accepted.close()
            assert client.recv(10) == b"here"


def test_what_is_not_for_a_shared_address_passes_untouched(
    engine: NftablesEngine, wire: Wire, observer: Observer
):
    before = observer.counters()
    engine.apply(wanted(make_vip()))
    data = transport(Fields(CLIENT, 1, 2, UDP), bytes(4))
    own = ethernet(ipv4(CLIENT, NODE, UDP, data, identification=1), to=mac_of("eth0"))
    multicast = ethernet(ipv4(CLIENT, NODE, UDP, data, identification=2), to=CLUSTER_MAC)
    wire.send([own, multicast])
    observer.await_arrival(2)
    seen = observer.counters()
    assert seen["not_for_host"] - before["not_for_host"] == 1, "its packet type was changed"
    assert not any(engine.counters().values())


def next_arp(wire: Wire) -> tuple[tuple[int, str, IPv4Address], str] | None:
    """The next ARP that the host sends: its content and its Ethernet source."""
    deadline = time.monotonic() + ARP_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        frame = wire.hear(left)
        if frame and struct.unpack_from("!H", frame, 12) == (ETHERTYPE_ARP,):
            return arp_sender(frame), frame[6:12].hex(":")
    return None


def ask(wire: Wire, target: IPv4Address) -> None:
    wire.send([ethernet(arp(REQUEST, CLIENT, target), to="ff:ff:ff:ff:ff:ff", ethertype=ETHERTYPE_ARP)])


def addresses() -> None:
    run("ip", "addr", "add", f"{NODE}/24", "dev", "eth0")
    run("ip", "addr", "add", f"{VIP}/32", "dev", "eth0")


def test_arp_replies_for_a_shared_address_carry_the_cluster_mac_and_the_nodes_own_stay(
    engine: NftablesEngine, wire: Wire
):
    engine.apply(wanted(make_vip()))
    addresses()
    own = mac_of("eth0")
    ask(wire, VIP)
    assert next_arp(wire) == ((REPLY, CLUSTER_MAC, VIP), own)
    ask(wire, NODE)
    assert next_arp(wire) == ((REPLY, own, NODE), own)


def test_arp_requests_from_a_shared_address_carry_the_cluster_mac(engine: NftablesEngine, wire: Wire):
    engine.apply(wanted(make_vip()))
    addresses()
    own = mac_of("eth0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((str(VIP), 0))  # with arp_announce 0 the kernel asks in this address's name
        bound.sendto(b"?", (str(ROUTER), 9))
        assert next_arp(wire) == ((REQUEST, CLUSTER_MAC, VIP), own)


def test_gratuitous_arp_that_a_program_makes_itself_carries_the_cluster_mac(
    engine: NftablesEngine, wire: Wire
):
    engine.apply(wanted(make_vip()))
    own = mac_of("eth0")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(
            ethernet(arp(REPLY, VIP, VIP, sender_mac=own), to="ff:ff:ff:ff:ff:ff", ethertype=ETHERTYPE_ARP)
        )
    heard = next_arp(wire)
    assert heard is not None
    assert heard[0] == (REPLY, CLUSTER_MAC, VIP)


def test_arp_for_a_shared_address_is_answered_on_its_own_interface_only(
    engine: NftablesEngine, wire: Wire, second_wire: Wire
):
    engine.apply(wanted(make_vip()))
    addresses()
    run("ip", "addr", "add", "10.9.0.1/24", "dev", "eth1")
    ask(second_wire, VIP)
    ask(second_wire, NODE)
    answer = next_arp(second_wire)
    assert answer is not None
    assert answer[0] == (REPLY, mac_of("eth1"), NODE), "the request for the shared address was answered first"
    assert engine.counters()["arp_other_interface"] == 1


def test_an_interface_whose_name_needs_quoting_is_served_as_any_other(
    engine: NftablesEngine, namespace: None
):
    for name in ("0a@-+.b_c", "-x", "_y.1"):
        link(name, "far")
        far = Wire("far")
        vip = Vip(VIP, name, CLUSTER_MAC, ONE_BUCKET, None, BucketSet([0]))
        engine.apply(wanted(vip))
        assert engine.installed() == wanted(vip)
        run("ip", "addr", "add", f"{VIP}/32", "dev", name)
        ask(far, VIP)
        answer = next_arp(far)
        assert answer is not None
        assert answer[0] == (REPLY, CLUSTER_MAC, VIP)
        far.close()
        engine.remove()
        run("ip", "link", "del", name)


def test_foreign_tables_are_left_alone(engine: NftablesEngine, wire: Wire):
    nft(
        "table ip lbless2 { set shared { type ipv4_addr; elements = { 10.8.0.100 } }\n chain a { counter accept\n }\n }"
    )
    nft("table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept\n }\n }")
    before = ruleset()
    engine.apply(wanted(make_vip()))
    assert ruleset() != before
    engine.apply(wanted())
    engine.remove()
    assert ruleset() == before


def test_an_interface_that_went_and_came_back_is_served_again(engine: NftablesEngine, wire: Wire):
    engine.apply(wanted(make_vip()))
    wire.close()
    run("ip", "link", "del", "eth0")
    engine.verify()
    engine.apply(wanted())
    assert engine.installed() == wanted()
    link("eth0", "wire0")
    engine.apply(wanted(make_vip()))
    assert engine.installed() == wanted(make_vip())
    addresses()
    wire_again = Wire("wire0")
    ask(wire_again, VIP)
    assert next_arp(wire_again) == ((REPLY, CLUSTER_MAC, VIP), mac_of("eth0"))
    wire_again.close()


def test_an_interface_that_is_replaced_while_nobody_looks_is_served_again(engine: NftablesEngine, wire: Wire):
    engine.apply(wanted(make_vip()))
    wire.close()
    run("ip", "link", "del", "eth0")
    link("eth0", "wire0")
    engine.apply(wanted(make_vip()))
    addresses()
    wire_again = Wire("wire0")
    ask(wire_again, VIP)
    assert next_arp(wire_again) == ((REPLY, CLUSTER_MAC, VIP), mac_of("eth0"))
    wire_again.close()
