"""One LAN of two namespaces and one virtual machine, shared by all tests with a guest."""

from collections.abc import Iterator

import pytest

from lab import claim
from lab.guest import Guest
from lab.lan import Lan


@pytest.fixture(scope="session")
def lan() -> Iterator[Lan]:
    """The nodes n1 and n2 in namespaces of this kernel, and n3 with Linux 6.1."""
    with Lan(claim.unique("lbguest"), nodes=2, guests=1) as up:
        yield up


@pytest.fixture
def guest(lan: Lan) -> Guest:
    """The node that is a virtual machine."""
    return lan.guests[0]
