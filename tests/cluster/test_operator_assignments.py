"""The operator against a real API server: what happens to an assignment when the cluster changes.

Nodes, pods and agents are API objects written by the tests; the operator is the program, under its service
account with the access rules that the chart ships.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cluster.operatorworld import (
    Agents,
    Operator,
    World,
    conditions,
    end,
    log_of,
    shares,
    until,
)
from lab.controlplane import ControlPlane
from lab.objects import Endpoint, await_later_creation
from lbless_api.buckets import BucketSet
from lbless_api.segment import SegmentReport

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

_markers = itertools.count(1)
EXCLUDE = "node.kubernetes.io/exclude-from-external-load-balancers"


@pytest.fixture(scope="module")
def program(control_plane: ControlPlane, agents: Agents, tmp_path_factory: pytest.TempPathFactory):
    """The operator's replicas: `program.start()`; one is running."""
    return Operator(control_plane, tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="module")
def running(program: Operator) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The one running replica, in a list so that a test can replace it."""
    replicas = [program.start()]
    yield replicas
    status = end(replicas[0])
    log = log_of(replicas[0])
    print(log)
    assert status == 0, log
    assert "defect" not in log
    assert "Traceback" not in log


@pytest.fixture
def world(
    control_plane: ControlPlane,
    agents: Agents,
    running: list[subprocess.Popen[bytes]],
    request: pytest.FixtureRequest,
) -> Iterator[World]:
    world = World(control_plane, agents)
    yield world
    world.close()


def owned(clusterip: dict) -> dict[str, BucketSet]:
    return {a["node"]: BucketSet.parse(a["buckets"]) for a in clusterip["status"]["assignments"]}


def assert_least_movement(before: dict, after: dict) -> None:
    """Who is in both assignments and has not less than before has kept everything."""
    was, now = owned(before), owned(after)
    for node in was.keys() & now.keys():
        if len(now[node]) >= len(was[node]):
            assert was[node].issubset(now[node]), node
    assert after["status"]["epoch"] > before["status"]["epoch"]


def with_pods(world: World, nodes: list[str], **spec: object) -> dict:
    """One ready pod a node, and a ClusterIP that asks for them; return it when all serve."""
    for number, node in enumerate(nodes):
        world.control_plane.make_pod(world.namespace, f"pod-{number}", node, labels={"app": "web"})
    world.clusterip(workload={"podSelector": {"matchLabels": {"app": "web"}}}, **spec)
    return settled(world, nodes)


def settled(world: World, nodes: list[str]) -> dict:
    """The ClusterIP once all these nodes serve and no other is named."""
    until(f"{nodes} to serve", lambda: set(shares(world.get())) == set(nodes))
    world.wait_condition("Programmed", "True", "Programmed")
    got = until(
        "all to confirm",
        lambda: _if(world.get(), lambda c: c["status"]["nodes"] == f"{len(nodes)}/{len(nodes)}"),
    )
    world.wait_condition("Ready", "True", "Serving")
    return got


def _if(value: dict, condition: Callable[[dict], bool]) -> dict | None:
    return value if condition(value) else None


def test_a_new_clusterip_is_split_between_the_nodes_and_says_so(world: World):
    nodes = world.nodes("a", "b", "c")
    world.clusterip(buckets=256)
    status = settled(world, nodes)["status"]
    assert sorted(a["share"] for a in status["assignments"]) == [85, 85, 86]
    assert sum(len(b) for b in owned({"status": status}).values()) == 256
    assert status["mac"] == "03:bf:" + ":".join(f"{int(b):02x}" for b in world.ip.split("."))
    assert status["nodes"] == "3/3"
    assert status["observedGeneration"] == 1
    ready = conditions({"status": status})["Ready"]["message"]
    assert "the nodes' own services (ssh, kubelet) answer on the address too" in ready
    assert world.wait_event("Assigned")
    assert "list the wanted ones in spec.ports" in world.wait_event("AllPortsOpen")
    described = world.control_plane.kubectl("-n", world.namespace, "describe", "cip", "web").stdout
    assert "AllPortsOpen" in described
    table = world.control_plane.kubectl("-n", world.namespace, "get", "cip", "web", "--no-headers").stdout
    assert table.split()[4:6] == ["3/3", "True"]


def test_with_ports_nobody_is_warned_of_open_ones(world: World):
    nodes = world.nodes("a")
    world.clusterip(ports=[{"port": 80}])
    assert "All ports" not in conditions(settled(world, nodes))["Ready"]["message"]
    world.wait_event("Assigned")
    assert not [e for e in world.events() if e["reason"] == "AllPortsOpen"]


def test_an_unready_pods_node_gives_its_share_to_the_others_at_once(world: World):
    a, b, c = nodes = world.nodes("a", "b", "c")
    with_pods(world, nodes)
    seconds = []
    for ready in (False, True, False):
        before = world.get()
        started = time.monotonic()
        world.control_plane.set_pod_ready(world.namespace, "pod-2", ready)
        until(f"{c} to be in: {ready}", lambda ready=ready: (c in shares(world.get())) == ready)
        seconds.append(time.monotonic() - started)
    # Seen by the watch, not by the round of LISTs a minute later. How fast it is `make bench` measures (`latency`).
    assert max(seconds) < 10, seconds
    after = settled(world, [a, b])
    assert_least_movement(before, after)
    assert sum(shares(after).values()) == 16
    note = world.wait_event("Moved", containing=f"from {c}, which has no ready pod matching app=web, to")
    assert note.endswith("Established connections in them end."), "without heartbeats"


def test_without_any_ready_pod_the_assignment_stays_and_the_reason_is_counted(world: World):
    a, b = world.nodes("a", "b")
    before = with_pods(world, [a, b])
    world.control_plane.patch_node(b, {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})
    one = settled(world, [a])
    world.control_plane.set_pod_ready(world.namespace, "pod-0", False)
    message = world.wait_condition("Ready", "False", "NoEligibleNode")["message"]
    assert "1 has no ready pod matching app=web" in message
    assert "1 is tainted NoExecute" in message
    assert message.endswith("The last assignment stays in force.")
    assert shares(world.get()) == shares(one)
    assert world.get()["status"]["epoch"] == one["status"]["epoch"] > before["status"]["epoch"]
    assert world.wait_event("NoEligibleNode", containing="1 is tainted NoExecute")


def test_a_noexecute_taint_takes_the_node_out_and_its_end_brings_it_back(world: World):
    a, b, c = nodes = world.nodes("a", "b", "c")
    world.clusterip()
    before = settled(world, nodes)
    world.control_plane.patch_node(a, {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})
    after = settled(world, [b, c])
    assert_least_movement(before, after)
    world.control_plane.patch_node(a, {"spec": {"taints": None}})
    assert_least_movement(after, settled(world, nodes))


def test_a_noschedule_taint_and_a_cordon_move_nothing(world: World):
    nodes = world.nodes("a", "b")
    world.clusterip()
    before = settled(world, nodes)
    taint = {"key": "k", "effect": "NoSchedule"}
    world.control_plane.patch_node(nodes[0], {"spec": {"unschedulable": True, "taints": [taint]}})
    reconciled(world)
    assert world.get()["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def reconciled(world: World) -> None:
    """Return when the operator has looked at all that happened before: it has seen another change since."""
    world.clusterip("marker", ip=f"10.80.210.{next(_markers)}", nodeSelector={"marker": "none"})
    world.wait_condition("Ready", "False", "NoEligibleNode", "marker")
    world.delete("marker")


def test_weights_decide_the_shares_and_weight_0_takes_the_node_out(world: World):
    annotation = "lbless.dev/weight"
    a = world.node("a", annotations={annotation: "40"})
    b = world.node("b", annotations={annotation: "60"})
    world.clusterip(buckets=100)
    world.wait_shares({a: 40, b: 60})
    world.control_plane.patch_node(a, {"metadata": {"annotations": {annotation: "0"}}})
    world.wait_shares({b: 100})
    world.control_plane.patch_node(a, {"metadata": {"annotations": {annotation: None}}})
    # The ideal is 62.5 and 37.5: either way round is balanced.
    until("the default weight", lambda: shares(world.get()) in ({a: 62, b: 38}, {a: 63, b: 37}))


def test_endpoints_that_end_give_up_new_flows_unless_all_of_them_end(world: World):
    a, b = world.nodes("a", "b")
    plane, namespace = world.control_plane, world.namespace
    plane.make_service(namespace, "web")
    ready = [Endpoint("10.245.8.1", a), Endpoint("10.245.8.2", b)]
    ending = [replace(endpoint, ending=True) for endpoint in ready]
    plane.write_endpointslice(namespace, "web-1", "web", ready)
    world.clusterip(workload={"serviceRef": {"name": "web"}})
    settled(world, [a, b])
    plane.write_endpointslice(namespace, "web-1", "web", [ready[0], ending[1]])
    settled(world, [a])
    plane.write_endpointslice(namespace, "web-1", "web", ending)
    settled(world, [a, b])
    plane.write_endpointslice(namespace, "web-1", "web", ending[1:])
    settled(world, [b])


def test_a_node_that_drains_is_said_to_until_its_last_connection_has_ended(world: World):
    a, b = (world.node(short, segment=SegmentReport()) for short in "ab")
    world.clusterip()
    share = shares(settled(world, [a, b]))[a]
    uid = world.get()["metadata"]["uid"]
    world.agents.get(a).draining[uid] = 212
    world.control_plane.patch_node(a, {"metadata": {"annotations": {"lbless.dev/weight": "0"}}})
    running = until(
        "the move",
        lambda: _if(
            world.get(), lambda c: "finishes 212 connections" in conditions(c)["Programmed"]["message"]
        ),
    )
    assert conditions(running)["Programmed"]["message"].endswith(
        f"{share} buckets move from {a} to {b}: {a} still finishes 212 connections."
    )
    (move,) = running["status"]["moves"]
    assert (move["from"], move["to"]) == (a, b)
    (assignment,) = running["status"]["assignments"]
    assert assignment["address"] == world.agents.get(b).address.partition("/")[0]
    table = world.control_plane.kubectl("-n", world.namespace, "get", "cip", "web").stdout.splitlines()
    assert table[1][table[0].index("MOVING") :].split()[0] == str(share)
    assert "stay where they are for up to 300 s" in world.wait_event("Moved", containing="has weight 0")
    version = running["metadata"]["resourceVersion"]
    world.agents.get(a).draining[uid] = 211
    until("its report", lambda: world.agents.get(a).written["drains"][0]["flows"] == 211)
    reconciled(world)
    assert world.get()["metadata"]["resourceVersion"] == version, (
        "connections that end one by one are no news"
    )
    del world.agents.get(a).draining[uid]
    ended = until("its end", lambda: _if(world.get(), lambda c: not c["status"].get("moves")))
    assert ended["status"]["epoch"] == running["status"]["epoch"]
    assert "moving" not in ended["status"]
    note = world.wait_event("MoveFinished", containing=f"{share} buckets have moved from {a} to {b}")
    assert note.endswith("no connection is left where they were.")


def test_a_nodes_other_address_is_written_without_a_new_epoch(world: World):
    a, b = world.nodes("a", "b")
    world.clusterip()
    before = settled(world, [a, b])
    other = world.beside(9)
    world.agents.get(a).address = f"{other}/16"
    after = until(
        "the other address",
        lambda: _if(world.get(), lambda c: other in {e.get("address") for e in c["status"]["assignments"]}),
    )
    assert after["status"]["epoch"] == before["status"]["epoch"]
    assert owned(after) == owned(before)


def test_a_weight_that_is_no_number_counts_as_the_default_and_the_node_gets_an_event(world: World):
    a = world.node("a", annotations={"lbless.dev/weight": "lots"})
    b = world.node("b")
    world.clusterip()
    world.wait_shares({a: 8, b: 8})
    note = world.wait_event("InvalidWeight", a, "default")
    assert "'lots' is not an integer from 0 to 1000" in note


def test_ready_pods_weighting_follows_their_number(world: World):
    a, b = world.nodes("a", "b")
    for number, node in enumerate([a, b, b, b]):
        world.control_plane.make_pod(world.namespace, f"pod-{number}", node, labels={"app": "web"})
    world.clusterip(workload={"podSelector": {"matchLabels": {"app": "web"}}}, weighting="ReadyPods")
    world.wait_shares({a: 4, b: 12})
    world.control_plane.delete_pod(world.namespace, "pod-3")
    world.control_plane.delete_pod(world.namespace, "pod-2")
    world.wait_shares({a: 8, b: 8})


def test_a_changed_node_selector_moves_to_the_nodes_that_match_now(world: World):
    a, b = world.nodes("a", "b")
    c = world.node("c", labels={"zone": "x"})
    world.clusterip()
    before = settled(world, [a, b, c])
    world.patch({"spec": {"nodeSelector": {"zone": "x"}}})
    after = settled(world, [c])
    assert_least_movement(before, after)
    assert after["status"]["observedGeneration"] == 2


def test_the_exclude_label_takes_a_node_out(world: World):
    a, b = world.nodes("a", "b")
    world.clusterip()
    before = settled(world, [a, b])
    world.control_plane.patch_node(a, {"metadata": {"labels": {EXCLUDE: ""}}})
    assert_least_movement(before, settled(world, [b]))


def test_a_deleted_nodes_buckets_move(world: World):
    a, b, c = world.nodes("a", "b", "c")
    world.clusterip()
    before = settled(world, [a, b, c])
    world.control_plane.delete_node(c)
    world.agents.remove(c)
    assert_least_movement(before, settled(world, [a, b]))
    assert world.wait_event("Moved", containing=f"from {c}, which is deleted, to")


def test_a_service_decides_by_its_ready_endpoints(world: World):
    a, b, c = world.nodes("a", "b", "c")
    plane, namespace = world.control_plane, world.namespace
    plane.make_service(namespace, "web")
    everywhere = [Endpoint(f"10.245.9.{i}", node) for i, node in enumerate([a, b, c], 1)]
    plane.write_endpointslice(namespace, "web-1", "web", everywhere[:2])
    plane.write_endpointslice(namespace, "web-2", "web", everywhere[2:])
    world.clusterip(workload={"serviceRef": {"name": "web"}})
    before = settled(world, [a, b, c])
    plane.write_endpointslice(namespace, "web-2", "web", [])
    after = settled(world, [a, b])
    assert_least_movement(before, after)
    assert world.wait_event("Moved", containing=f"from {c}, which has no ready endpoint of Service web, to")
    plane.write_endpointslice(
        namespace, "web-1", "web", [everywhere[0], Endpoint("10.245.9.2", b, ready=False)]
    )
    settled(world, [a])


def test_of_two_with_one_address_the_older_works_and_the_newer_follows_when_it_is_deleted(world: World):
    nodes = world.nodes("a", "b")
    world.clusterip("older")
    until("the older to be assigned", lambda: shares(world.get("older")))
    await_later_creation()  # of the same second either might be the older, by UID
    world.clusterip("newer")
    message = world.wait_condition("Conflict", "True", "Conflict", "newer")["message"]
    assert f"already shared by the older ClusterIP {world.namespace}/older" in message
    newer = world.get("newer")
    assert shares(newer) == {}
    assert newer["status"]["epoch"] == 0
    assert conditions(newer)["Ready"]["status"] == "False"
    assert world.wait_event("Conflict", "newer")
    assert conditions(world.get("older"))["Conflict"]["status"] == "False"
    world.delete("older")
    until("the newer to take over", lambda: set(shares(world.get("newer"))) == set(nodes))
    world.wait_condition("Conflict", "False", "NoConflict", "newer")
    world.wait_condition("Ready", "True", "Serving", "newer")


@pytest.mark.parametrize(
    ("ip", "why"),
    [
        ("10.80.0.1", "belongs to the gateway of node"),
        ("10.244.77.9", "lies in the pod range of node"),
        ("10.96.3.4", "lies in the Service range 10.96.0.0/16"),
        ("10.80.255.255", "belongs to everybody, as the broadcast address of 10.80.0.0/16"),
        ("", "belongs to node"),
    ],
)
def test_an_address_that_somebody_has_is_refused_with_his_name(world: World, ip: str, why: str):
    node = world.node("a", gateways=("10.80.0.1",), pod_cidr="10.244.77.0/24")
    if not ip:
        addresses = world.control_plane.api("GET", f"/api/v1/nodes/{node}")["status"]["addresses"]
        ip = next(a["address"] for a in addresses if a["type"] == "InternalIP")
    world.clusterip(ip=ip)
    message = world.wait_condition("Ready", "False", "AddressInUse")["message"]
    assert message.startswith(f"Address {ip} {why}")
    assert shares(world.get()) == {}
    assert world.wait_event("Refused", containing=f"Address {ip} {why}")


def test_a_source_mac_of_the_clusters_own_is_warned_of_for_as_long_as_it_is_asked_for(world: World):
    node = world.node("a")
    world.clusterip(sourceMAC="Cluster")
    world.wait_shares({node: 16})
    message = world.wait_condition("SourceMACUnsafe", "True", "SharedSourceMAC")["message"]
    assert "a switch sees it move from port to port" in message
    assert world.wait_event("SourceMACUnsafe", containing=message)
    world.patch({"spec": {"sourceMAC": "Node"}})
    until("the warning to go", lambda: "SourceMACUnsafe" not in conditions(world.get()))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"nodeSelector": {"zone": "nowhere"}},
            "No node matches spec.nodeSelector zone=nowhere (of",
        ),
        (
            {"workload": {"podSelector": {"matchLabels": {"app": "none"}}}},
            "matches spec.workload.podSelector app=none: create the pods, or correct the selector.",
        ),
        (
            {"workload": {"serviceRef": {"name": "none"}}},
            "Service none of spec.workload.serviceRef has no EndpointSlice in namespace",
        ),
        ({"interfaces": ["bond*"]}, "interface that matches spec.interfaces bond*"),
    ],
)
def test_a_selector_that_matches_nothing_says_so(world: World, spec: dict, sentence: str):
    world.node("a")
    world.clusterip(**spec)
    # Before the agent has reported that is the first thing that is wrong.
    until(sentence, lambda: sentence in conditions(world.get()).get("Ready", {}).get("message", ""))
    assert conditions(world.get())["Ready"]["reason"] == "NoEligibleNode"
    assert shares(world.get()) == {}


def test_a_node_without_an_agent_is_not_assigned(world: World):
    world.node("a", agent=False)
    world.clusterip()
    message = world.wait_condition("Ready", "False", "NoEligibleNode")["message"]
    assert "has no lbless agent" in message or "have no lbless agent" in message


def test_a_silent_agents_buckets_stay_until_its_node_is_not_ready_and_it_comes_back(world: World):
    # Its Lease says that it was renewed 36 s ago: it is stale 4 s from now.
    a = world.node("a", lease_age_seconds=36, renews=False)
    b, c = world.nodes("b", "c")
    world.clusterip()
    before = settled(world, [a, b, c])
    degraded = world.wait_condition("Degraded", "True", "AgentSilent")
    assert f"{a} keeps its {shares(before)[a]} buckets" in degraded["message"]
    silent = world.get()
    assert owned(silent) == owned(before)
    assert conditions(silent)["Ready"]["status"] == "True"
    assert world.wait_event("AgentSilent")
    # What happens to the others must not touch it, in either direction.
    world.control_plane.patch_node(c, {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})
    alone = world.wait_shares({a: shares(before)[a], b: 16 - shares(before)[a]})
    assert owned(alone)[a] == owned(before)[a]
    world.control_plane.set_node_ready(a, False)
    gone = world.wait_shares({a: 0, b: 16})
    assert_least_movement(alone, gone)
    world.wait_condition("Degraded", "False", "AsPlanned")
    world.control_plane.set_node_ready(a, True)
    world.agents.remove(a)
    world.agents.add(a, "10.80.9.9/16", incarnation=2)
    world.wait_shares({a: 8, b: 8})
    assert next(e for e in world.get()["status"]["assignments"] if e["node"] == a)["incarnation"] == 2


def test_a_new_incarnation_of_a_node_gets_a_new_epoch_and_the_same_buckets(world: World):
    a, b = world.nodes("a", "b")
    world.clusterip()
    before = settled(world, [a, b])
    world.agents.remove(a)
    world.agents.add(a, "10.80.9.8/16", incarnation=7)
    until("a new epoch", lambda: _if(world.get(), lambda c: c["status"]["epoch"] > before["status"]["epoch"]))
    after = settled(world, [a, b])
    assert owned(after) == owned(before)
    assert next(e for e in after["status"]["assignments"] if e["node"] == a)["incarnation"] == 7


def test_a_node_that_cannot_program_it_is_named_with_its_reason(world: World):
    a, b = world.nodes("a", "b")
    world.clusterip()
    before = settled(world, [a, b])
    agent = world.agents.get(b)
    agent.failing = {before["metadata"]["uid"]: "The engine is missing."}
    message = world.wait_condition("Programmed", "False", "ProgrammingFailed")["message"]
    assert message == f"Node {b}: The engine is missing."
    world.wait_condition("Degraded", "True", "ProgrammingFailed")
    world.wait_condition("Ready", "False", "ProgrammingFailed")
    assert world.get()["status"]["nodes"] == "1/2"
    assert world.wait_event("ProgrammingFailed")
    agent.failing = {}
    assert settled(world, [a, b])["status"]["epoch"] == before["status"]["epoch"]


def test_a_node_that_does_not_confirm_is_waited_for_and_ready_does_not_blink(world: World):
    a, b = world.nodes("a", "b")
    world.clusterip()
    settled(world, [a, b])
    world.agents.get(b).confirms = False
    world.patch({"spec": {"nodeSelector": {"kubernetes.io/hostname": b}}})

    def waits_for_b_alone() -> bool:
        programmed = conditions(world.get())["Programmed"]
        return programmed["reason"] == "Programming" and programmed["message"].endswith(f"yet by node {b}.")

    until("only b to be waited for", waits_for_b_alone)
    # Rebalancing is no outage. That it never ends is one, after ten seconds: see the unit tests.
    assert conditions(world.get())["Ready"]["status"] == "True"


def test_nothing_is_written_where_nothing_changes(world: World):
    a, b = world.nodes("a", "b")
    before = with_pods(world, [a, b])
    for number in range(2):
        # Each makes the operator look at every ClusterIP, or would if it mattered.
        world.control_plane.patch_node(a, {"metadata": {"labels": {"touched": str(number)}}})
        world.control_plane.make_pod(world.namespace, f"other-{number}", a, labels={"app": "other"})
        world.patch({"metadata": {"annotations": {"touched": str(number)}}})
        version = world.get()["metadata"]["resourceVersion"]
        reconciled(world)
        assert world.get()["metadata"]["resourceVersion"] == version
    assert world.get()["status"] == before["status"]


def test_a_status_that_somebody_wiped_is_made_right_with_a_newer_epoch(world: World):
    nodes = world.nodes("a", "b")
    world.clusterip()
    before = settled(world, nodes)
    path = f"/apis/lbless.dev/v1alpha1/namespaces/{world.namespace}/clusterips/web/status"
    world.control_plane.api("PUT", path, {k: v for k, v in world.get().items() if k != "status"})
    after = until(
        "a newer epoch", lambda: _if(world.get(), lambda c: c.get("status", {}).get("epoch", 0) > 0)
    )
    assert after["status"]["epoch"] > before["status"]["epoch"]
    assert owned(after) == owned(before)


def test_a_restart_changes_nothing(world: World, program: Operator, running: list):
    nodes = world.nodes("a", "b", "c")
    before = with_pods(world, nodes)
    assert end(running[0]) == 0
    running[0] = program.start()
    reconciled(world)
    assert world.get() == before


def test_what_happened_while_the_operator_was_down_is_made_right(
    world: World, program: Operator, running: list
):
    a, b, c = world.nodes("a", "b", "c")
    before = with_pods(world, [a, b, c])
    assert end(running[0]) == 0
    world.control_plane.delete_node(c)
    world.agents.remove(c)
    world.control_plane.delete_pod(world.namespace, "pod-1")
    running[0] = program.start()
    assert_least_movement(before, settled(world, [a]))
