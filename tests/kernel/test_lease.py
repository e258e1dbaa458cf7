"""The lease: what the kernel keeps while it runs and drops when it does not, and what renews it."""

from __future__ import annotations

import errno
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from kernel.rawpackets import checksum, ethernet, ipv4
from kernel.segment import DEADLINE_SECONDS, Observer, Wire, link, nft, ruleset, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import UDP, HashFunction, HashMode
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import NOTHING, Engine, Vip, Wanted
from lbless_nodeagent.dataplane.engines import engines
from lbless_nodeagent.dataplane.ladder import COARSE_MS, FINE_MS, GROUP, LAST_MS
from lbless_nodeagent.dataplane.nftables.netlink import Reader
from lbless_nodeagent.dataplane.tick.renewal import LATE_SECONDS, Lease, Renewal

pytestmark = pytest.mark.root

AFTER_EVERY_ENGINE = -90
ONE_BUCKET = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 0, 1, 32)
VIP, OTHER = IPv4Address("10.8.0.100"), IPv4Address("10.9.0.100")
CLIENT = IPv4Address("10.8.0.50")
LONG = 5.0
JIFFY_SECONDS = 0.01
"""The longest that Linux is built with."""
MARGIN_SECONDS = 0.05
"""Between the end of a lease and the time from which others take over: DEAD - LEASE."""
SAMPLES = 9


def vip(ip: IPv4Address = VIP, interface: str = "eth0", owned: BucketSet | None = None) -> Vip:
    mine = BucketSet([0]) if owned is None else owned
    return Vip(ip, interface, default_mac(ip), ONE_BUCKET, None, mine)


def wanted(*vips: Vip) -> Wanted:
    return Wanted({one.ip: one for one in vips}, frozenset())


BOTH = wanted(vip(), vip(OTHER, "eth1"))


class Clients:
    """Sends to the shared addresses from other hosts, and knows what of it was kept."""

    def __init__(self, wire: Wire, second_wire: Wire) -> None:
        self._wires = {VIP: wire, OTHER: second_wire}
        self._observer = Observer(AFTER_EVERY_ENGINE)
        self._sent = 0

    def send(self, ip: IPv4Address = VIP) -> int:
        """Send a packet, and return the number that it has."""
        self._sent += 1
        data = b"\x04\xd2\0\x35\0\x08\0\0"
        packet = ipv4(CLIENT, ip, UDP, data, identification=self._sent)
        self._wires[ip].send([ethernet(packet, to=default_mac(ip))])
        return self._sent

    def kept(self) -> set[int]:
        """The numbers of all packets that were kept, when all have arrived."""
        self._observer.await_arrival(self._sent)
        return {number for _, number in self._observer.kept()}

    def is_kept(self, ip: IPv4Address = VIP) -> bool:
        """Whether a packet that is sent now is kept."""
        return self.send(ip) in self.kept()


@pytest.fixture(params=list(engines(lease=True)))
def make(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Callable[[bool], Engine]]:
    """Makes the engine of each name, with or without a lease, in a namespace that has eth0 and eth1."""
    link("eth1", "wire1")
    made: list[Engine] = []

    def make(lease: bool) -> Engine:
        engine = engines(lease=lease)[request.param]()
        made.append(engine)
        report = engine.probe()
        assert (report.available, report.unfenced) == (True, ""), report
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make: Callable[[bool], Engine]) -> Engine:
    """One with a lease that holds an address on each interface."""
    engine = make(True)
    engine.apply(BOTH)
    return engine


@pytest.fixture
def clients(engine: Engine, wire: Wire) -> Iterator[Clients]:
    second = Wire("wire1")
    yield Clients(wire, second)
    second.close()


@pytest.fixture
def lease(engine: Engine) -> Iterator[Lease]:
    """That of eth0."""
    made = Lease("eth0")
    yield made
    made.close()


@pytest.fixture
def reader(engine: Engine) -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def until(what: Callable[[], bool]) -> None:
    deadline = soon(DEADLINE_SECONDS)
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_nothing_is_kept_before_a_lease_all_while_it_runs_and_nothing_after_its_end(
    engine: Engine, clients: Clients, lease: Lease
):
    assert engine.lease_left("eth0") is None
    assert not clients.is_kept()
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert 0 < (engine.lease_left("eth0") or 0) <= LONG
    assert clients.is_kept()
    assert lease.end() is Renewal.ENDED
    assert engine.lease_left("eth0") is None
    assert not clients.is_kept()
    assert lease.renew(soon(0.01)) is Renewal.ENDED, "too little is left for any rung"
    assert not clients.is_kept()
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert clients.is_kept()
    assert engine.counters()["unleased"] == 3


