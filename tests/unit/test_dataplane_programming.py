"""Bringing Vips into an engine that may fail: who is at fault stays out, the others get in."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import EngineBusyError, Vip, Wanted
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.programming import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, Programming
from unit.memory_engine import MemoryEngine

PODS = frozenset({IPv4Network("10.244.1.0/24")})
HASH = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)


def vip(number: int, owned: str = "0-255") -> Vip:
    ip = IPv4Address(f"10.8.{number // 256}.{number % 256}")
    return Vip(ip, "eth0", "03:bf:0a:08:00:64", HASH, None, BucketSet.parse(owned))


def by_ip(*vips: Vip) -> dict[IPv4Address, Vip]:
    return {v.ip: v for v in vips}


def faulty(*numbers: int) -> MemoryEngine:
    """An engine that takes nothing in which one of these Vips owns all buckets."""
    engine = MemoryEngine()
    bad = {vip(n).ip for n in numbers}
    engine.fails = lambda wanted: (
        "The kernel says no."
        if any(ip in bad and len(v.owned) == 256 for ip, v in wanted.vips.items())
        else None
    )
    return engine


def test_what_the_engine_takes_is_installed_and_not_given_again() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    for now in (0.0, 1.0):
        assert programming.program(by_ip(vip(1), vip(2)), PODS, now) == {}
    assert engine.kernel == Wanted(by_ip(vip(1), vip(2)), PODS)
    assert engine.applies == 1
    assert programming.retry_at is None


def test_rules_that_somebody_flushed_are_given_again() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), PODS, 0.0)
    engine.kernel = Wanted({}, frozenset())
    programming.check()
    assert programming.program(by_ip(vip(1)), PODS, 1.0) == {}
    assert engine.kernel.vips == by_ip(vip(1))


@given(bad=st.sets(st.integers(1, 40), max_size=3))
def test_those_at_fault_stay_out_and_all_others_get_in(bad: set[int]) -> None:
    engine = faulty(*bad)
    programming = Programming(engine)
    faults = programming.program(by_ip(*map(vip, range(1, 41))), PODS, 0.0)
    assert faults == {vip(n).ip: "The kernel says no." for n in bad}
    assert (
        engine.kernel.vips == by_ip(*(vip(n) for n in range(1, 41) if n not in bad)) == programming.installed
    )


def test_an_engine_that_is_kept_from_trying_is_asked_once_and_blames_no_single_address() -> None:
    """Each try waits seconds, and dataplane's report must not grow old meanwhile."""
    engine, locked = MemoryEngine(), "Another program holds the lock."

    def fail(wanted: Wanted) -> None:
        raise EngineBusyError(locked)

    programming = Programming(engine)
    before, after = by_ip(vip(1, "0-9"), vip(2)), by_ip(vip(1), vip(2), vip(3))
    programming.program(before, PODS, 0.0)
    engine.fails, engine.applies = fail, 0
    assert programming.program(after, PODS, 1.0) == dict.fromkeys(after, locked)
    assert engine.applies == 1
    assert programming.installed == before
    engine.fails = lambda _: None
    assert programming.program(after, PODS, 2.0) == {}
    assert programming.installed == after


def test_a_search_for_who_is_at_fault_ends_when_the_engine_is_kept_from_trying() -> None:
    engine = faulty(1)
    refuse, trials = engine.fails, 5

    def fail(wanted: Wanted) -> str | None:
        if engine.applies >= trials:
            raise EngineBusyError("Another program holds the lock.")
        return refuse(wanted)

    engine.fails = fail
    programming = Programming(engine)
    wanted = by_ip(*map(vip, range(1, 41)))
    assert programming.program(wanted, PODS, 0.0).keys() == wanted.keys()
    assert engine.applies == trials
    engine.fails = refuse
    assert programming.program(wanted, PODS, 60.0).keys() == {vip(1).ip}


def test_a_changed_one_at_fault_keeps_what_it_had() -> None:
    engine = faulty(1)
    programming = Programming(engine)
    before = by_ip(vip(1, "0-9"), vip(2))
    assert programming.program(before, PODS, 0.0) == {}
    assert programming.program(by_ip(vip(1), vip(2)), PODS, 1.0).keys() == {vip(1).ip}
    assert engine.kernel.vips == before


