"""The engine's tables: brought from anything to what is wanted, adopted, checked, and removed."""

import itertools
import os
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel import segment
from kernel.segment import Observer, Wire, nft, ruleset, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import NOTHING, EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.nftables import probe, readback, transactions
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.nftables.library import Library
from lbless_nodeagent.dataplane.nftables.names import Family
from lbless_nodeagent.dataplane.nftables.netlink import Reader
from lbless_nodeagent.dataplane.nftables.transactions import BucketChange
from unit.nftables_strategies import wanteds

pytestmark = pytest.mark.root

GROUP = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)
OTHER_GROUP = HashParameters(
    HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT, 9, 64, 24
)
HTTP = (PortRange(Protocol.TCP, 80, 80), PortRange(Protocol.TCP, 8000, 8010))
PODS = frozenset({IPv4Network("10.244.1.0/24")})
NOTICE_SECONDS = 5


def make_vip(number: int, owned: str = "0-84", group: HashParameters = GROUP, interface: str = "eth0") -> Vip:
    ip = IPv4Address("10.8.0.0") + number
    return Vip(ip, interface, default_mac(ip), group, HTTP if number % 2 else None, BucketSet.parse(owned))


def wanted(*vips: Vip, local_sources: frozenset[IPv4Network] = PODS) -> Wanted:
    return Wanted({vip.ip: vip for vip in vips}, local_sources)


THREE = wanted(make_vip(1), make_vip(2), make_vip(3, "0-9", OTHER_GROUP))


@pytest.fixture
def engine(engine: NftablesEngine, wire: Wire) -> NftablesEngine:
    """The engine in a namespace that has eth0 and eth1."""
    segment.link("eth1", "wire1")
    return engine


@pytest.fixture
def reader(engine: NftablesEngine) -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def test_what_is_applied_is_what_is_installed(engine: NftablesEngine):
    assert engine.installed() is None
    for goal in (THREE, wanted(), wanted(make_vip(2, "", OTHER_GROUP), local_sources=frozenset()), NOTHING):
        engine.apply(goal)
        assert engine.installed() == goal
        assert engine.verify()
        assert engine.audit()


def test_applying_twice_makes_no_transaction(engine: NftablesEngine, reader: Reader):
    engine.apply(THREE)
    before = reader.generation()
    engine.apply(THREE)
    engine.apply(wanted(*THREE.vips.values()))
    assert reader.generation() == before


def test_another_process_adopts_what_it_finds(engine: NftablesEngine, reader: Reader):
    engine.apply(THREE)
    before, generation = ruleset(), reader.generation()
    successor = NftablesEngine()
    assert not successor.verify(), "it has applied nothing yet"
    assert successor.installed() == THREE
    successor.apply(THREE)
    assert (ruleset(), reader.generation()) == (before, generation)
    changed = wanted(make_vip(1, "0-83"), make_vip(2), make_vip(3, "0-9", OTHER_GROUP))
    successor.apply(changed)
    assert successor.installed() == changed
    assert reader.generation() == generation + 1
    successor.close()


def test_counters_survive_a_restart(engine: NftablesEngine, wire: Wire, observer: Observer):
    from kernel.rawpackets import ethernet, ipv4

    engine.apply(THREE)
    wire.send([ethernet(ipv4(IPv4Address("10.8.0.50"), IPv4Address("10.8.0.2"), 17, bytes(8)))] * 10)
    observer.await_arrival(10)
    before = engine.counters()
    assert before["kept"] + before["foreign"] == 10
    successor = NftablesEngine()
    successor.apply(wanted(make_vip(2), make_vip(4)))
    assert successor.counters() == before
    successor.close()


