"""Buckets move between living nodes, again and again, and no connection breaks."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator, Sequence

import pytest

from e2e.moving import NAMES, check_unharmed, move_again_and_again, undisturbed, weigh
from lab import clients, echoes, impact
from lab.echoes import Conversation
from lab.installation import DATAPLANE, SYNC, Installation, bucket_of, owner
from lab.kernelstate import counters, owned_buckets
from lab.progress import Silence
from lab.servers import ECHO_PORT
from lab.stream import streaming
from lbless_api.clusterip import ClusterIP
from lbless_api.hashing import UDP

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

SYNS_PER_SECOND, FEW_SYNS_PER_SECOND = 200, 100
STREAM_PER_SECOND, STREAMED_PORT, FIRST_PORT = 2_000, 7_100, 50_000
FEW_BUCKETS = 4
"""So that a stream through them is dense: what moves of it is at least a quarter."""
FEW = 60
DRAIN_SECONDS = 3
TAKEOVER_SECONDS = 1.0
NODES_PATH = "/apis/lbless.dev/v1alpha1/clusteripnodes"
LOOK_SECONDS = 45
"""A node looks at its settings every 30 s."""


@pytest.fixture
def web(lbless: Installation, vip: str, request: pytest.FixtureRequest) -> Iterator[ClusterIP]:
    """A ClusterIP of which buckets move; its parameter is how long the former owners drain."""
    lbless.create("web", {"ip": vip, "drainTimeoutSeconds": getattr(request, "param", 600)})
    yield lbless.wait_ready("web")
    for name in NAMES:
        weigh(lbless, name, None)
    lbless.delete("web")


@pytest.fixture
def few_buckets(lbless: Installation, free_address: str) -> Iterator[ClusterIP]:
    """A ClusterIP whose buckets move with those of `web`."""
    lbless.create("few", {"ip": free_address, "buckets": FEW_BUCKETS, "drainTimeoutSeconds": 600})
    yield lbless.wait_ready("few")
    lbless.delete("few")


def take_out(lbless: Installation, name: str) -> float:
    """Move a node's share to the others; returns when its kernel took the last new flow, at the latest."""
    before = lbless.get("web")["status"]["epoch"]
    weigh(lbless, name, 0)
    ip = lbless.wait_ready("web", after_epoch=before).spec.ip
    node = next(node for node in lbless.lan.nodes if node.name == name)
    Silence().until("the move", lambda: not owned_buckets(node, str(ip)), timeout_seconds=10)
    return time.monotonic()


def owned_by(web: ClusterIP, name: str, ended: Sequence[Conversation]) -> list[Conversation]:
    """The conversations that a node had before anything moved."""
    return [one for one in ended if owner(web, one.source, one.source_port, ECHO_PORT) == name]


def test_fifty_moves_break_no_connection_have_no_syn_sent_again_and_lose_no_datagram(
    lbless: Installation, web: ClusterIP
):
    check_unharmed(lbless, undisturbed(lbless, lambda: ask_through_moves(lbless)))


def ask_through_moves(lbless: Installation) -> clients.Clients:
    """Have clients ask for a while, and then through moves."""
    web = lbless.wait_ready("web")
    lan, ip = lbless.lan, str(web.spec.ip)
    with clients.asking(lan.client, ip, web.spec.hash, lan.owner_of, per_second=SYNS_PER_SECOND) as seen:
        began = time.monotonic()
        time.sleep(5)  # a span, to compare with
        moved_from = time.monotonic()
        moves = move_again_and_again(lbless, web)
        ended = time.monotonic()
        time.sleep(1)  # a span, for what the last move may have harmed
    for what, noticed in (
        ("without moves", seen.impact(began, moved_from)),
        ("moves", seen.impact(moved_from, ended)),
    ):
        print(f"\n{what}\n{noticed}")
    print(f"{moves} epochs; the clients were late by {seen.late_seconds * 1000:.0f} ms at most")
    return seen


