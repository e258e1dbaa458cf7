"""A bucket from one node to another, step by step, while clients use it: nothing breaks, nothing is answered twice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from kernel.movingpair import Pair, pair
from kernel.segment import entered
from lab import claim, servers, traffic
from lab.capture import Capture
from lab.downloads import downloading
from lab.frames import Flags, Frames
from lab.lan import Lan
from lab.servers import STREAM_PORT, TCP_PORT, UDP_PORT
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode

pytestmark = pytest.mark.root

GROUPS = [
    HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 7, 64, 32),
    HashParameters(HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT, 7, 64, 32),
]
SOME, OTHERS = BucketSet.parse("0-38"), BucketSet.parse("39-63")
CONNECTIONS, DATAGRAMS = 3_000, 1_000
PARALLEL = 12
LONG = 60
FIRST_PORT = 20_000
WAIT_SECONDS = 10


@pytest.fixture(
    params=[GROUPS[0], pytest.param(GROUPS[1], marks=pytest.mark.soak)], ids=lambda group: str(group.function)
)
def two(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A client and two nodes with services, all buckets with the first."""
    with (
        Lan(claim.unique("moves"), nodes=2) as lan,
        servers.serving(lan.nodes, stream=[STREAM_PORT]),
        pair(lan, request.param) as made,
    ):
        yield made


def retransmitted_syns(two: Pair) -> int:
    """By the client since it began."""
    names, values = [
        line.split()
        for line in two.lan.client.run(["cat", "/proc/net/netstat"]).stdout.splitlines()
        if line.startswith("TcpExt:")
    ]
    return int(values[names.index("TCPSynRetrans")])


def answered_twice(frames: Frames) -> list[object]:
    """Every flow, and every echo request, that had two answers."""
    answers = (frames.syn_acks(), frames.udp_answers(), frames.echo_replies())
    return [key for found in answers for key, sources in found.items() if len(sources) > 1]


def there_and_back(two: Pair, running: Sequence[Future[Any]], *, redirect: bool) -> int:
    """Move buckets from one node to the other, and back, while there is traffic; return how often."""
    moves, sides = 0, (two.first, two.second)
    while not all(one.done() for one in running):
        source, to = sides[moves % 2], sides[1 - moves % 2]
        two.move(source, to, SOME, redirect=redirect)
        two.await_drained(source, SOME)
        two.end(source, to, SOME)
        moves += 1
    return moves


def begin(two: Pair, protocol: str, port: int, count: int) -> traffic.Running:
    return traffic.begin(protocol, two.lan.client, two.address, port, count, parallel=PARALLEL)


def test_of_all_that_clients_begin_while_buckets_move_nothing_breaks_and_nothing_is_sent_again(two: Pair):
    kept = two.flows(OTHERS, STREAM_PORT, LONG, from_port=FIRST_PORT)
    with (
        Capture(two.lan.client, vip=two.address) as frames,
        downloading(two.lan.client, two.address, STREAM_PORT, kept) as downloads,
        ThreadPoolExecutor() as threads,
    ):
        before = retransmitted_syns(two)
        connections = threads.submit(begin(two, "tcp", TCP_PORT, CONNECTIONS).answers)
        datagrams = threads.submit(begin(two, "udp", UDP_PORT, DATAGRAMS).answers)
        echoes = threads.submit(begin(two, "icmp", 0, DATAGRAMS).echoes)
        moves = there_and_back(two, [connections, datagrams, echoes], redirect=True)
        answers, replies = [*connections.result(), *datagrams.result()], echoes.result()
    assert moves > 10
    print(f"{moves} moves, {len(frames.syns())} connections, {two.first.counters()}")
    assert [answer for answer in answers if answer.error] == []
    assert {answer.node for answer in answers} == {"n1", "n2"}
    assert [echo for echo in replies if echo.replies != 1] == []
    # A SYN that came in just before its bucket drained, and whose answer would have left just after, comes again.
    raced = sum(member.counters()["unanswered"] for member in (two.first, two.second))
    assert retransmitted_syns(two) - before <= raced <= moves // 10
    assert answered_twice(frames) == []
    assert frames.resets() == []
    assert downloads.broken(["n1", "n2"]) == []