def notifications(change: Wanted, engine: NftablesEngine) -> list[str]:
    """What nft tells of while `change` is applied."""
    with subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE, text=True, bufsize=1) as monitor:
        assert monitor.stdout
        lines: list[str] = []
        listener = threading.Thread(target=lambda: lines.extend(monitor.stdout or ()))
        listener.start()
        try:
            # It says nothing when it is ready: marks before and after tell what lies between.
            deadline = segment.DEADLINE_SECONDS / 0.05
            while not any("mark_before" in line for line in lines) and deadline > 0:
                nft("add table ip mark_before\ndelete table ip mark_before")
                listener.join(0.05)
                deadline -= 1
            engine.apply(change)
            nft("add table ip mark_after\ndelete table ip mark_after")
            while not any("delete table ip mark_after" in line for line in lines) and deadline > 0:
                listener.join(0.05)
                deadline -= 1
        finally:
            monitor.kill()
            listener.join(segment.DEADLINE_SECONDS)
    assert any("delete table ip mark_after" in line for line in lines)
    return [line.strip() for line in lines if "mark_" not in line and not line.startswith("# new generation")]


def test_a_changed_address_touches_its_own_elements_only(engine: NftablesEngine):
    engine.apply(THREE)
    changed = wanted(
        make_vip(1), replace(make_vip(2), owned=BucketSet.parse("1-85")), make_vip(3, "0-9", OTHER_GROUP)
    )
    told = notifications(changed, engine)
    name = "jhash_sport_n256_s0_p32_owned"
    assert sorted(told) == [
        f"add element ip lbless {name} {{ 10.8.0.2 . 85 }}",
        f"delete element ip lbless {name} {{ 10.8.0.2 . 0 }}",
    ]
    assert engine.verify()


def test_the_number_of_rules_does_not_grow_with_the_number_of_addresses(
    engine: NftablesEngine, reader: Reader
):
    counts = []
    for number in (2, 300):
        engine.apply(wanted(*(make_vip(n, "0-9") for n in range(number))))
        counts.append(len(rules(reader)))
    assert counts[0] == counts[1]


def rules(reader: Reader) -> list[memoryview]:
    return reader.dump(7, 2)


def test_the_last_address_of_a_group_takes_its_chains_along(engine: NftablesEngine):
    engine.apply(wanted(make_vip(1)))
    before = content()
    engine.apply(THREE)
    assert "legacy_dport_n64_s9_p24" in ruleset()
    engine.apply(wanted(make_vip(1)))
    assert content() == before


def content() -> dict[tuple[str, str], list[str]]:
    """Every chain with its rules in order, and every set with its elements in any: what two tables of the
    same content have in common, so without the seals."""
    found, table, block = {}, "", ""
    for line in run("nft", "-s", "list", "ruleset").splitlines():
        if line.startswith("table "):
            table = line
        elif line.startswith("\t") and not line.startswith("\t\t") and line.endswith("{"):
            block = line
            found[table, block] = []
        elif line.startswith("\t\t"):
            found[table, block] += [line] if "chain" in block else re.findall(r"[^\s,]+", line)
    return {
        key: lines if "chain" in key[1] else sorted(lines)
        for key, lines in found.items()
        if "set seal" not in key[1]
    }


def test_removal_leaves_the_ruleset_as_it_was(engine: NftablesEngine):
    nft("table ip mine { chain c { type filter hook prerouting priority -350; counter\n }\n }")
    before = ruleset()
    engine.apply(THREE)
    engine.remove()
    assert ruleset() == before
    assert not engine.verify()
    assert engine.installed() is None
    engine.remove()
    engine.apply(THREE)
    assert engine.installed() == THREE


def test_removal_takes_tables_of_another_version_too(engine: NftablesEngine):
    nft('table inet lbless { comment "lbless nftables 99"; }\ntable bridge lbless { }\ntable ip lbless { }')
    assert engine.installed() is None
    engine.remove()
    assert ruleset() == ""


def test_a_table_of_another_version_is_replaced(engine: NftablesEngine):
    nft(
        'table ip lbless { comment "lbless nftables 0"; set old { type ipv4_addr; }\n chain old { accept\n }\n }'
    )
    engine.apply(THREE)
    assert engine.installed() == THREE
    assert "old" not in ruleset()


