"""What the log of a prober is taken to say, case by case."""

import pytest

from lab import takeover
from lab.prober import Log, Probe

OWNERS = {0: "n1", 1: "n2"}
AT = 10.0


def probe(started: float, node: str | None, *, bucket: int = 0, **fields) -> Probe:
    """An attempt that took 1 ms, or was given up after 150 ms."""
    error = None if node else "timeout"
    senders = (node,) if node else ()
    ended = started + (0.001 if node else 0.15)
    values = {
        "node": node,
        "error": error,
        "senders": senders,
        "acknowledged": ended if node else None,
        **fields,
    }
    return Probe(1, bucket, "10.80.16.1", 1024, started, ended, **values)


def test_a_takeover_lasts_to_the_answer_and_an_outage_from_the_last_attempt_that_was_answered():
    probes = [probe(9.9, "n1"), probe(10.3, "n1"), probe(10.4, None), probe(10.8, None), probe(10.9, "n2")]
    (found,) = takeover.takeovers(probes, OWNERS, {"n1"}, AT)
    assert (found.bucket, found.former, found.by) == (0, "n1", "n2")
    assert found.seconds == pytest.approx(0.901)
    assert found.unserved_seconds == pytest.approx(0.601)


def test_an_outage_that_the_fault_began_counts_from_the_fault():
    assert takeover.unserved_seconds(
        [probe(9.0, "n1"), probe(9.95, None), probe(11.0, "n2")], AT
    ) == pytest.approx(1.001)


def test_an_outage_ends_with_the_first_answer_though_one_to_an_earlier_attempt_is_later():
    late = probe(10.4, None, senders=("n1",), acknowledged=11.2)
    probes = [probe(10.1, None), late, probe(10.5, "n1"), probe(10.6, None), probe(10.7, "n1")]
    assert takeover.unserved_seconds(probes, AT) == pytest.approx(0.501)


def test_what_nobody_answers_any_more_is_unserved_for_ever_and_an_orphan():
    probes = [probe(9.9, "n1"), probe(10.5, None), probe(10.5, "n2", bucket=1)]
    (found,) = takeover.takeovers(probes, OWNERS, {"n1"}, AT)
    assert (found.by, found.seconds, found.unserved_seconds) == (None, None, float("inf"))
    assert takeover.orphans([p for p in probes if p.started > AT], OWNERS) == [0]


def test_an_answer_too_late_for_its_connection_counts_but_not_one_that_was_sent_again():
    late = probe(10.0, None, senders=("n2",), acknowledged=10.4)
    again = probe(10.0, None, senders=("n2",), acknowledged=11.05)
    assert (late.answerer, late.answered) == ("n2", 10.4)
    assert (again.answerer, again.answered) == (None, float("inf"))


def test_what_is_known_at_a_time_leaves_out_attempts_under_way_and_answers_that_came_later():
    late = probe(10.0, None, senders=("n2",), acknowledged=10.4)
    assert [p.answerer for p in takeover.as_of([late], 10.5)] == ["n2"]
    assert [p.answerer for p in takeover.as_of([late], 10.3)] == [None]
    assert takeover.as_of([late], 10.1) == []


def test_a_syn_that_two_nodes_answer_is_a_double_whoever_got_the_connection():
    double = probe(10.0, "n1", senders=("n2", "n1"), apart_seconds=0.0015)
    assert len(takeover.doubles([double, probe(10.1, "n1")])) == 1
    assert takeover.doubles([double])[0].endswith("was answered by n2 and n1, 1.5 ms apart")


def test_a_reset_a_refusal_and_a_stranger_disturb_but_neither_a_late_answer_nor_a_struck_node():
    stranger = probe(10.0, "n3", bucket=1)
    reset = probe(10.1, None, bucket=1, error="Connection reset by peer", senders=("n2",), acknowledged=10.1)
    lost = probe(10.2, None, bucket=1)
    late = probe(10.3, None, bucket=1, senders=("n2",), acknowledged=10.6)
    struck = probe(10.4, None, bucket=0)
    found = takeover.disturbed([stranger, reset, lost, late, struck], OWNERS, {"n1"})
    assert len(found) == 3
    assert "answered by n3" in found[0]
    assert "Connection reset by peer" in found[1]
    assert "timeout" in found[2]


def test_the_log_joins_what_a_connection_and_the_wire_say_of_one_attempt():
    log = Log({"02:00:00:00:00:01": "n1", "02:00:00:00:00:02": "n2"}.__getitem__)
    log.add("end 1 5 10.80.16.1 1024 10.000000 10.002000 n1 -\n")
    log.add("ack 1 10.001000 02:00:00:00:00:01\n")
    log.add("ack 2 10.400000 02:00:00:00:00:02\n")
    log.add("end 2 6 10.80.16.1 1025 10.010000 10.160000 - Connection timed out\n")
    log.add("late 0.012000\n")
    one, two = log.probes()
    assert (one.bucket, one.node, one.error, one.senders, one.acknowledged) == (
        5,
        "n1",
        None,
        ("n1",),
        10.001,
    )
    assert (two.node, two.error, two.answerer, two.answered) == (None, "Connection timed out", "n2", 10.4)
    assert log.late_seconds == 0.012
    assert log.probes(since=10.005) == [two]
    log.add("ack 2 10.403000 02:00:00:00:00:01\n")
    (double,) = log.probes(since=10.005)
    assert (two.apart_seconds, double.senders) == (0, ("n2", "n1"))
    assert double.apart_seconds == pytest.approx(0.003)
