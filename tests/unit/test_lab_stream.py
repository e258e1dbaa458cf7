"""What a stream of datagrams and those that each node has kept say of handoffs."""

from lab.stream import Handoff, Stream, Taken


def stream(flows: int, *taken: tuple[float, int, int, str], sent: int = 0) -> Stream:
    return Stream(flows, 0.001, sent=sent, taken=[Taken(*one) for one in taken])


def test_flows_that_change_over_together_are_one_handoff_from_the_last_kept_to_the_first():
    found = stream(
        4,
        *((0.010, 0, 1, "a"), (0.014, 0, 2, "a"), (0.022, 0, 4, "b")),
        *((0.011, 1, 1, "a"), (0.015, 1, 2, "a"), (0.019, 1, 3, "b")),
        *((0.012, 2, 1, "c"), (0.016, 2, 2, "c")),
        *((0.013, 3, 1, "a"), (0.030, 3, 2, "c")),
    ).handoffs()
    assert [(one.former, one.latter, one.flows) for one in found] == [("a", "c", 1), ("a", "b", 2)]
    assert [round(one.seconds, 6) for one in found] == [0.017, 0.004]
    assert [round(one.apart, 6) for one in found] == [0.004, 0.002]


def test_two_handoffs_of_one_pair_are_told_apart_by_time():
    found = stream(
        2,
        *((0.1, 0, 1, "a"), (0.2, 0, 2, "b"), (0.7, 0, 3, "b")),
        *((0.1, 1, 1, "a"), (0.5, 1, 2, "a"), (0.6, 1, 3, "b")),
    ).handoffs()
    assert [(one.since, round(one.seconds, 6)) for one in found] == [(0.1, 0.1), (0.5, 0.1)]


def test_what_was_kept_twice_or_by_nobody_is_counted():
    seen = stream(1, (0.1, 0, 1, "a"), (0.1, 0, 1, "b"), (0.2, 0, 2, "a"), (0.4, 0, 4, "b"), sent=4)
    assert seen.twice() == [(0, 1)]
    assert seen.lost() == 1
    assert isinstance(seen.handoffs()[0], Handoff)