def test_one_at_fault_is_offered_again_ever_later_and_gets_in_once_it_can() -> None:
    engine = faulty(1)
    programming = Programming(engine)
    wanted, now, delays = by_ip(vip(1), vip(2)), 0.0, []
    programming.program(wanted, PODS, now)
    for _ in range(9):
        assert programming.retry_at is not None
        delays.append(programming.retry_at - now)
        applies = engine.applies
        programming.program(wanted, PODS, programming.retry_at - 0.01)
        assert engine.applies == applies
        now = programming.retry_at
        assert programming.program(wanted, PODS, now)
    assert delays[0] == FIRST_RETRY_SECONDS
    assert delays == sorted(delays)
    assert delays[-1] == LAST_RETRY_SECONDS
    engine.fails = lambda _: None
    assert programming.program(wanted, PODS, now + LAST_RETRY_SECONDS) == {}
    assert engine.kernel.vips == wanted
    assert programming.retry_at is None


def test_one_that_changed_since_it_was_refused_is_offered_at_once() -> None:
    engine = faulty(1)
    programming = Programming(engine)
    programming.program(by_ip(vip(1), vip(2)), PODS, 0.0)
    assert programming.program(by_ip(vip(1, "0-9"), vip(2)), PODS, 0.1) == {}
    assert engine.kernel.vips == by_ip(vip(1, "0-9"), vip(2))


def test_an_engine_that_takes_nothing_blames_all_and_is_left_in_peace_until_it_is_time() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), PODS, 0.0)
    engine.fails = lambda _: "No buffer space available."
    wanted = by_ip(vip(1), vip(2))
    faults = programming.program(wanted, PODS, 1.0)
    assert faults == dict.fromkeys(wanted, "No buffer space available.")
    assert programming.installed == by_ip(vip(1))
    applies = engine.applies
    assert programming.program(wanted, PODS, 1.1) == faults
    assert engine.applies == applies
    engine.fails = lambda _: None
    assert programming.program(wanted, PODS, 60.0) == {}
    assert programming.installed == wanted


def test_an_address_whose_rules_are_gone_and_cannot_be_made_again_is_no_longer_installed() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), PODS, 0.0)
    engine.kernel = Wanted({}, frozenset())
    engine.fails = lambda _: "No buffer space available."
    programming.check()
    assert programming.program(by_ip(vip(1)), PODS, 1.0)
    assert programming.installed == {}


def test_rules_flushed_while_the_engine_is_left_in_peace_are_no_longer_installed() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), PODS, 0.0)
    engine.fails = lambda _: "No buffer space available."
    wanted = by_ip(vip(1), vip(2))
    programming.program(wanted, PODS, 1.0)
    engine.kernel = Wanted({}, frozenset())
    programming.check()
    applies = engine.applies
    assert programming.program(wanted, PODS, 1.1).keys() == wanted.keys()
    assert engine.applies == applies
    assert programming.installed == {}


def test_rules_flushed_while_one_at_fault_waits_are_made_again_with_what_that_one_had() -> None:
    engine = faulty(1)
    programming = Programming(engine)
    before = by_ip(vip(1, "0-9"), vip(2))
    programming.program(before, PODS, 0.0)
    programming.program(by_ip(vip(1), vip(2)), PODS, 1.0)
    engine.kernel = Wanted({}, frozenset())
    programming.check()
    programming.program(by_ip(vip(1), vip(2)), PODS, 1.1)
    assert engine.kernel.vips == before == programming.installed


def test_rules_flushed_where_the_engine_does_not_work_are_no_longer_installed() -> None:
    engine = MemoryEngine(Wanted(by_ip(vip(1)), PODS))
    engine.available = False
    programming = Programming(engine)
    programming.check()
    assert programming.program(by_ip(vip(1)), PODS, 0.0)
    assert programming.installed == by_ip(vip(1))
    engine.kernel = Wanted({}, frozenset())
    programming.check()
    assert programming.program(by_ip(vip(1)), PODS, 1.0)
    assert programming.installed == {}


