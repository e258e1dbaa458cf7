"""lbless-dataplane with the iptables engine: its life, what somebody does to its rules, and the way from and to
the other engine."""

import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kernel import synced
from kernel.dataplane import Dataplane, interface, tables, wait_for
from lab.host import Host
from lab.lan import Lan
from lbless_api.mac import default_mac
from unit.stateobjects import desired_json

pytestmark = pytest.mark.root

VIP = Lan.vip()
REPAIR_MS = 200


@pytest.fixture
def dataplane(dataplane: Dataplane) -> Dataplane:
    """Started with the iptables engine."""
    dataplane.arguments = ("--engine", "iptables")
    dataplane.complete()
    return dataplane


def desire(dataplane: Dataplane, buckets: str, epoch: int = 1) -> None:
    """Write a ClusterIP that this engine can do, and gives the node these of 32 buckets."""
    shares = {dataplane.node: buckets}
    spec = desired_json("a", VIP, shares, epoch=epoch, hashMode="SourceIP", buckets=32)
    synced.put(dataplane.desired, "a", spec)


def legacy(host: Host) -> list[str]:
    """The rules and chains of the two programs that are lbless's."""
    lines = []
    for program in ("iptables-legacy-save", "arptables-legacy-save"):
        lines += [f"{program} {line.split(' [')[0]}" for line in host.run([program]).stdout.splitlines()]
    return [line for line in lines if "LBLESS" in line]


def owned(host: Host, ip: str) -> str:
    """The mask of nodes in an address's rule, of the match cluster."""
    chain = f"-A LBLESS-{int(IPv4Address(ip)):08x}-own "
    (rule,) = [line for line in legacy(host) if chain in line and "cluster" in line]
    return rule.split("--cluster-local-nodemask ")[1].split()[0]


def test_it_serves_changes_restarts_and_leaves_nothing(dataplane: Dataplane, node: Host) -> None:
    desire(dataplane, "0-3")
    dataplane.start()
    dataplane.wait_applied("a")
    report = dataplane.observed().engines[0]
    assert (report.name, report.available, report.active) == ("iptables", True, True)
    assert owned(node, VIP) == "0x0000000f"
    held = interface(node, "eth0")
    assert f"{VIP}/32" in held.addresses
    assert held.groups == {default_mac(IPv4Address(VIP))}
    before = legacy(node)
    dataplane.kill()
    assert legacy(node) == before
    dataplane.start()
    dataplane.wait_applied("a")
    assert legacy(node) == before
    desire(dataplane, "4-31", epoch=2)
    dataplane.wait_applied("a", 2)
    assert owned(node, VIP) == "0xfffffff0"
    assert dataplane.stop() == 0
    assert legacy(node)
    done = dataplane.run("--cleanup")
    assert done.returncode == 0, done.stderr
    assert legacy(node) == []
    assert f"{VIP}/32" not in interface(node, "eth0").addresses


def test_flushed_rules_of_both_programs_are_repaired_within_200_ms(dataplane: Dataplane, node: Host) -> None:
    desire(dataplane, "0-3")
    dataplane.start()
    dataplane.wait_applied("a")
    program = Path(__file__).parent / "inside" / "repair_time.py"
    measured = node.run([sys.executable, program, VIP, "30", "iptables"], timeout=120).stdout
    print("address, rules, kept from looking:", measured, "ms")
    address, rules, late = map(int, measured.split())
    assert address - late < REPAIR_MS
    assert rules - late < REPAIR_MS


def test_what_it_cannot_do_is_said_and_the_others_are_served(dataplane: Dataplane) -> None:
    desire(dataplane, "0-3")
    dataplane.desire("b", Lan.vip(2), "0-255")
    dataplane.start()
    dataplane.wait_applied("a")
    assert "the iptables engine cannot do" in dataplane.wait_failure("b", "NotSupported")


def test_from_nftables_to_iptables_and_back_nothing_of_the_former_stays(
    dataplane: Dataplane, node: Host
) -> None:
    desire(dataplane, "0-3")
    epoch = 1
    for engine in ("nftables", "iptables", "nftables"):
        dataplane.arguments = ("--engine", engine)
        dataplane.start()
        dataplane.wait_applied("a", epoch)
        assert f"{VIP}/32" in interface(node, "eth0").addresses
        wait_for(lambda engine=engine: bool(legacy(node)) == (engine == "iptables"))
        wait_for(lambda engine=engine: any("lbless" in t for t in tables(node)) == (engine == "nftables"))
        assert dataplane.stop() == 0
    assert dataplane.run("--cleanup").returncode == 0
    assert legacy(node) == []
    assert not any("lbless" in table for table in tables(node))


def test_an_address_goes_when_its_rules_cannot_be_made_again(
    dataplane: Dataplane, node: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rules flushed and the lock in the way: unfiltered it would answer what is others'."""
    lock = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    desire(dataplane, "0-3")
    dataplane.start()
    dataplane.wait_applied("a")
    monkeypatch.delenv("XTABLES_LOCKFILE")
    lock.unlink()
    lock.mkdir()
    node.run(["iptables-legacy", "-t", "mangle", "-F", "PREROUTING"])
    wait_for(lambda: f"{VIP}/32" not in interface(node, "eth0").addresses)
    assert "cannot be opened" in dataplane.wait_failure("a", "EngineFailed")
    lock.rmdir()
    dataplane.wait_applied("a")
    assert f"{VIP}/32" in interface(node, "eth0").addresses