@pytest.fixture
def unredirected(lbless: Installation) -> Iterator[None]:
    """No node sends on what it takes no more."""
    usual = lbless.dataplane_arguments

    def restart(arguments: tuple[str, ...]) -> None:
        lbless.dataplane_arguments = arguments
        for node in lbless.nodes:
            lbless.stop(DATAPLANE, node)
            lbless.start(DATAPLANE, node)
        lbless.await_joined()

    restart((*usual, "--no-redirect"))
    yield
    restart(usual)


def test_fifty_moves_without_a_redirect_break_nothing_and_answer_nothing_twice(
    lbless: Installation, unredirected: None, web: ClusterIP, few_buckets: ClusterIP
):
    lan, ip = lbless.lan, str(web.spec.ip)
    (engine,) = lbless.control_plane.api("GET", f"{NODES_PATH}/n1")["status"]["engines"]
    assert not any(capability.get("redirect") for capability in engine["capabilities"])
    few = str(few_buckets.spec.ip)
    flows = one_flow_a_bucket(few_buckets, lan.client.addresses)
    with (
        clients.asking(lan.client, ip, web.spec.hash, lan.owner_of, per_second=FEW_SYNS_PER_SECOND) as seen,
        streaming(lan.client, lan.nodes, few, STREAMED_PORT, flows, per_second=STREAM_PER_SECOND) as stream,
    ):
        moves = move_again_and_again(lbless, web)
        time.sleep(1)  # a span, for what the last move may have harmed
    found, handoffs = seen.impact(), stream.handoffs()
    opened = {node.name: counters(node)["opened"] for node in lan.nodes}
    print(f"\n{moves} epochs, {len(handoffs)} handoffs; tokens that opened something: {opened}")
    for what, gaps in (
        ("at least", [one.at_least_seconds for one in handoffs]),
        ("at most", [one.at_most_seconds for one in handoffs]),
    ):
        spread = [f"{(impact.quantile(gaps, part) or 0) * 1000:.1f}" for part in (0.5, 0.9, 0.99, 1)]
        print(
            f"the gap is {what}, in ms: median {spread[0]}, p90 {spread[1]}, p99 {spread[2]}, worst {spread[3]}"
        )
    lost, late = stream.lost(), stream.late_seconds * 1000
    print(
        f"{sum(map(len, stream.sent))} datagrams, {lost} kept by nobody; sent late by {late:.0f} ms at most"
    )
    print(f"{found}\nthe clients were late by {seen.late_seconds * 1000:.0f} ms at most")
    assert {(row.twice, row.broken) for row in found.rows} == {(0, 0)}
    assert stream.twice() == []
    assert sum(opened.values()) > len(handoffs) / 2


def one_flow_a_bucket(clusterip: ClusterIP, addresses: Sequence[str]) -> list[tuple[str, int]]:
    """A client's address and port for each bucket of a ClusterIP."""
    found: dict[int, tuple[str, int]] = {}
    for number in itertools.count():
        flow = addresses[number % len(addresses)], FIRST_PORT + number
        found.setdefault(bucket_of(clusterip, *flow, STREAMED_PORT, UDP), flow)
        if len(found) == clusterip.spec.hash.buckets:
            return [found[one] for one in sorted(found)]
    raise AssertionError


def test_a_node_whose_connection_tracking_is_liberal_finishes_nothing_and_both_say_what_to_do(
    lbless: Installation, web: ClusterIP
):
    node, setting = lbless.lan.nodes[0], "net.netfilter.nf_conntrack_tcp_be_liberal"
    own = echoes.sources(lbless.lan.client.addresses[:20], FEW)

    def degraded() -> bool:
        conditions = {c["type"]: c for c in lbless.get("web")["status"]["conditions"]}
        message = conditions["Degraded"]["message"]
        return conditions["Degraded"]["reason"] == "NoDrain" and f"{setting} is 1" in message

    node.run(["sysctl", "-q", "-w", f"{setting}=1"])
    try:
        Silence().until("the condition", degraded, timeout_seconds=LOOK_SECONDS)
        with echoes.echoing(lbless.lan.client, str(web.spec.ip), ECHO_PORT, own) as seen:
            take_out(lbless, "n1")
            time.sleep(2)  # a span: nothing of the others may break
    finally:
        node.run(["sysctl", "-q", "-w", f"{setting}=0"])
    left = owned_by(web, "n1", seen.ended)
    assert left
    assert sorted((one for one in seen.ended if one.broken), key=str) == sorted(left, key=str)
    assert {one.broken for one in left} == {"reset"}

    def well() -> bool:
        status = lbless.control_plane.api("GET", f"{NODES_PATH}/n1")["status"]
        return all(one["status"] == "True" for one in status["conditions"] if one["type"] == "Ready")

    Silence().until("n1 to be well again", well, timeout_seconds=LOOK_SECONDS)


