"""The iptables engine's rules as values, and tables as bytes: what is written is what is read back, and nothing
that somebody else has in a table harms that."""

import struct
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol, SourceMAC
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import NOTHING, EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.iptables import arp, entries, rules, wire
from lbless_nodeagent.dataplane.iptables.arp import ArpRule
from lbless_nodeagent.dataplane.iptables.engine import IptablesEngine
from lbless_nodeagent.dataplane.iptables.rules import Rule
from lbless_nodeagent.dataplane.moving import AT_REST
from unit.iptables_tables import Raw, arp_rule, extension, ip_rule, ip_table, table
from unit.nftables_strategies import wanteds

ENGINE = IptablesEngine()
LEGACY = HashParameters(HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP_SOURCE_PORT, 7, 16, 32)
CLUSTER = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 7, 32, 32)
IP = IPv4Address("10.8.0.1")
VIP = Vip(IP, "eth0", "03:bf:0a:08:00:01", LEGACY, (PortRange(Protocol.TCP, 80, 80),), BucketSet([0, 15]))


@st.composite
def possible(draw: st.DrawFn) -> Wanted:
    """What the engine may be asked for."""
    state = draw(wanteds(interfaces=("eth0", "a.very-long_if:"), max_buckets=32))
    vips = {}
    for ip, vip in state.vips.items():
        known = draw(st.sampled_from((LEGACY, CLUSTER)))
        buckets = min(vip.hash.buckets, known.buckets)
        mode = vip.hash.mode if known is LEGACY else known.mode
        group = replace(known, seed=vip.hash.seed, buckets=buckets, mode=mode)
        owned = vip.owned & BucketSet.full(buckets)
        vips[ip] = replace(vip, hash=group, owned=owned, source_mac=SourceMAC.NODE, moving=AT_REST)
        assert ENGINE.refusal(vips[ip]) is None
    return replace(state, vips=vips)


def nodes_of(wanted: Wanted) -> Mapping[IPv4Address, BucketSet]:
    return {ip: vip.owned for ip, vip in wanted.vips.items() if rules.uses_target(vip)}


@given(possible())
def test_what_chains_say_is_what_they_were_made_for(wanted: Wanted) -> None:
    chains = rules.chains(wanted)
    assert rules.understand(chains, nodes_of(wanted)) == wanted
    assert rules.is_held(wanted, chains, nodes_of(wanted))


@given(possible())
def test_a_table_is_read_back_as_the_chains_that_it_was_made_of(wanted: Wanted) -> None:
    chains = rules.chains(wanted)
    found = entries.parse(entries.IP, ip_table(chains))
    assert rules.decode(found) == chains
    assert rules.is_entered(found)
    assert rules.is_led_to(found)


@given(possible(), possible())
def test_chains_for_something_else_are_not_what_is_wanted(wanted: Wanted, other: Wanted) -> None:
    both = nodes_of(other)
    assert rules.is_held(wanted, rules.chains(other), both) == (wanted == other)


@given(possible(), st.data())
def test_an_address_of_which_a_rule_is_missing_or_changed_is_not_held_and_the_others_are(
    wanted: Wanted, data: st.DataObject
) -> None:
    chains = rules.chains(wanted)
    own = [
        (name, at)
        for name in chains
        if name not in {rules.CHAIN, rules.LOCAL}
        for at in range(len(chains[name]))
    ]
    if not own:
        return
    name, at = data.draw(st.sampled_from(own))
    damaged = list(chains[name])
    if data.draw(st.booleans()):
        del damaged[at]
    else:
        damaged[at] = replace(damaged[at], source=IPv4Network("192.0.2.0/24"))
    found = rules.understand({**chains, name: tuple(damaged)}, nodes_of(wanted))
    hit = next(ip for ip in wanted.vips if name.startswith(rules.vip_chain(ip)))
    # Without one of its ports it is another one, and that is what the chains hold.
    assert found.vips.get(hit) != wanted.vips[hit]
    assert {**found.vips, hit: wanted.vips[hit]} == wanted.vips


@given(possible())
def test_an_order_is_what_it_was(wanted: Wanted) -> None:
    assert wire.parse(wire.render(wanted)) == wanted


