"""The clients of a shared address notice what they are for: lost SYNs, double answers, connections that break."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from kernel.plainsharing import BUCKETS, PARAMETERS, PlainSharing
from lab import claim, clients, echoes, impact, servers, takeover
from lab.clients import Clients
from lab.datagrams import Datagram, sending
from lab.echoes import echoing
from lab.errors import LabError
from lab.lan import Lan
from lab.prober import PATIENT_SECONDS, Log, Prober, await_probes
from lab.servers import ECHO_PORT, TCP_PORT, UDP_PORT
from lbless_api.hashing import TCP, UDP, bucket

pytestmark = pytest.mark.root

CLOSED_PORT, OTHER_PORT = 9, 8090
# Of the SYNs (60 bytes) that the node keeps the first, and no other.
ONE_SYN_LOST = f"""
table ip loss {{
 chain pre {{ type filter hook prerouting priority -340;
  tcp dport {TCP_PORT} tcp flags & (syn|ack) == syn quota until 100 bytes drop
 }}
}}
"""


@pytest.fixture(scope="module")
def sharing() -> Iterator[PlainSharing]:
    with (
        Lan(claim.unique("clients"), nodes=2, sources=50) as lan,
        servers.serving(lan.nodes, echo=[ECHO_PORT]),
    ):
        yield PlainSharing(lan, Lan.vip(1))


@contextmanager
def probing(sharing: PlainSharing) -> Iterator[Log]:
    lan = sharing.lan
    with Prober(
        lan.client,
        sharing.address,
        TCP_PORT,
        sharing.sources,
        lan.owner_of,
        per_second=100,
        patience_seconds=PATIENT_SECONDS,
    ) as log:
        asked(log)
        yield log


def asked(log: Log, turns: int = 3) -> None:
    """Wait until every bucket was asked so often from now on."""
    await_probes(
        log,
        f"{turns} attempts in each bucket",
        lambda probes: takeover.asked(probes, range(BUCKETS), turns),
        since=time.monotonic(),
        seconds=20,
    )


def held(wanted: Sequence[int], addresses: Sequence[str], port: int = ECHO_PORT) -> list[tuple[str, int]]:
    """Sources of connections, one in each of the buckets."""
    free = echoes.sources(addresses, 1000)
    return [next(s for s in free if bucket_of(*s, port) == number) for number in wanted]


def bucket_of(source: str, source_port: int, port: int, protocol: int = TCP) -> int:
    p = PARAMETERS
    return bucket(
        p.function, p.mode, source, source_port, port, buckets=p.buckets, seed=p.seed, protocol=protocol
    )


def bucket_of_datagram(datagram: Datagram) -> int:
    """The plain rules take an echo request's type and code (8, 0) for a port."""
    port = datagram.source_port if datagram.kind == "udp" else 0x0800
    return bucket_of(datagram.source, port, UDP_PORT, UDP)


