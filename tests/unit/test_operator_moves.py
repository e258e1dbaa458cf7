"""Moves: each bucket's move has every node as a source that may have flows of it, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import Move
from lbless_api.digest import mark
from lbless_api.node import Drain, NodeStatus
from lbless_operator.conditions import MAX_MESSAGE
from lbless_operator.confirmations import Confirmation
from lbless_operator.drains import Drains
from lbless_operator.moves import (
    FIGURES_SECONDS,
    MAX_BYTES,
    MAX_MOVES,
    count,
    follow,
    pace_seconds,
    part,
    print_begun,
    print_ended,
    print_running,
)

BUCKETS = 6
NAMES = "abcd"


def owners(**buckets: str) -> dict[str, BucketSet]:
    return {node: BucketSet.parse(written) for node, written in buckets.items()}


def move(buckets: str, source: str, destination: str) -> Move:
    return Move(BucketSet.parse(buckets), source, destination)


def test_what_a_living_node_gives_up_moves_to_whoever_owns_it_now():
    moves = follow((), owners(a="0-7", b="8-15"), owners(a="0-4", b="8-15", c="5-7"))
    assert moves == (move("5-7", "a", "c"),)
    assert count(moves) == 3


def test_a_node_that_leaves_the_assignment_is_a_source_and_one_that_is_dead_is_none():
    before, after = owners(a="0-3", b="4-7", c="8-11"), owners(c="0-11")
    assert follow((), before, after, {"a"}) == (move("4-7", "b", "c"),)


def test_a_successors_takeover_is_no_move_and_what_it_passes_on_is_one():
    taken, levelled = owners(a="0-3,8", b="4-7,9-11"), owners(a="0-3,8", b="4-7,9", n="10-11")
    assert follow((), taken, levelled, {"dead"}) == (move("10-11", "b", "n"),)


def test_from_a_to_b_to_c_both_former_owners_move_to_c():
    first = follow((), owners(a="0-3", b=""), owners(a="", b="0-3"))
    assert follow(first, owners(a="", b="0-3"), owners(b="", c="0-3")) == (
        move("0-3", "a", "c"),
        move("0-3", "b", "c"),
    )


def test_from_a_to_b_and_back_only_b_is_a_source():
    first = follow((), owners(a="0-3", b=""), owners(a="", b="0-3"))
    assert follow(first, owners(a="", b="0-3"), owners(a="0-3", b="")) == (move("0-3", "b", "a"),)


def test_a_move_that_is_overtaken_in_part_is_split():
    first = follow((), owners(a="0-7"), owners(a="0-3", b="4-7"))
    assert follow(first, owners(a="0-3", b="4-7"), owners(a="0-4", b="5", c="6-7")) == (
        move("5", "a", "b"),
        move("6-7", "a", "c"),
        move("4", "b", "a"),
        move("6-7", "b", "c"),
    )


def test_a_dead_destination_leaves_the_source_with_whoever_owns_the_bucket_then():
    first = follow((), owners(a="0-3"), owners(b="0-3"))
    assert follow(first, owners(c="0-3"), owners(c="0-3"), {"b"}) == (move("0-3", "a", "c"),)


def test_what_nobody_owns_any_more_moves_no_longer():
    first = follow((), owners(a="0-3"), owners(b="0-3"))
    assert follow(first, owners(b="0-3"), owners(b="0-1")) == (move("0-1", "a", "b"),)
    assert follow(first, owners(b="0-3"), {}) == ()


def test_deciding_again_changes_no_move():
    first = follow((), owners(a="0-7"), owners(a="0-3", b="4-5", c="6-7"))
    assert follow(first, {}, owners(a="0-3", b="4-5", c="6-7")) == first


def test_beyond_what_a_status_holds_those_with_the_fewest_buckets_are_left_out():
    before = {f"old-{n:03}": BucketSet(range(2 * n, 2 * n + 1 + n % 2)) for n in range(400)}
    moves = follow((), before, {"new": BucketSet.full(1000)})
    assert len(moves) == MAX_MOVES
    assert sum(len(m.buckets) == 2 for m in moves) == 200
    assert follow(moves, {}, {"new": BucketSet.full(1000)}) == moves
    worst = [Move(BucketSet(range(0, 4096, 2)), f"n{n}", "new") for n in range(60)]
    kept = follow(worst, {}, {"new": BucketSet.full(4096)})
    assert sum(len(str(m.buckets)) for m in kept) <= MAX_BYTES
    assert len(kept) >= 6


class Model:
    """Every bucket's owner, and who may have flows of it: whoever owned it, lives since, and has not finished."""

    def __init__(self, first: list[str]) -> None:
        self.owner = dict(enumerate(first))
        self.holders = {bucket: {node} for bucket, node in self.owner.items()}
        self.moves: tuple[Move, ...] = ()

    def owned(self) -> dict[str, BucketSet]:
        return {n: BucketSet(b for b, who in self.owner.items() if who == n) for n in NAMES}

    def take_over(self, dead: str, successors: list[str]) -> None:
        """The segment's doing, before any plan."""
        for bucket in self.owner:
            self.holders[bucket].discard(dead)
            if self.owner[bucket] == dead:
                self.owner[bucket] = successors[bucket % len(successors)]
                self.holders[bucket].add(self.owner[bucket])

    def plan(self, next_owners: list[str], lost: str = "") -> None:
        before = self.owned()
        self.owner = dict(enumerate(next_owners))
        for bucket, node in self.owner.items():
            self.holders[bucket].add(node)
        self.moves = follow(self.moves, before, self.owned(), lost)

    def finish(self, source: str) -> None:
        """A node says that it drains nothing."""
        confirmed = {node: Confirmation(5) for node in NAMES}
        self.moves, _ = part(self.moves, 5, confirmed, set(NAMES) - {source})
        for bucket, node in self.owner.items():
            if node != source:
                self.holders[bucket].discard(source)

    def check(self) -> None:
        expected = {
            (bucket, source, self.owner[bucket])
            for bucket, sources in self.holders.items()
            for source in sources - {self.owner[bucket]}
        }
        listed = [(bucket, m.source, m.destination) for m in self.moves for bucket in m.buckets]
        assert sorted(listed) == sorted(expected)
        pairs = [(m.source, m.destination) for m in self.moves]
        assert pairs == sorted(set(pairs))


