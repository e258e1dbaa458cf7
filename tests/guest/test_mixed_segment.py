"""Addresses on five machines at once, with three ways of filtering: lbless's nftables engine, its iptables engine
with the old CLUSTERIP target and with xt_cluster, and machines that have never heard of lbless and run
`iptables -j CLUSTERIP` as in 2005."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from unit.stateobjects import clusterip, desired_json

# Two guests at once leave other tests no processor, and other tests leave none to them.
pytestmark = [pytest.mark.soak, pytest.mark.guest, pytest.mark.timeout(900)]

SEED, CONNECTIONS = 7, 2000
ENGINES = {"n1": "nftables", "n2": "auto", "n3": "iptables", "n4": "iptables"}
"""n1 to n3 are namespaces of this kernel; n4 and n5 have Linux 6.1, and n5 has no lbless."""
OLD_NAMES = {
    HashMode.SOURCE_IP: "sourceip",
    HashMode.SOURCE_IP_SOURCE_PORT: "sourceip-sourceport",
    HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT: "sourceip-sourceport-destport",
}


@dataclass(frozen=True)
class Shared:
    """An address, who has which of its buckets, and what is said of it in its spec."""

    ip: str
    shares: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def uid(self) -> str:
        """One that no other has."""
        return f"vip-{self.ip.replace('.', '-')}"

    @property
    def clusterip(self) -> ClusterIP:
        """As the API would have it."""
        return clusterip(self.uid, self.ip, self.shares, **self.spec)


LEGACY = {
    mode: Shared(
        Lan.vip(20 + number),
        {"n1": "0-3", "n2": "4-7", "n4": "8-11", "n5": "12-15"},
        {
            "hashFunction": HashFunction.LEGACY_CLUSTERIP,
            "hashMode": mode,
            "buckets": 16,
            "hashSeed": SEED,
        },
    )
    for number, mode in enumerate(HashMode)
}
XT_CLUSTER = Shared(
    Lan.vip(30),
    # Also buckets beyond the sixth, which iptables' own parser cannot name.
    {"n1": "0-10", "n3": "11-20", "n4": "21-31"},
    {"hashMode": HashMode.SOURCE_IP, "buckets": 32, "hashSeed": SEED},
)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Lan]:
    """All of them, serving all addresses; afterwards nothing of lbless is left on any."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("python-iptables of this environment is not for the guests' Python 3.11")
    with Lan(claim.unique("lbmixed"), nodes=3, guests=2) as lan, ExitStack() as stack:
        stack.enter_context(servers.serving(lan.nodes))
        for shared in LEGACY.values():
            stack.enter_context(untouched(lan.host("n5"), shared.clusterip, [13, 14, 15, 16]))
        planes = [started(lan, name, engine) for name, engine in ENGINES.items()]
        for plane in planes:
            Silence().until(f"{plane.node} to serve", lambda plane=plane: serves(plane), timeout_seconds=240)
        yield lan
        for plane in planes:
            assert plane.stop() == 0, plane.log
            done = plane.run("--cleanup")
            assert done.returncode == 0, done.stderr
            for shared in (*LEGACY.values(), XT_CLUSTER):
                listed = plane.host.run(["ip", "-o", "-4", "address", "show", "to", f"{shared.ip}/32"])
                assert not listed.stdout
        assert not lan.host("n4").run(["ls", "/proc/net/ipt_CLUSTERIP"]).stdout
        assert "LBLESS" not in lan.host("n4").run(["iptables-legacy-save"]).stdout


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
    for number in numbers[1:]:
        node.run(["sh", "-c", f"echo +{number} > /proc/net/ipt_CLUSTERIP/{ip}"])
    node.run(["ip", "address", "add", f"{ip}/32", "dev", "eth0"])
    yield


def started(lan: Lan, name: str, engine: str) -> Dataplane:
    """Dataplane on a node, with the state that sync would have written."""
    node = lan.host(name)
    plane = Dataplane(node, lan.directory / f"{name}-state", name, arguments=["--engine", engine])
    for shared in addresses(name):
        value = desired_json(shared.uid, shared.ip, shared.shares, **shared.spec)
        synced.put(plane.desired, shared.uid, value)
    plane.complete(node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip())
    plane.launch()
    return plane


def addresses(node: str) -> list[Shared]:
    """Those that a node has buckets of."""
    return [shared for shared in (*LEGACY.values(), XT_CLUSTER) if node in shared.shares]


def serves(plane: Dataplane) -> bool:
    """Whether the node has every address of its, which come after their rules."""
    assert plane.running()
    listed = plane.host.run(["ip", "-o", "-4", "address", "show", "dev", "eth0"]).stdout
    return all(f" {shared.ip}/32 " in listed for shared in addresses(plane.node))


@pytest.mark.parametrize("mode", list(HashMode))
def test_untouched_clusterip_and_both_engines_share_an_address(mixed: Lan, mode: HashMode):
    shared = LEGACY[mode]
    n4 = mixed.host("n4")
    assert n4.run(["cat", f"/proc/net/ipt_CLUSTERIP/{shared.ip}"]).stdout == "9,10,11,12\n"
    assert "lbless" not in n4.run(["nft", "list", "tables"]).stdout
    judge(mixed, shared)


def test_xt_cluster_of_two_kernels_and_nftables_share_an_address(mixed: Lan):
    for name in ("n3", "n4"):
        assert "-m cluster" in mixed.host(name).run(["iptables-legacy-save", "-t", "mangle"]).stdout
    judge(mixed, XT_CLUSTER)


def judge(lan: Lan, shared: Shared) -> None:
    """Drive traffic from both clients, and find each attempt answered exactly once, by its owner."""
    found = verdict.tcp(lan, shared.clusterip, CONNECTIONS, pace=verdict.GENTLE)
    assert not found.faults, found.faults[:5]
    assert found.attempts == CONNECTIONS
    assert found.by_node.keys() == shared.shares.keys()
    echoes = verdict.echo(lan, shared.clusterip, 200, pace=verdict.GENTLE)
    assert not echoes.faults, echoes.faults[:5]
