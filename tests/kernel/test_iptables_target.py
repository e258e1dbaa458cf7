"""The iptables engine and the CLUSTERIP target, whose list of nodes is the kernel's and not the rule's.

Skipped where the kernel has no such target; `guest/test_iptables_engine.py` runs this in one that has.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernel.segment import Wire, link, run
from kernel.test_iptables_failures import dying_at, mangle
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import EngineError, Wanted
from lbless_nodeagent.dataplane.iptables import procfs
from lbless_nodeagent.dataplane.iptables.engine import IptablesEngine
from unit.engine_contract import vip, wanted

pytestmark = pytest.mark.root

GROUP = HashParameters(HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP_SOURCE_PORT, 7, 16, 32)
NODES = Path("/proc/net/ipt_CLUSTERIP")


@pytest.fixture
def engine(wire: Wire) -> Iterator[IptablesEngine]:
    link("eth1", "wire1")
    made = IptablesEngine()
    report = made.probe()
    if (
        not any(HashFunction.LEGACY_CLUSTERIP in able.functions for able in made.capabilities())
        or report.message
    ):
        made.close()
        pytest.skip(f"The CLUSTERIP target does not work here: {report.message}")
    yield made
    made.remove()
    made.close()


def allowed(state: Wanted) -> dict[object, BucketSet]:
    return {ip: one.owned for ip, one in state.vips.items()}


def test_a_child_that_is_killed_at_any_step_leaves_no_bucket_that_neither_state_has(
    engine: IptablesEngine,
) -> None:
    """In one go: buckets lost and gained, other parameters, an address that goes and one that comes."""
    before = wanted(vip(1, GROUP, BucketSet([0, 1, 2])), vip(2, GROUP, BucketSet([5])), vip(3, GROUP))
    after = wanted(
        vip(1, GROUP, BucketSet([2, 3])), vip(2, replace(GROUP, seed=8), BucketSet([6])), vip(4, GROUP)
    )
    step, ended = 0, False
    while not ended:
        engine.apply(before)
        dying = dying_at(str(step))
        try:
            dying.apply(after)
            ended = True
        except EngineError as error:
            assert "SIGKILL" in str(error)
        dying.close()
        found = engine.installed()
        assert found
        now = procfs.read()
        for ip, one in found.vips.items():
            of = [allowed(state).get(ip, BucketSet()) for state in (before, after)]
            assert one.owned.issubset(of[0] | of[1]), (step, ip)
            # With other parameters it is another bucket that has the same number.
            assert one.hash != GROUP or ip != vip(2, GROUP).ip or one.owned.issubset(of[0]), (step, ip)
            assert now.get(ip, BucketSet()) == one.owned
        assert not {0, 1} & set(now[vip(1, GROUP).ip]) or 3 not in now[vip(1, GROUP).ip], "lost before gained"
        engine.apply(after)
        assert engine.installed() == after
        step += 1
    assert step > 12


def test_what_somebody_does_to_the_list_of_nodes_is_seen_and_mended(engine: IptablesEngine) -> None:
    goal = wanted(vip(1, GROUP, BucketSet([0, 1, 2])))
    engine.apply(goal)
    for change in ("+9", "-1"):
        descriptor = os.open(NODES / "10.8.0.1", os.O_WRONLY)
        os.write(descriptor, change.encode())
        os.close(descriptor)
        assert not engine.verify()
        found = engine.installed()
        assert found
        assert found.vips.keys() == goal.vips.keys()
        assert found != goal
        engine.apply(goal)
        assert engine.installed() == goal
        assert engine.verify()


def test_an_interface_that_goes_harms_no_other_address_and_is_one_sentence(engine: IptablesEngine) -> None:
    here, there = vip(1, GROUP), vip(2, GROUP, interface="eth1")
    engine.apply(wanted(here, there))
    run("ip", "link", "delete", "eth1")
    assert engine.verify()
    fewer = replace(here, owned=BucketSet([0]))
    engine.apply(wanted(fewer, there))
    assert engine.installed() == wanted(fewer, there)
    before = mangle()
    with pytest.raises(EngineError, match=r"^The kernel does not take the iptables rules: .*\.$"):
        engine.apply(wanted(here, replace(there, interface="eth7")))
    # Its rule was closed to be made anew, and that was refused.
    assert engine.installed() == wanted(fewer, replace(there, owned=BucketSet()))
    assert [line for line in mangle() if "0a080001" in line] == [
        line for line in before if "0a080001" in line
    ]
    engine.apply(wanted(here))
    link("eth1", "wire1")
    engine.apply(wanted(here, there))
    assert engine.installed() == wanted(here, there)


def test_an_address_that_somebody_elses_rule_has_is_refused(engine: IptablesEngine) -> None:
    theirs = "-d 10.8.0.1 -i eth0 -j CLUSTERIP --new --hashmode sourceip --clustermac 01:00:5e:00:00:20"
    run("iptables-legacy", "-A", "INPUT", *theirs.split(), *["--total-nodes", "2", "--local-node", "1"])
    nodes = (NODES / "10.8.0.1").read_text()
    engine.apply(wanted(vip(2, GROUP)))
    with pytest.raises(EngineError, match=r"^10\.8\.0\.1: a rule that is not of lbless's has it"):
        engine.apply(wanted(vip(1, GROUP), vip(2, GROUP)))
    assert (NODES / "10.8.0.1").read_text() == nodes
    assert engine.installed() == wanted(vip(2, GROUP))
    run("iptables-legacy", "-F", "INPUT")
    engine.apply(wanted(vip(1, GROUP), vip(2, GROUP)))