def test_a_lease_ends_when_it_was_to_end_or_a_rung_and_a_jiffy_sooner(
    engine: Engine, clients: Clients, lease: Lease, capsys: pytest.CaptureFixture[str]
):
    """A packet's time is taken before it is sent where it tells of a late end, and after that of an early one:
    so neither is blamed on a machine that is busy. What remains is a timer interrupt that comes late, after
    which the kernel's clock runs: in a virtual machine, some milliseconds now and then."""
    late, early = [], []
    for sample in range(SAMPLES):
        # Just above a rung, where next to nothing is rounded off, and anywhere.
        ends_at = soon(0.1 + 0.08 * sample + (0.0005 if sample % 2 else 0.0137))
        assert lease.renew(ends_at) is Renewal.RENEWED
        sent = []
        while (before := time.monotonic()) < ends_at + 0.05:
            sent.append((clients.send(), before, time.monotonic()))
            time.sleep(0.0005)
        kept = clients.kept()
        late.append(max(before for number, before, _ in sent if number in kept) - ends_at)
        early.append(ends_at - min(after for number, _, after in sent if number not in kept))
    with capsys.disabled():
        print(
            f"\n  {engine.name}: ends {max(late) * 1e3:.1f} ms late at worst, {max(early) * 1e3:.1f} ms early"
        )
    assert statistics.median(late) <= 0
    assert max(late) <= MARGIN_SECONDS
    assert max(early) <= FINE_MS / 1e3 + JIFFY_SECONDS


def test_a_renewal_sets_the_end_be_it_sooner_or_later_than_it_was(
    engine: Engine, clients: Clients, lease: Lease
):
    for seconds in (LONG, 0.3, 2.0, 0.04, LONG + 1):
        ends_at = soon(seconds)
        assert lease.renew(ends_at) is Renewal.RENEWED
        left = engine.lease_left("eth0")
        assert left is None or left <= ends_at - time.monotonic() + 2 * JIFFY_SECONDS
        assert left is None or left <= LAST_MS / 1e3
        if seconds > 1:
            assert left is not None
            assert left > seconds - 2 * COARSE_MS / 1e3 - 1
    assert lease.renew(soon(0.1)) is Renewal.RENEWED
    until(lambda: engine.lease_left("eth0") is None)
    assert not clients.is_kept()


def test_a_process_that_was_not_let_run_between_its_clock_and_the_kernels_sets_the_lease_again(
    engine: Engine,
):
    now, pauses = soon(0), [0.5]
    times = iter(range(1000))

    def clock() -> float:
        nonlocal now
        if next(times) % 2 and pauses:  # after the datagram was sent
            now += pauses.pop()
        return now

    with_pause = Lease("eth0", clock)
    assert with_pause.renew(now + 0.7) is Renewal.RENEWED
    assert (engine.lease_left("eth0") or 0) <= 0.2
    pauses = [2 * LATE_SECONDS] * 100
    assert with_pause.renew(now + LONG) is Renewal.ENDED, (
        "it never runs long enough: nothing it sets is right"
    )
    assert engine.lease_left("eth0") is None
    with_pause.close()


def test_rules_that_somebody_flushed_are_noticed_by_the_next_renewal(
    engine: Engine, clients: Clients, lease: Lease, wire: Wire
):
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    nft("delete table ip lbless" if "table ip lbless {" in ruleset() else "delete table ip lbless_lease")
    assert lease.renew(soon(LONG)) is Renewal.RULES_GONE
    assert lease.end() is Renewal.RULES_GONE
    assert not engine.verify()
    engine.apply(BOTH)
    assert not clients.is_kept(), "nobody but who renews knows whether it may"
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert clients.is_kept()


def test_a_datagram_that_no_rule_takes_does_not_leave_the_host(engine: Engine, lease: Lease, wire: Wire):
    run("ip", "address", "add", "10.8.0.1/24", "dev", "eth0")
    engine.remove()
    assert lease.renew(soon(LONG)) is Renewal.RULES_GONE
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mark.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    mark.sendto(b"mark", (GROUP, 4000))  # as any other, with a time to live of 1
    while True:
        frame = wire.hear(DEADLINE_SECONDS)
        assert frame is not None
        if frame[12:14] == b"\x08\0" and frame[30:34] == IPv4Address(GROUP).packed:
            break
    assert frame[42:46] == b"mark"
    mark.close()


