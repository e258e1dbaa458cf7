"""Reserved buckets: no node keeps a packet of them, so that another machine may; given back, all are answered."""

from collections.abc import Iterator

import pytest

from lab import verdict
from lab.capture import Capture
from lab.frames import Flow
from lab.installation import Installation
from lab.kernelstate import owned_buckets
from lab.servers import TCP_PORT
from lab.traffic import tcp
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP
from lbless_api.hashing import HashFunction, bucket

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

CONNECTIONS = 400
GIVE_UP_SECONDS = 2.0


@pytest.fixture
def web(lbless: Installation, vip: str) -> Iterator[ClusterIP]:
    """An address of which the last four of 16 buckets are somebody else's."""
    spec = {"ip": vip, "hashFunction": HashFunction.LEGACY_CLUSTERIP, "buckets": 16}
    lbless.create("web", {**spec, "reservedBuckets": "12-15"})
    yield lbless.wait_ready("web")
    lbless.delete("web")


def reserve(lbless: Installation, before: ClusterIP, reserved: str | None) -> ClusterIP:
    """Change which buckets are reserved, and return what comes of it."""
    path = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips/web"
    lbless.control_plane.api("PATCH", path, {"spec": {"reservedBuckets": reserved}})
    return lbless.wait_ready("web", after_epoch=before.epoch)


def in_kernels(lbless: Installation, clusterip: ClusterIP) -> BucketSet:
    """The buckets that some node's rules keep."""
    kept = (owned_buckets(node, str(clusterip.spec.ip)) for node in lbless.lan.nodes)
    return BucketSet(number for owned in kept for number in owned)


def check_answered(lbless: Installation, clusterip: ClusterIP) -> None:
    """Connections of reserved buckets get no answer of any kind, all others one from a node that owns them."""
    ip, hashing = str(clusterip.spec.ip), clusterip.spec.hash
    with Capture(lbless.lan.client, vip=ip) as wire:
        attempts = tcp(
            lbless.lan.client, ip, TCP_PORT, connections=CONNECTIONS, timeout_seconds=GIVE_UP_SECONDS
        )
    seen = BucketSet()
    for one in attempts:
        number = bucket(
            hashing.function,
            hashing.mode,
            one.source,
            one.source_port,
            TCP_PORT,
            buckets=hashing.buckets,
            seed=hashing.seed,
        )
        seen |= BucketSet([number])
        answered = wire.syn_acks().get(Flow(one.source, one.source_port, ip, TCP_PORT), [])
        if number in clusterip.spec.reserved:
            assert (one.node, answered) == (None, []), f"bucket {number} is reserved"
        else:
            owner = next(a.node for a in clusterip.assignments if number in a.buckets)
            assert one.node == owner, f"bucket {number}: {one}"
            assert {lbless.lan.owner_of(mac) for mac in answered} == {owner}
    assert seen == BucketSet.full(hashing.buckets), "some bucket was not tried"
    assert wire.resets() == []


def test_no_node_answers_for_reserved_buckets_and_every_one_is_answered_once_given_back(lbless, web):
    assert in_kernels(lbless, web) == BucketSet.parse("0-11")
    check_answered(lbless, web)
    moved = reserve(lbless, web, "0,15")
    assert in_kernels(lbless, moved) == BucketSet.parse("1-14")
    check_answered(lbless, moved)
    whole = reserve(lbless, moved, None)
    found = verdict.tcp(lbless.lan, whole, CONNECTIONS)
    assert found.faults == ()
