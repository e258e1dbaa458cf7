"""What a stream of datagrams and those that each node has kept say of handoffs."""

from collections.abc import Sequence

from lab.stream import Stream, Taken


def stream(sent: Sequence[Sequence[float]], kept: Sequence[str]) -> Stream:
    """`kept` has for each flow who kept its datagrams: a letter each, "-" for nobody, "=" for a and b."""
    taken = [
        Taken(at, flow, sequence, node)
        for flow, (times, letters) in enumerate(zip(sent, kept, strict=True))
        for sequence, (at, letter) in enumerate(zip(times, letters, strict=True))
        for node in ("ab" if letter == "=" else letter.strip("-"))
    ]
    return Stream(sent, taken=taken)


def steps(begin: float, count: int) -> list[float]:
    return [round(begin + 0.01 * number, 6) for number in range(count)]


def test_flows_that_change_over_together_are_one_handoff_from_the_last_kept_to_the_first():
    sent = [steps(0.000, 6), steps(0.002, 6), steps(0.004, 6), steps(0.006, 6)]
    found = stream(sent, ["aa--bb", "aaa-bb", "cccccc", "aaa--c"]).handoffs()
    assert [(one.former, one.latter, one.flows) for one in found] == [("a", "b", 2), ("a", "c", 1)]
    assert [round(one.at_most_seconds, 6) for one in found] == [0.018, 0.03]
    assert [round(one.at_least_seconds, 6) for one in found] == [0.002, 0.01]


def test_two_handoffs_of_one_pair_are_told_apart_by_time():
    sent = [steps(0.000, 8), steps(0.005, 8)]
    found = stream(sent, ["aabbbbbb", "aaaaa-bb"]).handoffs()
    assert [(one.since, round(one.at_most_seconds, 6)) for one in found] == [(0.01, 0.01), (0.045, 0.02)]
    assert [one.at_least_seconds for one in found] == [0, 0]


def test_what_was_kept_twice_or_by_nobody_is_counted():
    seen = stream([steps(0, 5)], ["a=a-b"])
    assert seen.twice() == [(0, 1)]
    assert seen.lost() == 1
