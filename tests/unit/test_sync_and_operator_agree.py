"""What sync reports and what the operator concludes from it: the two halves of a confirmation, together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbless_api import digest
from lbless_api.digest import MAX_MARKS, mark, parse_marks, render_marks
from lbless_api.fields import Invalid
from lbless_api.node import NodeStatus, Outstanding, parse_node_status, render_node_status
from lbless_api.state import Observed
from lbless_nodeagent.sync import report as reporting
from lbless_nodeagent.sync.report import Situation, Wanted, report
from lbless_operator import confirmations as confirming
from lbless_operator.confirmations import Confirmations

UIDS = [f"6f1a4a60-7a39-4f0e-9d7c-{n:012}" for n in range(1000)]
LONG = "The address cannot be used on this node, and this is why: " + "because " * 60


def reported(wanted: Mapping[str, int], applied: Mapping[str, int], failing: Set[str]) -> NodeStatus:
    """What the operator reads of what sync wrote."""
    failures = tuple(Outstanding(uid, "", 0, "EngineFailed", LONG) for uid in sorted(failing))
    observed = Observed("boot", 1.0, applied=applied, failures=failures)
    named = {uid: Wanted(f"a-namespace/a-rather-long-name-{uid}", epoch) for uid, epoch in wanted.items()}
    written = json.dumps(render_node_status(report(Situation(named, observed)).status))
    return parse_node_status(json.loads(written))


def confirmed(wanted: Mapping[str, int], status: NodeStatus) -> set[str]:
    confirmations = Confirmations()
    for uid, epoch in wanted.items():
        confirmations.expect(uid, epoch)
    confirmations.report("n1", status)
    confirmations.evaluate()
    return {uid for uid, epoch in wanted.items() if epoch and confirmations.of("n1", uid).epoch == epoch}


@pytest.mark.parametrize("bad", [1, 63, 64, 65, 129, 500, 936, 999, 1000])
def test_of_a_thousand_every_good_one_is_confirmed_and_no_bad_one(bad: int) -> None:
    wanted = {uid: 1 + n % 7 for n, uid in enumerate(UIDS)}
    failing = set(sorted(UIDS, key=mark)[:bad])
    applied = {uid: epoch for uid, epoch in wanted.items() if uid not in failing}
    assert confirmed(wanted, reported(wanted, applied, failing)) == applied.keys()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_fails_or_waits_the_rest_is_confirmed(data: st.DataObject) -> None:
    uids = UIDS[: data.draw(st.sampled_from([0, 5, 100, 300]))]
    states = data.draw(st.lists(st.sampled_from("gggfwu"), min_size=len(uids), max_size=len(uids)))
    wanted = {uid: 0 if state == "u" else 5 for uid, state in zip(uids, states, strict=True)}
    state_of = dict(zip(uids, states, strict=True))
    applied = {uid: 5 if state_of[uid] == "g" else 4 for uid in uids if state_of[uid] in "gw"}
    failing = {uid for uid in uids if state_of[uid] == "f"}
    good = {uid for uid in uids if state_of[uid] == "g"}
    assert confirmed(wanted, reported(wanted, applied, failing)) == good


def test_a_mark_shared_by_chance_delays_only_the_one_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def crowded(uid: str) -> bytes:
        return digest.sha256(uid.encode()).digest()[:1] + b"\0\0\0"  # 256 marks for a thousand UIDs

    for module in (digest, reporting, confirming):
        monkeypatch.setattr(module, "mark", crowded)
    wanted = dict.fromkeys(UIDS, 3)
    failing = set(UIDS[:100])
    applied = {uid: 3 for uid in UIDS if uid not in failing}
    status = reported(wanted, applied, failing)
    taken = {uid for uid in applied if crowded(uid) in status.unlisted}
    assert taken, "no two share a mark here, so this test shows nothing"
    assert confirmed(wanted, status) == applied.keys() - taken


def test_beyond_the_marks_that_have_room_nothing_is_confirmed_wrongly() -> None:
    uids = [f"u{n:05}" for n in range(MAX_MARKS + 500)]
    wanted = dict.fromkeys(uids, 1)
    status = reported(wanted, {"u00000": 1}, set(uids[1:]))
    assert len(status.unlisted) == MAX_MARKS
    assert confirmed(wanted, status) == set()


def test_what_was_confirmed_and_then_fails_unlisted_is_confirmed_no_longer() -> None:
    wanted = dict.fromkeys(UIDS, 1)
    confirmations = Confirmations()
    for uid in UIDS:
        confirmations.expect(uid, 1)
    confirmations.report("n1", reported(wanted, wanted, set()))
    assert confirmations.evaluate() == set(UIDS)
    failing = set(UIDS[100:])
    lost = confirmations.report("n1", reported(wanted, dict.fromkeys(UIDS[:100], 1), failing))
    assert lost == failing
    confirmations.evaluate()
    assert {uid for uid in UIDS if confirmations.of("n1", uid).epoch} == set(UIDS[:100])


@given(st.sets(st.binary(min_size=4, max_size=4), max_size=MAX_MARKS))
def test_marks_come_back_as_they_were_and_fit_the_schema(marks: set[bytes]) -> None:
    text = render_marks(marks)
    assert parse_marks(text, "unlisted") == marks
    assert len(text) <= 5464


@pytest.mark.parametrize("text", ["AAAA", "?", "AAAAA", 5, "A" * 6000])
def test_marks_that_are_none_are_refused(text: object) -> None:
    with pytest.raises(Invalid, match="unlisted"):
        parse_marks(text, "unlisted")
