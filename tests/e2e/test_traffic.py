"""Every connection, datagram and echo request is answered exactly once, by the node that the hash names."""

import signal

import pytest

from lab import verdict
from lab.capture import Capture
from lab.frames import ArpOperation
from lab.installation import DATAPLANE, Installation
from lab.kernelstate import owned_buckets
from lab.servers import SSH_PORT, TCP_PORT
from lab.traffic import tcp, udp
from lbless_api import WEIGHT_ANNOTATION
from lbless_api.clusterip import ClusterIP
from lbless_api.hashing import HashFunction, HashMode

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

CONNECTIONS, DATAGRAMS, ECHOES = 1000, 1000, 1000


@pytest.fixture
def make(lbless: Installation, vip: str):
    """Create a ClusterIP with the given spec and wait for it; it is deleted afterwards."""
    made = []

    def create(**spec: object) -> ClusterIP:
        name = f"traffic-{vip.replace('.', '-')}"
        lbless.create(name, {"ip": vip, **spec})
        made.append(name)
        return lbless.wait_ready(name)

    yield create
    for name in made:
        lbless.delete(name)


def check(found: verdict.Verdict, nodes: int = 3) -> None:
    print(found)
    assert found.faults == (), f"{len(found.faults)} of {found.attempts} wrong, first: {found.faults[:5]}"
    assert found.resets == 0
    assert len(found.by_node) >= nodes, "a node answered nothing at all"
    assert found.sources >= 50


@pytest.mark.parametrize("mode", list(HashMode))
@pytest.mark.parametrize("function", list(HashFunction))
def test_each_hash_sends_every_client_to_exactly_one_node(lbless, make, function, mode):
    clusterip = make(hashFunction=function, hashMode=mode)
    check(verdict.tcp(lbless.lan, clusterip, CONNECTIONS))
    check(verdict.udp(lbless.lan, clusterip, DATAGRAMS))
    check(verdict.echo(lbless.lan, clusterip, ECHOES))


