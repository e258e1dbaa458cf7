"""The operator as a process: what it says when it cannot work, who leads, and what an outage does to it."""

from __future__ import annotations

import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster.operatorworld import (
    Operator,
    World,
    await_log,
    conditions,
    end,
    log_of,
    shares,
    until,
)
from lab.controlplane import ControlPlane
from lab.installation import NAMESPACE, install_crds

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_wrong_kubeconfig_is_one_sentence_and_status_1(program: Operator, tmp_path: Path):
    process = program.start(kubeconfig=tmp_path / "none")
    assert process.wait(20) == 1
    (line,) = log_of(process).splitlines()
    assert line.endswith(f"The kubeconfig {tmp_path / 'none'} does not exist: correct $KUBECONFIG.")


def test_without_an_api_server_it_says_so_once_waits_and_ends_at_once_when_told(
    program: Operator, control_plane: ControlPlane, tmp_path: Path
):
    nowhere = tmp_path / "kubeconfig"
    text = control_plane.kubeconfig.read_text()
    server = text.split('"server": "')[1].split('"')[0]
    nowhere.write_text(text.replace(server, f"https://127.0.0.1:{free_port()}"))
    process = program.start("--lease-seconds", "3", kubeconfig=nowhere)
    await_log(process, "cannot be reached")
    time.sleep(
        1.5
    )  # no condition, a span: of several attempts, as whose failures are not said there is no sign
    assert log_of(process).count("cannot be reached") == 1
    started = time.monotonic()
    assert end(process) == 0
    assert time.monotonic() - started < 5  # it waits neither for the next attempt nor for an answer


def test_a_missing_permission_is_named_and_nothing_is_decided_before_it_is_granted(
    program: Operator, world: World
):
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/lbless-operator"
    rules = world.control_plane.api("GET", role)["rules"]
    without_nodes = [r for r in rules if "nodes" not in r["resources"]]
    world.node("a")
    world.clusterip()
    world.control_plane.api("PATCH", role, {"rules": without_nodes})
    try:
        process = program.start()
        line = await_log(process, "Nothing is decided: A permission is missing, grant it (helm/lbless/rbac/)")
        assert "nodes is forbidden" in line
        assert "status" not in world.get()
    finally:
        world.control_plane.api("PATCH", role, {"rules": rules})
    until("the assignment", lambda: shares(world.get()), 30)
    assert log_of(process).count("Nothing is decided") == 1
    await_log(process, "answers every LIST again")


def test_without_the_crds_it_says_what_to_apply_and_works_once_they_are_there(
    program: Operator, control_plane: ControlPlane, world: World
):
    for plural in ("clusterips", "clusteripnodes"):
        control_plane.kubectl("delete", "crd", f"{plural}.lbless.dev")
    try:
        process = program.start()
        await_log(
            process,
            "The CustomResourceDefinition clusterips.lbless.dev is not installed: kubectl apply -f crds/",
        )
    finally:
        install_crds(control_plane)
    world.node("a")
    world.clusterip()
    until("the assignment", lambda: shares(world.get()), 40)
    # The same again under its feet: its watches end, and begin anew when there is something to watch.
    control_plane.kubectl("delete", "crd", "clusterips.lbless.dev")
    await_log(process, "Watches failed and begin anew")
    install_crds(control_plane)
    await_log(process, "answers every LIST again")
    world.clusterip()
    until("the assignment", lambda: shares(world.get()), 40)


def test_a_stopped_leader_is_replaced_and_ends_without_a_write_when_it_wakes(program: Operator, world: World):
    a, b = world.node("a"), world.node("b")
    world.clusterip()
    first = program.start("--lease-seconds", "3")
    world.wait_shares({a: 8, b: 8})
    second = program.start("--lease-seconds", "3")
    await_log(second, f"Waiting for the Lease {NAMESPACE}/lbless-operator, which ")
    first.send_signal(signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        await_log(second, "This replica leads")
        took = time.monotonic() - stopped
        # A term of 3 s, seen from its last renewal, and a look every 0.4 s; with the default term: 17 s.
        assert took < 10, took
        world.control_plane.patch_node(b, {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})
        world.wait_shares({a: 16})
        world.wait_condition("Programmed", "True", "Programmed")
        version = world.get()["metadata"]["resourceVersion"]
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(10) == 1
    assert "was lost to" in log_of(first).splitlines()[-1]
    assert "tainted" not in log_of(first)
    assert world.get()["metadata"]["resourceVersion"] == version
    # Told to end, the leader releases the Lease, and nobody waits for it to run out.
    assert end(second) == 0
    started = time.monotonic()
    third = program.start()
    await_log(third, "This replica leads")
    assert time.monotonic() - started < 15  # the term, which it would have to see run out


def test_after_an_outage_longer_than_the_lease_work_goes_on_and_a_missed_deletion_is_found(
    program: Operator, world: World
):
    a, b = world.node("a"), world.node("b")
    world.clusterip()
    process = program.start("--lease-seconds", "3")
    world.wait_shares({a: 8, b: 8})
    world.wait_condition("Programmed", "True", "Programmed")
    before = world.get()
    world.control_plane.stop()
    try:
        await_log(process, "The Lease is not renewed:")
        time.sleep(3.5)  # a span: beyond the end of its term, which passes without a sign
    finally:
        world.control_plane.start()
    # Before its watches are there again: kopf does not tell what was deleted before it lists anew.
    world.control_plane.delete_node(b)
    world.agents.remove(b)
    await_log(process, "The Lease is renewed again.")
    after = world.wait_shares({a: 16}, timeout_seconds=30)
    # One epoch for the deleted Node, none for the outage.
    assert after["status"]["epoch"] == before["status"]["epoch"] + 1
    assert conditions(after)["Ready"]["status"] == "True"
    assert process.poll() is None


def test_the_liveness_probe_answers_while_it_leads_and_while_it_waits_to(program: Operator):
    ports = [free_port(), free_port()]
    for port in ports:
        program.start("--liveness-port", str(port), "--lease-seconds", "3")
    for port in ports:

        def answers(port: int = port) -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
                    return answer.status == 200 and answer.read() == b"ok\n"
            except urllib.error.URLError:
                return False

        until(f"port {port} to answer", answers)
