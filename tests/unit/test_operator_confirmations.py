"""What nodes have confirmed: by one digest, by what they list, and by what they said before."""

from __future__ import annotations

from lbless_api.digest import applied_digest
from lbless_api.node import NodeStatus, Outstanding
from lbless_operator.confirmations import Confirmation, Confirmations


def report(
    applied: dict[str, int], *, pending: tuple[str, ...] = (), failures: tuple[str, ...] = (), epoch: int = 2
):
    def listed(uids: tuple[str, ...]) -> tuple[Outstanding, ...]:
        return tuple(Outstanding(uid, "", epoch, "R", "m") for uid in uids)

    return NodeStatus("", (), (), applied_digest(applied), listed(pending), listed(failures))


def expecting(**epochs: int) -> Confirmations:
    confirmations = Confirmations()
    for uid, epoch in epochs.items():
        confirmations.expect(uid, epoch)
    return confirmations


def epochs(confirmations: Confirmations, node: str, *uids: str) -> list[int | None]:
    return [confirmations.of(node, uid).epoch for uid in uids]


def test_an_equal_digest_confirms_everything():
    confirmations = expecting(a=1, b=2)
    confirmations.report("n1", report({"a": 1, "b": 2}))
    assert confirmations.stale
    assert confirmations.evaluate() == {"a", "b"}
    assert epochs(confirmations, "n1", "a", "b") == [1, 2]
    assert not confirmations.stale
    assert confirmations.evaluate() == set()


def test_what_is_listed_is_not_confirmed_and_all_the_rest_is():
    confirmations = expecting(a=1, b=2, c=2)
    assert confirmations.report("n1", report({"a": 1}, pending=("b",), failures=("c",))) == {"c"}
    assert confirmations.evaluate() == {"a"}
    assert epochs(confirmations, "n1", "a", "b", "c") == [1, None, None]
    assert confirmations.of("n1", "c").failure == Outstanding("c", "", 2, "R", "m")


def test_another_digest_confirms_nothing_new_and_takes_nothing_back():
    confirmations = expecting(a=1)
    confirmations.report("n1", report({"a": 1}))
    confirmations.evaluate()
    confirmations.expect("a", 2)
    confirmations.expect("b", 1)
    assert confirmations.evaluate() == set()
    assert epochs(confirmations, "n1", "a", "b") == [1, None]
    confirmations.report("n1", report({"a": 2, "b": 1}))
    assert confirmations.evaluate() == {"a", "b"}


def test_what_a_node_lists_again_at_the_epoch_it_had_confirmed_is_confirmed_no_longer():
    confirmations = expecting(a=2)
    confirmations.report("n1", report({"a": 2}))
    confirmations.evaluate()
    assert confirmations.report("n1", report({}, failures=("a",))) == {"a"}
    assert confirmations.of("n1", "a").epoch is None
    confirmations.report("n1", report({"a": 2}))
    assert confirmations.evaluate() == {"a"}
    assert confirmations.report("n1", report({}, pending=("a",))) == {"a"}


def test_a_pending_newer_epoch_leaves_the_older_one_confirmed():
    confirmations = expecting(a=1)
    confirmations.report("n1", report({"a": 1}))
    confirmations.evaluate()
    confirmations.expect("a", 2)
    assert confirmations.report("n1", report({}, pending=("a",))) == set()
    assert confirmations.of("n1", "a") == Confirmation(1, None)


def test_a_failure_of_what_was_deleted_does_not_stand_in_the_way_of_the_rest():
    confirmations = expecting(a=1)
    confirmations.report("n1", report({"a": 1}, failures=("gone",)))
    assert confirmations.evaluate() == {"a"}


def test_a_deleted_clusterip_and_a_node_without_a_report_are_forgotten():
    confirmations = expecting(a=1, b=1)
    confirmations.report("n1", report({"a": 1, "b": 1}, failures=()))
    confirmations.evaluate()
    confirmations.forget("b")
    assert epochs(confirmations, "n1", "a", "b") == [1, None]
    confirmations.report("n1", None)
    assert confirmations.of("n1", "a") == Confirmation()
    assert confirmations.nodes() == frozenset()


def test_an_epoch_learnt_after_the_report_that_confirms_it_is_confirmed():
    """The answer to a write may be lost, and the watch bring both in any order."""
    confirmations = expecting(a=1)
    confirmations.report("n1", report({"a": 2}))
    assert confirmations.evaluate() == set()
    confirmations.expect("a", 2)
    assert confirmations.evaluate() == {"a"}
