"""What is taken for harm in what clients saw, case by case; and what a connection takes for a wrong echo."""

import re
import socket
from collections.abc import Iterable, Iterator

import pytest

from lab import impact
from lab.datagrams import Datagram
from lab.echoes import Conversation, sources
from lab.inside.echoes import CLOSED, TIMEOUT, WRONG, Connection
from lab.prober import Log, Probe


def probe(
    *,
    senders: tuple[str, ...] = ("n1",),
    node: str | None = "n1",
    syns: tuple[float, ...] = (10.0,),
    **fields,
) -> Probe:
    """An attempt that was answered after 2 ms."""
    values = {"error": None if node else "timeout", "acknowledged": 10.002 if senders else None, **fields}
    return Probe(1, 7, "10.80.16.1", 1024, 10.0, 10.003, node, senders=senders, syns=syns, **values)


def conversation(*, sent: int = 100, back: int = 100, broken: str | None = None) -> Conversation:
    return Conversation("10.80.16.1", 30000, "n1", sent, back, 0.01, 10.0, broken, 12.0 if broken else None)


def datagram(kind: str, *senders: str, error: str | None = None) -> Datagram:
    return Datagram(kind, "10.80.16.1", 1024, 3, 10.0, senders, 0.001 if senders else None, error)


def timeless(faults: Iterable[str]) -> list[str]:
    """The sentences without the times of day that they tell."""
    return [re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "TIME", fault) for fault in faults]


def test_traffic_that_is_answered_once_and_at_once_is_no_harm():
    found = impact.impact(
        [probe()] * 3, [conversation()] * 2, [datagram("udp", "n1"), datagram("icmp", "n2")]
    )
    assert found.faults == []
    assert [(row.what, row.asked) for row in found.rows] == [
        (impact.CONNECTIONS, 3),
        (impact.LINES, 200),
        (impact.DATAGRAMS, 1),
        (impact.REQUESTS, 1),
    ]
    assert found.row(impact.CONNECTIONS).worst_seconds == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("one", "counts", "fault"),
    [
        (probe(syns=(10.0, 11.02)), (0, 1, 0, 0), "had its SYN sent again after 1.020 s"),
        (
            probe(senders=("n1", "n2"), apart_seconds=0.5),
            (0, 0, 1, 0),
            "was answered by n1 and n2, 0.500 s apart",
        ),
        (probe(senders=(), node=None, syns=(10.0, 11.0)), (1, 1, 0, 0), "was not answered: timeout"),
        (probe(node=None, error="Connection reset by peer"), (0, 0, 0, 1), "broke: Connection reset by peer"),
    ],
)
def test_a_connections_harm_is_counted_by_its_kind(one: Probe, counts: tuple[int, ...], fault: str):
    row = impact.of_connections([probe(), one])
    assert (row.unanswered, row.again, row.twice, row.broken) == counts
    assert f"a connection from 10.80.16.1:1024 in bucket 7 at TIME {fault}" in timeless(row.faults)


def test_a_conversation_that_broke_is_told_with_how_far_it_came():
    row = impact.of_conversations([conversation(), conversation(sent=20, back=18, broken="reset")])
    assert (row.asked, row.unanswered, row.broken) == (120, 2, 1)
    assert row.faults == ("the connection from 10.80.16.1:30000 to n1 broke after 18 of 20 lines: reset",)


def test_datagrams_are_to_be_answered_exactly_once():
    sent = [
        datagram("udp", "n1"),
        datagram("udp"),
        datagram("udp", "n1", "n2"),
        datagram("udp", "n1", "n1"),
        datagram("icmp", "n1", "n2"),
        datagram("icmp", error="No buffer space available"),
    ]
    found = impact.impact(datagrams=sent)
    of_udp, of_icmp = found.rows
    assert (of_udp.asked, of_udp.unanswered, of_udp.twice, of_udp.broken) == (4, 1, 2, 0)
    assert (of_icmp.asked, of_icmp.unanswered, of_icmp.twice, of_icmp.broken) == (2, 1, 1, 1)
    assert timeless(found.faults) == [
        "udp 10.80.16.1:1024 at TIME was answered by nobody",
        "udp 10.80.16.1:1024 at TIME was answered by n1 and n2",
        "udp 10.80.16.1:1024 at TIME was answered by n1 and n1",
        "icmp 10.80.16.1:1024 (3) at TIME was answered by n1 and n2",
        "icmp 10.80.16.1:1024 (3) at TIME could not be sent: No buffer space available",
    ]


