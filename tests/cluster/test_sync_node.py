"""lbless-sync under a token bound to its Node and with the chart's access rules, against a real API server."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.conftest import install_crds
from cluster.syncing import (
    ACCOUNT,
    CLUSTERIPNODES,
    CLUSTERIPS,
    NAMESPACE,
    RBAC,
    SyncedNode,
    assign,
    create,
    delete,
    synced_node,
    wait_for,
)
from lab import claim
from lab.audit import Request
from lab.controlplane import ControlPlane
from lab.lan import Lan
from lab.progress import Silence
from lab.rest import ApiError
from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability
from lbless_api.clusterip import SourceMAC
from lbless_api.digest import applied_digest, parse_marks
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.interfaces import Interface
from lbless_api.node import Drain, EngineReport, Outstanding, render_engines
from lbless_api.segment import Condition, Peer, SegmentReport, render_segment
from lbless_api.state import Observed, parse_complete, render_observed
from lbless_edge.kube import connect
from lbless_nodeagent import files
from lbless_nodeagent.sync import reporter
from lbless_nodeagent.sync.ownnode import OwnNode
from lbless_nodeagent.sync.report import Report, Situation, report
from lbless_nodeagent.sync.storage import Storage

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """Not the one that the other modules share: this one is stopped and started."""
    with Lan(claim.unique("lbsync"), nodes=0) as lan, ControlPlane(lan, progress=Silence()) as control_plane:
        install_crds(control_plane)
        control_plane.apply(RBAC)
        yield control_plane


@pytest.fixture
def synced(plane: ControlPlane, tmp_path: Path) -> Iterator[SyncedNode]:
    """A Node of its own with its sync running, dataplane alive, and no ClusterIP in the API."""
    with synced_node(plane, tmp_path) as node:
        node.observe({})
        node.start()
        wait_for("the first LIST", lambda: node.complete)
        wait_for("the first report", lambda: node.ready)
        yield node


def test_desired_files_follow_what_users_and_the_operator_do(plane: ControlPlane, synced: SyncedNode) -> None:
    made = create(plane, "web", hashSeed=7)
    wait_for("the file", lambda: synced.desired["web"]["spec"]["hashSeed"] == 7)
    assert synced.desired["web"]["metadata"]["uid"] == made["metadata"]["uid"]
    assign(plane, "web", 3)
    wait_for("the epoch", lambda: synced.desired["web"]["status"]["epoch"] == 3)
    assert synced.desired["web"]["status"]["assignments"][0]["buckets"] == "0-255"
    delete(plane, "web")
    wait_for("the end of the file", lambda: not synced.desired)


def test_beside_them_are_the_marks_of_completeness_intent_and_the_nodes_pod_ranges(
    synced: SyncedNode,
) -> None:
    desired = synced.state / "desired"
    assert parse_complete(files.read_text(desired / ".complete"), files.boot_id()) == frozenset()
    assert files.read_text(desired / ".intent") == "remove", "there is nothing to serve"
    assert wait_for("the pod ranges", lambda: files.read_json(desired / ".node.json")) == {
        "podCIDRs": ["10.244.7.0/24"]
    }


def test_the_intent_follows_what_becomes_of_the_node_and_of_all_clusterips(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    def is_now(intent: str) -> None:
        path = synced.state / "desired" / ".intent"
        wait_for(f"the intent to {intent}", lambda: files.read_text(path) == intent)

    is_now("remove")
    create(plane, "web", 1)
    is_now("hold")
    for change, undo in (
        ({"spec": {"unschedulable": True}}, {"spec": {"unschedulable": None}}),
        (
            {"metadata": {"annotations": {"lbless.dev/weight": "0"}}},
            {"metadata": {"annotations": {"lbless.dev/weight": None}}},
        ),
        ({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}, {"spec": {"taints": None}}),
    ):
        plane.patch_node(synced.name, change)
        is_now("handover")
        plane.patch_node(synced.name, undo)
        is_now("hold")
    plane.delete_node(synced.name)
    is_now("handover")
    plane.make_node(synced.name, "10.244.200.7")
    is_now("hold")
    delete(plane, "web")
    is_now("remove")


def test_what_was_deleted_while_sync_was_down_goes_when_it_is_back(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    create(plane, "stays", 1)
    create(plane, "goes", 2)
    wait_for("both files", lambda: set(synced.desired) == {"stays", "goes"})
    assert synced.stop() == 0
    delete(plane, "goes")
    create(plane, "comes", 3)
    synced.start()
    wait_for("the present state", lambda: set(synced.desired) == {"stays", "comes"})


def test_what_was_deleted_while_the_watch_was_cut_goes_and_nothing_changes_before(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    create(plane, "stays", 1)
    create(plane, "goes", 2)
    create(plane, "again", 3)
    wait_for("the files", lambda: len(synced.desired) == 3)
    before = {path.name: path.stat().st_ino for path in (synced.state / "desired").iterdir()}
    plane.stop()
    try:
        wait_for("the loss of the API server", lambda: "cannot be reached" in synced.log)
        assert {path.name: path.stat().st_ino for path in (synced.state / "desired").iterdir()} == before
        synced.signal(signal.SIGSTOP)  # it must not be back before the deletions
    finally:
        start_again(plane)
    delete(plane, "goes")
    delete(plane, "again")
    again = create(plane, "again", 4)
    synced.signal(signal.SIGCONT)
    wait_for("the present state", lambda: set(synced.desired) == {"stays", "again"})
    wait_for("the new object", lambda: synced.desired["again"]["metadata"]["uid"] == again["metadata"]["uid"])
    files = synced.state / "desired"
    wait_for("the file of the former one to go", lambda: len(list(files.glob("[!.]*.json"))) == 2)


def test_a_start_without_the_api_server_leaves_every_file_until_it_answers(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    create(plane, "stays", 1)
    create(plane, "goes", 2)
    wait_for("both files", lambda: len(synced.desired) == 2)
    synced.stop()
    delete(plane, "goes")
    plane.stop()
    try:
        synced.start()
        wait_for("the sentence", lambda: "cannot be reached" in synced.log)
        assert set(synced.desired) == {"stays", "goes"}
        assert synced.complete
    finally:
        start_again(plane)
    wait_for("the present state", lambda: set(synced.desired) == {"stays"})


def test_the_report_and_the_lease_appear_owned_by_the_node(plane: ControlPlane, synced: SyncedNode) -> None:
    lease = wait_for("the Lease", lambda: synced.lease)
    owner = [{"apiVersion": "v1", "kind": "Node", "name": synced.name, "uid": synced.node["metadata"]["uid"]}]
    assert lease["metadata"]["ownerReferences"] == owner
    assert lease["spec"]["holderIdentity"] == synced.name
    assert lease["spec"]["leaseDurationSeconds"] == 40
    report = synced.report
    assert report["metadata"]["ownerReferences"] == owner
    assert report["status"]["kernel"] == "6.1.0-test"
    assert report["status"]["engines"] == render_engines([EngineReport("nftables", True)])
    assert report["status"]["appliedDigest"] == applied_digest({})
    assert (synced.ready["status"], synced.ready["reason"]) == ("True", "Applied")
    shown = plane.kubectl("get", "cipn", synced.name).stdout
    assert "6.1.0-test" in shown


def test_a_deleted_node_takes_them_with_it_and_a_new_one_of_its_name_gets_its_own(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    wait_for("the Lease", lambda: synced.lease)
    former = synced.report["metadata"]["uid"]
    plane.delete_node(synced.name)
    wait_for("the sentence", lambda: f"Node {synced.name} does not exist" in synced.log)

    def gone(path: str) -> bool:
        try:
            plane.api("GET", path)
        except ApiError as error:
            return error.status == 404
        return False

    wait_for("the collection of its report", lambda: gone(f"{CLUSTERIPNODES}/{synced.name}"), seconds=40)
    plane.make_node(synced.name, "10.80.0.99")
    # The former token died with the former Node.
    synced.stop()
    plane.kubeconfig_for_service_account(NAMESPACE, ACCOUNT, synced.name, outside=True)
    synced.observe({})
    synced.start()
    report = wait_for("a new report", lambda: synced.report)
    assert report["metadata"]["uid"] != former
    assert report["metadata"]["ownerReferences"][0]["uid"] == synced.node["metadata"]["uid"]


def test_pending_failed_and_applied_ones_are_told_apart(plane: ControlPlane, synced: SyncedNode) -> None:
    uids = {n: create(plane, n, i)["metadata"]["uid"] for i, n in enumerate(("a", "b", "c", "unassigned"), 1)}
    for name in "abc":
        assign(plane, name, 2)
    wait_for("the files", lambda: [synced.desired[n]["status"]["epoch"] for n in "abc"] == [2, 2, 2])
    refused = Outstanding(uids["c"], "", 0, "NoMatchingInterface", "No interface matches eth9: correct it.")
    synced.observe({uids["a"]: 2, uids["b"]: 1}, (refused,))

    def told() -> bool:
        status = synced.report["status"]
        return [o["uid"] for o in status["pending"]] == [uids["b"]] and len(status["failures"]) == 1

    wait_for("the report", told)
    status = synced.report["status"]
    assert status["pending"][0]["epoch"] == 2
    assert status["failures"] == [
        {
            "uid": uids["c"],
            "clusterIP": "default/c",
            "epoch": 2,
            "reason": "NoMatchingInterface",
            "message": "No interface matches eth9: correct it.",
        }
    ]
    assert status["appliedDigest"] == applied_digest({uids["a"]: 2})
    assert (synced.ready["reason"], synced.ready["status"]) == ("Failed", "False")
    synced.observe()
    wait_for("that all is well", lambda: synced.ready["reason"] == "Applied")
    assert synced.report["status"]["appliedDigest"] == applied_digest({uids[n]: 2 for n in "abc"})


ABLE = Capability(
    frozenset(HashFunction), frozenset(HashMode), 2**63 - 1, 32, source_macs=frozenset(SourceMAC), ports=False
)


@pytest.mark.parametrize("failing", [70, 1000])
def test_whatever_goes_wrong_the_report_is_accepted_and_within_32_kib(
    plane: ControlPlane, synced: SyncedNode, failing: int
) -> None:
    long = "<a rather long & “quoted” sentence> " * 80
    name = f"{'n' * 63}/{'c' * 253}"
    troubles = tuple(Outstanding(f"u{n:062}", name, MAX_NUMBER, "R" * 90, long) for n in range(failing))
    interface = Interface(
        "", "02:00:00:00:00:01", (IPv4Interface("100.100.100.100/24"),) * 300, incarnation=MAX_NUMBER
    )
    worst = Observed(
        files.boot_id(),
        files.boottime_seconds(),
        kernel="k" * 300,
        engines=tuple(EngineReport(f"engine-{n}", False, long, n == 7, (ABLE,) * 6) for n in range(8)),
        interfaces=tuple(replace(interface, name=f"an-interface-{n:02}") for n in range(70)),
        failures=troubles,
        problems=(long,),
    )
    files.write_json(synced.state / "observed.json", render_observed(worst))
    wait_for("the report", lambda: synced.report["status"]["unlisted"])
    written = plane.kubectl("get", "--raw", f"{CLUSTERIPNODES}/{synced.name}").stdout
    status = synced.report["status"]
    print(f"{len(written.encode())} bytes, {len(status['failures'])} of {failing} failures listed")
    assert len(written.encode()) + 3 * (253 - len(synced.name)) <= 32 * 1024, "with the longest of names"
    assert len(status["failures"]) >= 10
    assert len(status["failures"]) + len(parse_marks(status["unlisted"], "unlisted")) == failing
    assert len(status["interfaces"]) == 64
    assert [e["name"] for e in status["engines"] if e["active"]] == ["engine-7"]
    assert f"Beside what is listed {failing - len(status['failures'])} more" in synced.ready["message"]


def test_what_changes_nothing_writes_nothing_also_over_a_restart(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    uid = create(plane, "web")["metadata"]["uid"]
    assign(plane, "web", 1)
    wait_for("the file", lambda: synced.desired["web"]["status"]["epoch"] == 1)
    synced.observe()
    wait_for("the report", lambda: synced.report["status"]["appliedDigest"] == applied_digest({uid: 1}))
    before = synced.report["metadata"]["resourceVersion"]
    lease = wait_for("the Lease", lambda: synced.lease["spec"]["renewTime"])
    for n in range(60):  # until a renewal of the Lease shows that time has passed
        synced.observe(foreign=n)
        if synced.lease["spec"]["renewTime"] != lease:
            break
        time.sleep(0.25)
    else:
        pytest.fail("the Lease was not renewed within 15 s")
    synced.stop()
    synced.start()
    wait_for("the new process", lambda: synced.log.count("serves node") == 2)
    renewed = synced.lease["spec"]["renewTime"]
    wait_for("its first renewal", lambda: synced.lease["spec"]["renewTime"] != renewed)
    assert synced.report["metadata"]["resourceVersion"] == before


def test_a_change_is_reported_at_once(plane: ControlPlane, synced: SyncedNode) -> None:
    uid = create(plane, "web")["metadata"]["uid"]
    assign(plane, "web", 1)
    wait_for("the file", lambda: synced.desired["web"]["status"]["epoch"] == 1)
    synced.observe({uid: 1})
    wait_for("the first report", lambda: synced.report["status"]["appliedDigest"] == applied_digest({uid: 1}))
    seconds = []
    for epoch in range(2, 7):
        time.sleep(0.4)  # idle again: past the pace that bursts are held to
        began = time.monotonic()
        synced.observe({uid: epoch})
        wanted = applied_digest({uid: epoch})
        wait_for("the report", lambda: synced.report["status"]["appliedDigest"] == wanted)  # noqa: B023
        seconds.append(time.monotonic() - began)
    print(f"file to API: {', '.join(f'{s * 1000:.0f}' for s in seconds)} ms")
    assert statistics.median(seconds) < 0.1


def test_whom_a_node_hears_and_counts_dead_is_reported_at_once_and_whom_it_heard_before_a_reboot_is_not(
    synced: SyncedNode,
) -> None:
    def says(**said: tuple[Peer, ...]) -> dict[str, Any]:
        segment = SegmentReport(frozenset({Condition.HELD}), **said)
        synced.observe(
            interfaces=(Interface("eth0", "02:00:00:00:00:01", (), incarnation=9, segment=segment),)
        )
        return {"incarnation": 9, **render_segment(segment)}

    def is_told(said: dict[str, Any]) -> bool:
        return any(said.items() <= told.items() for told in synced.report["status"]["interfaces"])

    heard = says(heard=(Peer("n2", 7), Peer("n3", 8)))
    wait_for("whom it hears", lambda: is_told(heard))
    began = time.monotonic()
    dead = says(heard=(Peer("n2", 7),), dead=(Peer("n3", 8),))
    wait_for("who is dead", lambda: is_told(dead), seconds=2)
    print(f"file to API: {(time.monotonic() - began) * 1000:.0f} ms")
    observed = files.read_json(synced.state / "observed.json")
    files.write_json(synced.state / "observed.json", {**observed, "bootID": "another"})
    wait_for("silence", lambda: "heardPeers" not in synced.report["status"]["interfaces"][0])
    assert is_told({"incarnation": 9})


def test_a_burst_of_changes_makes_a_few_writes_a_second_and_ends_with_the_last(synced: SyncedNode) -> None:
    wait_for("the report", lambda: synced.ready)
    began, generation = time.monotonic(), len(_patches(synced))
    for epoch in range(1, 201):
        synced.observe({"u": epoch})
    wait_for("the last", lambda: synced.report["status"]["appliedDigest"] == applied_digest({"u": 200}))
    writes, seconds = len(_patches(synced)) - generation, time.monotonic() - began
    assert writes <= 4 * seconds + 2, f"{writes} writes in {seconds:.1f} s"


def test_a_report_that_somebody_deleted_comes_back_with_the_next_change(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    former = synced.report["metadata"]["uid"]
    plane.api("DELETE", f"{CLUSTERIPNODES}/{synced.name}")
    synced.observe({"u": 1})
    wait_for("it", lambda: synced.report["metadata"]["uid"] != former and synced.ready)
    assert synced.report["metadata"]["ownerReferences"]


def test_a_report_that_somebody_deleted_or_edited_comes_back_also_without_a_change(
    plane: ControlPlane, synced: SyncedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced.stop()
    monkeypatch.setattr(reporter, "REFRESH_SECONDS", 0.2)  # in the program: a minute
    said = report(Situation({}, Observed("boot", 1.0, kernel="6.2")))
    node = OwnNode(synced.name, Storage(synced.state / "desired"), lambda: None)
    node.changed(synced.node)
    stop, wake = threading.Event(), threading.Event()
    written = reporter.Reporter(connect(str(plane.kubeconfig)), node, lambda: said, wake, stop)
    thread = threading.Thread(target=written.run, daemon=True)
    thread.start()
    try:
        wait_for("the report", lambda: synced.report["status"]["kernel"] == "6.2")
        former = synced.report["metadata"]["uid"]
        plane.api("DELETE", f"{CLUSTERIPNODES}/{synced.name}")
        wait_for("another one", lambda: synced.report["metadata"]["uid"] != former and synced.ready)
        assert synced.report["metadata"]["ownerReferences"]
        plane.api("PATCH", f"{CLUSTERIPNODES}/{synced.name}/status", {"status": {"kernel": "edited"}})
        wait_for("the truth", lambda: synced.report["status"]["kernel"] == "6.2")
        version, writes = synced.report["metadata"]["resourceVersion"], written.writes
        wait_for("some refreshes", lambda: written.writes > writes + 2)
        assert synced.report["metadata"]["resourceVersion"] == version
    finally:
        stop.set()
        wake.set()
        thread.join(10)


def test_what_begins_and_ceases_to_drain_is_told_at_once_and_how_much_is_left_now_and_then(
    synced: SyncedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced.stop()
    monkeypatch.setattr(reporter, "FIGURES_SECONDS", 1.0)  # in the program: ten
    drains: list[Drain] = []

    def current() -> Report:
        return report(Situation({}, Observed("boot", 1.0, drains=tuple(drains))))

    def left() -> dict[str, int]:
        return {drain["uid"]: drain["flows"] for drain in synced.report["status"].get("drains", [])}

    node = OwnNode(synced.name, Storage(synced.state / "desired"), lambda: None)
    node.changed(synced.node)
    stop, wake = threading.Event(), threading.Event()
    written = reporter.Reporter(connect(str(synced.control_plane.kubeconfig)), node, current, wake, stop)
    thread = threading.Thread(target=written.run, daemon=True)
    thread.start()
    try:
        drains[:] = [Drain("u1", "default/web", BucketSet.full(85), 100_000)]
        wake.set()
        wait_for("the first drain", lambda: left() == {"u1": 100_000})
        began, writes = time.monotonic(), written.writes
        while left() == {"u1": 100_000} and time.monotonic() - began < 10:
            drains[0] = replace(drains[0], flows=drains[0].flows - 1)
            wake.set()
        seconds = time.monotonic() - began
        assert written.writes - writes <= seconds + 1
        assert 0.5 < seconds < 3
        drains.append(Drain("u2", "default/other", BucketSet.full(2), 7))
        wake.set()
        wait_for("the second drain", lambda: left().get("u2") == 7, seconds=1)
        drains.clear()
        wake.set()
        wait_for("none", lambda: left() == {}, seconds=1)
    finally:
        stop.set()
        wake.set()
        thread.join(10)


def test_while_dataplane_is_silent_the_lease_is_not_renewed_and_ready_says_so(synced: SyncedNode) -> None:
    wait_for("the Lease", lambda: synced.lease)
    synced.observe(age_seconds=7)
    ready = wait_for("the condition", lambda: synced.ready["reason"] == "DataplaneSilent" and synced.ready)
    assert ready["status"] == "False"
    assert ready["message"] == (
        "lbless-dataplane has not written observed.json for more than 6 s. "
        "The node's Lease is not renewed meanwhile: look at the log of lbless-dataplane."
    )
    renewed = synced.lease["spec"]["renewTime"]
    version = synced.report["metadata"]["resourceVersion"]
    time.sleep(11)  # a renewal would have been due within 10 s
    assert synced.lease["spec"]["renewTime"] == renewed
    assert synced.report["metadata"]["resourceVersion"] == version, "the sentence changes as time passes"
    began = time.monotonic()
    synced.observe()
    wait_for("a renewal", lambda: synced.lease["spec"]["renewTime"] != renewed)
    assert time.monotonic() - began < 1.5
    wait_for("the condition", lambda: synced.ready["status"] == "True")


def test_a_dataplane_that_never_spoke_is_reported_too(plane: ControlPlane, synced: SyncedNode) -> None:
    synced.stop()
    (synced.state / "observed.json").unlink()
    synced.start()
    wait_for(
        "the condition",
        lambda: synced.ready["message"].startswith("lbless-dataplane has not written observed.json yet."),
    )


@pytest.mark.parametrize("reachable", [True, False])
def test_sigterm_ends_it_at_once_with_status_0(
    plane: ControlPlane, synced: SyncedNode, reachable: bool
) -> None:
    if not reachable:
        plane.stop()
    try:
        began = time.monotonic()
        assert synced.stop() == 0
        assert time.monotonic() - began < 1.5
    finally:
        if not reachable:
            start_again(plane)


def test_everything_is_done_with_no_request_refused_and_every_rule_used(
    plane: ControlPlane, synced: SyncedNode
) -> None:
    synced.stop()
    former = len(plane.requests())

    def mine() -> list[Request]:
        user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
        return [request for request in plane.requests()[former:] if request.user == user]

    plane.api("DELETE", f"{CLUSTERIPNODES}/{synced.name}")
    synced.observe()
    synced.start()
    wait_for("the report", lambda: synced.ready)
    wait_for("a renewal", lambda: ("patch", "leases") in {(r.verb, r.resource) for r in mine()})
    synced.stop()  # its watches end, so that they are logged

    granted = {
        (verb, resource)
        for rule in _rules(RBAC / "node.yaml")
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # An apply that creates is logged as a patch, and is refused without the right to create.
    unseen = {("create", "clusteripnodes"), ("create", "leases")}
    wait_for("all of it", lambda: {(r.verb, r.resource) for r in mine()} >= granted - unseen)
    assert {(r.verb, r.resource) for r in mine()} == granted - unseen
    assert {r.code for r in mine()} <= {200, 201}


def start_again(plane: ControlPlane) -> None:
    """Ready is not all: the API server opens its stores of custom resources a little later."""
    plane.start()
    wait_for("the stores", lambda: plane.api("GET", CLUSTERIPS) and plane.api("GET", CLUSTERIPNODES))


def _patches(node: SyncedNode) -> list[object]:
    return [r for r in node.control_plane.requests() if r.verb == "patch" and r.name == node.name]


def _rules(path: Path) -> list[dict[str, list[str]]]:
    documents = yaml.safe_load_all(path.read_text())
    return [rule for document in documents for rule in document.get("rules", [])]