@given(possible(), st.data())
def test_bytes_that_can_be_no_table_are_one_error_and_nothing_else(
    wanted: Wanted, data: st.DataObject
) -> None:
    whole = bytearray(ip_table(rules.chains(wanted)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for layout in (entries.IP, entries.ARP):
        try:
            found = entries.parse(layout, damaged)
            entries.Seen(layout, damaged)
        except EngineError as error:
            assert "cannot be understood" in str(error)
            continue
        if layout is entries.IP:
            assert isinstance(rules.understand(rules.decode(found), {}), Wanted)
            rules.count(found)
        else:
            arp.decode(found)


@given(st.binary(max_size=600))
def test_garbage_is_one_error_and_nothing_else(garbage: bytes) -> None:
    for layout in (entries.IP, entries.ARP):
        try:
            entries.parse(layout, garbage)
        except EngineError:
            continue


FOREIGN = {
    "a verdict that iptables has no word for now": Raw("QUEUE"),
    "a target with data": Raw(target=extension("MARK", bytes(8))),
    "a match with data": Raw("ACCEPT", matches=[extension("u32", bytes(2000))]),
    "a jump": Raw("other"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_rules_do_not_keep_ours_from_being_read(what: str) -> None:
    wanted = Wanted({IP: VIP}, frozenset())
    chains = {name: [ip_rule(rule) for rule in chain] for name, chain in rules.chains(wanted).items()}
    others = {"other": [FOREIGN[what]], "\udcff\udcfe": [FOREIGN[what]]}
    found = entries.parse(entries.IP, table([Raw(rules.CHAIN), FOREIGN[what]], {**others, **chains}))
    assert rules.decode(found) == rules.chains(wanted)
    assert rules.is_entered(found)


def test_whether_packets_come_to_our_chain_is_told_from_what_stands_before_it() -> None:
    chains = {"other": [], rules.CHAIN: [], rules.LOCAL: []}
    jump = Raw(rules.CHAIN)
    one = ip_rule(Rule(rules.CHAIN, destination=IP))
    accept, drop, narrow = Raw("ACCEPT"), Raw("DROP"), ip_rule(Rule("ACCEPT", interface="eth1"))

    def led(*built_in: Raw) -> tuple[bool, bool]:
        found = entries.parse(entries.IP, table(built_in, chains))
        return rules.is_entered(found), rules.is_led_to(found)

    assert led(jump) == (True, True)
    assert led(narrow, Raw("other"), jump) == (False, True)
    for before in ([accept], [drop], [Raw("RETURN")]):
        assert led(*before, jump) == (False, False)
    assert led() == led(one) == led(Raw("other")) == (False, False)
    # The first policy ends what a packet sees: the rest is other hooks'.
    assert led(accept, jump) == (False, False)


def test_a_source_of_everything_is_read_back_as_that() -> None:
    wanted = Wanted({}, frozenset({IPv4Network("0.0.0.0/0")}))
    found = entries.parse(entries.IP, ip_table(rules.chains(wanted)))
    assert rules.understand(rules.decode(found), {}) == wanted
    assert rules.is_held(wanted, rules.decode(found), {})
    assert (
        rules.understand(rules.decode(entries.parse(entries.IP, ip_table(rules.chains(NOTHING)))), {})
        == NOTHING
    )


def test_a_reading_differs_by_its_rules_and_not_by_its_counters() -> None:
    def reading(packets: int, *, to: str = "DROP", kernels_note: int = 0) -> bytes:
        whole = bytearray(table([Raw("ACCEPT", packets=packets), Raw(to, packets=2 * packets)], {}))
        struct.pack_into("<I", whole, 92, kernels_note)
        return bytes(whole)

    seen = entries.Seen(entries.IP, reading(0))
    assert seen.is_in(reading(7, kernels_note=5))
    assert not seen.is_in(reading(0, to="ACCEPT"))
    assert not seen.is_in(reading(0)[:-1])
    assert not seen.is_in(reading(0) + reading(0))
    assert not seen.is_in(None)


def test_packets_are_counted_by_what_became_of_them() -> None:
    cluster = replace(VIP, ip=IP + 1, hash=CLUSTER)
    chains = rules.chains(Wanted({IP: VIP, IP + 1: cluster}, frozenset({IPv4Network("10.244.0.0/16")})))
    counted = {
        rules.own_chain(IP): [9, 4],  # the target got 9 and let 4 go on
        rules.own_chain(IP + 1): [30, 500],
        rules.vip_chain(IP): [1, 1, 1, 1, 1, 60, 1],
        rules.LOCAL: [100, 100, 8],
        "other": [1000],
    }
    shown = {
        name: [replace(ip_rule(rule), packets=n) for rule, n in zip(chain, counted[name], strict=True)]
        for name, chain in {**chains, "other": (Rule("DROP"),)}.items()
        if name in counted
    }
    shown = {**{name: [ip_rule(rule) for rule in chain] for name, chain in chains.items()}, **shown}
    found = entries.parse(entries.IP, table([], shown))
    assert rules.count(found) == {"kept": 34, "foreign": 505, "closed_port": 60, "other_interface": 8}


@given(possible())
@settings(max_examples=50)
def test_arp_rules_are_read_back_and_anything_else_is_not_taken_for_them(wanted: Wanted) -> None:
    vips = wanted.vips.values()
    need = arp.wanted(vips)
    of = {name: [arp_rule(rule) for rule in need if rule.chain == name] for name in (arp.IN, arp.OUT)}
    jumps = [Raw(arp.IN, bytes(164)), Raw(arp.OUT, bytes(164))]
    whole = table(jumps, of, arp=True)
    held = arp.decode(entries.parse(entries.ARP, whole))
    assert {rule for chain in held.chains.values() for rule in chain} == need
    assert held.entered == {arp.IN: 1, arp.OUT: 1}
    assert arp.is_held(vips, whole) == bool(vips)
    other = ArpRule(IPv4Address("10.8.1.1"), "eth0")
    assert not arp.is_held(vips, table(jumps, {**of, arp.IN: [*of[arp.IN], arp_rule(other)]}, arp=True))
    assert not arp.is_held(vips, table(jumps[1:], of, arp=True))
    assert not arp.is_held(vips, table(jumps, {**of, arp.PROBE: []}, arp=True)), "a probe was killed"


def test_an_arp_rule_that_says_more_than_ours_is_not_ours() -> None:
    ours = ArpRule(IP, "eth0", "03:bf:0a:08:00:01")
    raw = arp_rule(ours)
    for at in (*range(16, 94), *range(110, 114), *range(126, 158), 160):
        selector = bytearray(raw.selector)
        selector[at] ^= 1
        found = entries.parse(
            entries.ARP, table([], {arp.OUT: [replace(raw, selector=bytes(selector))]}, arp=True)
        )
        assert arp.decode(found).chains[arp.OUT] != [ours], at
