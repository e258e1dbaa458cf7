"""A bucket between two owners, on one of them: what is kept in each state, sent on, judged by its flow, answered."""

import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from kernel.rawpackets import (
    ACK,
    GRE,
    SYN,
    Fields,
    ethernet,
    icmp,
    ipv4,
    random_client,
    tcp,
)
from kernel.segment import Observer, Wire, link, mac_of, nft, run
from lab.usage import slab_kib
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol
from lbless_api.hashing import ICMP, TCP, UDP, HashFunction, HashMode, bucket
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.ladder import LAST_MS
from lbless_nodeagent.dataplane.moving import AT_REST, Moving
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.nftables.library import Library
from lbless_nodeagent.dataplane.nftables.netlink import Reader
from lbless_nodeagent.dataplane.tick.renewal import Lease

pytestmark = pytest.mark.root

VIP, RESTING, NODE, ROUTER = (IPv4Address(f"10.8.0.{n}") for n in (100, 101, 1, 254))
SECOND, THIRD = IPv4Address("10.8.0.2"), IPv4Address("10.8.0.3")
MACS = {SECOND: "02:00:00:00:00:02", THIRD: "02:00:00:00:00:03", ROUTER: "02:00:00:00:00:99"}
CLUSTER_MAC = "03:bf:0a:08:00:64"
UNTRACKED = IPv4Network("100.64.0.0/10")
NOTRACK = f"""
table ip other {{
 chain c {{ type filter hook prerouting priority -300; ip saddr {UNTRACKED} notrack; }}
}}
"""
PORT = 80
BEHIND_STAGE_TWO = -100
NOP_OPTIONS = b"\x01" * 8
HEAR_SECONDS = 5
SILENCE_SECONDS = 1.5
"""A SYN-ACK is sent again after a second."""

GROUPS = [
    HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 16, 32),
    HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 7, 16, 24),
    HashParameters(HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT, 9, 16, 32),
    HashParameters(HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP, 0, 16, 24),
]
OWNED, FOREIGN = BucketSet.parse("0-2"), BucketSet.parse("14-15")
MOVING = Moving(
    standby=BucketSet.parse("3-5"),
    fresh=BucketSet.parse("6-8"),
    drain=BucketSet.parse("9-11"),
    ending=BucketSet.parse("12-13"),
    redirect=((SECOND, BucketSet([9])), (THIRD, BucketSet([10]))),
)
STATES = {
    "owned": OWNED,
    "standby": MOVING.standby,
    "fresh": MOVING.fresh,
    "drain": MOVING.drain,
    "ending": MOVING.ending,
    "foreign": FOREIGN,
}
KEPT_IN = {
    "SYN": "owned fresh",
    "SYN to this host": "owned standby fresh",
    "packet of an own flow": "owned standby fresh drain",
    "packet of another's flow": "owned",
    "packet of another's flow to this host": "owned",
    "untracked packet": "owned standby fresh drain",
    "datagram": "owned fresh",
    "datagram to this host": "owned standby",
    "echo request": "owned fresh",
    "echo request to this host": "owned standby",
    "other protocol": "owned fresh",
    "other protocol to this host": "owned standby",
    "error about an own flow": "owned standby fresh drain",
    "error about another's flow": "",
    "error about an own flow, with options": "owned standby fresh drain ending foreign",
    "error about another's flow, with options": "",
}
SENT_ON = {name for name in KEPT_IN if "flow" not in name and "untracked" not in name}


@pytest.fixture
def host(wire: Wire) -> Iterator[None]:
    """The host has its addresses, knows everybody's MAC, and listens on PORT."""
    for address in (f"{NODE}/24", f"{VIP}/32", f"{RESTING}/32"):
        run("ip", "addr", "add", address, "dev", "eth0")
    for neighbour, mac in MACS.items():
        run("ip", "neigh", "add", str(neighbour), "lladdr", mac, "nud", "permanent", "dev", "eth0")
    run("ip", "route", "add", "default", "via", str(ROUTER))
    with socket.create_server(("", PORT), backlog=64):
        yield


def make_vip(group: HashParameters, owned: BucketSet, moving: Moving = AT_REST, ip: IPv4Address = VIP) -> Vip:
    return Vip(ip, "eth0", CLUSTER_MAC, group, None, owned, moving=moving)