def test_a_link_that_is_down_a_device_that_is_gone_and_one_that_has_another_name_are_told_apart(
    engine: Engine, lease: Lease
):
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    run("ip", "link", "set", "wire0", "down")
    assert lease.renew(soon(LONG)) is Renewal.RENEWED, (
        "the cable is pulled out: it may come back within the lease"
    )
    run("ip", "link", "set", "eth0", "down")
    assert lease.renew(soon(LONG)) is Renewal.LINK_DOWN
    run("ip", "link", "set", "eth0", "up")
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    run("ip", "link", "set", "eth0", "down")
    run("ip", "link", "set", "eth0", "name", "old0")
    run("ip", "link", "set", "old0", "up")
    assert lease.renew(soon(LONG)) is Renewal.DEVICE_GONE
    link("eth0", "wire2")
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert engine.lease_left("old0") is None
    run("ip", "link", "delete", "eth0")
    assert lease.renew(soon(LONG)) is Renewal.DEVICE_GONE
    assert lease.end() is Renewal.DEVICE_GONE
    link("eth0", "wire3")
    assert lease.renew(soon(LONG)) is Renewal.RENEWED


def test_two_interfaces_have_leases_of_their_own(engine: Engine, clients: Clients, lease: Lease):
    other = Lease("eth1")
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert (clients.is_kept(VIP), clients.is_kept(OTHER)) == (True, False)
    assert other.renew(soon(LONG)) is Renewal.RENEWED
    assert (clients.is_kept(VIP), clients.is_kept(OTHER)) == (True, True)
    assert lease.end() is Renewal.ENDED
    assert (clients.is_kept(VIP), clients.is_kept(OTHER)) == (False, True)
    other.close()


def test_neither_another_user_nor_a_packet_from_the_network_renews(
    engine: Engine, clients: Clients, lease: Lease, wire: Wire
):
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        result = Lease("eth0").renew(soon(LONG))
        os._exit(0 if result is Renewal.RULES_GONE else 1)
    assert os.waitpid(child, 0)[1] == 0, "for that user it is as if there were no rules"
    assert engine.lease_left("eth0") is None

    run("ip", "address", "add", "10.8.0.1/24", "dev", "eth0")
    nft(
        "table ip heard { counter heard { }\n chain c { type filter hook prerouting priority -399; "
        f"ip daddr {GROUP} counter name heard\n }}\n }}"
    )
    datagrams = []
    for source, ttl in (("10.8.0.1", 0), ("10.8.0.1", 1), ("10.8.0.50", 0), ("0.0.0.0", 0), ("127.0.0.1", 0)):
        for port in (700, 5000):
            data = port.to_bytes(2, "big") * 2 + b"\0\x08\0\0"
            packet = bytearray(ipv4(IPv4Address(source), IPv4Address(GROUP), UDP, data))
            packet[8] = ttl
            packet[10:12] = bytes(2)
            packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2, "big")
            datagrams.append(ethernet(bytes(packet), to="01:00:5e:00:00:01"))
    wire.send(datagrams)
    until(lambda: f"packets {len(datagrams)} " in run("nft", "list", "counters", "table", "ip", "heard"))
    assert engine.lease_left("eth0") is None
    lease.renew(soon(LONG))
    wire.send([datagrams[0]])
    assert (engine.lease_left("eth0") or 0) > 1


def test_renewals_and_expiries_are_no_transactions_and_wake_nobody(
    engine: Engine, reader: Reader, lease: Lease
):
    assert engine.verify()
    descriptor, generation = engine.fileno(), reader.generation()
    for _ in range(50):
        assert lease.renew(soon(0.1)) is Renewal.RENEWED
    lease.end()
    lease.renew(soon(0.04))
    until(lambda: engine.lease_left("eth0") is None)
    if engine.name == "nftables":  # the other one looks whenever its clock tells it to
        # Also the kernel's collection of what has expired, once a second.
        assert select.select([descriptor], [], [], 1.2)[0] == []
    assert reader.generation() == generation
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert engine.verify()
    assert engine.audit()


