"""Who owns what when some that an epoch names are dead: the rules, and that nodes come to the same as the operator."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import node_id
from lbless_api.ownership import act, divide
from lbless_api.successors import rank
from lbless_nodeagent.dataplane.membership import Epoch, Named, Use, View, owned

IP = "192.0.2.10"
NOTHING = BucketSet()
ABC = {node: BucketSet.parse(had) for node, had in zip("abc", ("0-5", "6-10", "11-15"), strict=True)}


def test_while_all_live_each_owns_what_is_assigned():
    assert divide(ABC, living=set("abc")).owners(IP) == ABC


def test_a_dead_nodes_buckets_go_to_its_successors_and_no_one_elses_move():
    owners = divide(ABC, living=set("ab")).owners(IP)
    assert set(owners) == set("ab")
    for bucket in range(11, 16):
        assert bucket in owners[rank(IP, bucket, "ab")[0]]
    assert owners["a"] & BucketSet.parse("0-10") == ABC["a"]
    assert owners["b"] & BucketSet.parse("0-10") == ABC["b"]


def test_who_holds_inherits_nothing_unless_all_do():
    held = divide(ABC, living=set("ab"), held={"b"}).owners(IP)
    assert held["b"] == ABC["b"]
    assert len(held["a"]) == 11
    assert divide(ABC, living={"b"}, held={"b"}).owners(IP) == {"b": BucketSet.full(16)}


def test_reserved_buckets_are_inherited_by_nobody_and_kept_by_who_cannot_be_told():
    owners = divide(ABC, living=set("ab"), reserved=BucketSet.parse("0,14-15")).owners(IP)
    assert ABC["a"].issubset(owners["a"])
    assert owners["a"] | owners["b"] == BucketSet.parse("0-13")


def test_where_none_lives_nobody_owns_anything_until_some_act():
    assert divide(ABC, living=set()).owners(IP) == {}
    owners = act(16, "ac", reserved=BucketSet.parse("14-15")).owners(IP)
    for bucket in range(14):
        assert bucket in owners[rank(IP, bucket, "ac")[0]]
    assert owners["a"] | owners["c"] == BucketSet.parse("0-13")


@given(
    living=st.sets(st.sampled_from("abc")),
    held=st.sets(st.sampled_from("abc")),
    acting=st.sets(st.sampled_from("abc")),
)
def test_the_nodes_themselves_come_to_the_same(living: set[str], held: set[str], acting: set[str]):
    """Each node asks for its own alone, which stops at the first that comes before it."""
    reserved = BucketSet.parse("3,12")
    assigned = {node: buckets - reserved for node, buckets in ABC.items()}
    named = tuple(Named(node, node_id(node), 1, buckets) for node, buckets in assigned.items())
    epoch = Epoch("uid", IP, 4, 16, reserved, named)
    view = View(
        living=frozenset((node_id(node), 1) for node in living),
        held=frozenset(map(node_id, held)),
        use={"uid": Use(4, 4, gain=True, acting=None if living else tuple(sorted(acting)))},
    )
    division = divide(assigned, living=living, held=held, reserved=reserved)
    if not living:
        division = act(16, sorted(acting), reserved=reserved)
    owners = division.owners(IP)
    assert {node: owners.get(node, NOTHING) for node in "abc"} == {n: owned(epoch, view, n) for n in "abc"}
