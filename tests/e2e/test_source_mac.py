"""sourceMAC Cluster: answers leave every node's port from one MAC, nothing else does, and a condition says so."""

import json
import subprocess
from contextlib import ExitStack

import pytest

from lab import traffic
from lab.capture import Capture
from lab.frames import Arp, Arrival, Frame, Packet
from lab.host import Host
from lab.installation import Installation, owner
from lab.lan import Lan
from lab.progress import Silence
from lab.servers import SSH_PORT, TCP_PORT
from lab.traffic import Answer
from lbless_api.clusterip import ClusterIP
from lbless_api.mac import unicast_mac

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

NAME = "source-mac"
CONNECTIONS = 60


def sources(lan: Lan, clusterip: ClusterIP) -> dict[str, dict[str, set[str]]]:
    """Drive traffic to the address and to each node's own; return what leaves each node's port: for frames from the
    address (IPv4, and ARP) and for all others their Ethernet sources."""
    ip = str(clusterip.spec.ip)
    answers: list[Answer] = []
    with ExitStack() as stack:
        ports = {
            node.name: stack.enter_context(Capture(lan.switch, node.name, flooded=True)) for node in lan.nodes
        }
        for client in (lan.client, lan.routed_client):
            client.run(["ip", "neighbour", "flush", "all"])
            answers += traffic.tcp(client, ip, TCP_PORT, connections=CONNECTIONS // 2)
            assert all(e.replies == 1 for e in traffic.ping(client, ip, requests=CONNECTIONS // 2))
            for node in lan.nodes:
                assert traffic.tcp(client, node.address, SSH_PORT, connections=2)[0].node == node.name
    assert [a.node for a in answers] == [owner(clusterip, a.source, a.source_port, TCP_PORT) for a in answers]
    found = {}
    for name, frames in ports.items():
        found[name] = by_origin = {"address": set[str](), "its ARP": set[str](), "others": set[str]()}
        for frame in frames:
            if frame.arrival is not Arrival.OUTGOING:  # which is towards the node
                by_origin[origin(frame, ip)].add(frame.source)
    return found


def origin(frame: Frame, ip: str) -> str:
    match frame.content:
        case Packet(source=source) if source == ip:
            return "address"
        case Arp(sender=sender) if sender == ip:
            return "its ARP"
        case _:
            return "others"


def moves(log: str, mac: str) -> int:
    """How often the bridge learnt that a MAC is behind a port, by its own account."""
    return sum(line.startswith(mac) for line in log.splitlines())


def egress_rules(node: Host) -> str:
    return node.run(["nft", "-a", "list", "chains", "netdev"]).stdout


def source_macs(node: Host) -> list[list[str]]:
    listed = json.loads(node.run(["nft", "-j", "list", "map", "netdev", "lbless", "source_macs"]).stdout)
    (found,) = [entry["map"] for entry in listed["nftables"] if "map" in entry]
    return list(found.get("elem", []))


def test_answers_leave_every_nodes_port_from_one_mac_and_nothing_else_does_until_it_is_taken_back(
    lbless: Installation, vip: str
):
    lan = lbless.lan
    lbless.create(NAME, {"ip": vip, "sourceMAC": "Cluster"})
    try:
        clusterip = lbless.wait_ready(NAME)
        mac = unicast_mac(clusterip.spec.mac)
        monitor = lan.switch.popen(["bridge", "monitor", "fdb"], stdout=subprocess.PIPE)
        try:
            found = sources(lan, clusterip)
        finally:
            monitor.terminate()
            learnt, _ = monitor.communicate()
        for node in lan.nodes:
            assert found[node.name] == {"address": {mac}, "its ARP": {node.mac}, "others": {node.mac}}
        print(
            f"the bridge's entry for {mac} moved {moves(learnt, mac)} times "
            f"for {CONNECTIONS} connections and {CONNECTIONS} echo requests"
        )
        assert moves(learnt, mac) > len(lan.nodes)

        assert lbless.condition(NAME, "SourceMACUnsafe")["status"] == "True"
        described = lbless.control_plane.kubectl("describe", "cip", NAME).stdout
        assert f"Every node answers with the Ethernet source {mac}: a switch sees it move" in described

        rules = [egress_rules(node) for node in lan.nodes]
        path = f"/apis/lbless.dev/v1alpha1/namespaces/default/clusterips/{NAME}"
        lbless.control_plane.api("PATCH", path, {"spec": {"sourceMAC": "Node"}})
        for node in lan.nodes:
            Silence().until(
                f"{node.name} to use its own MAC again",
                lambda node=node: not source_macs(node),
                timeout_seconds=10,
            )
        found = sources(lan, clusterip)
        for node in lan.nodes:
            assert found[node.name] == {"address": {node.mac}, "its ARP": {node.mac}, "others": {node.mac}}
        assert [egress_rules(node) for node in lan.nodes] == rules, "no rule changes, elements do"
        Silence().until(
            "the warning to go", lambda: not lbless.condition(NAME, "SourceMACUnsafe"), timeout_seconds=10
        )
    finally:
        lbless.delete(NAME)
