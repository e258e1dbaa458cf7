"""This machine's kernel still answers as the kernels on file did (tests/vectors): nftables and xt_cluster."""

import shutil
from collections.abc import Iterator

import pytest

from lab import claim
from lab.host import Host
from lab.lan import Lan
from vectors import asking, cases

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lan(claim.unique("lbhash"), nodes=1) as lan:
        yield lan.nodes[0]


def test_nftables_answers_as_on_file(host: Host):
    answers = cases.read()
    assert asking.ask(host, "nft") == answers


def test_xt_cluster_answers_as_on_file(host: Host):
    if shutil.which("iptables-legacy") is None:
        pytest.skip("needs iptables-legacy")
    answers = cases.read()
    said = asking.ask(host, "xt_cluster")
    assert said == {case: answers[case] for case in cases.cluster_cases()}
