"""What the iptables engine does to packets beside the hash: ports, interfaces, pods' own traffic, ICMP errors, ARP."""

import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from kernel.dataplane import wait_for
from kernel.rawpackets import ETHERTYPE_ARP, arp, arp_sender, checksum, ethernet, ipv4
from kernel.segment import Observer, Wire, link, mac_of, nft, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol
from lbless_api.hashing import HashFunction, HashMode, bucket
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.iptables.engine import IptablesEngine
from unit.engine_contract import vip, wanted

pytestmark = pytest.mark.root

CLUSTER = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 7, 32, 32)
ALL = vip(1, CLUSTER, BucketSet.full(32))
BEHIND_MANGLE = -90
TCP, UDP, ICMP, GRE = 6, 17, 1, 47
OPEN = (
    PortRange(Protocol.SCTP, 5, 6),
    PortRange(Protocol.TCP, 80, 80),
    PortRange(Protocol.UDP, 8000, 8010),
)
FLOWS = 200


@pytest.fixture
def engine(wire: Wire) -> Iterator[IptablesEngine]:
    link("eth1", "wire1")
    made = IptablesEngine()
    report = made.probe()
    if not report.available:
        pytest.skip(f"The iptables engine does not work here: {report.message}")
    yield made
    made.remove()
    made.close()


@pytest.fixture
def other_wire(engine: IptablesEngine) -> Iterator[Wire]:
    """The far end of eth1."""
    made = Wire("wire1")
    yield made
    made.close()


def udp(first: int, second: int) -> bytes:
    return struct.pack("!HHHH", first, second, 8, 0)


def tcp(source: IPv4Address, destination: IPv4Address, first: int, second: int) -> bytes:
    syn = struct.pack("!HHLLHHHH", first, second, 1, 0, 0x5002, 64240, 0, 0)
    pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, TCP, len(syn))
    return syn[:16] + struct.pack("!H", checksum(pseudo + syn)) + syn[18:]


def icmp(kind: int, content: bytes, code: int = 0) -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + content
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


CLIENT = IPv4Address("198.18.3.4")
BY_PORT = {
    "an open TCP port": (TCP, tcp(CLIENT, ALL.ip, 999, 80), True),
    "the next TCP port": (TCP, tcp(CLIENT, ALL.ip, 999, 81), False),
    "an open port of another protocol": (UDP, udp(999, 80), False),
    "an open port as the source": (TCP, tcp(CLIENT, ALL.ip, 80, 999), False),
    "the first of a range": (UDP, udp(999, 8000), True),
    "the last of a range": (UDP, udp(999, 8010), True),
    "after a range": (UDP, udp(999, 8011), False),
    "an echo request": (ICMP, icmp(8, struct.pack("!HH", 1, 1)), True),
    "a redirect": (ICMP, icmp(5, bytes(4)), False),
    "a protocol without ports": (GRE, bytes(8), False),
}


def send(
    wire: Wire, to: Vip, protocol: int, payload: bytes, number: int, source: IPv4Address = CLIENT
) -> None:
    wire.send([ethernet(ipv4(source, to.ip, protocol, payload, identification=number), to=to.mac)])


def test_only_open_ports_and_what_icmp_needs_come_in(engine: IptablesEngine, wire: Wire) -> None:
    engine.apply(wanted(replace(ALL, ports=OPEN)))
    observer = Observer(BEHIND_MANGLE)
    for number, (protocol, payload, _) in enumerate(BY_PORT.values(), 1):
        send(wire, ALL, protocol, payload, number)
    observer.await_arrival(len(BY_PORT))
    kept = {name for number, name in enumerate(BY_PORT, 1) if (ALL.ip, number) in observer.kept()}
    assert kept == {name for name, (_, _, is_open) in BY_PORT.items() if is_open}
    counted = engine.counters()
    assert (counted["kept"], counted["closed_port"]) == (len(kept), len(BY_PORT) - len(kept))


def test_another_interface_brings_only_what_pods_of_this_node_send(
    engine: IptablesEngine, wire: Wire, other_wire: Wire
) -> None:
    """Those get to the address whatever is owned: nobody else hears them."""
    none = replace(ALL, owned=BucketSet())
    engine.apply(wanted(none, local_sources=frozenset({IPv4Network("10.244.1.0/24")})))
    observer = Observer(BEHIND_MANGLE)
    sources = [IPv4Address(a) for a in ("10.244.1.7", "10.244.2.7", "198.18.0.1")]
    for number, source in enumerate(sources, 1):
        send(other_wire, replace(none, mac=mac_of("eth1")), UDP, udp(9, 9), number, source)
        send(wire, none, UDP, udp(9, 9), number + 100, source)
    observer.await_arrival(6)
    assert observer.kept() == {(ALL.ip, 1)}
    counted = engine.counters()
    assert (counted["foreign"], counted["other_interface"]) == (3, 2)


def test_addresses_that_are_not_shared_are_not_looked_at(engine: IptablesEngine, wire: Wire) -> None:
    engine.apply(wanted(replace(ALL, owned=BucketSet())))
    observer = Observer(BEHIND_MANGLE)
    other = replace(ALL, ip=ALL.ip + 1, mac=mac_of("eth0"))
    send(wire, other, UDP, udp(9, 9), 1)
    observer.await_arrival(1)
    assert observer.kept() == {(other.ip, 1)}