plans = st.lists(st.sampled_from(NAMES), min_size=BUCKETS, max_size=BUCKETS)


@given(
    first=plans, history=st.lists(st.tuples(st.sampled_from(["plan", "death", "finish"]), plans), max_size=12)
)
def test_after_any_plans_and_deaths_the_sources_are_exactly_who_may_have_flows(first, history):
    model = Model(first)
    for what, names in history:
        node = names[0]
        if what == "plan":
            model.plan(names)
        elif what == "finish":
            model.finish(node)
        else:
            living = [name for name in NAMES if name != node]
            model.take_over(node, living)
            model.plan([name if name != node else living[0] for name in names], node)
        model.check()


def test_a_move_ends_when_both_have_the_epoch_and_the_source_drains_nothing():
    moves = (move("0-3", "a", "b"), move("4-7", "c", "b"))
    confirmed = {node: Confirmation(4) for node in "abc"}
    assert part(moves, 4, confirmed, {"a"}) == (moves[:1], moves[1:])
    assert part(moves, 4, {**confirmed, "b": Confirmation(3)}, set()) == (moves, ())
    assert part(moves, 4, {"b": Confirmation(4), "a": Confirmation(4)}, set()) == (moves[1:], moves[:1])
    assert part(moves, 5, confirmed, set()) == (moves, ())


def test_what_is_left_to_drain_is_said_of_each_source():
    moves = (move("0-84", "n1", "n2"), move("0-2", "n3", "n1"), move("3", "n3", "n2"), move("9", "n4", "n1"))
    assert print_running(moves, {"n1": 212, "n3": 1, "n4": None}) == (
        "85 buckets move from n1 to n2: n1 still finishes 212 connections. "
        "4 buckets move from n3 to n1 (3) and n2 (1): n3 still finishes 1 connection. "
        "1 bucket moves from n4 to n1: n4 still finishes connections."
    )
    assert print_running(moves[:1], {}) == (
        "85 buckets move from n1 to n2: n1 has not said yet what is left there."
    )
    assert print_running((), {"n1": 5}) == ""


