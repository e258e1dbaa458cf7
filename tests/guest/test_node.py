"""lbless on a node with Linux 6.1 beside nodes of this kernel; and that kernel's own CLUSTERIP target."""

import json
from collections.abc import Iterator

import pytest

from lab import claim, servers, traffic, verdict
from lab.controlplane import ControlPlane
from lab.guest import Guest
from lab.installation import Installation
from lab.kernelstate import owned_buckets
from lab.lan import Lan
from lab.progress import Silence
from lbless_api.hashing import bucket

CONNECTIONS = 600
UNHURRIED = ["--tick-ms", "600"]
"""An emulated processor may not come to its heartbeats for seconds, and is not to count as dead."""


@pytest.fixture(scope="module")
def lbless() -> Iterator[Installation]:
    """lbless on n1 and n2, which are namespaces, and on n3, a virtual machine."""
    with (
        Lan(claim.unique("lbgnode"), nodes=2, guests=1) as lan,
        servers.serving(lan.nodes),
        ControlPlane(lan, progress=Silence()) as control_plane,
    ):
        for node in lan.nodes:
            lan.enable_conntrack(node)
        with Installation(lan, control_plane, dataplane_arguments=UNHURRIED) as installation:
            yield installation


def assigned(lbless: Installation, name: str) -> set[str]:
    """The nodes that a ClusterIP names."""
    return {assignment["node"] for assignment in lbless.get(name).get("status", {}).get("assignments", [])}


@pytest.mark.guest
@pytest.mark.apiserver
@pytest.mark.parametrize("function", ["JHash", "LegacyClusterIP"])
def test_a_node_with_an_older_kernel_serves_its_share(lbless: Installation, function: str):
    name, ip = f"old-{function.lower()}", Lan.vip(1 + len(function))
    lbless.create(name, {"ip": ip, "hashFunction": function, "ports": [{"port": servers.TCP_PORT}]})
    # The operator may plan before it has heard of the slowest node.
    Silence().until("a share for n3", lambda: "n3" in assigned(lbless, name), timeout_seconds=60)
    clusterip = lbless.wait_ready(name, timeout_seconds=60)
    shares = {assignment.node: assignment.buckets for assignment in clusterip.assignments}
    assert set(shares) == {"n1", "n2", "n3"}
    assert owned_buckets(lbless.lan.host("n3"), ip) == shares["n3"]

    found = verdict.tcp(lbless.lan, clusterip, CONNECTIONS, pace=verdict.GENTLE)
    assert found.faults == ()
    assert found.by_node["n3"] > CONNECTIONS / 5


@pytest.mark.guest
@pytest.mark.apiserver
def test_the_node_with_an_older_kernel_says_so(lbless: Installation):
    path = "/apis/lbless.dev/v1alpha1/clusteripnodes"
    kernels = {
        name: lbless.control_plane.api("GET", f"{path}/{name}")["status"]["kernel"] for name in ("n1", "n3")
    }
    assert kernels["n3"].startswith("6.1.")
    assert kernels["n1"] != kernels["n3"]


@pytest.mark.guest
def test_the_clusterip_target_keeps_the_numbers_that_it_has(lan: Lan, guest: Guest):
    ip, total, kept = Lan.vip(9), 4, [1, 3]
    chain = [
        *("INPUT", "-i", "eth0", "-d", ip, "-j", "CLUSTERIP", "--new", "--hashmode", "sourceip-sourceport"),
        *("--clustermac", "01:00:5e:00:00:09", "--total-nodes", str(total), "--local-node", str(kept[0])),
    ]
    guest.run(["iptables-legacy", "-A", *chain])
    try:
        guest.run(["sh", "-c", f"echo +{kept[1]} >/proc/net/ipt_CLUSTERIP/{ip}"])
        assert guest.run(["cat", f"/proc/net/ipt_CLUSTERIP/{ip}"]).stdout == "1,3\n"
        guest.run(["ip", "address", "add", f"{ip}/32", "dev", "eth0"])
        with servers.serving([guest]):
            answers = traffic.tcp(
                lan.client, ip, servers.TCP_PORT, connections=200, parallel=200, timeout_seconds=5
            )
        resolved = json.loads(lan.client.run(["ip", "-json", "neighbour", "show", ip]).stdout)
    finally:
        guest.run(["ip", "address", "del", f"{ip}/32", "dev", "eth0"], check=False)
        guest.run(["iptables-legacy", "-D", *chain])
    assert [neighbour["lladdr"] for neighbour in resolved] == ["01:00:5e:00:00:09"]
    for answer in answers:
        number = 1 + bucket(
            "LegacyClusterIP",
            "SourceIPSourcePort",
            answer.source,
            answer.source_port,
            servers.TCP_PORT,
            buckets=total,
        )
        assert answer.error == (None if number in kept else "timeout"), answer
    assert {answer.error for answer in answers} == {None, "timeout"}