def running(seen: Clients, seconds: float) -> None:
    """Let everything run for a while: there is nothing that says when it is enough but time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
    asked(seen.log)


def test_healthy_nodes_do_no_harm_and_all_clients_together_need_little_of_a_processor(sharing):
    lan = sharing.lan
    owners = sharing.share()
    with clients.asking(lan.client, sharing.address, PARAMETERS, lan.owner_of) as seen:
        running(seen, 6)
    found = seen.impact()
    print(found)
    print(
        f"late by {seen.late_seconds * 1000:.1f} ms; of a processor: echoes {seen.echoes.load:.2f}, "
        f"datagrams {seen.datagrams.load:.2f}"
    )
    assert found.faults == []
    assert [row.what for row in found.rows] == [
        impact.CONNECTIONS,
        impact.LINES,
        impact.DATAGRAMS,
        impact.REQUESTS,
    ]
    assert len(seen.echoes.ended) == 500
    assert all(
        c.sent == c.back >= 20 and c.node == owners[bucket_of(c.source, c.source_port, ECHO_PORT)]
        for c in seen.echoes.ended
    )
    assert all(len(p.syns) == 1 for p in seen.log.probes())
    assert len(seen.datagrams.sent) >= 2 * 200 * 5
    assert {name for d in seen.datagrams.sent for name in d.senders} == {"n1", "n2"}
    assert seen.echoes.load < 0.5


def test_a_syn_that_is_lost_is_seen_by_the_one_that_is_sent_again(sharing):
    sharing.share()
    struck = sharing.lan.nodes[0]
    with probing(sharing) as log:
        struck.run(["nft", "-f", "-"], stdin=ONE_SYN_LOST)
        try:
            asked(log)
        finally:
            struck.run(["nft", "delete", "table", "ip", "loss"])
    found = impact.impact(log.probes())
    print(found)
    row = found.row(impact.CONNECTIONS)
    assert (row.unanswered, row.again, row.twice, row.broken) == (0, 1, 0, 0)
    (again,) = [p for p in log.probes() if len(p.syns) > 1]
    assert again.senders == ("n1",)
    assert again.syns[1] - again.syns[0] == pytest.approx(1.0, abs=0.3)
    assert row.worst_seconds == again.acknowledged - again.syns[0]
    assert len(found.faults) == 1


def test_what_two_nodes_keep_is_answered_twice_whatever_it_is(sharing):
    lan = sharing.lan
    owners = sharing.share()
    with (
        probing(sharing) as log,
        sending(lan.client, sharing.address, UDP_PORT, lan.client.addresses, lan.owner_of) as sent,
    ):
        asked(log)
        begun = time.monotonic()
        sharing.keep(lan.nodes[1], [*(b for b, name in owners.items() if name == "n2"), 4])
        changed = time.monotonic()
        asked(log, 6)
    assert owners[4] == "n1"
    before = impact.impact(log.probes(0, begun), datagrams=[d for d in sent.sent if d.sent < begun])
    after = impact.impact(log.probes(changed), datagrams=[d for d in sent.sent if d.sent >= changed])
    print(after)
    # The last before the change may still have been on their way.
    assert all(row.twice == 0 for row in impact.impact(log.probes(0, begun - 0.1)).rows)
    assert len(before.rows) == len(after.rows) == 3
    probes = [p for p in log.probes(changed) if p.bucket == 4]
    assert after.row(impact.CONNECTIONS).twice == len(probes) > 0
    assert all(sorted(p.senders) == ["n1", "n2"] for p in probes)
    for what, kind in ((impact.DATAGRAMS, "udp"), (impact.REQUESTS, "icmp")):
        of_4 = [d for d in sent.sent if d.kind == kind and d.sent >= changed and bucket_of_datagram(d) == 4]
        assert after.row(what).twice == len(of_4) > 0
        assert all(sorted(d.senders) == ["n1", "n2"] for d in of_4)
        assert after.row(what).unanswered == 0


def test_a_bucket_that_just_changes_its_node_resets_its_connections_and_one_that_nobody_keeps_is_silent(
    sharing,
):
    lan = sharing.lan
    owners = sharing.share()
    assert (owners[2], owners[4], owners[6]) == ("n1", "n1", "n1")
    own = held([2, 4, 6, 1], lan.client.addresses)
    with (
        echoing(lan.client, sharing.address, ECHO_PORT, own, patience_seconds=1) as seen,
        sending(lan.client, sharing.address, UDP_PORT, lan.client.addresses, lan.owner_of) as sent,
    ):
        began = time.monotonic()
        moved = {b: "n2" if b == 2 else name for b, name in owners.items() if b != 4}
        sharing.assign(moved)
        changed = time.monotonic()
        while time.monotonic() < changed + 2.5:
            time.sleep(0.05)
    ended = time.monotonic()
    by_bucket = dict(zip([2, 4, 6, 1], seen.ended, strict=True))
    print(impact.impact(conversations=seen.ended, datagrams=sent.sent))
    assert [(b, c.broken) for b, c in by_bucket.items()] == [
        (2, "reset"),
        (4, "timeout"),
        (6, None),
        (1, None),
    ]
    assert all(began < (c.broken_at or 0) < ended for c in (by_bucket[2], by_bucket[4]))
    assert 1 <= by_bucket[4].longest_seconds < 1.5
    assert by_bucket[6].sent == by_bucket[6].back >= 12
    assert by_bucket[4].sent > by_bucket[4].back > 0
    late = [d for d in sent.sent if changed <= d.sent]
    for kind in ("udp", "icmp"):
        silent = [d for d in late if d.kind == kind and bucket_of_datagram(d) == 4]
        assert silent
        assert [d for d in late if d.kind == kind and not d.senders] == silent
        assert {d.senders for d in late if d.kind == kind and bucket_of_datagram(d) == 2} == {("n2",)}


def test_a_syn_that_nobody_answers_is_sent_again_until_the_patience_ends(sharing):
    owners = sharing.share()
    with probing(sharing) as log:
        sharing.assign({b: name for b, name in owners.items() if b != 4})
        changed = time.monotonic()
        asked(log)
    unanswered = [p for p in log.probes(changed) if p.bucket == 4]
    assert unanswered
    assert all((p.senders, p.error) == ((), "timeout") for p in unanswered)
    assert all(len(p.syns) >= 2 for p in unanswered)
    assert impact.of_connections([p for p in log.probes(changed) if p.bucket != 4]).faults == ()


def test_a_server_that_ends_closes_its_connections_and_that_is_told(sharing):
    lan = sharing.lan
    sharing.share()
    server = servers.start(lan.nodes[0], tcp=(), udp=(), echo=[OTHER_PORT])
    servers.await_ready(lan.nodes[0], server)
    own = held([2, 4], lan.client.addresses, OTHER_PORT)
    with echoing(lan.client, sharing.address, OTHER_PORT, own) as seen:
        servers.stop(server)
        began = time.monotonic()
        while time.monotonic() < began + 0.6:
            time.sleep(0.05)
    assert {c.broken for c in seen.ended} <= {"closed", "reset"}
    assert all(c.node == "n1" for c in seen.ended)


@pytest.mark.parametrize(
    ("port", "why"),
    [(CLOSED_PORT, "do not begin, .* refused"), (TCP_PORT, "do not begin, .* wrong bytes")],
)
def test_connections_that_nobody_echoes_do_not_even_begin(sharing, port, why):
    sharing.share()
    own = held([1, 2], sharing.lan.client.addresses, port)
    with (
        pytest.raises(LabError, match=why),
        echoing(sharing.lan.client, sharing.address, port, own),
    ):
        pass
