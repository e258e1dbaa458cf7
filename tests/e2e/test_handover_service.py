"""Buckets move while kube-proxy turns a Service's address into that of a pod, and no connection breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from e2e.moving import NAMES, check_unharmed, move_again_and_again, undisturbed, weigh
from lab import claim, clients, kubeproxy, servers
from lab.controlplane import ControlPlane
from lab.installation import Installation
from lab.lan import Lan
from lab.objects import Endpoint
from lab.progress import Silence
from lab.servers import ECHO_PORT, TCP_PORT, UDP_PORT

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

SERVICE = "web"
PORTS = [("tcp", TCP_PORT, "TCP"), ("echo", ECHO_PORT, "TCP"), ("udp", UDP_PORT, "UDP")]
SYNS_PER_SECOND = 200
REST_SECONDS = 2


@pytest.fixture
def proxied(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """lbless on three nodes, each with kube-proxy in the mode that is the parameter, and a pod that serves."""
    ports = [{"name": name, "port": port, "protocol": protocol} for name, port, protocol in PORTS]
    with (
        Lan(claim.unique("proxied"), nodes=3, pods=True) as lan,
        servers.serving(lan.pods, echo=[ECHO_PORT]),
        ControlPlane(lan, progress=Silence()) as control_plane,
        Installation(lan, control_plane) as lbless,
    ):
        vip = lan.vip()
        control_plane.make_load_balancer("default", SERVICE, vip, ports)
        endpoints = [Endpoint(pod.address, node.name) for pod, node in zip(lan.pods, lan.nodes, strict=True)]
        control_plane.write_endpointslice("default", SERVICE, SERVICE, endpoints, ports=ports)
        lbless.create(SERVICE, {"ip": vip})
        lbless.wait_ready(SERVICE)
        with kubeproxy.running(control_plane, lan.nodes, request.param, vip):
            yield lbless


@pytest.mark.parametrize(
    "proxied", [kubeproxy.NFTABLES, pytest.param(kubeproxy.IPTABLES, marks=pytest.mark.soak)], indirect=True
)
def test_fifty_moves_of_a_services_address_break_nothing_and_lose_nothing(proxied: Installation) -> None:
    seen = undisturbed(proxied, lambda: ask_through_moves(proxied))
    for name in NAMES:
        weigh(proxied, name, None)
    assert {one.node for one in seen.echoes.ended} == {pod.name for pod in proxied.lan.pods}
    check_unharmed(proxied, seen)


def ask_through_moves(proxied: Installation) -> clients.Clients:
    """Have clients ask for a while, and then through moves."""
    lan, web = proxied.lan, proxied.wait_ready(SERVICE)
    with clients.asking(
        lan.client, str(web.spec.ip), web.spec.hash, lan.owner_of, per_second=SYNS_PER_SECOND
    ) as seen:
        began = time.monotonic()
        time.sleep(REST_SECONDS)  # a span, to compare with
        moved_from = time.monotonic()
        moves = move_again_and_again(proxied, web)
        ended = time.monotonic()
        time.sleep(1)  # a span, for what the last move may have harmed
    for what, noticed in (("without moves", (began, moved_from)), ("moves", (moved_from, ended))):
        print(f"\n{what}\n{seen.impact(*noticed)}")
    print(f"{moves} epochs; the clients were late by {seen.late_seconds * 1000:.0f} ms at most")
    return seen