def wanted(*vips: Vip, pods: str = "10.244.3.0/24") -> Wanted:
    return Wanted({vip.ip: vip for vip in vips}, frozenset({IPv4Network(pods)}))


class Client:
    """Makes packets of flows in buckets that a test names, and opens flows."""

    def __init__(self, wire: Wire, group: HashParameters, rng: random.Random) -> None:
        self._wire, self._group, self._rng = wire, group, rng

    def fields(self, wanted_bucket: int, protocol: int = TCP, *, untracked: bool = False) -> Fields:
        """Of a flow in that bucket that nobody has had."""
        while True:
            source = random_client(self._rng)
            if untracked:
                source = UNTRACKED[self._rng.randrange(UNTRACKED.num_addresses)]
            elif source in UNTRACKED or source in IPv4Network("10.0.0.0/8"):
                continue
            found = Fields(source, self._rng.randrange(1024, 65536), PORT, protocol)
            if self._bucket(found) == wanted_bucket:
                return found

    def send(self, fields: Fields, payload: bytes, number: int = 0, *, to: str = CLUSTER_MAC) -> None:
        """One packet to VIP, with `number` as its identification."""
        packet = ipv4(fields.source, VIP, fields.protocol, payload, identification=number)
        self._wire.send([ethernet(packet, to=to)])

    def open(self, fields: Fields) -> bytes:
        """Make a TCP flow, to the end of its handshake; return what goes on with it: the last ACK again."""
        self.send(fields, tcp(fields, VIP, SYN, 1))
        answer = self.hear_answer(fields, HEAR_SECONDS)
        assert answer is not None
        mid = tcp(fields, VIP, ACK, 2, answer + 1 & 0xFFFFFFFF)
        self.send(fields, mid)
        return mid

    def hear_answer(self, fields: Fields, seconds: float) -> int | None:
        """The sequence number of the next SYN-ACK to that flow, None if there is none within so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            frame = self._wire.hear(left)
            packet = frame[14:] if frame else b""
            if packet[9:10] == bytes([TCP]) and packet[16:20] == fields.source.packed:
                ports, sequence, flags = packet[20:24], packet[24:28], packet[33]
                if ports == struct.pack("!HH", PORT, fields.source_port) and flags == SYN | ACK:
                    return int.from_bytes(sequence, "big")
        return None

    def _bucket(self, fields: Fields) -> int:
        return bucket(
            self._group.function,
            self._group.mode,
            fields.source,
            fields.source_port,
            fields.destination_port,
            buckets=self._group.buckets,
            seed=self._group.seed,
            protocol=fields.protocol,
            prefix_length=self._group.prefix_length,
        )


def error(about: Fields, options: bytes = b"") -> bytes:
    """That a packet of that flow cannot be delivered to the client."""
    ports = struct.pack("!HHL", about.destination_port, about.source_port, 2)
    return icmp(3, bytes(4) + ipv4(VIP, about.source, TCP, ports, options=options))


def send_each_kind(
    client: Client, number: int, at: int, flow: Fields, own: bytes, here: str
) -> dict[str, int]:
    """Send one of each kind of packet in bucket `at`, where `own` is of the own flow `flow`, identified from `number`
    on; return the identification of each."""
    new, other, untracked = client.fields(at), client.fields(at), client.fields(at, untracked=True)
    datagram, echo, gre = (client.fields(at, protocol) for protocol in (UDP, ICMP, GRE))
    opening, mid = tcp(new, VIP, SYN), tcp(other, VIP, ACK, 5, 5)
    data = struct.pack("!HHHH", datagram.source_port, PORT, 8, 0)
    request = icmp(8, struct.pack("!HH", at, 1))
    numbers = {name: number + place for place, name in enumerate(KEPT_IN)}
    for name, fields, payload, to in (
        ("SYN", new, opening, CLUSTER_MAC),
        ("SYN to this host", new, opening, here),
        ("packet of an own flow", flow, own, CLUSTER_MAC),
        ("packet of another's flow", other, mid, CLUSTER_MAC),
        ("packet of another's flow to this host", other, mid, here),
        ("untracked packet", untracked, tcp(untracked, VIP, ACK, 5, 5), CLUSTER_MAC),
        ("datagram", datagram, data, CLUSTER_MAC),
        ("datagram to this host", datagram, data, here),
        ("echo request", echo, request, CLUSTER_MAC),
        ("echo request to this host", echo, request, here),
        ("other protocol", gre, bytes(8), CLUSTER_MAC),
        ("other protocol to this host", gre, bytes(8), here),
        ("error about an own flow", replace(flow, protocol=ICMP), error(flow), CLUSTER_MAC),
        ("error about another's flow", replace(other, protocol=ICMP), error(other), CLUSTER_MAC),
        (
            "error about an own flow, with options",
            replace(flow, protocol=ICMP),
            error(flow, NOP_OPTIONS),
            CLUSTER_MAC,
        ),
        (
            "error about another's flow, with options",
            replace(other, protocol=ICMP),
            error(other, NOP_OPTIONS),
            CLUSTER_MAC,
        ),
    ):
        client.send(fields, payload, numbers[name], to=to)
    return numbers


def sent_on(wire: Wire) -> dict[int, str]:
    """The identification of each packet for VIP that the host put on the wire, and the MAC that it went to."""
    found: dict[int, str] = {}
    while frame := wire.hear(0.2):
        packet = frame[14:]
        if frame[12:14] == b"\x08\x00" and packet[16:20] == VIP.packed:
            (identification,) = struct.unpack_from("!H", packet, 4)
            assert identification not in found, "sent on twice"
            assert frame[6:12].hex(":") == mac_of("eth0")
            found[identification] = frame[:6].hex(":")
    return found


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.function}-{g.mode}")
def test_each_kind_of_packet_is_kept_or_sent_on_or_dropped_by_the_state_of_its_bucket(
    group: HashParameters, engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    client = Client(wire, group, random.Random(request.node.name))
    here = mac_of("eth0")
    every = BucketSet.full(group.buckets)
    resting = make_vip(group, every, ip=RESTING)
    engine.apply(wanted(make_vip(group, every), resting))
    nft(NOTRACK)
    flows = {at: client.fields(at) for at in every}
    own = {at: client.open(flow) for at, flow in flows.items()}
    engine.apply(wanted(make_vip(group, OWNED, MOVING), resting))
    observer = Observer(BEHIND_STAGE_TWO)
    counted = engine.counters()
    about: dict[int, tuple[int, str]] = {}
    for at, flow in flows.items():
        numbers = send_each_kind(client, 1 + at * len(KEPT_IN), at, flow, own[at], here)
        about |= {number: (at, name) for name, number in numbers.items()}
    observer.await_arrival(len(about))

    state_of = {at: state for state, buckets in STATES.items() for at in buckets}
    kept_in = dict(KEPT_IN)
    if group.mode is HashMode.SOURCE_IP:  # where the ports are is of no account then
        kept_in["error about an own flow, with options"] = KEPT_IN["error about an own flow"]
    expected = {number for number, (at, name) in about.items() if state_of[at] in kept_in[name].split()}
    kept = {number for _, number in observer.kept()}
    wrong = sorted(
        (about[number][1], state_of[about[number][0]], number in kept) for number in kept ^ expected
    )
    assert not wrong
    ways = {at: MACS[to] for to, buckets in MOVING.redirect for at in buckets}
    onwards = {number: ways[at] for number, (at, name) in about.items() if at in ways and name in SENT_ON}
    assert sent_on(wire) == onwards
    after = engine.counters()
    assert after["sent_on"] - counted["sent_on"] == len(onwards)
    assert after["taken_in"] - counted["taken_in"] == 4 * len(MOVING.standby)
    assert after["untracked"] - counted["untracked"] == 3 * 3
    assert after["other_flow"] > counted["other_flow"]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.function}-{g.mode}")
@pytest.mark.parametrize("protocol", [UDP, ICMP], ids=["datagram", "echo request"])
def test_a_datagram_that_standby_refused_and_that_is_sent_on_when_the_bucket_is_fresh_is_kept_once(
    group: HashParameters,
    protocol: int,
    engine: NftablesEngine,
    wire: Wire,
    host: None,
    request: pytest.FixtureRequest,
):
    client = Client(wire, group, random.Random(request.node.name))
    here, some = mac_of("eth0"), MOVING.standby
    fields = client.fields(min(some), protocol)
    ways = {
        # name: to which MACs the same datagram goes in standby, then in fresh, and how often it is kept in each
        "sent on late": ([CLUSTER_MAC], [here, here], 0, 1),
        "sent on in time": ([CLUSTER_MAC, here], [here], 1, 0),
        "never seen before": ([], [here, CLUSTER_MAC], 0, 1),
        "an equal one follows": ([CLUSTER_MAC], [CLUSTER_MAC, here], 0, 1),
    }
    payloads = {}
    for number, name in enumerate(ways, 1):
        payloads[name] = icmp(8, struct.pack("!HH", number, number))
        if protocol == UDP:
            payloads[name] = struct.pack("!HHHH", fields.source_port, PORT, 8, number)
    observer = Observer(BEHIND_STAGE_TWO)
    numbers, sent = {}, 0
    for phase, moving in enumerate((Moving(standby=some), Moving(fresh=some))):
        engine.apply(wanted(make_vip(group, OWNED, moving)))
        for name, way in ways.items():
            for to in way[phase]:
                sent += 1
                numbers[sent] = (name, phase)
                client.send(fields, payloads[name], sent, to=to)
        observer.await_arrival(sent)
    kept = [numbers[number] for _, number in observer.kept()]
    assert {(name, phase): kept.count((name, phase)) for name in ways for phase in (0, 1)} == {
        (name, phase): way[2 + phase] for name, way in ways.items() for phase in (0, 1)
    }


def test_an_address_at_rest_is_not_judged_by_flows(
    engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    group, rng = GROUPS[0], random.Random(request.node.name)
    client = Client(wire, group, rng)
    engine.apply(wanted(make_vip(group, OWNED), make_vip(group, OWNED, MOVING, RESTING)))
    observer = Observer(BEHIND_STAGE_TWO)
    for number, at in enumerate((*OWNED, *MOVING.buckets), 1):
        fields = client.fields(at)
        client.send(fields, tcp(fields, VIP, ACK, 5, 5), number)
    observer.await_arrival(len(OWNED) + len(MOVING.buckets))
    assert observer.kept() == {(VIP, number) for number in range(1, 1 + len(OWNED))}


def test_only_the_listed_ports_are_open_in_any_state(
    engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    group = GROUPS[0]
    client = Client(wire, group, random.Random(request.node.name))
    for ports in ((PortRange(Protocol.TCP, 81, 81),), (PortRange(Protocol.TCP, 70, 79),)):
        engine.apply(wanted(replace(make_vip(group, OWNED, MOVING), ports=ports)))
        for at in range(group.buckets):
            for to in (CLUSTER_MAC, mac_of("eth0")):
                fields = client.fields(at)
                client.send(fields, tcp(fields, VIP, SYN), 1, to=to)
    deadline = time.monotonic() + HEAR_SECONDS
    while engine.counters()["closed_port"] < 4 * group.buckets:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sent_on(wire) == {}


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.function}-{g.mode}")
def test_a_flow_that_is_half_open_when_its_bucket_leaves_is_answered_no_more(
    group: HashParameters, engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    client = Client(wire, group, random.Random(request.node.name))
    every = BucketSet.full(group.buckets)
    engine.apply(wanted(make_vip(group, every)))
    half_open = {at: client.fields(at) for at in (*OWNED, *MOVING.drain, *MOVING.ending)}
    for fields in half_open.values():
        client.send(fields, tcp(fields, VIP, SYN))
        assert client.hear_answer(fields, HEAR_SECONDS) is not None
    engine.apply(
        wanted(
            make_vip(
                group, every - MOVING.drain - MOVING.ending, Moving(drain=MOVING.drain, ending=MOVING.ending)
            )
        )
    )
    deadline = time.monotonic() + SILENCE_SECONDS
    heard = set()
    while (left := deadline - time.monotonic()) > 0:
        packet = (wire.hear(left) or b"")[14:]
        if packet[9:10] == bytes([TCP]) and packet[12:16] == VIP.packed:
            heard |= {at for at, f in half_open.items() if packet[16:20] == f.source.packed}
    assert heard == set(OWNED)
    assert engine.counters()["unanswered"] == len(MOVING.drain) + len(MOVING.ending)


def test_the_node_itself_and_its_pods_are_answered_in_every_state(
    engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    group = GROUPS[0]
    link("eth1", "wire1")
    run("ip", "route", "add", "10.244.3.0/24", "dev", "eth1")
    pod = Wire("wire1")
    engine.apply(wanted(make_vip(group, OWNED, replace(MOVING, redirect=()))))
    for number in range(1, 41):  # so that every state has its share
        with socket.create_connection((str(VIP), PORT), timeout=HEAR_SECONDS):
            pass
        fields = Fields(IPv4Address(f"10.244.3.{number}"), 5000 + number, PORT, TCP)
        run(
            "ip",
            "neigh",
            "add",
            str(fields.source),
            "lladdr",
            MACS[ROUTER],
            "nud",
            "permanent",
            "dev",
            "eth1",
        )
        pod.send([ethernet(ipv4(fields.source, VIP, TCP, tcp(fields, VIP, SYN)), to=mac_of("eth1"))])
        answers = Client(pod, group, random.Random(request.node.name))
        assert answers.hear_answer(fields, HEAR_SECONDS) is not None
    pod.close()
    assert engine.counters()["unanswered"] == 0
    assert engine.counters()["other_flow"] == 0


def test_without_a_lease_nothing_is_kept_and_nothing_sent_on(
    namespace: None, wire: Wire, host: None, request: pytest.FixtureRequest
):
    group = GROUPS[0]
    engine = NftablesEngine(lease=True)
    client = Client(wire, group, random.Random(request.node.name))
    engine.apply(wanted(make_vip(group, BucketSet(), Moving(drain=MOVING.drain, redirect=MOVING.redirect))))
    lease = Lease("eth0")
    expected = {}
    for number, at in enumerate((9, 10, 9, 10), 1):
        if number == 3:
            lease.renew(time.monotonic() + LAST_MS / 1_000)
        if number > 2:
            expected[number] = MACS[SECOND if at == 9 else THIRD]
        fields = client.fields(at)
        client.send(fields, tcp(fields, VIP, SYN), number)
    assert sent_on(wire) == expected
    assert engine.counters()["unleased"] == 2
    lease.close()
    engine.close()


MANY_GROUP = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)


def many(count: int, owned: BucketSet, moving: Moving = AT_REST) -> Wanted:
    """So many addresses with these buckets."""
    ips = [IPv4Address("10.80.16.0") + number for number in range(count)]
    return Wanted({ip: make_vip(MANY_GROUP, owned, moving, ip) for ip in ips}, frozenset())


def took_ms(engine: NftablesEngine, goal: Wanted) -> tuple[float, int]:
    """How long it takes to apply that, and how many transactions."""
    reader = Reader()
    began, generation = time.perf_counter(), reader.generation()
    engine.apply(goal)
    took, transactions = (time.perf_counter() - began) * 1_000, reader.generation() - generation
    reader.close()
    return took, transactions


def test_each_step_of_a_bucket_is_one_quick_transaction_beside_a_thousand_addresses(
    engine: NftablesEngine, wire: Wire, monkeypatch: pytest.MonkeyPatch
):
    owned, one = BucketSet(range(85)), BucketSet([84])
    goal = many(1_000, owned)
    engine.apply(goal)
    ip = next(iter(goal.vips))

    def run_text(_: Library, text: str) -> None:
        raise AssertionError(f"the slow way is taken for {text[:80]}")

    monkeypatch.setattr(Library, "run", run_text)
    steps = {
        "drain": Moving(drain=one, redirect=((SECOND, one),)),
        "redirect off": Moving(drain=one),
        "ending": Moving(ending=one),
        "foreign": AT_REST,
        "standby": Moving(standby=one),
        "fresh": Moving(fresh=one),
        "owned": AT_REST,
    }
    for name, moving in steps.items():
        vip = make_vip(MANY_GROUP, owned if name == "owned" else owned - one, moving, ip)
        took, transactions = took_ms(engine, Wanted({**goal.vips, ip: vip}, frozenset()))
        print(f"{name}: {took:.1f} ms")
        assert transactions == 1


def test_all_buckets_of_a_hundred_addresses_drain_in_few_transactions(engine: NftablesEngine, wire: Wire):
    every, ways = BucketSet.full(256), (BucketSet(range(0, 256, 2)), BucketSet(range(1, 256, 2)))
    engine.apply(many(100, every))
    moving = Moving(drain=every, redirect=((SECOND, ways[0]), (THIRD, ways[1])))
    goal = many(100, BucketSet(), moving)
    slab, peak = slab_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took, transactions = took_ms(engine, goal)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"25,600 buckets: {took:.0f} ms, {transactions} transactions, {slab_kib() - slab} KiB of the kernel's"
    )
    print(f"memory, {after - peak} KiB of the process's")
    assert transactions <= 1 + 100 * 4 * 256 // 9_000
    successor = NftablesEngine()
    assert successor.installed() == goal
    successor.close()
