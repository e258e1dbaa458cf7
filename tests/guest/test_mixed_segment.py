"""One address on four machines at once: two with lbless's nftables engine, one with its iptables engine and the
old CLUSTERIP target, and one that has never heard of lbless and runs `iptables -j CLUSTERIP` as in 2005."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kernel import synced
from kernel.dataplane import Dataplane
from lab import claim, servers, verdict
from lab.host import Host
from lab.lan import Lan
from lab.progress import Silence
from lbless_api.clusterip import ClusterIP
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import default_mac
from unit.stateobjects import clusterip, desired_json

pytestmark = pytest.mark.guest

BUCKETS, SEED, CONNECTIONS = 16, 7, 2000
SHARES = {"n1": "0-3", "n2": "4-7", "n3": "8-11", "n4": "12-15"}
OLD_NAMES = {
    HashMode.SOURCE_IP: "sourceip",
    HashMode.SOURCE_IP_SOURCE_PORT: "sourceip-sourceport",
    HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT: "sourceip-sourceport-destport",
}


@pytest.fixture(scope="module")
def mixed() -> Iterator[Lan]:
    """n1 and n2 are namespaces of this kernel, n3 and n4 have Linux 6.1."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("python-iptables of this environment is not for the guests' Python 3.11")
    with Lan(claim.unique("lbmixed"), nodes=2, guests=2) as lan, servers.serving(lan.nodes):
        yield lan


@contextmanager
def untouched(node: Host, wanted: ClusterIP, numbers: list[int]) -> Iterator[None]:
    """What an administrator types on a machine without lbless."""
    spec, ip = wanted.spec, str(wanted.spec.ip)
    rule = [
        *("INPUT", "-d", ip, "-i", "eth0", "-j", "CLUSTERIP", "--new"),
        *("--hashmode", OLD_NAMES[spec.hash.mode], "--clustermac", spec.mac),
        *("--total-nodes", str(spec.hash.buckets), "--local-node", str(numbers[0])),
        *("--hash-init", str(spec.hash.seed)),
    ]
    node.run(["iptables-legacy", "-A", *rule])
    try:
        for number in numbers[1:]:
            node.run(["sh", "-c", f"echo +{number} > /proc/net/ipt_CLUSTERIP/{ip}"])
        node.run(["ip", "address", "add", f"{ip}/32", "dev", "eth0"])
        yield
    finally:
        node.run(["ip", "address", "del", f"{ip}/32", "dev", "eth0"], check=False)
        node.run(["iptables-legacy", "-D", *rule], check=False)


@contextmanager
def running(
    lan: Lan, wanted: ClusterIP, engines: Mapping[str, str], shares: Mapping[str, str], **spec: Any
) -> Iterator[None]:
    """Dataplane on each of these nodes, with the state that sync would have written."""
    ip = str(wanted.spec.ip)
    planes = []
    with ExitStack() as stack:
        for name, engine in engines.items():
            node = lan.host(name)
            directory = lan.directory / f"{name}-{wanted.identity.uid}"
            plane = Dataplane(node, directory, name, ["--engine", engine])
            uid = wanted.identity.uid
            synced.put(plane.desired, uid, desired_json(uid, ip, shares, **spec))
            plane.complete(node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip())
            plane.launch()
            stack.callback(remove, plane, ip)
            planes.append(plane)
        for plane in planes:
            Silence().until(
                f"{plane.node} to have {ip}", lambda plane=plane: has(plane, ip), timeout_seconds=60
            )
        yield


def has(plane: Dataplane, ip: str) -> bool:
    """Whether the node has the address, which comes after its rules."""
    assert plane.running()
    return f" {ip}/32 " in plane.host.run(["ip", "-o", "-4", "address", "show", "dev", "eth0"]).stdout


def remove(plane: Dataplane, ip: str) -> None:
    """End it and leave nothing of it, so that the next test finds the machine as this one did."""
    assert plane.stop() == 0, plane.log
    done = plane.run("--cleanup")
    assert done.returncode == 0, done.stderr
    assert not plane.host.run(["ip", "-o", "-4", "address", "show", "to", f"{ip}/32"]).stdout


@pytest.mark.parametrize("mode", list(HashMode))
def test_untouched_clusterip_and_both_engines_share_an_address(mixed: Lan, mode: HashMode):
    """2,000 connections: each is answered exactly once, by the node whose bucket it is."""
    ip = mixed.vip(20 + list(HashMode).index(mode))
    spec: dict[str, Any] = {
        "hashFunction": HashFunction.LEGACY_CLUSTERIP,
        "hashMode": mode,
        "buckets": BUCKETS,
        "hashSeed": SEED,
    }
    wanted = clusterip(f"legacy-{mode.lower()}", ip, SHARES, **spec)
    assert wanted.spec.mac == default_mac(wanted.spec.ip)
    n3, n4 = mixed.host("n3"), mixed.host("n4")
    engines = {"n1": "nftables", "n2": "auto", "n3": "iptables"}
    with untouched(n4, wanted, [13, 14, 15, 16]), running(mixed, wanted, engines, SHARES, **spec):
        assert n3.run(["cat", f"/proc/net/ipt_CLUSTERIP/{ip}"]).stdout == "9,10,11,12\n"
        assert "lbless" not in n3.run(["nft", "list", "tables"]).stdout
        judge(mixed, wanted, SHARES)
    assert not n3.run(["ls", "/proc/net/ipt_CLUSTERIP"]).stdout


def test_xt_cluster_of_two_kernels_and_nftables_share_an_address(mixed: Lan):
    """Buckets beyond the seventh too, which iptables' own parser cannot give to a node."""
    ip = mixed.vip(30)
    shares = {"n1": "0-10", "n2": "11-20", "n3": "21-31"}
    spec: dict[str, Any] = {"hashMode": HashMode.SOURCE_IP, "buckets": 32, "hashSeed": SEED}
    wanted = clusterip("xt-cluster", ip, shares, **spec)
    engines = {"n1": "nftables", "n2": "iptables", "n3": "iptables"}
    with running(mixed, wanted, engines, shares, **spec):
        for name in ("n2", "n3"):
            assert "-m cluster" in mixed.host(name).run(["iptables-legacy", "-t", "mangle", "-S"]).stdout
        judge(mixed, wanted, shares)


def judge(lan: Lan, wanted: ClusterIP, shares: Mapping[str, str]) -> None:
    """Drive traffic from both clients, and find each attempt answered once, by its owner."""
    found = verdict.tcp(lan, wanted, CONNECTIONS)
    assert not found.faults, found.faults[:5]
    assert found.attempts == CONNECTIONS
    assert found.by_node.keys() == shares.keys()
    echoes = verdict.echo(lan, wanted, 200)
    assert not echoes.faults, echoes.faults[:5]