@pytest.mark.parametrize("function", list(HashFunction))
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"buckets": 7}, id="7 buckets"),
        pytest.param({"buckets": 256}, id="256 buckets"),
        pytest.param({"buckets": 4096}, id="4096 buckets"),
        pytest.param({"hashSeed": 4294967295}, id="a seed"),
        pytest.param({"sourcePrefixLength": 24}, id="prefix length 24"),
        pytest.param(
            {
                "buckets": 7,
                "hashSeed": 99,
                "sourcePrefixLength": 20,
                "hashMode": "SourceIPSourcePortDestPort",
            },
            id="all of them",
        ),
    ],
)
def test_buckets_seed_and_prefix_length_are_the_same_to_the_kernel_and_the_api(lbless, make, function, spec):
    clusterip = make(hashFunction=function, **spec)
    check(verdict.tcp(lbless.lan, clusterip, CONNECTIONS))
    check(verdict.udp(lbless.lan, clusterip, DATAGRAMS // 2))
    # Echo requests differ by address alone; with a prefix there are too few for every node to have one.
    check(verdict.echo(lbless.lan, clusterip, ECHOES // 2), nodes=1)


def test_weights_of_40_and_60_percent_split_the_connections_so(lbless, make):
    weights = {"n1": "40", "n2": "60", "n3": "0"}
    for node, weight in weights.items():
        lbless.control_plane.patch_node(node, {"metadata": {"annotations": {WEIGHT_ANNOTATION: weight}}})
    try:
        clusterip = make(buckets=1000)
        assert {a.node: len(a.buckets) for a in clusterip.assignments} == {"n1": 400, "n2": 600}
        found = verdict.tcp(lbless.lan, clusterip, CONNECTIONS)
        check(found, nodes=2)
        # 1,000 connections: five standard deviations of a binomial share are 77.
        assert abs(found.by_node["n1"] - 400) < 78
    finally:
        for node in weights:
            lbless.control_plane.patch_node(node, {"metadata": {"annotations": {WEIGHT_ANNOTATION: None}}})


def test_arp_names_the_cluster_mac_and_frames_come_from_the_nodes_own(lbless, make):
    clusterip = make()
    ip, mac = str(clusterip.spec.ip), clusterip.spec.mac
    lan = lbless.lan
    nodes = {node.mac for node in lan.nodes}
    for host in (lan.client, lan.router):
        host.run(["ip", "neighbour", "flush", "dev", "eth0"])
    with Capture(lan.client, vip=ip) as near, Capture(lan.router, "eth0", vip=ip) as far:
        assert all(a.node for a in tcp(lan.client, ip, TCP_PORT, connections=60))
        assert all(a.node for a in tcp(lan.routed_client, ip, TCP_PORT, connections=60))
        # Make the nodes ask for the clients again, in the address's name.
        for node in lan.nodes:
            node.run(["ip", "neighbour", "flush", "dev", "eth0"])
        assert all(a.node for a in tcp(lan.client, ip, TCP_PORT, connections=60))
    from_vip = [(frame, arp) for frame, arp in (near + far).arp() if arp.sender == ip]
    replies = [arp for _, arp in from_vip if arp.operation is ArpOperation.REPLY]
    assert replies, "no ARP reply from the shared address was seen"
    assert {arp.sender_mac for _, arp in from_vip} == {mac}
    assert {frame.source for frame, _ in from_vip} <= nodes
    assert mac in lan.client.run(["ip", "neighbour", "show", ip]).stdout
    assert {frame.source for frame in near.answers()} == nodes
    assert {frame.source for frame in far.answers()} == nodes
    assert {frame.destination for frame in far.answers()} == {lan.router.mac}


@pytest.mark.parametrize("arp_announce", ["2", "0"])
def test_a_node_that_asks_for_a_client_never_teaches_its_own_mac(lbless, make, free_address, arp_announce):
    """dataplane sets arp_announce=2; the rule holds also where somebody sets it back."""
    clusterip = make()
    ip = str(clusterip.spec.ip)
    lan, node = lbless.lan, lbless.lan.nodes[0]
    assert node.run(["sysctl", "-n", "net.ipv4.conf.eth0.arp_announce"]).stdout.strip() == "2"
    dataplane = lbless.process(DATAPLANE, node)
    dataplane.send_signal(signal.SIGSTOP)  # it must not repair the setting before the node has asked
    try:
        node.run(["sysctl", "-q", "-w", f"net.ipv4.conf.eth0.arp_announce={arp_announce}"])
        # For an address that nobody has it asks on account of this datagram alone. For a client's it may ask
        # at any time, in its own name, whether an answer of some time ago still holds.
        with Capture(lan.client) as frames:
            udp(node, free_address, 9, datagrams=1, sources=[ip], timeout_seconds=0.3)
            frames.await_that(
                "an ARP request of the node", lambda f: any(a.target == free_address for _, a in f.arp())
            )
    finally:
        node.run(["sysctl", "-q", "-w", "net.ipv4.conf.eth0.arp_announce=2"])
        dataplane.send_signal(signal.SIGCONT)
    asked = {(arp.sender, arp.sender_mac) for _, arp in frames.arp() if arp.target == free_address}
    assert asked == ({(node.address, node.mac)} if arp_announce == "2" else {(ip, clusterip.spec.mac)})


def test_foreign_packets_leave_no_conntrack_entry(lbless, make):
    clusterip = make()
    ip = str(clusterip.spec.ip)
    found = verdict.tcp(lbless.lan, clusterip, 300)
    check(found)
    for node in lbless.lan.nodes:
        # Every connection is in TIME_WAIT there still, so none is missed: exactly the owner has an entry.
        entries = lbless.lan.conntrack(node, ip)
        assert len(entries) == found.by_node[node.name]


def test_with_ports_nothing_else_answers_on_the_address(lbless, make):
    clusterip = make(ports=[{"port": TCP_PORT}])
    lan, ip = lbless.lan, str(clusterip.spec.ip)
    check(verdict.tcp(lan, clusterip, 300))
    check(verdict.echo(lan, clusterip, 200))
    with Capture(lan.client, vip=ip) as frames:
        answers = tcp(lan.client, ip, SSH_PORT, connections=64, timeout_seconds=1)
    assert {a.node for a in answers} == {None}
    assert {a.error for a in answers} == {"timeout"}
    assert frames.answers() == []
    assert tcp(lan.client, lan.nodes[0].address, SSH_PORT, connections=1)[0].node == "n1", (
        "not by its own address"
    )


def test_without_ports_every_port_answers_and_the_condition_warns(lbless, make):
    clusterip = make()
    answers = tcp(lbless.lan.client, str(clusterip.spec.ip), SSH_PORT, connections=32)
    assert all(a.node for a in answers)
    assert "ssh" in lbless.condition(clusterip.identity.name)["message"]


def test_the_node_itself_and_its_own_pods_are_served_locally(lbless, make):
    clusterip = make()
    ip = str(clusterip.spec.ip)
    for node, pod in zip(lbless.lan.nodes, lbless.lan.pods, strict=True):
        for host in (node, pod):
            answers = tcp(host, ip, TCP_PORT, connections=20, sources=[host.address])
            assert {a.node for a in answers} == {node.name}, f"from {host.name}"


def test_the_address_is_not_to_be_had_by_another_interface(lbless, make):
    clusterip = make()
    lan, ip = lbless.lan, str(clusterip.spec.ip)
    control = lan.control
    with Capture(control, "eth0", vip=ip) as frames:
        control.run(["ip", "route", "add", f"{ip}/32", "dev", "eth0"])
        try:
            asked = tcp(control, ip, TCP_PORT, connections=5, sources=[control.address], timeout_seconds=1)
            frames.await_that(
                "an ARP request for the address", lambda f: any(a.target == ip for _, a in f.arp())
            )
        finally:
            control.run(["ip", "route", "del", f"{ip}/32"])
        # Even a client that knows a node's hardware address there gets nothing.
        node = lan.nodes[0]
        control.run(["ip", "route", "add", f"{ip}/32", "via", node.ports["mgmt0"].address])
        try:
            sent = tcp(control, ip, TCP_PORT, connections=20, sources=[control.address], timeout_seconds=1)
        finally:
            control.run(["ip", "route", "del", f"{ip}/32"])
    assert {a.node for a in (*asked, *sent)} == {None}
    assert [arp for _, arp in frames.arp() if arp.sender == ip] == []
    assert frames.answers() == []


def test_the_kernels_buckets_are_the_assignments(lbless, make):
    clusterip = make(buckets=4096)
    for node in lbless.lan.nodes:
        named = clusterip.assigned_to(node.name)
        assert named is not None
        assert owned_buckets(node, str(clusterip.spec.ip)) == named.buckets
