"""The table that holds the lease beside the iptables engine: what is done to it, and where it cannot be had.

What it does to packets is `test_lease`'s, which knows no engine by name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kernel.segment import Wire, nft, run
from kernel.test_lease import OTHER, VIP, vip, wanted
from kernel.test_nftables_probe import library_path
from lbless_nodeagent.dataplane.engines import engines
from lbless_nodeagent.dataplane.nftables.fence import Fence
from lbless_nodeagent.dataplane.nftables.library import LIBRARY

pytestmark = pytest.mark.root

WITHOUT_NFTABLES = """
from ipaddress import IPv4Address
from kernel.test_lease import vip, wanted
from lbless_nodeagent.dataplane.engines import engines
engine = engines(lease=True)["iptables"]()
report = engine.probe()
engine.apply(wanted(vip()))
print(report.available, engine.verify(), engine.installed() == wanted(vip()), engine.lease_left("eth0"))
print(report.unfenced)
engine.remove()
"""


def test_where_nftables_is_missing_the_iptables_engine_works_and_says_that_it_has_no_lease(wire: Wire):
    hidden = 'mount --bind /dev/null "$1" && exec "$2" -c "$3"'
    command = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        hidden,
        "sh",
        library_path(),
        sys.executable,
        WITHOUT_NFTABLES,
    )
    done = run("env", f"PYTHONPATH={Path(__file__).parents[1]}", *command)
    works, sentence = done.splitlines()
    assert works == "True True True None"
    assert sentence.startswith(f"nftables is missing: {LIBRARY} cannot be loaded (")


def test_another_engine_that_finds_it_after_a_restart_removes_it_and_nothing_else(namespace: None):
    nft("table ip lbless_leases { }\ntable inet lbless_lease { }")
    before = run("nft", "list", "ruleset")
    leased, successor = (engines(lease=lease)["iptables"]() for lease in (True, False))
    leased.apply(wanted(vip()))
    assert "unleased" in run("nft", "list", "ruleset")
    successor.remove()
    assert run("nft", "list", "ruleset") == before
    successor.remove()
    leased.close()
    successor.close()


FENCE_TAMPERING = {
    "the table is deleted": "delete table ip lbless_lease",
    "all is flushed": "flush ruleset",
    "a rule is added": "insert rule ip lbless_lease prerouting accept",
    "a chain is flushed": "flush chain ip lbless_lease renew",
    "an address is taken": 'delete element ip lbless_lease vips { "eth0" . 10.8.0.100 }',
    "an address is added": 'add element ip lbless_lease vips { "eth0" . 10.8.0.101 }',
    "the seal is broken": "flush set ip lbless_lease seal",
}


@pytest.mark.parametrize("text", FENCE_TAMPERING.values(), ids=FENCE_TAMPERING)
def test_what_somebody_does_to_the_fence_beside_iptables_is_noticed_and_put_right(namespace: None, text: str):
    """What they do to the rules of the nftables engine is in its own tests."""
    fence = Fence()
    places = {("eth0", VIP), ("eth1", OTHER)}
    fence.fence(places)
    before = rule_texts()
    nft(text)
    assert not fence.is_of(places)
    fence.fence(places)
    assert fence.is_of(places)
    assert rule_texts() == before
    fence.close()


def rule_texts() -> list[str]:
    """All that nftables holds, without handles and seals."""
    lines = run("nft", "-s", "list", "ruleset").splitlines()
    return [line for line in lines if " : " not in line and not re.search(r"elements = .*[0-9a-f]{4}:", line)]
