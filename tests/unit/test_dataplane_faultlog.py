"""What of a node's faults gets a log line: each once, few in full, the rest as a number."""

import logging

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.node import Outstanding
from lbless_nodeagent.dataplane.faultlog import MAX_LINES, MAX_TOLD, WINDOW_SECONDS, FaultLog
from lbless_nodeagent.dataplane.report import MAX_FAILURES_BYTES, MAX_MESSAGE, listed


def faults(count: int, sentence: str = "It is bad.") -> dict[str, str]:
    return {f"ClusterIP ns/{number}": sentence for number in range(count)}


def test_a_fault_has_a_line_when_it_comes_when_it_changes_and_when_it_goes() -> None:
    log = FaultLog()
    assert log.lines({"a": "It is bad."}, 0.0) == [(logging.WARNING, "a: It is bad.")]
    assert log.lines({"a": "It is bad."}, 1.0) == []
    assert log.lines({"a": "It is worse."}, 2.0) == [(logging.WARNING, "a: It is worse.")]
    assert log.lines({"The disk is full.": ""}, 3.0) == [
        (logging.INFO, "No longer: a: It is worse."),
        (logging.WARNING, "The disk is full."),
    ]


def test_a_thousand_faults_are_a_few_lines_and_a_number() -> None:
    log = FaultLog()
    said = log.lines(faults(1000), 0.0)
    assert len(said) == MAX_TOLD + 1
    assert said[-1][1] == f"{1000 - MAX_TOLD} more faults are listed in observed.json alone."
    assert log.lines(faults(1000), 1.0) == []
    assert log.lines(faults(1001), 2.0) == []


def test_a_thousand_faults_that_come_one_by_one_are_not_a_thousand_lines() -> None:
    log = FaultLog()
    said = [line for count in range(1, 1001) for line in log.lines(faults(count), count * 0.01)]
    assert len(said) < MAX_TOLD + 12


@given(
    passes=st.lists(
        st.dictionaries(st.integers(0, 40).map(str), st.sampled_from(["x.", "y.", "z."]), max_size=40),
        max_size=60,
    )
)
def test_whatever_happens_a_minute_has_few_lines(passes: list[dict[str, str]]) -> None:
    log = FaultLog()
    said = [line for number, found in enumerate(passes) for line in log.lines(found, number * 0.1)]
    assert len(said) <= MAX_LINES


def test_lines_that_were_left_out_are_counted() -> None:
    log = FaultLog()
    flapping = [log.lines({"a": f"{number}."}, number * 0.1) for number in range(MAX_LINES + 7)]
    assert flapping[-1] == []
    later = log.lines({"a": "calm."}, WINDOW_SECONDS + 1)
    assert [text for _, text in later] == ["7 lines about faults were left out.", "a: calm."]


def outstanding(number: int, message: str) -> Outstanding:
    return Outstanding(f"uid-{number}", f"ns/name-{number}", 1, "Invalid", message)


def test_a_thousand_failures_are_listed_and_a_long_sentence_is_cut() -> None:
    kept, left_out = listed([outstanding(n, "x" * 5000) for n in range(1000)])
    assert (len(kept), left_out) == (1000, 0)
    assert {len(failure.message) for failure in kept} == {MAX_MESSAGE}


def test_failures_that_would_make_the_file_too_large_are_counted_instead() -> None:
    kept, left_out = listed([outstanding(n, "\N{SNOWMAN}" * 5000) for n in range(1000)])
    assert len(kept) + left_out == 1000
    assert 0 < len(kept) * MAX_MESSAGE * 6 <= MAX_FAILURES_BYTES
