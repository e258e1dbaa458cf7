"""The kernel keeps exactly the packets whose bucket, by lbless_api.hashing, is owned."""

import random
import struct
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kernel import rawpackets
from kernel.rawpackets import GRE, OSPF, PORTED, Fields, ethernet, icmp_error, ipv4, random_fields, transport
from kernel.segment import Observer, Wire, nft, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import AH, ESP, ICMP, UDP, HashFunction, HashMode, bucket
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

pytestmark = pytest.mark.root

PROTOCOLS = (*PORTED, ESP, AH, ICMP, GRE, OSPF)
NOPS = b"\1\1\1\1"
FRAMES = 180  # of each address


def make_vip(number: int, group: HashParameters, owned: BucketSet) -> Vip:
    ip = IPv4Address("10.8.0.0") + number
    return Vip(ip, "eth0", default_mac(ip), group, None, owned)


def bucket_of(group: HashParameters, fields: Fields) -> int:
    return bucket(
        group.function,
        group.mode,
        fields.source,
        fields.source_port,
        fields.destination_port,
        buckets=group.buckets,
        seed=group.seed,
        protocol=fields.protocol,
        prefix_length=group.prefix_length,
    )


def half(rng: random.Random, buckets: int) -> BucketSet:
    """Half of the buckets, by chance; of a single one all or nothing."""
    return BucketSet(b for b in range(buckets) if rng.random() < 0.5)


def packet(rng: random.Random, vip: Vip, identification: int) -> tuple[Fields, bytes]:
    """A packet of some protocol for `vip`, and the fields that are to decide about it."""
    options = NOPS if rng.random() < 0.2 else b""
    if rng.random() < 0.25:
        about = random_fields(rng, rng.choice((*PORTED, ICMP, GRE)))
        embedded_options = NOPS * rng.choice((0, 0, *range(1, 11)))
        error = icmp_error(rng, vip.ip, about, options=embedded_options)
        source, protocol, payload = rawpackets.random_client(rng), ICMP, error
    else:
        about = random_fields(rng, rng.choice(PROTOCOLS))
        source, protocol, payload = about.source, about.protocol, transport(about, rng.randbytes(16))
    data = ipv4(source, vip.ip, protocol, payload, identification=identification, options=options)
    return about, ethernet(data, to=vip.mac)


def check(
    engine: NftablesEngine, wire: Wire, observer: Observer, vips: list[Vip], rng: random.Random, count: int
) -> None:
    """Send `count` packets to each address and compare what was kept with what is owned."""
    engine.apply(Wanted({vip.ip: vip for vip in vips}, frozenset()))
    about: dict[tuple[IPv4Address, int], tuple[Vip, Fields]] = {}
    for vip in vips:
        for identification in range(count):
            fields, frame = packet(rng, vip, identification)
            about[vip.ip, identification] = vip, fields
            wire.send([frame])
    observer.await_arrival(len(about))
    expected = {key for key, (vip, fields) in about.items() if bucket_of(vip.hash, fields) in vip.owned}
    kept = observer.kept()
    wrong = [(key, *about[key]) for key in kept ^ expected]
    assert not wrong, f"{len(wrong)} of {len(about)} packets, among them {wrong[:5]}"
    assert engine.counters()["kept"] == len(expected)
    assert engine.counters()["foreign"] == len(about) - len(expected)
    assert 0 < len(expected) < len(about)


@pytest.mark.parametrize("mode", list(HashMode), ids=str)
@pytest.mark.parametrize("function", list(HashFunction), ids=str)
def test_exactly_the_owned_packets_of_every_protocol_are_kept(
    function: HashFunction,
    mode: HashMode,
    engine: NftablesEngine,
    wire: Wire,
    observer: Observer,
    request: pytest.FixtureRequest,
):
    rng = random.Random(request.node.name)
    groups = [
        HashParameters(function, mode, seed, buckets, prefix_length)
        for seed in (0, 0xFFFFFFFF, rng.randrange(1 << 32))
        for buckets in (1, 7, 64, 256, 4096)
        for prefix_length in (8, 24, 32)
    ]
    vips = [make_vip(n, group, half(rng, group.buckets)) for n, group in enumerate(groups, 1)]
    check(engine, wire, observer, vips, rng, FRAMES)


