"""What each engine must do, whatever it is made of: tests for a class that says how one is had.

A subclass has the fixtures `engine`, one that is probed in a kernel that holds nothing of it, and `kernel`,
which shows what that holds. Packets are the kernel tests' (`kernel.test_engine_contract`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise, product

import pytest

from lbless_api import capabilities
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol, SourceMAC
from lbless_api.hashing import MAX_BUCKETS, HashFunction, HashMode
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import NOTHING, Engine, EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.opening import TOKEN_BYTES

HTTP = (PortRange(Protocol.TCP, 80, 80), PortRange(Protocol.TCP, 8000, 8010))
PODS = frozenset({IPv4Network("10.244.1.0/24")})
BUCKETS = (1, 2, 6, 7, 8, 16, 17, 32, 33, 256, MAX_BUCKETS)


@dataclass(frozen=True)
class Kernel:
    """`content` shows all that netfilter holds, comparably; `successor` is the next process's engine.

    `meddle` adds something of somebody else's, and undoes nothing.
    """

    content: Callable[[], object]
    successor: Callable[[], Engine]
    meddle: Callable[[], None] = lambda: None


def possible(engine: Engine, seed: int = 0) -> Iterator[HashParameters]:
    """Each function in each mode that the engine claims, at the ends of what else it claims."""
    for able in engine.capabilities():
        for function, mode in product(sorted(able.functions), sorted(able.modes)):
            for buckets in sorted({1, min(7, able.max_buckets), able.max_buckets}):
                for length in sorted({able.min_prefix_length, 32}):
                    yield HashParameters(function, mode, seed, buckets, length)


def vip(number: int, group: HashParameters, owned: BucketSet | None = None, interface: str = "eth0") -> Vip:
    """One whose address ends in `number`; it owns every other bucket if nothing else is said."""
    ip = IPv4Address("10.8.0.0") + number
    mine = BucketSet(range(0, group.buckets, 2)) if owned is None else owned
    return Vip(ip, interface, default_mac(ip), group, None, mine)


def wanted(*vips: Vip, local_sources: frozenset[IPv4Network] = PODS) -> Wanted:
    """These together."""
    return Wanted({one.ip: one for one in vips}, local_sources)


def some(engine: Engine) -> list[Vip]:
    """A few that the engine can do, of as many groups as it can."""
    return [vip(number, group) for number, group in enumerate(possible(engine), 1)]


def moves(engine: Engine, one: Vip) -> list[Vip]:
    """All that becomes of a Vip's buckets while they move, to this node and from it; nothing where the engine cannot
    let them move. Where it can send nothing on, nothing of that is in them."""
    able = [c for c in engine.capabilities() if one.hash.function in c.functions and one.hash.mode in c.modes]
    if not able[0].moves:
        return []
    low, high = BucketSet([0]), BucketSet.full(one.hash.buckets) - BucketSet([0])
    to = ((IPv4Address("10.8.1.1"), low), (IPv4Address("10.8.1.2"), high))
    elsewhere = ((IPv4Address("10.8.1.2"), low), (IPv4Address("10.8.1.3"), high))
    stages = [
        (low, Moving(standby=high)),
        (low, Moving(standby=high, openings=((b"1" * TOKEN_BYTES, high),) if high else ())),
        (low, Moving(fresh=high)),
        (BucketSet(), Moving(fresh=high, drain=low, openings=((b"2" * TOKEN_BYTES, low),))),
        (BucketSet(), Moving(fresh=high, drain=low)),
        (high, Moving(drain=low, redirect=to[:1])),
        (BucketSet(), Moving(drain=low | high, redirect=tuple(way for way in to if way[1]))),
        (BucketSet(), Moving(drain=low | high, redirect=tuple(way for way in elsewhere if way[1]))),
        (BucketSet(), Moving(drain=high, ending=low)),
        (BucketSet(), Moving(standby=low, ending=high)),
        (high | low, Moving()),
    ]
    if not able[0].redirect:
        stages = [(owned, replace(moving, redirect=())) for owned, moving in stages]
    return [replace(one, owned=owned, moving=moving) for owned, moving in stages]


class EngineContract:
    """The tests. Nothing in them knows which engine it is."""

    def test_its_report_says_what_it_can_do_and_each_of_that_is_taken(self, engine: Engine) -> None:
        report = engine.probe()  # its message may say what else another kernel would let it do
        assert (report.name, report.available) == (engine.name, True), report.message
        assert report.capabilities == engine.capabilities() != ()
        for one in some(engine):
            assert engine.refusal(one) is None
            assert engine.refusal(replace(one, owned=BucketSet())) is None

    def test_what_it_cannot_do_is_refused_in_one_sentence_before_the_kernel_is_touched(
        self, engine: Engine, kernel: Kernel
    ) -> None:
        good = some(engine)[0]
        engine.apply(wanted(good))
        before, refused = kernel.content(), 0
        for function, mode, buckets, length, ports in product(
            HashFunction, HashMode, BUCKETS, (1, 24, 31, 32), (None, HTTP)
        ):
            asked = replace(vip(99, HashParameters(function, mode, 0, buckets, length)), ports=ports)
            sentence = capabilities.refusal(engine.name, engine.capabilities(), asked.demand)
            if sentence is None:
                continue
            refused += 1
            assert sentence in (engine.refusal(asked) or "")
            if refused % 7 == 1:  # each would take long
                with pytest.raises(EngineError, match=r"10\.8\.0\.99: .*\.$"):
                    engine.apply(wanted(good, asked))
        for group in (
            replace(good.hash, buckets=MAX_BUCKETS + 1),
            replace(good.hash, buckets=0),
            replace(good.hash, prefix_length=0),
        ):
            with pytest.raises(EngineError, match=r"10\.8\.0\.99: .* use "):
                engine.apply(wanted(good, vip(99, group, BucketSet())))
        assert kernel.content() == before
        assert engine.verify()
        assert engine.installed() == wanted(good)

    def test_a_source_of_answers_is_taken_changed_and_given_back_or_refused(self, engine: Engine) -> None:
        one = some(engine)[0]
        for source in (*SourceMAC, *SourceMAC):
            asked = replace(one, source_mac=source)
            sentence = capabilities.refusal(engine.name, engine.capabilities(), asked.demand)
            if sentence is None:
                engine.apply(wanted(asked))
                assert engine.installed() == wanted(asked)
            else:
                assert sentence in (engine.refusal(asked) or "")
                with pytest.raises(EngineError, match="sourceMAC"):
                    engine.apply(wanted(asked))

    def test_buckets_that_move_are_taken_and_given_back_in_every_state_or_refused(
        self, engine: Engine, kernel: Kernel
    ) -> None:
        few = {one.hash.function: one for one in some(engine) if 1 < one.hash.buckets <= 32}
        for one in few.values():
            stages = moves(engine, one)
            for asked in stages:
                engine.apply(wanted(asked))
                assert engine.installed() == wanted(asked)
                assert engine.verify()
                successor = kernel.successor()
                assert successor.installed() == wanted(asked)
                successor.close()
            if not stages:
                asked = replace(one, owned=BucketSet(), moving=Moving(drain=BucketSet([0])))
                assert "move" in (engine.refusal(asked) or "")
                with pytest.raises(EngineError, match="move"):
                    engine.apply(wanted(asked))

    def test_a_vip_that_cannot_be_written_into_a_rule_is_refused_and_leaves_what_was(
        self, engine: Engine, kernel: Kernel
    ) -> None:
        good, other = some(engine)[0], vip(99, some(engine)[0].hash)
        engine.apply(wanted(good))
        before = kernel.content()
        for bad in (
            replace(other, interface='eth0" accept'),
            replace(other, interface="eth*"),
            replace(other, interface="eth0 -j ACCEPT"),
            replace(other, interface=""),
            replace(other, mac="03:bf:0a:08:00:63 }"),
            replace(other, mac="02:bf:0a:08:00:63"),
            replace(other, owned=BucketSet([other.hash.buckets])),
            replace(other, moving=Moving(standby=BucketSet([other.hash.buckets]))),
        ):
            assert (engine.refusal(bad) or "").startswith("10.8.0.99: "), bad
            with pytest.raises(EngineError, match=r"10\.8\.0\.99: "):
                engine.apply(wanted(replace(good, owned=BucketSet()), bad))
        with pytest.raises(EngineError, match=r"10\.8\.0\.98"):
            engine.apply(Wanted({IPv4Address("10.8.0.98"): other}, PODS))
        assert kernel.content() == before
        assert engine.verify()
        assert engine.installed() == wanted(good)

    def test_what_is_applied_is_what_is_installed_and_verified(self, engine: Engine) -> None:
        assert engine.installed() is None
        assert not engine.verify(), "nothing was applied"
        for goal in self.way(engine):
            engine.apply(goal)
            assert (engine.installed() or NOTHING) == goal
            assert engine.verify()
            assert engine.audit()

    def test_applying_again_changes_nothing(self, engine: Engine, kernel: Kernel) -> None:
        goal = wanted(*some(engine))
        engine.apply(goal)
        before = kernel.content()
        engine.apply(goal)
        engine.apply(wanted(*some(engine)))
        assert kernel.content() == before

    def test_the_next_process_takes_over_what_it_finds(self, engine: Engine, kernel: Kernel) -> None:
        states = self.way(engine)
        for found, goal in pairwise(states):
            engine.apply(found)
            before = kernel.content()
            successor = kernel.successor()
            assert not successor.verify(), "it has applied nothing yet"
            assert (successor.installed() or NOTHING) == found
            successor.apply(found)
            assert kernel.content() == before
            successor.apply(goal)
            assert (successor.installed() or NOTHING) == goal
            assert successor.audit()
            successor.close()

    def test_one_that_was_changed_is_as_if_made_anew(self, engine: Engine, kernel: Kernel) -> None:
        """However it came to a state, the engine reads the same back."""
        for goal in self.way(engine):
            engine.apply(goal)
            found = engine.installed() or NOTHING
            anew = kernel.successor()
            anew.remove()
            anew.apply(goal)
            assert (anew.installed() or NOTHING) == found == goal
            anew.close()
            engine.apply(goal)
            assert engine.verify()

    def test_removal_leaves_nothing_and_touches_nothing_else(self, engine: Engine, kernel: Kernel) -> None:
        kernel.meddle()
        before = kernel.content()
        for remover in (engine, kernel.successor()):
            engine.apply(wanted(*some(engine)))
            assert kernel.content() != before
            remover.remove()
            assert kernel.content() == before
            assert not engine.verify()
            assert engine.installed() is None
            remover.remove()
            assert kernel.content() == before
        remover.close()

    def way(self, engine: Engine) -> Sequence[Wanted]:
        """States one after the other, in which all that a Vip has changes, and sources and Vips come and go."""
        first, second, *others = some(engine)
        last = others[-1] if others else second
        full = replace(first, owned=BucketSet.full(first.hash.buckets))
        able = next(
            c
            for c in engine.capabilities()
            if first.hash.function in c.functions and first.hash.mode in c.modes
        )
        with_ports = replace(first, ports=HTTP) if able.ports else first
        moving = [wanted(one, second) for one in moves(engine, last)]
        return (
            wanted(first, second, last),
            wanted(full, second, last),
            wanted(replace(full, mac="03:bf:00:00:00:07"), second),
            wanted(replace(full, interface="eth1"), second),
            *moving[:-2],
            *(wanted(replace(one, interface="eth1")) for one in moves(engine, second)[4:5]),
            wanted(replace(first, hash=last.hash, owned=BucketSet([0]))),
            wanted(with_ports, replace(second, owned=BucketSet()), local_sources=frozenset()),
            wanted(replace(with_ports, ports=None), *others),
            wanted(),
            NOTHING,
            wanted(first, last),
        )