TAMPERING = {
    "everything is flushed": "flush ruleset",
    "a table is deleted": "delete table ip lbless",
    "the arp table is deleted": "delete table arp lbless",
    "the netdev table is deleted": "delete table netdev lbless",
    "a chain is flushed": "flush chain ip lbless prerouting",
    "the rules of the egress hook are flushed": "flush chain netdev lbless arp_eth0",
    "a rule is added": "insert rule ip lbless keep drop",
    "a rule is added to another table": "insert rule arp lbless input accept",
    "a rule is replaced": "flush chain ip lbless keep\nadd rule ip lbless keep accept",
    "a chain is added": "add chain ip lbless more",
    "a set is added": "add set ip lbless more { type ipv4_addr; }",
    "a bucket is added": "add element ip lbless jhash_sport_n256_s0_p32_owned { 10.8.0.1 . 200 }",
    "a bucket is taken": "delete element ip lbless jhash_sport_n256_s0_p32_owned { 10.8.0.1 . 3 }",
    "a bucket that does not exist is added": "add element ip lbless jhash_sport_n256_s0_p32_owned { 10.8.0.1 . 9999 }",
    "an address is taken": "delete element ip lbless shared { 10.8.0.1 }",
    "an entry is taken": 'delete element ip lbless vips { "eth0" . 10.8.0.1 }',
    "an entry with another verdict is added": 'add element ip lbless vips { "eth1" . 10.8.0.1 : accept }',
    "an entry with an odd interface is added": 'add element arp lbless vips { "a{b" . 10.8.0.1 }',
    "a port is added": "add element ip lbless ports { 10.8.0.1 . tcp . 22 }",
    "a protocol that no port has is added": "add element ip lbless ports { 10.8.0.1 . udplite . 22 }",
    "a port range is taken": "delete element ip lbless port_ranges { 10.8.0.1 . tcp . 8000-8010 }",
    "a MAC is changed": (
        "delete element netdev lbless macs { 10.8.0.1 }\n"
        "add element netdev lbless macs { 10.8.0.1 : 02:00:00:00:00:01 }"
    ),
    "local sources are flushed": "flush set ip lbless local_sources",
    "a seal is broken": "flush set arp lbless seal",
}


@pytest.mark.parametrize("text", TAMPERING.values(), ids=TAMPERING)
def test_what_somebody_else_changes_is_noticed_and_put_right(engine: NftablesEngine, text: str):
    engine.apply(THREE)
    descriptor = engine.fileno()
    assert descriptor is not None
    assert not readable(descriptor, 0), "the engine's own changes are no news"
    nft(text)
    assert readable(descriptor, NOTICE_SECONDS)
    assert not engine.verify()
    assert not readable(descriptor, 0)
    engine.apply(THREE)
    assert engine.verify()
    assert engine.installed() == THREE
    assert not readable(descriptor, 0)


@pytest.mark.parametrize("text", TAMPERING.values(), ids=TAMPERING)
def test_what_was_changed_while_no_process_ran_is_put_right_by_the_next(engine: NftablesEngine, text: str):
    engine.apply(THREE)
    engine.close()
    nft(text)
    successor = NftablesEngine()
    successor.apply(THREE)
    assert successor.installed() == THREE
    assert successor.audit()
    fresh = content()
    successor.remove()
    successor.apply(THREE)
    assert content() == fresh
    successor.close()


def readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def test_changes_of_other_tables_are_no_reason_to_read_anything_back(
    engine: NftablesEngine, monkeypatch: pytest.MonkeyPatch
):
    engine.apply(THREE)
    nft("table ip lbless_not { set s { type ipv4_addr; elements = { 10.8.0.1 } }\n }\ntable inet lbless { }")

    def read(_: Reader) -> transactions.Held:
        raise AssertionError("read back")

    monkeypatch.setattr(readback, "read", read)
    assert engine.verify()
    monkeypatch.undo()
    engine.remove()


@pytest.mark.parametrize("text", TAMPERING.values(), ids=TAMPERING)
def test_what_somebody_else_changes_while_rules_are_written_is_put_right_too(
    engine: NftablesEngine, text: str
):
    engine.apply(THREE)
    commit, meddled = engine._commit, []

    def meddle(own: str) -> None:
        if not meddled:
            meddled.append(text)
            nft(text)
        commit(own)

    engine._commit = meddle  # type: ignore[method-assign]
    changed = wanted(make_vip(2, "100-120"), make_vip(3, "0-9", OTHER_GROUP), make_vip(5))
    engine.apply(changed)
    assert meddled
    assert engine.verify()
    assert engine.installed() == changed
    assert engine.audit()


