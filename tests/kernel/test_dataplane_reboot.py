"""A node that reboots while nobody reaches the API server: its files bring the last state back."""

import uuid
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from kernel.dataplane import Dataplane, interface, wait_for
from lab import claim, traffic
from lab.kernelstate import owned_buckets
from lab.lan import Lan
from lbless_api.mac import default_mac

pytestmark = pytest.mark.root

BUCKETS = {Lan.vip(n): f"0-{n}" for n in range(1, 20)}
WHOLE, LOST, NEAR = Lan.vip(40), Lan.vip(41), "10.83.2.1"


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(claim.unique("kdpboot"), nodes=2, sources=1, extra_interfaces=["eth1"]) as lan:
        yield lan


def uid(ip: str) -> str:
    return ip.replace(".", "-")


def boot(lan: Lan, dataplane: Dataplane) -> str:
    """Give the process's next start the id of a new boot, and return that."""
    made = str(uuid.uuid4())
    dataplane.boot = lan.directory / f"boot-{made}"
    dataplane.boot.write_text(f"{made}\n")
    return made


def test_a_reboot_without_the_api_server_brings_everything_back_and_removes_nothing(lan: Lan) -> None:
    """The second node stands for the same machine after it: a namespace in which nothing was ever done."""
    before, after = lan.nodes
    wanted = {**BUCKETS, WHOLE: "0-255", LOST: "7", NEAR: "0-99"}
    first = Dataplane(before, lan.directory / "state")
    first.complete(boot(lan, first))
    for ip, buckets in wanted.items():
        first.desire(uid(ip), ip, buckets)
    first.start()
    wait_for(lambda: len(first.observed().applied) == len(wanted))
    incarnations = first.incarnations()
    last_good = {path.name for path in (first.directory / "applied").iterdir()}
    first.kill()
    lan.cut(before)

    # A file that got lost on the way is no deletion before sync has listed since the boot.
    (first.desired / f"{uid(LOST)}.json").unlink()
    second = Dataplane(after, first.directory)
    booted = boot(lan, second)
    second.start()
    wait_for(lambda: second.running() and len(second.observed().applied) == len(wanted))
    observed = second.observed()
    assert (observed.boot_id, observed.failures, observed.problems) == (booted, (), ())
    assert observed.applied == dict.fromkeys(map(uid, wanted), 1)

    near, far = interface(after, "eth0"), interface(after, "eth1")
    assert {a for a in near.addresses if a.endswith("/32")} == {f"{ip}/32" for ip in wanted if ip != NEAR}
    assert near.groups == {default_mac(IPv4Address(ip)) for ip in wanted if ip != NEAR}
    assert far.groups == {default_mac(IPv4Address(NEAR))}
    assert f"{NEAR}/32" in far.addresses
    for ip, buckets in wanted.items():
        assert str(owned_buckets(after, ip)) in (buckets, buckets.replace("0-0", "0"))
    assert {path.name for path in (first.directory / "applied").iterdir()} == last_good
    for found in observed.interfaces:
        assert second.incarnations()[found.name] > incarnations[found.name]
    assert [echo.replies for echo in traffic.ping(lan.client, WHOLE, requests=8)] == [1] * 8

    # Then sync reaches the API server, where the lost one had been deleted meanwhile.
    second.complete(booted)
    wait_for(lambda: uid(LOST) not in second.observed().applied)
    assert not owned_buckets(after, LOST)
    assert len(second.observed().applied) == len(wanted) - 1
