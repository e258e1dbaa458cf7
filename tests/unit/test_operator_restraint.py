"""What is logged of many objects with one fault: some lines, and then how many there were."""

from __future__ import annotations

import logging

import pytest

from lbless_operator.complaints import Complaints
from lbless_operator.events import Events
from lbless_operator.facts import AgentFact, Kind, Seen
from lbless_operator.notices import REASON_BURST, Limit, Notice, NoticeReason, Subject
from lbless_operator.restraint import BURST, REFILL_SECONDS, SUMMARY_SECONDS, Restraint


class Sayings:
    """A restraint whose clock a test has in its hands, and what it has let through."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self._caplog = caplog
        caplog.set_level(logging.INFO)
        self.restraint = Restraint(logging.getLogger("lbless.operator"), lambda: self.now)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Sayings:
    return Sayings(caplog)


def test_a_thousand_with_one_fault_are_a_burst_a_trickle_and_a_count(said: Sayings):
    for number in range(1000):
        said.restraint.log(logging.WARNING, "Refused", f"ClusterIP web-{number} is refused.")
    assert len(said.lines) == BURST
    said.now = REFILL_SECONDS
    said.restraint.log(logging.WARNING, "Refused", "One later.")
    assert said.lines[-1] == "One later."
    said.now = SUMMARY_SECONDS
    said.restraint.summarise()
    assert said.lines[-1].startswith(
        "Not logged one by one in the last minute, as there were too many of a kind: Refused 980."
    )
    said.now = 2 * SUMMARY_SECONDS
    said.restraint.summarise()
    assert len(said.lines) == BURST + 2


def test_one_reasons_flood_costs_the_others_nothing(said: Sayings):
    for number in range(BURST + 1):
        said.restraint.log(logging.WARNING, "Refused", str(number))
    said.restraint.log(logging.INFO, "Moved", "3 buckets moved.")
    assert said.lines[-1] == "3 buckets moved."


def test_events_of_one_reason_are_a_burst_whatever_they_are_about():
    limit = Limit()

    def admitted(reason: NoticeReason) -> int:
        subjects = (Subject("v1", "ClusterIP", "shop", f"web-{n}", f"uid-{n}") for n in range(1000))
        return sum(limit.admits(Notice(subject, reason, "note"), 0) for subject in subjects)

    assert admitted(NoticeReason.REFUSED) == REASON_BURST
    assert admitted(NoticeReason.MOVED) == REASON_BURST


def test_a_garbled_report_is_told_once_and_again_when_it_is_another_fault(said: Sayings, events: Events):
    complaints = Complaints(events, said.restraint)
    for version, fault in enumerate(("a", "a", "b", "", "b")):
        complaints.about(Seen(Kind.AGENT, "", "n1", version, AgentFact("n1", None, fault)))
        complaints.about(Seen(Kind.AGENT, "", "n2", version, AgentFact("n2", None)))
    assert [line.split("(")[1][0] for line in said.lines] == ["a", "b", "b"]


@pytest.fixture
def events() -> Events:
    return None  # type: ignore[return-value] # complaints about reports post none
