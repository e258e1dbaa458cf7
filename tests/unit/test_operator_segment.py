"""Who is dead on a segment, from what its nodes report: one against the others, groups, and words that are old."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.heartbeat import node_id
from lbless_api.segment import UNRELIABLE, Condition, Peer, SegmentReport
from lbless_operator.segment import SILENT, Reporter, Segment, listen

NAMES = "abcde"
BY_ID = sorted(NAMES, key=node_id)
"""As a tie is decided."""


def peers(lives: str) -> tuple[Peer, ...]:
    """`"a b2"`: a in its first life, b in its second."""
    return tuple(Peer(life[0], int(life[1:] or 1)) for life in lives.split())


def says(node: str, heard: str = "", dead: str = "", *conditions: Condition) -> Reporter:
    report = SegmentReport(frozenset(conditions), peers(heard), peers(dead))
    return Reporter(node[0], int(node[1:] or 1), report)


def dead(*reporters: Reporter, outdated: str = "") -> set[str]:
    """The nodes that are counted dead in their first life; the order of the reports makes no difference."""
    late = {(node_id(name), 1) for name in outdated}
    found = [listen(order, late) for order in permutations(reporters)]
    assert all(one == found[0] for one in found)
    return {name for name in NAMES if found[0].counts_dead(name, 1)}


def test_without_reports_nothing_is_known():
    assert listen([]) == SILENT
    assert not SILENT.counts_dead("a", 1)
    assert not SILENT.hears("a")


def test_where_all_hear_each_other_all_live():
    segment = listen([says("a", "b c"), says("b", "a c"), says("c", "a b")])
    assert segment.speaks
    assert segment.dead == frozenset()
    assert all(segment.hears(name) for name in "abc")


def test_whom_the_others_count_dead_is_dead_though_its_last_report_still_hears_them():
    segment = listen([says("a", "b", "c"), says("b", "a", "c"), says("c", "a b")])
    assert segment.counts_dead("c", 1)
    assert not segment.hears("c")
    assert segment.hears("a")


def test_nobody_is_dead_before_the_last_that_hears_him_has_said_so():
    assert dead(says("a", "b", "c"), says("b", "a c"), says("c", "a b")) == set()


def test_two_that_fail_at_once_are_dead_by_the_word_of_the_one_that_is_left_when_they_had_time_to_answer():
    words = says("a", "", "b c"), says("b", "a c"), says("c", "a b")
    assert listen(words).unanswered == {(node_id("b"), 1), (node_id("c"), 1)}
    assert dead(*words) == set()
    assert dead(*words, outdated="bc") == {"b", "c"}


def test_who_answers_has_a_say_however_late():
    words = says("a", "", "b c"), says("b", "c", "a"), says("c", "a b")
    assert listen(words).unanswered == {(node_id("c"), 1)}
    assert dead(*words, outdated="bc") == {"a"}


def test_a_smaller_group_that_fails_at_once_is_not_waited_for():
    assert dead(says("a", "b", "c d"), says("b", "a", "c d"), says("c", "a b d"), says("d", "a b c")) == {
        "c",
        "d",
    }
    assert dead(says("a", "", "b"), says("b", "a")) == {"b"}


def test_one_that_failed_later_than_another_is_dead_though_it_has_counted_the_other_dead():
    assert dead(says("a", "", "b c"), says("b", "a", "c"), says("c", "a b")) == {"b", "c"}


def test_a_node_that_no_report_is_known_of_is_dead_by_the_word_of_those_that_report():
    assert dead(says("a", "b", "c"), says("b", "a", "c")) == {"c"}
    assert dead(says("a", "", "c")) == {"c"}


def test_one_alone_kills_nobody_whom_the_others_hear():
    assert dead(says("a", "b", "c"), says("b", "a c"), says("c", "b", "a")) == set()
    assert dead(says("a", "", "b c"), says("b", "c", "a"), says("c", "b", "a")) == {"a"}


@pytest.mark.parametrize("condition", sorted(UNRELIABLE))
def test_the_verdicts_of_who_may_not_serve_count_for_nothing(condition: Condition):
    assert dead(says("a", "", "b c", condition), says("b", "c"), says("c", "b")) == set()
    assert dead(says("a", "", "b c", condition)) == set()


@pytest.mark.parametrize("condition", [Condition.ACTING, Condition.HELD, Condition.NO_PEERS_HEARD])
def test_other_conditions_take_nothing_from_a_nodes_word(condition: Condition):
    assert dead(says("a", "b", "c", condition), says("b", "a", "c")) == {"c"}


def test_of_two_groups_the_larger_is_right_whoever_reports_more():
    larger = [says("c", "d e", "a b"), says("d", "c e", "a b"), says("e", "c d", "a b")]
    smaller = [says("a", "b", "c d e"), says("b", "a", "c d e")]
    assert dead(*larger, *smaller) == {"a", "b"}
    assert dead(larger[0], *smaller) == {"a", "b"}


def test_of_two_equal_groups_that_with_the_smallest_id_is_right():
    first, second, third, fourth = BY_ID[:4]
    one = [says(first, fourth, f"{second} {third}"), says(fourth, first, f"{second} {third}")]
    two = [says(second, third, f"{first} {fourth}"), says(third, second, f"{first} {fourth}")]
    assert dead(*one, *two) == {second, third}
    assert dead(says(first, "", second), says(second, "", first)) == {second}


def test_a_group_that_is_large_only_in_the_memory_of_a_dead_node_is_not():
    """d's word is from before it died: to it c still lived, and a and b had just gone."""
    words = says("a", "b", "c d"), says("b", "a", "c d"), says("d", "a b c"), says("c", "d", "a b")
    assert dead(*words) == {"c", "d"} or BY_ID.index("c") < min(map(BY_ID.index, "ab"))


