"""Who owns what when some that an epoch names are dead: the rules, and the same as nodes compute it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Assignment
from lbless_api.ownership import effective_owners
from lbless_api.successors import rank

IP = "192.0.2.10"
ABC = tuple(
    Assignment(node, 1, BucketSet.parse(owned))
    for node, owned in zip("abc", ("0-5", "6-10", "11-15"), strict=True)
)


def test_while_all_live_each_owns_what_is_assigned():
    assert effective_owners(IP, 16, ABC, living=set("abc")) == {a.node: a.buckets for a in ABC}


def test_a_dead_nodes_buckets_go_to_its_successors_and_no_one_elses_move():
    owners = effective_owners(IP, 16, ABC, living=set("ab"))
    assert owners["c"] == BucketSet()
    for bucket in range(11, 16):
        assert bucket in owners[rank(IP, bucket, "ab")[0]]
    assert owners["a"] & BucketSet.parse("0-10") == ABC[0].buckets
    assert owners["b"] & BucketSet.parse("0-10") == ABC[1].buckets


def test_who_holds_inherits_nothing_unless_all_do():
    held = effective_owners(IP, 16, ABC, living=set("ab"), held={"b"})
    assert held["b"] == ABC[1].buckets
    assert len(held["a"]) == 11
    assert effective_owners(IP, 16, ABC, living={"b"}, held={"b"})["b"] == BucketSet.full(16)


def test_where_none_lives_the_named_that_act_share_everything_but_what_is_reserved():
    reserved = BucketSet.parse("14-15")
    owners = effective_owners(IP, 16, ABC, living=set(), acting={"a", "c", "stranger"}, reserved=reserved)
    assert set(owners) == set("abc")
    assert owners["b"] == BucketSet()
    for bucket in range(14):
        assert bucket in owners[rank(IP, bucket, "ac")[0]]
    assert not any(reserved & had for had in owners.values())
    assert effective_owners(IP, 16, ABC, living=set()) == dict.fromkeys("abc", BucketSet())


@given(
    living=st.sets(st.sampled_from("abc")),
    held=st.sets(st.sampled_from("abc")),
    acting=st.sets(st.sampled_from("abc")),
)
def test_the_nodes_themselves_come_to_the_same(living: set[str], held: set[str], acting: set[str]):
    membership = pytest.importorskip("lbless_nodeagent.dataplane.membership")
    from lbless_api.heartbeat import node_id

    reserved = BucketSet.parse("3,12")
    named = tuple(membership.Named(a.node, node_id(a.node), a.incarnation, a.buckets - reserved) for a in ABC)
    epoch = membership.Epoch("uid", IP, 4, 16, reserved, named)
    shared = None if living else tuple(sorted(acting))
    view = membership.View(
        living=frozenset((node_id(node), 1) for node in living),
        held=frozenset(map(node_id, held)),
        use={"uid": membership.Use(4, 4, True, shared)},
    )
    given_away = tuple(Assignment(a.node, 1, a.buckets - reserved) for a in ABC)
    owners = effective_owners(IP, 16, given_away, living=living, held=held, acting=acting, reserved=reserved)
    assert owners == {node: membership.owned(epoch, view, node) for node in "abc"}
