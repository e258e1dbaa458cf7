"""docs/migrating.md as it is written: a machine with `iptables -j CLUSTERIP` hands its address over to lbless, and
takes a part back, under traffic of which nothing is ever answered twice."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from lab import claim, servers, verdict
from lab.capture import Capture
from lab.controlplane import ControlPlane
from lab.host import Host
from lab.installation import Installation
from lab.lan import Lan
from lab.progress import Silence
from lab.traffic import udp
from lbless_api.clusterip import ClusterIP
from lbless_api.mac import default_mac
from unit.stateobjects import clusterip

pytestmark = [pytest.mark.guest, pytest.mark.apiserver]

IP, CONNECTIONS, DATAGRAMS = Lan.vip(40), 600, 200
SPEC = {"hashFunction": "LegacyClusterIP", "buckets": 16, "hashSeed": 7}
MACHINE = "n3"
PROC = f"/proc/net/ipt_CLUSTERIP/{IP}"


@pytest.fixture
def lbless() -> Iterator[Installation]:
    """lbless on n1 and n2; n3 is a machine with Linux 6.1 that has never heard of it."""
    with (
        Lan(claim.unique("lbmigrate"), nodes=2, guests=1) as lan,
        servers.serving(lan.nodes),
        ControlPlane(lan, progress=Silence()) as control_plane,
        Installation(lan, control_plane, nodes=lan.nodes[:2]) as installation,
    ):
        yield installation


def rule(command: str, number: int) -> list[str]:
    """The machine's rule; it is deleted by the words by which it was added."""
    return [
        *("iptables-legacy", command, "INPUT", "-d", IP, "-i", "eth0", "-j", "CLUSTERIP", "--new"),
        *("--hashmode", "sourceip-sourceport", "--clustermac", default_mac(IPv4Address(IP))),
        *("--total-nodes", "16", "--local-node", str(number), "--hash-init", "7"),
    ]


def start(machine: Host, numbers: list[int]) -> None:
    """The rule, and only then the address."""
    machine.run(rule("-A", numbers[0]))
    tell(machine, "+", numbers[1:])
    machine.run(["ip", "address", "add", f"{IP}/32", "dev", "eth0"])


def tell(machine: Host, sign: str, numbers: Iterable[int]) -> None:
    """Give node numbers to the machine's rule, or take them away."""
    for number in numbers:
        machine.run(["sh", "-c", f"echo {sign}{number} > {PROC}"])


def reserve(lbless: Installation, before: ClusterIP, reserved: str | None) -> ClusterIP:
    """Change what is reserved and wait until every node has it."""
    path = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips/web"
    lbless.control_plane.api("PATCH", path, {"spec": {"reservedBuckets": reserved}})
    return lbless.wait_ready("web", after_epoch=before.epoch, timeout_seconds=60)


def check(lbless: Installation, now: ClusterIP | None, machines: str = "") -> None:
    """Every connection is answered once, by the node that owns its bucket or by the machine."""
    shares = {a.node: str(a.buckets) for a in now.assignments} if now else {}
    if machines:
        shares[MACHINE] = machines
    found = verdict.tcp(
        lbless.lan, clusterip("uid-web", IP, shares, **SPEC), CONNECTIONS, pace=verdict.GENTLE
    )
    print(found)
    assert found.faults == ()
    assert found.by_node.keys() == shares.keys()


@contextmanager
def never_answered_twice(lan: Lan) -> Iterator[None]:
    """Datagrams all through the block; what is not answered is in order here, what is answered twice is not."""
    done, twice, answered, errors = threading.Event(), [], set(), []

    def send() -> None:
        try:
            while not done.is_set():
                with Capture(lan.client, vip=IP) as wire:
                    udp(lan.client, IP, servers.UDP_PORT, datagrams=DATAGRAMS, timeout_seconds=0.5)
                for flow, senders in wire.udp_answers().items():
                    who = [lan.owner_of(mac) for mac in senders]
                    answered.update(who)
                    if len(who) > 1:
                        twice.append((flow, who))
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert errors == []
    assert twice == []
    assert answered == {"n1", "n2", MACHINE}


def test_the_way_to_lbless_and_back_answers_nothing_twice(lbless: Installation):
    machine = lbless.lan.host(MACHINE)
    start(machine, list(range(1, 17)))
    check(lbless, None, "0-15")
    with never_answered_twice(lbless.lan):
        tell(machine, "-", range(1, 9))
        lbless.create("web", {"ip": IP, **SPEC, "reservedBuckets": "8-15"})
        half = lbless.wait_ready("web", timeout_seconds=60)
        check(lbless, half, "8-15")

        tell(machine, "-", range(9, 17))
        machine.run(["ip", "address", "delete", f"{IP}/32", "dev", "eth0"])
        machine.run(rule("-D", 1))
        whole = reserve(lbless, half, None)
        check(lbless, whole)

        part = reserve(lbless, whole, "12-15")
        start(machine, [13, 14, 15, 16])
        check(lbless, part, "12-15")