def test_a_removal_that_fails_blames_nobody_who_was_added() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1), vip(2)), PODS, 0.0)
    engine.fails = lambda _: "Device or resource busy."
    assert programming.program(by_ip(vip(1)), PODS, 1.0) == {vip(1).ip: "Device or resource busy."}
    assert programming.installed == by_ip(vip(1), vip(2))


def test_when_far_too_many_are_at_fault_the_search_ends() -> None:
    engine = faulty(*range(1, 501))
    programming = Programming(engine)
    faults = programming.program(by_ip(*map(vip, range(1, 501))), PODS, 0.0)
    assert len(faults) == 500
    assert engine.applies < 100


def test_what_an_earlier_process_installed_is_known_from_the_start() -> None:
    before = Wanted(by_ip(vip(1)), PODS)
    programming = Programming(MemoryEngine(before))
    assert (programming.installed, programming.local_sources) == (before.vips, PODS)


def test_an_engine_that_does_not_work_here_is_not_touched_and_is_asked_again_later() -> None:
    engine = MemoryEngine()
    engine.available = False
    programming = Programming(engine)
    faults = programming.program(by_ip(vip(1)), PODS, 0.0)
    assert faults == {vip(1).ip: "The memory engine does not work here: The kernel lacks nf_tables."}
    assert engine.applies == 0
    engine.available = True
    programming.check(audit=True)
    assert programming.program(by_ip(vip(1)), PODS, 1.0) == {}


def test_a_change_of_pod_ranges_alone_reaches_the_engine() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), frozenset(), 0.0)
    programming.program(by_ip(vip(1)), PODS, 1.0)
    assert engine.kernel.local_sources == PODS


def test_a_vip_that_moves_to_another_interface_replaces_the_former() -> None:
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), PODS, 0.0)
    moved = replace(vip(1), interface="eth1")
    assert programming.program(by_ip(moved), PODS, 1.0) == {}
    assert programming.installed == by_ip(moved)


TOKEN = b"t" * 16
SHUT = BucketSet.parse("0-9")
GIVING_UP = replace(vip(1, "10-255"), moving=Moving(drain=SHUT, openings=((TOKEN, SHUT),)))
"""A token is to close what drains, as it leaves: from then on the kernel alone knows."""
GIVEN_UP = replace(GIVING_UP, moving=Moving(drain=SHUT))


def giving_up() -> tuple[MemoryEngine, Programming]:
    """The rules have just been told to give up with the token."""
    engine = MemoryEngine()
    programming = Programming(engine)
    programming.program(by_ip(vip(1)), PODS, 0.0)
    assert programming.program(by_ip(GIVING_UP), PODS, 1.0) == {}
    assert engine.kernel.vips == by_ip(GIVING_UP) == programming.installed
    return engine, programming


def test_what_a_token_closes_is_not_open_again_where_the_rules_are_made_again() -> None:
    engine, programming = giving_up()
    engine.kernel = Wanted({}, frozenset())
    programming.check()
    assert programming.program(by_ip(GIVING_UP), PODS, 2.0) == {}
    assert engine.kernel.vips == by_ip(GIVEN_UP) == programming.installed


def test_what_a_token_closes_is_not_open_again_where_another_ones_change_is_refused() -> None:
    engine, programming = giving_up()
    engine.fails = lambda wanted: "The kernel says no." if vip(2).ip in wanted.vips else None
    faults = programming.program(by_ip(GIVING_UP, vip(2)), PODS, 2.0)
    assert faults == {vip(2).ip: "The kernel says no."}
    assert engine.kernel.vips == by_ip(GIVEN_UP) == programming.installed


def test_what_an_earlier_process_was_to_close_by_a_token_is_closed() -> None:
    engine, _ = giving_up()
    successor = Programming(engine)
    assert successor.installed == by_ip(GIVING_UP)
    assert successor.program(by_ip(GIVING_UP), PODS, 2.0) == {}
    assert engine.kernel.vips == by_ip(GIVEN_UP)
