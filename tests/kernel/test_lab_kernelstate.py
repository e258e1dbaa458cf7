"""What the lab reads of a node's kernel, against rules that are written by hand."""

from collections.abc import Iterator

import pytest

from lab import claim
from lab.host import Host
from lab.kernelstate import LEASE, leases
from lab.lan import Lan

pytestmark = pytest.mark.root


@pytest.fixture
def node() -> Iterator[Host]:
    with Lan(claim.unique("kstate"), nodes=1, sources=1) as lan:
        yield lan.nodes[0]


def test_a_lease_is_running_as_long_as_its_element_lives_and_no_set_is_no_lease(node):
    assert leases(node) is None
    node.run(["nft", "add", "table", "ip", "lbless"])
    node.run(["nft", f"add set ip lbless {LEASE} {{ type ifname; flags dynamic,timeout; }}"])
    assert leases(node) == frozenset()
    node.run(["nft", f'add element ip lbless {LEASE} {{ "eth0" timeout 60s }}'])
    assert leases(node) == {"eth0"}