def test_the_next_process_finds_the_lease_running_and_takes_it_over(
    make: Callable[[bool], Engine], engine: Engine, clients: Clients, reader: Reader, lease: Lease
):
    lease.renew(soon(LONG))
    lease.close()
    generation = reader.generation()
    successor = make(True)
    assert 0 < (successor.lease_left("eth0") or 0) <= LONG
    assert successor.lease_left("eth1") is None
    assert successor.installed() == BOTH
    successor.apply(BOTH)
    assert reader.generation() == generation
    assert (clients.is_kept(VIP), clients.is_kept(OTHER)) == (True, False)
    successor.apply(wanted(vip(owned=BucketSet()), vip(OTHER, "eth1")))
    assert not clients.is_kept()
    assert 0 < (successor.lease_left("eth0") or 0) <= LONG


def test_one_that_needs_no_lease_follows_one_that_does_without_a_gap_and_the_other_way_round(
    make: Callable[[bool], Engine], engine: Engine, clients: Clients, lease: Lease
):
    lease.renew(soon(LONG))
    sent = {clients.send()}
    without = make(False)
    without.apply(BOTH)
    lease.end()
    assert without.lease_left("eth0") is None
    sent.add(clients.send())
    assert lease.renew(soon(LONG)) is Renewal.RULES_GONE
    assert without.verify()
    assert clients.kept() == sent

    again = make(True)
    again.apply(BOTH)
    assert lease.renew(soon(LONG)) is Renewal.RENEWED
    assert clients.is_kept()
    assert again.verify()
    lease.end()
    assert not clients.is_kept()
    again.remove()
    assert "lbless" not in ruleset()


def test_an_address_that_comes_later_needs_the_lease_as_well(engine: Engine, clients: Clients, lease: Lease):
    engine.apply(wanted(vip(OTHER, "eth1")))
    engine.apply(NOTHING)
    engine.apply(wanted(vip()))
    assert not clients.is_kept()
    lease.renew(soon(LONG))
    assert clients.is_kept()
    assert engine.installed() == wanted(vip())


def test_a_renewal_waits_for_no_transaction(engine: Engine, lease: Lease, capsys: pytest.CaptureFixture[str]):
    elements = ", ".join(f"10.{a}.{b}.{c}" for a in range(2) for b in range(64) for c in range(200))
    anew = f"table ip big {{ set s {{ type ipv4_addr; elements = {{ {elements} }} }}\n }}\n"
    text = f"add table ip big\ndelete table ip big\n{anew}"
    took = []
    for _ in range(2):
        with subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True) as reload:
            assert reload.stdin
            reload.stdin.write(text)
            reload.stdin.close()
            while reload.poll() is None:
                before = time.perf_counter()
                assert lease.renew(soon(LONG)) is Renewal.RENEWED
                took.append(time.perf_counter() - before)
                time.sleep(0.0005)
        assert reload.returncode == 0
    with capsys.disabled():
        print(f"\n  {engine.name}: {len(took)} renewals beside two reloads, worst {max(took) * 1e3:.2f} ms")


def test_what_somebody_adds_by_hand_lasts_no_longer_than_the_next_renewal_says(engine: Engine, lease: Lease):
    table = "lbless" if engine.name == "nftables" else "lbless_lease"
    nft(f'add element ip {table} lease {{ "eth0" }}')
    until(lambda: engine.lease_left("eth0") is None)
    nft(f'add element ip {table} lease {{ "eth0" timeout 1h }}')
    assert (engine.lease_left("eth0") or 0) > LONG
    assert lease.renew(soon(0.7)) is Renewal.RENEWED
    assert (engine.lease_left("eth0") or 0) <= 0.7
    nft(f'add element ip {table} lease {{ "eth1" timeout 1h }}')
    assert Lease("eth1").end() is Renewal.ENDED
    assert engine.lease_left("eth1") is None


RENEW = """
from time import monotonic
from lbless_nodeagent.dataplane.tick.renewal import Lease
print(Lease("eth0").renew(monotonic() + 5).name)
"""


def test_root_renews_without_any_capability(engine: Engine):
    alone = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert run(*alone, sys.executable, "-c", RENEW) == "RENEWED\n"
    assert engine.lease_left("eth0") is not None


def test_what_keeps_a_renewal_from_being_made_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", full)
    assert Lease("eth0").renew(soon(LONG)) is Renewal.FAILED