def test_of_many_sources_some_are_named_and_the_others_counted():
    moves = tuple(Move(BucketSet([n]), f"n{n:02}", "new") for n in range(63))
    said = print_running(moves, {})
    assert said.endswith("n05 has not said yet what is left there. 57 more nodes give up buckets.")
    assert len(said) < MAX_MESSAGE / 2


@pytest.mark.parametrize(
    ("unable", "moved", "seconds", "said"),
    [
        ("", 6, 300, "Established connections stay where they are for up to 300 s."),
        ("", 9, 300, "Established connections in 6 of them stay where they are for up to 300 s."),
        ("a", 6, 300, "Established connections in 2 of them stay where they are for up to 300 s."),
        ("d", 6, 300, "Established connections in 4 of them stay where they are for up to 300 s."),
        ("ac", 6, 300, "Established connections in them end."),
        ("", 6, 0, "Established connections in them end, as spec.drainTimeoutSeconds is 0."),
    ],
)
def test_what_becomes_of_connections_is_said_with_the_move(unable, moved, seconds, said):
    begun = (move("0-3", "a", "b"), move("4-5", "c", "d"))
    assert print_begun(begun, unable, moved, seconds) == said
    assert print_begun((), unable, moved, seconds) == ""


def test_what_has_moved_is_said_with_its_time_if_that_is_known():
    moves = (move("0-84", "n1", "n2"), move("90", "n3", "n1"))
    assert print_ended(moves, 112.4) == (
        "85 buckets have moved from n1 to n2 and 1 bucket has moved from n3 to n1, 112 s after they began to: "
        "no connection is left where they were."
    )
    assert print_ended(moves[1:], None) == (
        "1 bucket has moved from n3 to n1: no connection is left where they were."
    )
    assert print_ended((), 5.0) == ""


def test_figures_of_a_thousand_clusterips_are_written_four_a_second_and_of_a_few_every_ten_seconds():
    assert pace_seconds(1) == pace_seconds(40) == FIGURES_SECONDS
    assert 1000 / pace_seconds(1000) == 4


def reported(*drains: Drain, unlisted: frozenset[bytes] = frozenset()) -> NodeStatus:
    return NodeStatus("6.1", (), (), "", (), (), drains=drains, unlisted_drains=unlisted)


def test_drains_concern_whom_they_are_about_when_they_begin_and_end_and_not_as_they_shrink():
    uids = {"u1", "u2", "u3"}
    drains = Drains(lambda marks: {uid for uid in uids if mark(uid) in marks})
    some = BucketSet([1])
    assert drains.report("n1", reported(Drain("u1", "", some, 9), Drain("u2", "", some, 3))) == {"u1", "u2"}
    assert drains.report("n2", reported(Drain("u1", "", some, 1))) == {"u1"}
    assert drains.report("n1", reported(Drain("u1", "", some, 8), Drain("u2", "", some, 2))) == set()
    assert (drains.of("u1"), drains.of("u2"), drains.of("u3")) == ({"n1": 8, "n2": 1}, {"n1": 2}, {})
    assert drains.report("n1", reported(unlisted=frozenset({mark("u2")}))) == {"u1", "u2"}
    assert (drains.of("u1"), drains.of("u2"), drains.of("u3")) == ({"n2": 1}, {"n1": None}, {})
    assert drains.report("n1", None) == {"u2"}
    assert drains.report("n2", None) == {"u1"}
    assert drains.of("u1") == drains.of("u2") == {}


def test_a_node_without_room_for_all_marks_may_drain_any():
    drains = Drains(lambda _: set())
    drains.report("n1", reported(unlisted=frozenset(n.to_bytes(4) for n in range(1024))))
    assert drains.of("whatever") == {"n1": None}
