"""One LAN with a real control plane and lbless on three nodes, shared by all end-to-end tests."""

from collections.abc import Iterator
from itertools import count

import pytest

from lab import claim, servers
from lab.controlplane import ControlPlane
from lab.installation import Installation
from lab.lan import Lan
from lab.progress import Silence

_numbers = count(1)


@pytest.fixture(scope="session")
def lbless() -> Iterator[Installation]:
    """lbless running on n1, n2 and n3; they serve TCP and UDP, and each node also has a pod."""
    with (
        Lan(claim.unique("lbe2e"), nodes=3, pods=True) as lan,
        servers.serving(lan.nodes, echo=[servers.ECHO_PORT]),
        ControlPlane(lan, progress=Silence()) as control_plane,
    ):
        for node in lan.nodes:
            lan.enable_conntrack(node)
        # A restart on a busy machine may exceed the usual hold of 2 s, which is for test_segment and test_failover.
        with Installation(lan, control_plane, dataplane_arguments=["--hold-ms", "5000"]) as installation:
            yield installation


@pytest.fixture
def vip() -> str:
    """An address that no other test has."""
    return Lan.vip(next(_numbers))


@pytest.fixture
def free_address() -> str:
    """An address of the segment that no host has, and no other test."""
    return Lan.vip(next(_numbers))