@pytest.mark.parametrize(("web", "after"), [(DRAIN_SECONDS, DRAIN_SECONDS), (0, 0)], indirect=["web"])
def test_what_is_left_when_the_drain_is_over_is_reset_by_the_new_owner(
    lbless: Installation, web: ClusterIP, after: int
):
    own = echoes.sources(lbless.lan.client.addresses[:20], FEW)
    with echoes.echoing(lbless.lan.client, str(web.spec.ip), ECHO_PORT, own) as seen:
        began = time.monotonic()
        ended = take_out(lbless, "n1")
        time.sleep(DRAIN_SECONDS + 4)  # a span: what is reset later would be a fault
    left = owned_by(web, "n1", seen.ended)
    broken = [one for one in seen.ended if one.broken]
    assert left
    assert {one.source_port for one in left} <= {one.source_port for one in seen.ended}
    assert sorted(broken, key=str) == sorted(left, key=str)
    assert {one.broken for one in broken} == {"reset"}
    at = [one.broken_at - began for one in broken if one.broken_at]
    print(f"{len(left)} connections, reset {min(at):.2f} to {max(at):.2f} s after the weight was set")
    assert min(at) >= after
    assert max(at) <= ended - began + after + 3


def test_the_flows_of_a_node_that_dies_while_it_drains_are_reset_within_a_second(
    lbless: Installation, web: ClusterIP
):
    node = lbless.lan.nodes[0]
    own = echoes.sources(lbless.lan.client.addresses[:20], FEW)
    try:
        with echoes.echoing(lbless.lan.client, str(web.spec.ip), ECHO_PORT, own) as seen:
            take_out(lbless, "n1")
            time.sleep(1)  # a span, in which nothing may end that drains
            died = time.monotonic()
            lbless.stop(DATAPLANE, node, signal.SIGKILL)
            time.sleep(3)  # a span: what breaks later than promised is to be seen
    finally:
        lbless.start(DATAPLANE, node)
        lbless.await_joined()
    left = owned_by(web, "n1", seen.ended)
    assert left
    assert {one.broken for one in left} == {"reset"}
    assert not [one for one in seen.ended if one.broken and one not in left]
    after = [one.broken_at - died for one in left if one.broken_at]
    print(f"{len(left)} connections, reset {min(after):.2f} to {max(after):.2f} s after the node died")
    # Each is noticed with its next line.
    assert max(after) <= TAKEOVER_SECONDS + echoes.INTERVAL_SECONDS


@pytest.mark.parametrize("name", ["n1", "n2"], ids=["former owner", "new owner"])
def test_a_node_without_the_api_follows_a_move_as_its_peers_tell_it(
    lbless: Installation, web: ClusterIP, name: str
):
    node = next(node for node in lbless.lan.nodes if node.name == name)
    own = echoes.sources(lbless.lan.client.addresses[:20], FEW)
    kept: dict[str, object] = {}
    lbless.stop(SYNC, node)
    try:
        with echoes.echoing(lbless.lan.client, str(web.spec.ip), ECHO_PORT, own) as seen:
            weigh(lbless, "n1", 0)

            def moved() -> bool:
                kept.update({one.name: owned_buckets(one, str(web.spec.ip)) for one in lbless.lan.nodes})
                return not kept["n1"] and sum(len(kept[n]) for n in ("n2", "n3")) == web.spec.hash.buckets  # type: ignore[arg-type]

            Silence().until("the move", moved, timeout_seconds=10)
            time.sleep(2)  # a span: nothing may break after it, either
    finally:
        lbless.start(SYNC, node)
    assert [one for one in seen.ended if one.broken] == []
