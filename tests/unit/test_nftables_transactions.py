"""The way from one state to another: complete, cut at the limit, harmless wherever it is interrupted."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, SourceMAC
from lbless_nodeagent.dataplane import opening
from lbless_nodeagent.dataplane.engine import Wanted
from lbless_nodeagent.dataplane.nftables.footprint import ABSENT, changed_elements, footprint, vip
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.names import (
    MOVING,
    TOKENS,
    Family,
    Role,
    bucket_set,
    opening_map,
    redirect_map,
)
from lbless_nodeagent.dataplane.nftables.transactions import NOTHING_HELD, Held, target, transactions
from unit.nftables_strategies import movings, wanteds

STATEMENT = re.compile(r"(add|delete) element (\w+) lbless (\w+) \{ (.*) \}")
FLUSH = re.compile(r"flush set (\w+) lbless (\w+)")

Model = dict[tuple[str, str], set[str]]


def model_of(held: Held) -> Model:
    """Elements by family and set."""
    found: Model = defaultdict(set)
    for ip, mark in held.footprints.items():
        for name, _, texts in changed_elements(ip, ABSENT, mark):
            found[name.family, name.name] |= texts
        for (role, group), buckets in mark.buckets.items():
            found[Family.IP, bucket_set(group, role)] |= {f"{ip} . {bucket}" for bucket in buckets}
        for group, ways in mark.redirects.items():
            texts = {f"{ip} . {bucket} : {to}" for to, buckets in ways for bucket in buckets}
            found[Family.IP, redirect_map(group)] |= texts
        for group, openings in mark.openings.items():
            texts = {
                f"{ip} . {bucket} : {number:#010x}" for number, buckets in openings for bucket in buckets
            }
            found[Family.IP, opening_map(group)] |= texts
        for token in mark.tokens:
            text = f"0x{ip.packed.hex()}{token.hex()} : {opening.mark(token):#010x}"
            found[Family.IP, TOKENS].add(text)
        if mark.moving:
            found[Family.IP, MOVING].add(str(ip))
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
            keys = {text.split(" : ")[0] for text in texts}
            gone = {text for text in present if text.split(" : ")[0] in keys}
            assert len(gone) == len(texts), "the kernel refuses to delete what is not there"
            present -= gone
    return count


State = tuple[str | None, bool, bool, str | None, str | None]
"""Of a bucket: the state by which it is kept, if any, whether what is kept is judged by its flow, whether answers to
SYNs are stopped, where the rest is sent on to, and the mark of the token by which it may be fresh."""

KEEPING = (Role.OWNED, Role.FRESH, Role.DRAIN, Role.STANDBY)
"""In the order in which the rules look."""


Bucket = tuple[IPv4Address, HashParameters, int]


def states(model: Model, buckets: Iterable[Bucket]) -> dict[Bucket, State]:
    """What the rules make of each bucket."""
    judged_addresses = {text.split(" : ")[0] for text in model.get((Family.IP, "judged"), ())}
    moving = model.get((Family.IP, MOVING), set())
    ways, marks = (
        {
            (name, *text.split(" : "))[:2]: text.split(" : ")[1]
            for (_, name), texts in model.items()
            if name.endswith(suffix)
            for text in texts
        }
        for suffix in ("_redirect", "_opening")
    )
    found = {}
    for ip, group, bucket in buckets:
        key, moves = f"{ip} . {bucket}", str(ip) in moving
        roles = [role for role in Role if key in model.get((Family.IP, bucket_set(group, role)), ())]
        kept = next((role for role in KEEPING if role in roles and (moves or role is Role.OWNED)), None)
        judged = kept not in (None, Role.OWNED) and str(ip) in judged_addresses
        way = ways.get((redirect_map(group), key)) if kept is Role.DRAIN else None
        mark = marks.get((opening_map(group), key)) if kept in (Role.STANDBY, Role.DRAIN) else None
        found[ip, group, bucket] = (kept, judged, moves and Role.LEAVING in roles, way, mark)
    return found


def buckets_of(*wanted: Wanted) -> set[Bucket]:
    """All that any of the addresses has, by whoever they are owned."""
    vips = [one for state in wanted for one in state.vips.values()]
    return {(one.ip, one.hash, bucket) for one in vips for bucket in range(one.hash.buckets)}


def is_less(state: State, than: State) -> bool:
    """Whether it keeps no packet that the other would not, nor answers more, nor sends more on."""
    kept, judged, stopped, way, mark = state
    less = kept is None or (kept == than[0] and judged >= than[1] and stopped >= than[2])
    return less and way in (None, than[3]) and mark in (None, than[4])


BOTH = ["eth0", "eth1"]


@given(before=wanteds(BOTH, 12), after=wanteds(BOTH, 12), limit=st.sampled_from([1, 7, 10_000]))
def test_every_state_is_reached_from_every_other_and_each_piece_is_harmless(
    before: Wanted, after: Wanted, limit: int
):
    held, goal = target(before), target(after)
    model, buckets = model_of(held), buckets_of(before, after)
    first, last = states(model, buckets), states(model_of(goal), buckets)
    for transaction in transactions(held, goal, Layout(), limit):
        count = run(model, transaction.text)
        assert count == transaction.elements <= limit
        for bucket, now in states(model, buckets).items():
            assert is_less(now, first[bucket]) or is_less(now, last[bucket]), (bucket, now)
        for ip in before.vips.keys() | after.vips.keys():
            entered = [text for text in model.get(("ip", "vips"), ()) if f" . {ip} : " in text]
            shared = str(ip) in model.get(("ip", "shared"), ())
            assert shared or (not entered and not (ip in before.vips and ip in after.vips))
            if entered:
                known = [state.vips[ip] for state in (before, after) if ip in state.vips]
                for name in ("vips", "judged", "answers"):
                    found = sorted(
                        t for t in model[Family.IP, name] if str(ip) in t.split(" : ")[0].split(" . ")
                    )
                    assert found in [
                        sorted(texts)
                        for one in known
                        for where, _, texts in changed_elements(ip, ABSENT, footprint(one))
                        if where.name == name and where.family is Family.IP
                    ]
    assert {key: texts for key, texts in model.items() if texts} == model_of(goal)


@given(wanteds(BOTH, 12), st.data())
def test_what_an_address_makes_of_a_bucket_changes_at_once_also_where_all_of_it_does_not_fit(
    wanted: Wanted, data: st.DataObject
):
    changed = {}
    for ip, one in wanted.vips.items():
        owned = BucketSet(data.draw(st.sets(st.integers(0, one.hash.buckets - 1))))
        changed[ip] = replace(one, owned=owned, moving=data.draw(movings(one.hash.buckets, owned)))
    held, goal = target(wanted), target(replace(wanted, vips=changed))
    model, buckets = (
        model_of(held),
        {ip: buckets_of(Wanted({ip: one}, frozenset())) for ip, one in wanted.vips.items()},
    )
    first, last = ({ip: states(at, its) for ip, its in buckets.items()} for at in (model, model_of(goal)))
    for transaction in transactions(held, goal, Layout(), 60):  # all of one address are at most 12 * 4 + 1
        assert transaction.buckets is not None, "the quick way is for these"
        run(model, transaction.text)
        for ip, its in buckets.items():
            assert states(model, its) in (first[ip], last[ip])
    assert {key: texts for key, texts in model.items() if texts} == model_of(goal)


@given(wanteds())
def test_without_a_way_to_send_packets_on_none_is_sent_and_all_else_is_the_same(wanted: Wanted):
    unable = {ip: replace(one, moving=replace(one.moving, redirect=())) for ip, one in wanted.vips.items()}
    assert target(wanted, redirect=False) == target(replace(wanted, vips=unable))


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
