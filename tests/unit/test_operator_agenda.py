"""The agenda: what is listed when, and who waits for whom."""

from __future__ import annotations

from lbless_operator.agenda import AT_ONCE, PODS_AT_ONCE, ROUND_SECONDS, Agenda
from lbless_operator.facts import Kind, Scope

NODES, AGENTS = Scope(Kind.NODE), Scope(Kind.AGENT)


def answer(agenda: Agenda, scopes: list[Scope], began: float, now: float) -> list[float]:
    """Let LISTs be complete; return when the rounds began that they complete."""
    ended = [agenda.answered(scope, began, now) for scope in scopes]
    return [round_began for round_began in ended if round_began is not None]


def test_a_round_that_is_slow_is_waited_for_and_one_of_which_a_part_failed_begins_anew() -> None:
    late = ROUND_SECONDS + 1
    agenda = Agenda(frozenset({NODES, AGENTS}), 0.0)
    assert set(agenda.take(0.0)) == {NODES, AGENTS}
    assert answer(agenda, [AGENTS], 0.0, 1.0) == []
    assert agenda.take(late) == []
    agenda.failed(NODES, 0.0, late)
    later = agenda.next_time(late)
    # Its parts are to be of one time: the agents are listed with it once more.
    assert set(agenda.take(later)) == {NODES, AGENTS}
    assert answer(agenda, [NODES, AGENTS], later, later + 1) == [later]


def test_what_hangs_keeps_neither_the_base_waiting_nor_more_than_its_share_of_places() -> None:
    agenda = Agenda(frozenset({NODES}), 0.0)
    assert answer(agenda, agenda.take(0.0), 0.0, 1.0) == [0.0]
    pods = {Scope(Kind.POD, f"n{number}") for number in range(PODS_AT_ONCE + 1)}
    slices = {Scope(Kind.SLICE, f"n{number}") for number in range(2 * AT_ONCE)}
    agenda.follow(frozenset({NODES, *pods}), (), 2.0)
    assert len(agenda.take(2.0)) == PODS_AT_ONCE
    agenda.follow(frozenset({NODES, *pods, *slices}), (), 3.0)
    assert len(agenda.take(3.0)) == AT_ONCE - PODS_AT_ONCE
    assert agenda.take(2 * ROUND_SECONDS) == [NODES]


def test_what_is_asked_for_again_and_again_counts_as_answered_up_to_its_last_list() -> None:
    pods = Scope(Kind.POD, "shop")
    agenda = Agenda(frozenset({NODES}), 0.0)
    answer(agenda, agenda.take(0.0), 0.0, 0.0)
    agenda.follow(frozenset({NODES, pods}), (), 10.0)
    assert agenda.take(10.0) == [pods]
    agenda.list_again((Kind.POD, "shop"), 15.0)
    assert agenda.overdue(12.0) == {pods}
    answer(agenda, [pods], 14.0, 20.0)
    assert agenda.overdue(12.0) == set()
    assert agenda.take(20.0) == [pods]
    answer(agenda, [pods], 20.0, 21.0)
    assert agenda.awaited == set()