def test_without_a_redirect_a_move_breaks_nothing_either(two: Pair):
    with Capture(two.lan.client, vip=two.address) as frames, ThreadPoolExecutor() as threads:
        connections = threads.submit(begin(two, "tcp", TCP_PORT, CONNECTIONS // 3).answers)
        moves = there_and_back(two, [connections], redirect=False)
        answers = connections.result()
    again = sum(len(sources) - 1 for sources in frames.syns().values())
    print(f"{moves} moves, {len(frames.syns())} connections, {again} SYNs sent again")
    # Four moves a second, each with its gap: a SYN may meet two of them, and then its client gives up before the third.
    errors = [answer.error for answer in answers if answer.error]
    assert set(errors) <= {"timeout"}
    assert len(errors) <= len(answers) / 50
    assert answered_twice(frames) == []
    # A client that gives up as its answer comes resets the connection itself.
    assert [reset for reset in frames.resets() if reset.source != two.lan.client.mac] == []


def test_long_flows_stay_where_they_began_however_often_their_bucket_moves(two: Pair):
    some = two.flows(SOME, STREAM_PORT, 3 * LONG, from_port=FIRST_PORT)
    client, first, second = two.lan.client, two.first, two.second
    with downloading(client, two.address, STREAM_PORT, some[:LONG]) as at_first:
        two.move(first, second, SOME, redirect=True)
        with downloading(client, two.address, STREAM_PORT, some[LONG : 2 * LONG]) as at_second:
            # Both drain what they had; the first has new ones again.
            second_moving, first_moving = second.vip.moving, first.vip.moving
            assert (second_moving.fresh, first_moving.drain) == (SOME, SOME)
            second.owns(BucketSet(), type(second_moving)(drain=SOME))
            first.owns(OTHERS, type(first_moving)(fresh=SOME))
            with downloading(client, two.address, STREAM_PORT, some[2 * LONG :]) as again:
                time.sleep(1)
    assert {*at_first.nodes, *again.nodes} == {"n1"}
    assert set(at_second.nodes) == {"n2"}
    for downloads in (at_first, at_second, again):
        assert len(downloads.ended) == LONG
        assert downloads.broken(["n1", "n2"]) == []


def test_the_end_of_a_drain_ends_what_is_left_at_once_and_disturbs_nothing_else(two: Pair):
    some = two.flows(SOME, STREAM_PORT, 2 * LONG, from_port=FIRST_PORT)
    others = two.flows(OTHERS, STREAM_PORT, LONG, from_port=FIRST_PORT)
    client, first, second = two.lan.client, two.first, two.second
    with downloading(client, two.address, STREAM_PORT, others) as kept:
        with entered(client.namespace):
            left = [connect(two, source) for source in two.flows(SOME, TCP_PORT, LONG, from_port=FIRST_PORT)]
        assert {one.recv(1000)[:12] for one in left} == {b'{"node": "n1'}
        two.move(first, second, SOME, redirect=True)
        with downloading(client, two.address, STREAM_PORT, some) as new:
            assert set(new.nodes) == {"n2"}
            for one in left:
                one.sendall(b"still here?\n")
                assert one.recv(1000).startswith(b'{"node": "n1')
            two.end(first, second, SOME)
            for one in left:
                one.sendall(b"still here?\n")
                with pytest.raises(ConnectionResetError):
                    one.recv(1000)
                one.close()
            time.sleep(1)
    assert new.broken(["n1", "n2"]) == kept.broken(["n1", "n2"]) == []


TCP_REPAIR = 19


def test_a_client_that_forgot_its_connection_and_uses_its_port_again_is_served_by_the_new_owner(two: Pair):
    client, first, second = two.lan.client, two.first, two.second
    sources = two.flows(SOME, TCP_PORT, 20, from_port=FIRST_PORT)
    with Capture(client, vip=two.address) as frames, entered(client.namespace):
        for made in [connect(two, source) for source in sources]:
            assert made.recv(1000).startswith(b'{"node": "n1')
            made.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            made.close()  # without a word to n1, which keeps the connection
        two.move(first, second, SOME, redirect=True)
        for made in [connect(two, source) for source in sources]:
            assert made.recv(1000).startswith(b'{"node": "n2')
            made.sendall(b"and on\n")
            assert made.recv(1000).startswith(b'{"node": "n2')
            made.close()
    assert frames.resets() == []


def connect(two: Pair, source: tuple[str, int]) -> socket.socket:
    made = socket.socket()
    made.settimeout(WAIT_SECONDS)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(source)
    made.connect((two.address, TCP_PORT))
    return made


LOSE_ANSWERS_FROM = """
table netdev lose {{
 chain in {{ type filter hook ingress device "eth0" priority 0; policy accept;
  ether saddr {mac} tcp flags & (syn | ack) == (syn | ack) drop
 }}
}}
"""


def test_a_flow_whose_answer_is_lost_before_its_bucket_moves_opens_with_the_new_owner_alone(two: Pair):
    client, first, second = two.lan.client, two.first, two.second
    sources = two.flows(SOME, TCP_PORT, 20, from_port=FIRST_PORT)
    client.run(["nft", "-f", "-"], stdin=LOSE_ANSWERS_FROM.format(mac=first.host.mac))
    nodes: list[bytes] = []

    def ask(source: tuple[str, int]) -> None:
        with entered(client.namespace):
            made = connect(two, source)
        nodes.append(made.recv(1000))
        made.close()

    with Capture(client, vip=two.address) as frames:
        asking = [threading.Thread(target=ask, args=(source,)) for source in sources]
        for one in asking:
            one.start()
        frames.await_that("a lost answer to each", lambda seen: len(seen.syn_acks()) == len(sources))
        two.move(first, second, SOME, redirect=True)
        moved = time.time_ns()
        for one in asking:
            one.join(WAIT_SECONDS)
    assert len(nodes) == len(sources)
    assert all(answer.startswith(b'{"node": "n2') for answer in nodes)
    for flow, answerers in frames.syn_acks().items():
        assert answerers == [first.host.mac, second.host.mac], flow
    opening = Flags.SYN | Flags.ACK
    late = [f for f, p in frames.packets() if p.flags & opening == opening and f.time_ns > moved]
    assert {frame.source for frame in late} == {second.host.mac}
    assert frames.resets() == []
    assert first.counters()["unanswered"] >= len(sources), "it had sent its answers again"
