"""With sourceMAC Cluster a shared address's own frames come from the cluster's unicast MAC, and no others do."""

import socket
import struct
import time
from collections import defaultdict
from ipaddress import IPv4Address

import pytest

from kernel.rawpackets import ETHERTYPE_ARP, ETHERTYPE_IPV4, SENDER_MAC, arp, ethernet, ipv4
from kernel.segment import Wire, mac_of, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, SourceMAC
from lbless_api.hashing import ICMP, UDP, HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

pytestmark = pytest.mark.root

ONE_BUCKET = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 0, 1, 32)
VIP, OTHER, NODE = IPv4Address("10.8.0.100"), IPv4Address("10.8.0.101"), IPv4Address("10.8.0.1")
CLIENT = IPv4Address("10.8.0.50")
CLUSTER_MAC, CLUSTER_SOURCE, OTHER_MAC = "03:bf:0a:08:00:64", "02:bf:0a:08:00:64", "03:bf:0a:08:00:65"
DEADLINE_SECONDS = 5


def wanted(source: SourceMAC, mac: str = CLUSTER_MAC) -> Wanted:
    """One address with the given source, and one that is like any other."""
    owned = BucketSet([0])
    vips = (
        Vip(VIP, "eth0", mac, ONE_BUCKET, None, owned, source),
        Vip(OTHER, "eth0", OTHER_MAC, ONE_BUCKET, None, owned),
    )
    return Wanted({vip.ip: vip for vip in vips}, frozenset())


@pytest.fixture
def host(engine: NftablesEngine, wire: Wire) -> str:
    """A node with three addresses that knows the client; returns the MAC of its interface."""
    run("ip", "addr", "add", f"{NODE}/24", "dev", "eth0")
    for ip in (VIP, OTHER):
        run("ip", "addr", "add", f"{ip}/32", "dev", "eth0")
    run("ip", "neigh", "add", str(CLIENT), "lladdr", SENDER_MAC, "dev", "eth0")
    return mac_of("eth0")


def say(source: IPv4Address, length: int, *, port: int = 9) -> None:
    """Send the client a datagram, in fragments if it is long."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((str(source), 0))
        bound.sendto(bytes(length), (str(CLIENT), port))


def sources(wire: Wire) -> dict[str, set[str]]:
    """The Ethernet sources of what the host sent so far, by the address that it came from; ARP for itself."""
    say(NODE, 1, port=65535)  # comes last
    found = defaultdict(set)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        frame = wire.hear(DEADLINE_SECONDS)
        assert frame is not None
        (kind,) = struct.unpack_from("!H", frame, 12)
        mac = frame[6:12].hex(":")
        if kind == ETHERTYPE_ARP:
            found[f"ARP {IPv4Address(frame[28:32])} {frame[22:28].hex(':')}"].add(mac)
        if kind == ETHERTYPE_IPV4:
            if frame[23] == UDP and frame[36:38] == b"\xff\xff":
                break
            whole = frame[20:22] in (b"\0\0", b"\x40\0")
            found[f"{IPv4Address(frame[26:30])} {frame[23] if whole else 'fragment'}"].add(mac)
    return dict(found)


def test_frames_of_the_address_come_from_the_clusters_mac_and_nothing_else_of_the_nodes_does(
    engine: NftablesEngine, host: str, wire: Wire
):
    engine.apply(wanted(SourceMAC.CLUSTER))
    for address in (VIP, OTHER, NODE):
        say(address, 5)
        say(address, 4000)
    # The kernel's own: an echo reply, and an error about a closed port.
    wire.send([ethernet(ipv4(CLIENT, VIP, ICMP, struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1)), to=CLUSTER_MAC)])
    wire.send([ethernet(ipv4(CLIENT, VIP, UDP, struct.pack("!HHHH", 7, 7, 8, 0)), to=CLUSTER_MAC)])
    wire.send([ethernet(arp(1, CLIENT, VIP), to="ff:ff:ff:ff:ff:ff", ethertype=ETHERTYPE_ARP)])
    assert sources(wire) == {
        f"{VIP} {UDP}": {CLUSTER_SOURCE},
        f"{VIP} fragment": {CLUSTER_SOURCE},
        f"{VIP} {ICMP}": {CLUSTER_SOURCE},
        f"ARP {VIP} {CLUSTER_MAC}": {host},
        **{f"{ip} {what}": {host} for ip in (OTHER, NODE) for what in (UDP, "fragment")},
    }


def test_the_source_changes_with_the_wish_and_back_and_is_read_back(
    engine: NftablesEngine, host: str, wire: Wire
):
    for wish, mac in ((SourceMAC.NODE, host), (SourceMAC.CLUSTER, CLUSTER_SOURCE), (SourceMAC.NODE, host)):
        engine.apply(wanted(wish))
        say(VIP, 5)
        assert sources(wire) == {f"{VIP} {UDP}": {mac}}
        assert engine.audit()
        assert engine.installed() == wanted(wish)


def test_an_address_that_goes_leaves_no_source_behind(engine: NftablesEngine, host: str, wire: Wire):
    engine.apply(wanted(SourceMAC.CLUSTER))
    engine.apply(Wanted({}, frozenset()))
    say(VIP, 5)
    assert sources(wire) == {f"{VIP} {UDP}": {host}}


def test_a_mac_without_a_unicast_one_is_refused_before_anything_is_touched(
    engine: NftablesEngine, host: str, wire: Wire
):
    engine.apply(wanted(SourceMAC.CLUSTER))
    with pytest.raises(EngineError, match="not locally administered"):
        engine.apply(wanted(SourceMAC.CLUSTER, "01:00:5e:00:01:05"))
    assert engine.installed() == wanted(SourceMAC.CLUSTER)


def test_a_source_that_somebody_else_changed_is_noticed_and_mended(
    engine: NftablesEngine, host: str, wire: Wire
):
    engine.apply(wanted(SourceMAC.CLUSTER))
    run("nft", "delete", "element", "netdev", "lbless", "source_macs", f"{{ {VIP} }}")
    assert not engine.verify()
    engine.apply(wanted(SourceMAC.CLUSTER))
    say(VIP, 5)
    assert sources(wire) == {f"{VIP} {UDP}": {CLUSTER_SOURCE}}
