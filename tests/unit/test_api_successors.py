"""Successor ranking: golden vectors, and that losing a node moves only what it had."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.successors import rank

names = st.sets(st.text("abcdefgh-0123456789", min_size=1, max_size=12), min_size=1, max_size=8)


def test_golden_vectors_do_not_change():
    nodes = ["node-1", "node-2", "node-3", "node-4"]
    assert [rank("192.0.2.10", b, nodes) for b in (0, 1, 255)] == [
        ["node-1", "node-4", "node-3", "node-2"],
        ["node-1", "node-2", "node-3", "node-4"],
        ["node-4", "node-1", "node-2", "node-3"],
    ]


@given(names, st.integers(0, 4095))
def test_removing_a_node_keeps_the_order_of_the_others(nodes, bucket):
    whole = rank("192.0.2.10", bucket, nodes)
    for gone in nodes:
        assert rank("192.0.2.10", bucket, nodes - {gone}) == [n for n in whole if n != gone]


@given(names, st.integers(0, 4095))
def test_the_order_in_which_nodes_are_given_does_not_matter(nodes, bucket):
    assert rank("192.0.2.10", bucket, sorted(nodes)) == rank(
        "192.0.2.10", bucket, sorted(nodes, reverse=True)
    )


def test_buckets_spread_over_all_nodes():
    first = Counter(rank("192.0.2.10", b, ["a", "b", "c", "d"])[0] for b in range(4096))
    assert set(first) == {"a", "b", "c", "d"}
    assert min(first.values()) > 900
