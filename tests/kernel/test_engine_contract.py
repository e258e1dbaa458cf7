"""The contract, kept by every engine that dataplane has: in the kernel, with packets.

An engine that does not work on this kernel is skipped with what its probe says, but for the preferred one.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kernel.rawpackets import Fields, checksum, ethernet, ipv4, random_client
from kernel.segment import Observer, Wire, link, nft, ruleset, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import ICMP, TCP, UDP, bucket
from lbless_nodeagent.dataplane.engine import Engine, Vip, Wanted
from lbless_nodeagent.dataplane.engines import ENGINES, engines
from lbless_nodeagent.dataplane.ladder import LAST_MS
from lbless_nodeagent.dataplane.tick.renewal import Lease
from unit.engine_contract import EngineContract, Kernel, possible, vip, wanted

pytestmark = pytest.mark.root

AFTER_EVERY_ENGINE = -90
"""Behind the mangle table's prerouting (-150): whatever hook an engine filters in."""
PACKETS = 120  # of each address
KILLS, MOST_SECONDS = 6, 0.03
"""How often a process is killed, and how long at most after it began to apply."""
LEGACY = ("iptables-legacy", "arptables-legacy")


def legacy_rules() -> list[str]:
    """The rules and own chains of the legacy tables. A table that was ever looked at is there, though empty."""
    held, table = [], ""
    for program in LEGACY:
        for line in run(f"{program}-save").splitlines() if shutil.which(f"{program}-save") else ():
            table = line if line.startswith("*") else table
            chain = line.split(" [")[0]  # without its counts
            if line.startswith("-A") or (line.startswith(":") and not chain.endswith(" ACCEPT")):
                held.append(f"{program} {table} {chain}")
    return held


def meddle() -> None:
    """Rules of somebody else, some of them much like an engine's."""
    nft(
        "table ip lbless2 { set vips { type ipv4_addr; elements = { 10.8.0.1 } }\n chain a { counter accept\n }\n }\n"
        "table inet filter { chain input { type filter hook input priority 0; tcp dport 22 accept\n }\n }"
    )
    if shutil.which("iptables-legacy"):
        run("iptables-legacy", "-t", "mangle", "-N", "lbless2")
        run("iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-d", "10.8.0.1", "-j", "lbless2")
        run(
            "iptables-legacy",
            "-t",
            "mangle",
            "-A",
            "lbless2",
            "-m",
            "comment",
            "--comment",
            "lbless",
            "-j",
            "ACCEPT",
        )