def test_who_never_stops_changing_our_tables_is_an_error_and_no_endless_loop(engine: NftablesEngine):
    commit = engine._commit

    def meddle(own: str) -> None:
        commit(own)
        nft("flush ruleset")

    engine._commit = meddle  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        engine.apply(THREE)
    engine._commit = commit  # type: ignore[method-assign]
    assert not engine.verify()
    engine.apply(THREE)
    assert engine.installed() == THREE


def test_lost_notifications_end_in_reading_back_what_is_there(
    engine: NftablesEngine, monkeypatch: pytest.MonkeyPatch
):
    engine.apply(THREE)
    monitor = socket.socket(fileno=os.dup(engine.fileno() or 0))
    monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    monitor.close()
    ports = ", ".join(str(port) for port in range(1, 2001))
    nft(
        f"table ip flood {{ set s {{ type inet_service; elements = {{ {ports} }} }}\n }}\nflush set ip lbless shared"
    )
    read = readback.read
    calls = []
    monkeypatch.setattr(readback, "read", lambda *given: calls.append(1) or read(*given))
    assert not engine.verify()
    assert calls
    engine.apply(THREE)
    nft("delete table ip flood")
    assert engine.verify()


def test_a_big_load_of_its_own_leaves_no_doubt(engine: NftablesEngine, monkeypatch: pytest.MonkeyPatch):
    engine.apply(THREE)
    read = readback.read
    calls = []
    monkeypatch.setattr(readback, "read", lambda *given: calls.append(1) or read(*given))
    engine.apply(wanted(*(make_vip(n, "0-199") for n in range(200))))
    assert engine.verify()
    assert calls == []


def test_a_change_in_pieces_is_cut_at_the_limit_and_no_piece_owns_or_passes_what_it_should_not(
    engine: NftablesEngine, reader: Reader
):
    """Interrupt the way between two states after each transaction, and look."""
    states = [
        NOTHING,
        THREE,
        wanted(make_vip(1, "80-90"), replace(make_vip(2), ports=HTTP), make_vip(3, "5-20")),
        wanted(
            make_vip(1, "0-84", interface="eth1"), make_vip(4, "3-5", OTHER_GROUP), local_sources=frozenset()
        ),
        NOTHING,
    ]
    for before, after in itertools.pairwise(states):
        engine.remove()
        engine.apply(before)
        interrupted = interrupted_states(engine, reader, before, after)
        assert len(interrupted) > 5
        for found in interrupted:
            for ip, mark in found.footprints.items():
                allowed = BucketSet()
                for state in (before, after):
                    allowed |= state.vips[ip].owned if ip in state.vips else BucketSet()
                for (_, group), owned in mark.buckets.items():
                    assert owned.issubset(allowed), (ip, group, owned)
                in_both = ip in before.vips and ip in after.vips
                assert mark.shared or (not mark.entries and not in_both), "an address that nothing filters"
                assert mark.mac or not in_both
        assert engine.installed() == after


def interrupted_states(
    engine: NftablesEngine, reader: Reader, before: Wanted, after: Wanted
) -> list[transactions.Held]:
    """What the kernel holds after each transaction from one state to the other, by a limit of 10 elements."""
    found = []
    commit = engine._commit

    def look(text: str) -> None:
        commit(text)
        seal_all(reader)
        found.append(readback.read(reader, probe.layout(Library())))

    engine._max_elements = 10
    engine._commit = look  # type: ignore[method-assign]
    engine.apply(after)
    engine._commit = commit  # type: ignore[method-assign]
    assert engine.installed() == after
    return found


def seal_all(reader: Reader) -> None:
    """Seal whatever structure there is, so that it can be read back."""
    structures = {family: readback.read_structure(reader, family) for family in Family}
    nft("".join(transactions.seal(family, found.digest) for family, found in structures.items() if found))


