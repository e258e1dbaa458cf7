"""What is told: once, and by nobody too often."""

from __future__ import annotations

from lbless_operator.notices import (
    BURST,
    REFILL_SECONDS,
    REPEAT_SECONDS,
    Limit,
    Notice,
    NoticeReason,
    Subject,
)


def notice(note: str, name: str = "web") -> Notice:
    return Notice(
        Subject("lbless.dev/v1alpha1", "ClusterIP", "shop", name, f"uid-{name}"), NoticeReason.MOVED, note
    )


def test_the_same_is_not_said_twice_within_the_time():
    limit = Limit()
    assert limit.admits(notice("a"), 0)
    assert not limit.admits(notice("a"), REPEAT_SECONDS - 1)
    assert limit.admits(notice("b"), REPEAT_SECONDS - 1)
    assert limit.admits(notice("a"), REPEAT_SECONDS)


def test_an_object_that_changes_all_the_time_gets_a_burst_and_then_a_trickle():
    limit = Limit()
    admitted = [limit.admits(notice(str(n)), 0) for n in range(BURST + 5)]
    assert admitted == [True] * BURST + [False] * 5
    assert limit.admits(notice("later"), REFILL_SECONDS)
    assert not limit.admits(notice("too soon"), REFILL_SECONDS)


def test_one_objects_flood_costs_others_nothing():
    limit = Limit()
    for n in range(BURST + 1):
        limit.admits(notice(str(n)), 0)
    assert limit.admits(notice("x", "other"), 0)


def test_nothing_is_remembered_for_ever():
    limit = Limit()
    for n in range(5000):
        limit.admits(notice("a", f"web-{n}"), n * 10.0)
    assert len(limit._said) < 100
    assert len(limit._allowances) < 4200