def test_the_table_has_a_line_for_each_kind_and_the_first_faults_below():
    found = impact.impact([probe(), *[probe(syns=(10.0, 11.0))] * 12], [conversation()])
    print(found)
    heads, connections, lines, *faults = str(found).splitlines()
    assert heads.split("  ")[-1] == "worst ms"
    assert connections.split() == ["new", "connections", "13", "0", "12", "0", "0", "2.00", "2.00", "2.00"]
    assert lines.split() == ["echoed", "lines", "100", "0", "-", "0", "0", "10.00", "10.00", "10.00"]
    assert len(faults) == 11
    assert faults[-1] == "and 2 more"


@pytest.mark.parametrize(("part", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_quantile_is_one_of_the_values(part: float, expected: int):
    assert impact.quantile(range(1, 101), part) == expected
    assert impact.quantile([], part) is None


def test_a_log_tells_every_syn_of_an_attempt_and_who_answered():
    log = Log({"02:00": "n1", "02:01": "n2"}.__getitem__)
    for line in (
        "syn 1 10.000000",
        "syn 1 11.000000",
        "ack 1 11.000500 02:00",
        "ack 1 11.500500 02:01",
        "end 1 7 10.80.16.1 1024 9.999000 11.001000 n1 -",
        "late 0.002000",
        "missed 0",
    ):
        log.add(f"{line}\n")
    (one,) = log.probes()
    assert (one.syns, one.senders, one.node) == ((10.0, 11.0), ("n1", "n2"), "n1")
    assert one.apart_seconds == pytest.approx(0.5)


def test_conversations_are_spread_over_all_addresses_and_no_two_are_alike():
    chosen = sources([f"10.80.16.{number}" for number in range(1, 51)], 500)
    assert len(set(chosen)) == 500
    assert len({address for address, _ in chosen}) == 50


@pytest.fixture
def connection() -> Iterator[Connection]:
    with socket.socket() as own:
        yield Connection(3, "10.80.16.1", 30000, own, 0.0)


GREETING = b'{"node": "n1"}\n'


def test_echoes_count_whatever_pieces_they_come_in(connection: Connection):
    connection.hear(GREETING[:5], 0.1)
    connection.hear(GREETING[5:], 0.1)
    lines = [connection.line(1.0), connection.line(1.2)]
    for number, byte in enumerate(b"".join(lines)):
        connection.hear(bytes([byte]), 1.3 + number / 1e6)
    assert (connection.node, connection.sent, connection.back) == ("n1", 2, 2)
    assert connection.longest_seconds == pytest.approx(0.3, abs=0.001)
    assert connection.longest_began == 1.0
    connection.expire(99.0, 1.0)
    assert connection.broken is None
    assert lines[0] != lines[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[1] + lines[0],
        lambda lines: lines[0][:-2] + b"?\n",
        lambda lines: lines[0] + lines[0],
        lambda lines: lines[0] + lines[1] + b"x",
        lambda lines: lines[0][:10] + lines[0][11:] + lines[1],
    ],
    ids=["in another order", "another byte", "repeated", "one too many", "one too few"],
)
def test_what_was_not_sent_in_that_order_is_wrong(connection: Connection, spoil):
    connection.hear(GREETING, 0.1)
    connection.hear(spoil([connection.line(1.0), connection.line(1.2)]), 1.3)
    assert (connection.broken, connection.broken_at) == (WRONG, 1.3)


def test_what_does_not_come_in_time_is_given_up_and_the_first_fault_is_the_one_that_counts(
    connection: Connection,
):
    connection.hear(GREETING, 0.1)
    connection.line(1.0)
    connection.expire(1.9, 1.0)
    assert connection.broken is None
    connection.expire(2.1, 1.0)
    connection.breaks(CLOSED, 2.2)
    assert (connection.broken, connection.broken_at) == (TIMEOUT, 2.1)
    assert connection.longest_seconds == pytest.approx(1.1)


def test_one_that_is_never_greeted_is_given_up_too(connection: Connection):
    connection.expire(5.1, 5.0)
    assert connection.broken == TIMEOUT
