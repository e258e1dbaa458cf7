"""What the kernel tests share: a namespace of their own, and the engine in it."""

from collections.abc import Iterator

import pytest

from kernel import segment
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
