"""The agenda: what is listed when, and who waits for whom."""

from __future__ import annotations

from lbless_operator.agenda import AT_ONCE, BLIND_SECONDS, PODS_AT_ONCE, ROUND_SECONDS, Agenda
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


def test_a_list_that_is_too_old_when_it_is_complete_is_no_answer() -> None:
    pods = Scope(Kind.POD, "shop")
    agenda = Agenda(frozenset({NODES}), 0.0)
    answer(agenda, agenda.take(0.0), 0.0, 0.0)
    agenda.follow(frozenset({NODES, pods}), (), 10.0)
    assert agenda.take(10.0) == [pods]
    answer(agenda, [pods], 10.0, 10.0 + BLIND_SECONDS)
    assert agenda.awaited == {pods}
    later = 11.0 + BLIND_SECONDS
    assert pods in agenda.take(later)
    answer(agenda, [pods], later, later + BLIND_SECONDS - 1)
    assert pods not in agenda.awaited


def test_every_namespace_is_listed_though_all_are_asked_for_faster_than_they_can_be() -> None:
    """As where pods may be listed and not watched."""
    spaces = [Scope(Kind.POD, f"n{number:02}") for number in range(64)]
    agenda = Agenda(frozenset({NODES}), 0.0)
    answer(agenda, agenda.take(0.0), 0.0, 0.0)
    agenda.follow(frozenset({NODES, *spaces}), (), 1.0)
    listed, now = dict.fromkeys(spaces, 0), 1.0
    while now < 10 * ROUND_SECONDS:
        for scope in spaces if now % ROUND_SECONDS == 1 else ():
            agenda.list_again((Kind.POD, scope.namespace), now)
        taken = agenda.take(now)
        answer(agenda, taken, now, now + 4)
        for scope in taken:
            listed[scope] = listed.get(scope, 0) + 1
        now += 4
    counts = [listed[scope] for scope in spaces]
    assert min(counts) >= max(counts) // 2 > 0


def test_a_round_that_is_asked_for_while_a_new_enough_one_runs_is_that_one() -> None:
    agenda = Agenda(frozenset({NODES}), 0.0)
    answer(agenda, agenda.take(0.0), 0.0, 0.0)
    agenda.request_round(5.0, since=5.0)
    at = agenda.next_time(5.0)
    while NODES not in agenda.take(at):
        at = agenda.next_time(at)
    agenda.request_round(at + 1, since=5.0)
    answer(agenda, [NODES], at, at + 2)
    assert agenda.next_time(at + 2) >= at + 2 + 0.8 * ROUND_SECONDS
    agenda.request_round(at + 3, since=at + 3)
    assert agenda.next_time(at + 3) <= at + ROUND_SECONDS