@pytest.fixture(
    params=[
        pytest.param(
            (name, lease),
            id=f"{name}-leased" if lease else name,
            # Its lease is a table of its own, which the rules do not know of (test_fence).
            marks=[pytest.mark.soak] if lease and name == "iptables" else [],
        )
        for name in ENGINES
        for lease in (False, True)
    ]
)
def construct(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    """The constructor of each engine, without a lease and with one."""
    name, lease = request.param
    return engines(lease=lease)[name]


@pytest.fixture
def engine(construct: Callable[[], Engine], wire: Wire) -> Iterator[Engine]:
    """Each one, in a namespace that has eth0 and eth1, with a lease on the former where it needs one."""
    link("eth1", "wire1")
    engine = construct()
    report = engine.probe()
    if not report.available and report.name != next(iter(ENGINES)):
        pytest.skip(f"The {report.name} engine does not work here: {report.message}")
    assert report.available, report.message
    assert report.unfenced == ""
    yield engine
    engine.close()


@pytest.fixture
def kernel(engine: Engine, construct: Callable[[], Engine]) -> Kernel:
    def successor() -> Engine:
        made = construct()
        made.probe()
        return made

    return Kernel(content=lambda: (ruleset(), legacy_rules()), successor=successor, meddle=meddle)


class TestEngines(EngineContract):
    def test_exactly_the_owned_buckets_are_kept_of_each_function_and_mode_that_it_claims(
        self, engine: Engine, wire: Wire, request: pytest.FixtureRequest
    ) -> None:
        rng = random.Random(request.node.name)
        vips = [vip(number, group) for number, group in enumerate(possible(engine, 0x5EED), 1)]
        check(engine, wire, vips, rng)

    def test_changed_buckets_are_those_that_are_kept_from_then_on(
        self, engine: Engine, wire: Wire, request: pytest.FixtureRequest
    ) -> None:
        rng = random.Random(request.node.name)
        before = [vip(number, group) for number, group in enumerate(possible(engine, 7), 1)]
        engine.apply(wanted(*before))
        after = [
            replace(one, owned=BucketSet(b for b in range(one.hash.buckets) if rng.random() < 0.5))
            for one in before[1:]
        ]
        check(engine, wire, after, rng)

    def test_none_is_kept_where_nothing_is_owned_and_all_where_all_is(
        self, engine: Engine, wire: Wire
    ) -> None:
        groups = list(possible(engine))
        none = [vip(number, group, BucketSet()) for number, group in enumerate(groups, 1)]
        everything = [
            vip(number, group, BucketSet.full(group.buckets)) for number, group in enumerate(groups, 101)
        ]
        check(engine, wire, none + everything, random.Random(1))

    def test_what_a_killed_process_left_owns_nothing_that_it_should_not_and_the_next_makes_it_whole(
        self, engine: Engine, kernel: Kernel, request: pytest.FixtureRequest
    ) -> None:
        rng = random.Random(request.node.name)
        groups = list(possible(engine))
        before = wanted(*(vip(number, group) for number, group in enumerate(groups, 1)))
        after = wanted(
            *(
                vip(number, group, BucketSet(range(1, group.buckets, 2)))
                for number, group in enumerate(groups[1:], 2)
            ),
            vip(200, groups[0]),
        )
        for _ in range(KILLS):
            engine.apply(before)
            killed_while_it_applies(kernel.successor, after, rng.random() * MOST_SECONDS)
            successor = kernel.successor()
            found = successor.installed()
            for ip, held in found.vips.items() if found else ():
                allowed = BucketSet()
                for state in (before, after):
                    allowed |= state.vips[ip].owned if ip in state.vips else BucketSet()
                assert held.owned.issubset(allowed), (ip, str(held.owned))
            successor.apply(after)
            assert successor.installed() == after
            assert successor.audit()
            successor.close()


def killed_while_it_applies(make: Callable[[], Engine], goal: Wanted, seconds: float) -> None:
    """Let another process bring the kernel to `goal`, and kill it and its children after so long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            made = make()
            os.write(writer, b"begun")
            made.apply(goal)
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 5) == b"begun"
    select.select([reader], [], [], seconds)  # it is readable when the other has come to its end
    os.close(reader)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def check(engine: Engine, wire: Wire, vips: list[Vip], rng: random.Random) -> None:
    """Apply them, send packets to each, and compare what was kept with what is owned."""
    engine.apply(wanted(*vips))
    observer = Observer(AFTER_EVERY_ENGINE)
    about: dict[tuple[IPv4Address, int], tuple[Vip, Fields]] = {}
    lease = Lease("eth0")
    for one in vips:
        lease.renew(time.monotonic() + LAST_MS / 1_000)  # for those that need one
        for identification in range(1, PACKETS + 1):
            fields, payload = request_to(one.ip, rng)
            packet = ipv4(fields.source, one.ip, fields.protocol, payload, identification=identification)
            about[one.ip, identification] = one, fields
            wire.send([ethernet(packet, to=one.mac)])
    lease.close()
    observer.await_arrival(len(about))
    expected = {key for key, (one, fields) in about.items() if bucket_of(one.hash, fields) in one.owned}
    kept = observer.kept()
    wrong = [(key, *about[key]) for key in kept ^ expected]
    assert not wrong, f"{len(wrong)} of {len(about)} packets, among them {wrong[:5]}"
    assert 0 < len(expected) < len(about)


def request_to(ip: IPv4Address, rng: random.Random) -> tuple[Fields, bytes]:
    """What opens a flow, right enough for conntrack, which some engines ask: its fields and its payload."""
    source, first, second = random_client(rng), rng.randint(1, 65535), rng.randint(1, 65535)
    protocol = rng.choice((TCP, UDP, ICMP))
    if protocol == UDP:
        return Fields(source, first, second, UDP), struct.pack("!HHHH", first, second, 8, 0)
    if protocol == ICMP:
        echo = struct.pack("!BBHHH", 8, 0, 0, first, second)
        echo = struct.pack("!BBHHH", 8, 0, checksum(echo), first, second)
        # What stands where ports do is the checksum's neighbour: the identifier and the sequence number.
        return Fields(source, first, second, ICMP), echo
    syn = struct.pack("!HHLLHHHH", first, second, rng.randrange(1 << 32), 0, 0x5002, 64240, 0, 0)
    pseudo = source.packed + ip.packed + struct.pack("!BBH", 0, TCP, len(syn))
    syn = syn[:16] + struct.pack("!H", checksum(pseudo + syn)) + syn[18:]
    return Fields(source, first, second, TCP), syn


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
