"""What the kernel tests share: a namespace of their own and the engine in it, or a node on a LAN and its dataplane."""

from collections.abc import Iterator

import pytest

from kernel import segment
from kernel.dataplane import Dataplane
from lab import claim
from lab.host import Host
from lab.lan import Lan
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace with nothing but a loopback, for the test and all that it starts."""
    with segment.namespace():
        yield


@pytest.fixture
def engine(namespace: None) -> Iterator[NftablesEngine]:
    """An engine in the test's namespace."""
    made = NftablesEngine()
    yield made
    made.close()


@pytest.fixture
def wire(namespace: None) -> Iterator[segment.Wire]:
    """The far end of the host's interface eth0."""
    segment.link("eth0", "wire0")
    made = segment.Wire("wire0")
    yield made
    made.close()


@pytest.fixture
def observer(wire: segment.Wire) -> segment.Observer:
    """What is seen of the packets that come in."""
    return segment.Observer()


@pytest.fixture
def lan() -> Iterator[Lan]:
    """A segment with one node, which has an interface eth1 on another one too, and one client."""
    with Lan(claim.unique("kdp"), nodes=1, sources=1, extra_interfaces=["eth1"]) as made:
        yield made


@pytest.fixture
def node(lan: Lan) -> Host:
    """The node of `lan`."""
    return lan.nodes[0]


@pytest.fixture
def dataplane(lan: Lan, node: Host) -> Dataplane:
    """The program of that node, not started, and its state directory."""
    return Dataplane(node, lan.directory / "state")
