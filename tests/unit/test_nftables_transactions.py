"""The way from one state to another: complete, cut at the limit, harmless wherever it is interrupted."""

import re
from collections import defaultdict
from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import SourceMAC
from lbless_nodeagent.dataplane.engine import Wanted
from lbless_nodeagent.dataplane.nftables.footprint import elements, footprint, vip
from lbless_nodeagent.dataplane.nftables.names import Family, group_of_set, owned_set
from lbless_nodeagent.dataplane.nftables.rules import Layout
from lbless_nodeagent.dataplane.nftables.transactions import NOTHING_HELD, Held, target, transactions
from unit.nftables_strategies import wanteds

STATEMENT = re.compile(r"(add|delete) element (\w+) lbless (\w+) \{ (.*) \}")
FLUSH = re.compile(r"flush set (\w+) lbless (\w+)")

Model = dict[tuple[str, str], set[str]]


def model_of(held: Held) -> Model:
    """Elements by family and set."""
    found: Model = defaultdict(set)
    for ip, mark in held.footprints.items():
        for name, texts in elements(ip, mark).items():
            found[name.family, name.name] |= texts
        for group, owned in mark.owned.items():
            found[Family.IP, owned_set(group)] |= {f"{ip} . {bucket}" for bucket in owned}
    found[Family.IP, "local_sources"] |= {str(n) for n in held.local_sources}
    return {key: texts for key, texts in found.items() if texts}


def run(model: Model, text: str) -> int:
    """Do to `model` what the kernel does; return the number of elements."""
    count = 0
    for line in text.splitlines():
        if flushed := FLUSH.match(line):
            model.pop((flushed[1], flushed[2]), None)
        if not (statement := STATEMENT.match(line)):
            continue
        verb, family, name, listed = statement.groups()
        texts = listed.split(", ")
        count += len(texts)
        present = model.setdefault((family, name), set())
        if verb == "add":
            keys = {text.split(" : ")[0] for text in present}
            assert keys.isdisjoint(text.split(" : ")[0] for text in texts), "the kernel refuses to overwrite"
            present |= set(texts)
        else:
            assert present.issuperset(texts), "the kernel refuses to delete what is not there"
            present -= set(texts)
    return count


def buckets_in(model: Model, ip: IPv4Address) -> dict[str, BucketSet]:
    """What `ip` owns, by set."""
    return {
        name: BucketSet(int(text.split(" . ")[1]) for text in texts if text.startswith(f"{ip} . "))
        for (_, name), texts in model.items()
        if group_of_set(name)
    }


BOTH = ["eth0", "eth1"]


@given(before=wanteds(BOTH, 12), after=wanteds(BOTH, 12), limit=st.sampled_from([1, 7, 10_000]))
def test_every_state_is_reached_from_every_other_and_each_piece_is_harmless(
    before: Wanted, after: Wanted, limit: int
):
    held, goal = target(before), target(after)
    model = model_of(held)
    for transaction in transactions(held, goal, Layout(), limit):
        count = run(model, transaction.text)
        assert count == transaction.elements <= limit
        for ip in before.vips.keys() | after.vips.keys():
            allowed = BucketSet()
            for state in (before, after):
                if ip in state.vips:
                    allowed |= state.vips[ip].owned
            assert all(owned.issubset(allowed) for owned in buckets_in(model, ip).values())
            entered = [text for text in model.get(("ip", "vips"), ()) if f" . {ip} : " in text]
            shared = str(ip) in model.get(("ip", "shared"), ())
            assert shared or (not entered and not (ip in before.vips and ip in after.vips))
            if entered:
                known = [state.vips[ip] for state in (before, after) if ip in state.vips]
                assert entered in [
                    sorted(elements(ip, footprint(one))[name])
                    for one in known
                    for name in elements(ip, footprint(one))
                    if name.name == "vips" and name.family is Family.IP
                ]
    assert {key: texts for key, texts in model.items() if texts} == model_of(goal)


@given(wanteds())
def test_what_is_held_already_takes_no_transaction(wanted: Wanted):
    assert transactions(target(wanted), target(wanted), Layout()) == []


@given(wanteds())
def test_another_source_mac_is_elements_alone(wanted: Wanted):
    other = {SourceMAC.NODE: SourceMAC.CLUSTER, SourceMAC.CLUSTER: SourceMAC.NODE}
    changed = {ip: replace(vip, source_mac=other[vip.source_mac]) for ip, vip in wanted.vips.items()}
    steps = transactions(target(wanted), target(replace(wanted, vips=changed)), Layout())
    assert sum(step.elements for step in steps) == len(changed)
    assert all(not step.restructured for step in steps)


@given(wanteds())
def test_from_nothing_the_structure_comes_before_what_is_in_it(wanted: Wanted):
    first, *rest = transactions(NOTHING_HELD, target(wanted), Layout(), 5)
    assert first.restructured == frozenset(Family)
    assert all("table" not in transaction.text for transaction in rest)


@given(wanteds(["eth0", "a@-.+_b"]))
def test_a_vip_is_recognised_by_its_footprint_and_half_of_one_is_none(wanted: Wanted):
    for ip, one in wanted.vips.items():
        assert vip(ip, footprint(one)) == one
        whole = footprint(one)
        for part in ("shared", "arp_shared"):
            half = type(whole)(**{n: getattr(whole, n) for n in whole.__slots__ if n != part})
            assert vip(ip, half) is None