def test_icmp_errors_reach_the_owner_of_the_flow_and_nobody_else(engine: IptablesEngine, wire: Wire) -> None:
    """Conntrack knows which flow they are about; who dropped its packets knows of none."""
    rng = random.Random(5)
    engine.apply(wanted(vip(1, CLUSTER), local_sources=frozenset()))
    run("ip", "address", "add", f"{ALL.ip}/32", "dev", "eth0")
    run("ip", "address", "add", "10.8.0.250/24", "dev", "eth0")
    run("ip", "route", "add", "default", "via", "10.8.0.254")
    nft(
        "table ip seen { set errors { typeof ip id; flags dynamic; size 65535; }\n counter flows { }\n"
        " chain i { type filter hook input priority 0; icmp type { 3, 11, 12 } add @errors { ip id } drop\n"
        "  udp dport 7 counter name flows\n }\n"
        " chain o { type filter hook output priority 0; icmp type 3 drop\n }\n }"
    )
    clients = [IPv4Address("198.18.0.0") + rng.randrange(1, 1 << 16) for _ in range(FLOWS)]
    flows = [(client, rng.randrange(1024, 65536)) for client in clients]
    for client, port in flows:
        send(wire, ALL, UDP, udp(port, 7), 0, client)
    mine = {
        number
        for number, (client, port) in enumerate(flows, 1)
        if bucket(CLUSTER.function, CLUSTER.mode, client, port, 7, buckets=32, seed=7) % 2 == 0
    }
    assert 0 < len(mine) < FLOWS
    wait_for(lambda: f"packets {len(mine)} " in run("nft", "list", "counter", "ip", "seen", "flows"))
    for number, (client, port) in enumerate(flows, 1):
        about = ipv4(ALL.ip, client, UDP, udp(7, port))
        kind, code = rng.choice([(3, 4), (3, 1), (3, 3), (11, 0), (12, 0)])
        router = IPv4Address("203.0.113.9")
        send(
            wire,
            ALL,
            ICMP,
            icmp(kind, struct.pack("!HH", 0, 1400 if kind == 3 else 0) + about, code),
            number,
            router,
        )
    send(wire, ALL, UDP, udp(flows[min(mine) - 1][1], 7), 0, flows[min(mine) - 1][0])  # behind all others
    wait_for(lambda: f"packets {len(mine) + 1} " in run("nft", "list", "counter", "ip", "seen", "flows"))
    listed = run("nft", "list", "set", "ip", "seen", "errors")
    elements = listed.partition("elements = {")[2].partition("}")[0]
    assert {int(element) for element in elements.replace(",", " ").split()} == mine


def test_arp_says_the_clusters_mac_and_no_other(engine: IptablesEngine, wire: Wire, other_wire: Wire) -> None:
    engine.apply(wanted(ALL))
    run("ip", "address", "add", f"{ALL.ip}/32", "dev", "eth0")
    run("ip", "address", "add", "10.8.0.250/24", "dev", "eth0")
    client, own = IPv4Address("10.8.0.77"), mac_of("eth0")

    def answers(asked: Wire, target: IPv4Address) -> list[tuple[str, str]]:
        """Of each: the MAC that it tells, and the one that it comes from. The last is of the own address."""
        found, ended = [], False
        for one in (target, IPv4Address("10.8.0.250")):
            asked.send([ethernet(arp(1, client, one), to="ff:ff:ff:ff:ff:ff", ethertype=ETHERTYPE_ARP)])
        while not ended:
            frame = asked.hear(5.0)
            assert frame, "the own address is not answered for"
            if frame[12:14] != ETHERTYPE_ARP.to_bytes(2):
                continue
            operation, mac, sender = arp_sender(frame)
            ended = operation == 2 and sender == IPv4Address("10.8.0.250")
            if operation == 2 and sender == target:
                found.append((mac, frame[6:12].hex(":")))
        return found

    assert answers(wire, ALL.ip) == [(ALL.mac, own)]
    assert answers(other_wire, ALL.ip) == [], "on another interface nobody is to hear of it"
    # As a question of the kernel's own, which tells its sender's MAC as well.
    run("ip", "route", "add", "10.8.0.99/32", "dev", "eth0", "src", str(ALL.ip))
    heard = asking(wire, ALL.ip, IPv4Address("10.8.0.99"))
    assert heard == ALL.mac
    engine.remove()
    assert answers(wire, ALL.ip) == [(own, own)], "what the rules are for"


def asking(wire: Wire, source: IPv4Address, target: IPv4Address) -> str:
    """The sender's MAC of the question that a packet from `source` to `target` needs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((str(source), 0))
        opened.sendto(b"", (str(target), 9))
    while True:
        frame = wire.hear(5.0)
        assert frame, "no question came"
        if frame[12:14] == ETHERTYPE_ARP.to_bytes(2):
            operation, mac, sender = arp_sender(frame)
            if (operation, sender) == (1, source):
                return mac


def test_what_another_program_marks_or_accepts_later_is_what_ours_let_in(
    engine: IptablesEngine, wire: Wire
) -> None:
    """Rules of others in the same hook come after ours, and see nothing that is not this node's."""
    run("iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-j", "ACCEPT")
    goal = Wanted({ALL.ip: replace(ALL, owned=BucketSet())}, frozenset())
    engine.apply(goal)
    observer = Observer(BEHIND_MANGLE)
    send(wire, ALL, UDP, udp(9, 9), 1)
    observer.await_arrival(1)
    assert observer.kept() == set()