@pytest.mark.parametrize("function", list(HashFunction), ids=str)
def test_every_prefix_length_hashes_just_so_many_leading_bits(
    function: HashFunction,
    engine: NftablesEngine,
    wire: Wire,
    observer: Observer,
    request: pytest.FixtureRequest,
):
    rng = random.Random(request.node.name)
    groups = [HashParameters(function, HashMode.SOURCE_IP, 5, 256, length) for length in range(1, 33)]
    vips = [make_vip(n, group, half(rng, group.buckets)) for n, group in enumerate(groups, 1)]
    check(engine, wire, observer, vips, rng, FRAMES)


def test_addresses_with_equal_parameters_differ_by_what_they_own_alone(
    engine: NftablesEngine, wire: Wire, observer: Observer
):
    rng = random.Random(3)
    group = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 16, 32)
    vips = [make_vip(n, group, BucketSet(range(n))) for n in range(17)]
    check(engine, wire, observer, vips, rng, 100)


@pytest.mark.parametrize("function", list(HashFunction), ids=str)
def test_an_icmp_error_goes_to_the_owner_whatever_options_the_packet_in_it_has(
    function: HashFunction, engine: NftablesEngine, wire: Wire, observer: Observer
):
    rng = random.Random(4)
    group = HashParameters(function, HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT, 9, 2, 32)
    vip = make_vip(1, group, BucketSet([1]))
    engine.apply(Wanted({vip.ip: vip}, frozenset()))
    expected = set()
    for identification in range(330):
        about = random_fields(rng, rng.choice(PORTED))
        if bucket_of(group, about) in vip.owned:
            expected.add((vip.ip, identification))
        payload = icmp_error(rng, vip.ip, about, options=NOPS * (identification % 11))
        wire.send([ethernet(ipv4(about.source, vip.ip, ICMP, payload, identification=identification))])
    # Half of a header of options is none that ports could be behind.
    for words in range(5):
        payload = bytearray(icmp_error(rng, vip.ip, random_fields(rng, UDP)))
        payload[8] = 0x40 | words
        wire.send([ethernet(ipv4(about.source, vip.ip, ICMP, bytes(payload), identification=1000 + words))])
    observer.await_arrival(335)
    assert observer.kept() == expected
    assert 100 < len(expected) < 230


def test_a_datagram_in_fragments_is_hashed_whole(engine: NftablesEngine, wire: Wire, observer: Observer):
    rng = random.Random(5)
    group = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT, 1, 2, 32)
    vip = make_vip(1, group, BucketSet([1]))
    engine.apply(Wanted({vip.ip: vip}, frozenset()))
    expected = set()
    for identification in range(100):
        fields = random_fields(rng, UDP)
        if bucket_of(group, fields) in vip.owned:
            expected.add((vip.ip, identification))
        data = transport(fields, rng.randbytes(1196))
        pieces = [(0x2000, data[:800]), (100, data[800:])]
        rng.shuffle(pieces)
        for fragment, payload in pieces:
            wire.send(
                [
                    ethernet(
                        ipv4(
                            fields.source,
                            vip.ip,
                            UDP,
                            payload,
                            identification=identification,
                            fragment=fragment,
                        )
                    )
                ]
            )
    observer.await_arrival(100)
    assert observer.kept() == expected
    assert 0 < len(expected) < 100


def test_a_foreign_packet_leaves_no_conntrack_entry(engine: NftablesEngine, wire: Wire):
    rng = random.Random(6)
    group = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 2, 32)
    nobody, everybody = make_vip(1, group, BucketSet()), make_vip(2, group, BucketSet.full(2))
    engine.apply(Wanted({vip.ip: vip for vip in (nobody, everybody)}, frozenset()))
    nft("table ip other { chain c { type filter hook input priority 0; ct state invalid drop\n }\n}")
    entries = conntrack_entries()
    fields = [replace(random_fields(rng, UDP), source=IPv4Address("10.8.0.200") + n) for n in range(20)]
    run("ip", "addr", "add", "10.8.0.250/24", "dev", "eth0")
    run("ip", "addr", "add", f"{everybody.ip}/32", "dev", "eth0")
    for vip, lasting in ((nobody, 0), (everybody, 20)):
        wire.send([ethernet(ipv4(f.source, vip.ip, UDP, udp(f), identification=1)) for f in fields])
        deadline = time.monotonic() + 5
        while sum(engine.counters()[name] for name in ("kept", "foreign")) < 20 + lasting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert conntrack_entries() - entries == lasting


def udp(fields: Fields) -> bytes:
    """A datagram without content and without checksum."""
    return struct.pack("!HHHH", fields.source_port or 1, fields.destination_port or 1, 8, 0)


def conntrack_entries() -> int:
    """How many flows this namespace's conntrack knows."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