def test_a_process_that_died_between_two_transactions_is_no_obstacle_to_the_next(engine: NftablesEngine):
    goal = wanted(*(make_vip(n, "0-199") for n in range(20)))
    for survived in range(1, 7):
        dying = NftablesEngine(max_elements=700)
        commit, left = dying._commit, [survived]

        def die(text: str, commit=commit, left=left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            commit(text)

        dying._commit = die  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            dying.apply(goal)
        dying.close()
        successor = NftablesEngine()
        installed = successor.installed()
        for ip, vip in (installed.vips if installed else {}).items():
            assert vip.owned.issubset(goal.vips[ip].owned)
        successor.apply(goal)
        assert successor.installed() == goal
        successor.remove()
        successor.close()


def test_a_vip_that_cannot_be_had_is_refused_before_the_kernel_is_touched(
    engine: NftablesEngine, reader: Reader
):
    engine.apply(THREE)
    generation = reader.generation()
    bad = make_vip(7)
    for vip, part in (
        (replace(bad, interface='eth0" accept'), "rename it"),
        (replace(bad, interface="eth*"), "rename it"),
        (replace(bad, mac="03:bf:0a:08:00:07 }"), "malformed"),
        (replace(bad, mac="02:bf:0a:08:00:07"), "unicast"),
        (replace(bad, owned=BucketSet([256])), "not all below 256"),
        (replace(bad, hash=replace(GROUP, buckets=5000)), "use 1 to 4096"),
        (replace(bad, hash=replace(GROUP, prefix_length=0)), "use 1 to 32"),
    ):
        assert part in (engine.refusal(vip) or "")
        with pytest.raises(EngineError, match="10.8.0.7: "):
            engine.apply(wanted(make_vip(1), vip))
    assert engine.refusal(bad) is None
    assert reader.generation() == generation
    assert engine.verify()


def test_a_thousand_addresses_load_in_transactions_of_at_most_ten_thousand_elements(
    engine: NftablesEngine, monkeypatch: pytest.MonkeyPatch
):
    sizes = []
    commit = engine._commit
    monkeypatch.setattr(engine, "_commit", lambda text: (sizes.append(elements_in(text)), commit(text)))
    goal = wanted(*(make_vip(n, "0-84") for n in range(1000)))
    engine.apply(goal)
    assert engine.audit()
    assert engine.installed() == goal
    assert max(sizes) <= 10_000
    assert sum(sizes) > 85_000
    sizes.clear()
    engine.apply(wanted(*(make_vip(n, "0-84" if n != 500 else "1-85") for n in range(1000))))
    assert sizes == [2]


def elements_in(transaction: str | Sequence[BucketChange]) -> int:
    if not isinstance(transaction, str):
        return sum(len(change.keys) for change in transaction)
    return sum(
        line.count(",") + 1
        for line in transaction.splitlines()
        if line.startswith(("add element", "delete element"))
    )


def test_memory_does_not_grow_with_the_number_of_changes(engine: NftablesEngine):
    vips = [make_vip(n) for n in range(10)]

    def churn(rounds: int) -> int:
        for number in range(rounds):
            owned = BucketSet([number % 256])
            engine.apply(wanted(*(replace(vip, owned=owned) for vip in vips)))
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    settled = churn(100)
    assert churn(500) - settled < 4 << 20


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(goals=st.lists(wanteds(interfaces=["eth0", "eth1"]), min_size=1, max_size=3))
def test_any_wanted_state_is_reached_from_any_other_and_reads_back_as_itself(
    engine: NftablesEngine, goals: list[Wanted]
):
    for goal in goals:
        engine.apply(goal)
        assert engine.installed() == goal
        assert engine.audit()


def test_every_combination_of_parameters_loads_without_ending_the_process(engine: NftablesEngine):
    """In a process of its own, because libnftables has assertions where other libraries have errors."""
    script = """
import sys
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.nftables import rules
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.library import Library
from lbless_nodeagent.dataplane.nftables.names import Family
library = Library()
library.run(rules.table(Family.IP, Layout()))
for function in HashFunction:
    for mode in HashMode:
        for prefix_length in range(1, 33):
            for buckets, seed in ((1, 0), (4096, 0xFFFFFFFF)):
                group = HashParameters(function, mode, seed, buckets, prefix_length)
                library.run(rules.add_group(group, Layout()))
                library.run(rules.remove_group(group))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
