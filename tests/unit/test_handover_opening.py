"""Who may say that a bucket is free to be taken, and from whom that is expected."""

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import node_id
from lbless_nodeagent.dataplane.handover import Share, expected, given_up, takers
from lbless_nodeagent.dataplane.membership import Epoch, Moved, Named
from lbless_nodeagent.dataplane.moving import Moving

A, B, C = map(node_id, ("a", "b", "c"))
some = BucketSet.parse


def epoch(number: int, shares: dict[str, str], *moves: tuple[str, str, str]) -> Epoch:
    named = tuple(Named(name, node_id(name), 1, some(buckets)) for name, buckets in shares.items())
    moved = tuple(Moved(node_id(source), node_id(to), some(buckets)) for buckets, source, to in moves)
    return Epoch("u", "192.0.2.1", number, 16, BucketSet(), named, moved)


MOVE = epoch(2, {"a": "0-3", "b": "4-15"}, ("4-7", "a", "b"), ("8", "c", "b"))


def test_what_is_given_up_is_said_only_of_what_was_taken_and_is_no_more():
    before, after = Share(some("0-7")), Share(some("0-3"), Moving(drain=some("4-7")))
    assert given_up(before, after, MOVE, A) == {B: some("4-7")}
    assert given_up(before, before, MOVE, A) == {}
    assert given_up(after, after, MOVE, A) == {}, "it gave that up before"
    assert given_up(Share(some("0-5")), after, MOVE, A) == {B: some("4-5")}, "it never took 6 and 7"
    assert given_up(before, Share(some("0-4")), MOVE, A) == {}, "it still takes 4"
    fresh = Share(some("0-3"), Moving(fresh=some("4-7")))
    assert given_up(fresh, after, MOVE, A) == {B: some("4-7")}
    assert given_up(Share(moving=Moving(standby=some("4-7"))), Share(), MOVE, A) == {}
    assert given_up(before, after, MOVE, C) == {}


def test_each_bucket_in_standby_is_expected_from_who_had_it():
    share = Share(some("9-15"), Moving(standby=some("4-6,8")))
    assert expected(share, MOVE, {A: some("0-7"), C: some("8")}, B) == {A: some("4-6"), C: some("8")}
    assert expected(share, MOVE, {A: some("0-8")}, B) == {A: some("4-6")}, "no move from a has 8"
    assert expected(share, MOVE, {A: some("0-7")}, C) == {}
    assert expected(Share(some("4-15")), MOVE, {A: some("0-7")}, B) == {}


def test_who_had_what_is_what_the_epoch_before_says_but_for_what_did_not_come_to_be():
    first = epoch(1, {"a": "0-7", "b": "8-11", "c": "12-15"})
    had = takers(first, {}, some("8-11"), B, unbegun=False)
    assert had == {A: some("0-7"), B: some("8-11"), C: some("12-15")}
    second = epoch(2, {"a": "0-3", "b": "4-11", "c": "12-15"}, ("4-7", "a", "b"))
    third = takers(second, had, some("8-11"), B, unbegun=False)
    assert third[A] == some("0-7"), "b stood by for 4 to 7 in vain"
    assert takers(second, had, some("4-11"), B, unbegun=False)[A] == some("0-3")
    assert takers(second, had, some("12-15"), C, unbegun=True) == had