def test_a_new_life_ends_the_old_one_and_old_words_with_it():
    segment = listen([says("a", "b c2"), says("b", "a c2"), says("c1", "", "a b")])
    assert segment.counts_dead("c", 1)
    assert not segment.counts_dead("c", 2)
    assert segment.hears("c")
    assert not segment.counts_dead("a", 1)
    own = listen([says("a", "b", "c1"), says("b", "a", "c1"), says("c2", "a b", "", Condition.LISTENING)])
    assert own.counts_dead("c", 1)
    assert not own.counts_dead("c", 2)


def test_a_node_whose_heartbeats_reach_but_one_is_heard():
    assert listen([says("a", "b"), says("b", "a c")]).hears("c")
    assert listen([says("a", "b"), says("b", "a c", "", Condition.LISTENING)]).hears("c")
    assert not listen([says("a", "b"), says("b", "a c", "", Condition.DEAF)]).hears("c")


def test_who_acts_and_who_holds_is_known_by_name():
    segment = listen([says("a", "b", "", Condition.ACTING), says("b", "a", "", Condition.HELD)])
    assert (segment.acting, segment.held) == (frozenset("a"), frozenset("b"))


def test_peers_may_be_written_as_ids():
    report = SegmentReport(heard=(), dead=(Peer("#" + node_id("b").hex(), 1),))
    assert listen([Reporter("a", 1, report)]).counts_dead("b", 1)


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[set[str]], list[Reporter]]:
    """A segment in parts, each of which hears itself and counts the others dead; some report, some are old."""
    sides = {name: draw(st.integers(0, 1)) for name in NAMES}
    parts = [{n for n in NAMES if sides[n] == side} for side in range(2)]
    reporters = []
    for name in draw(st.sets(st.sampled_from(NAMES), min_size=1)):
        mine = parts[sides[name]] - {name}
        reporters.append(says(name, " ".join(sorted(mine)), " ".join(sorted(parts[1 - sides[name]]))))
    return parts, reporters


@given(splits())
def test_of_a_split_segment_exactly_one_part_is_right(split: tuple[list[set[str]], list[Reporter]]):
    parts, reporters = split
    segment: Segment = listen(reporters)
    reporting = [part for part in parts if part & {r.node for r in reporters}]
    winner = min(reporting, key=lambda part: (-len(part), min(map(node_id, part))))
    assert {n for n in NAMES if segment.counts_dead(n, 1)} == set(NAMES) - winner
