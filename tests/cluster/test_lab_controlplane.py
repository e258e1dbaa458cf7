"""The lab's control plane: it is a real one, with the rights and the tokens that a real one gives."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import claim
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.objects import Endpoint
from lab.progress import Silence
from lab.rest import ApiError

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


def await_that(what: str, condition: Callable[[], object], timeout_seconds: float = 20) -> None:
    Silence().until(what, condition, timeout_seconds=timeout_seconds)


def endpoints(control_plane: ControlPlane, namespace: str, service: str) -> dict[str, bool]:
    """Which nodes the Service's slices name, and whether they call them ready."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    slices = control_plane.api("GET", f"{path}?labelSelector=kubernetes.io/service-name={service}")["items"]
    return {
        endpoint["nodeName"]: endpoint["conditions"]["ready"]
        for one in slices
        for endpoint in one.get("endpoints") or []
    }


def test_ctrl_c_while_it_starts_leaves_nothing() -> None:
    prefix = claim.unique("stopped")
    program = (
        "from lab.lan import Lan; from lab.controlplane import ControlPlane\n"
        f"with Lan({prefix!r}, nodes=0) as lan, ControlPlane(lan): pass"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        await_that("its programs to start", lambda: len(claim.processes(prefix)) >= 2)
        owner.send_signal(signal.SIGINT)
        _, errors = owner.communicate(timeout=20)
    finally:
        owner.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert (claim.namespaces(prefix), claim.processes(prefix)) == ([], [])
    assert not list(claim.CLAIMS.glob(f"{prefix}*"))


def test_it_is_ready_and_answers_kubectl_from_inside_and_outside(bare_control_plane: ControlPlane) -> None:
    assert bare_control_plane.api("GET", "/readyz") == {"text": "ok"}
    assert "default" in bare_control_plane.kubectl("get", "namespaces", "-o", "name").stdout
    outside = bare_control_plane.kubeconfig
    assert outside.stat().st_mode & 0o777 == 0o600
    assert "https://127.0.0.1:" in outside.read_text()


def test_a_refused_request_says_which_and_why(bare_control_plane: ControlPlane) -> None:
    with pytest.raises(
        ApiError, match=r'GET /api/v1/nodes/none failed with 404: nodes "none" not found'
    ) as info:
        bare_control_plane.api("GET", "/api/v1/nodes/none")
    assert info.value.status == 404


def test_a_bound_token_names_its_node_and_dies_with_it(bare_control_plane: ControlPlane) -> None:
    bare_control_plane.make_node("bound", "10.80.1.1")
    bare_control_plane.make_service_account("default", "bound")
    path = bare_control_plane.kubeconfig_for_service_account("default", "bound", "bound")
    assert path.stat().st_mode & 0o777 == 0o600

    def whoami(check: bool) -> str:
        arguments = (f"--kubeconfig={path}", "auth", "whoami", "-o", "json")
        done = bare_control_plane.kubectl(*arguments, check=check)
        return done.stdout + done.stderr

    answer = whoami(check=True)
    assert "system:serviceaccount:default:bound" in answer
    assert '"authentication.kubernetes.io/node-name"' in answer
    # The API server remembers for 10 s that a token was good: another one, never shown yet.
    bare_control_plane.kubeconfig_for_service_account("default", "bound", "bound")
    bare_control_plane.delete_node("bound")
    await_that("the token to be refused", lambda: "Unauthorized" in whoami(check=False))


def test_a_service_account_may_nothing_unasked_and_the_audit_log_tells(
    bare_control_plane: ControlPlane,
) -> None:
    bare_control_plane.make_service_account("default", "nosy")
    path = bare_control_plane.kubeconfig_for_service_account("default", "nosy")
    with pytest.raises(LabError, match="nodes is forbidden"):
        bare_control_plane.kubectl(f"--kubeconfig={path}", "get", "nodes")
    user = "system:serviceaccount:default:nosy"
    asked = [request for request in bare_control_plane.requests() if request.user == user]
    assert ("list", "nodes", 403) in [(request.verb, request.resource, request.code) for request in asked]


def test_endpointslices_follow_the_readiness_of_pods(bare_control_plane: ControlPlane) -> None:
    namespace = "slices"
    bare_control_plane.make_namespace(namespace)
    bare_control_plane.make_service(namespace, "web", selector={"app": "web"})
    for number in (1, 2):
        bare_control_plane.make_node(f"s{number}", f"10.80.1.{number}")
        bare_control_plane.make_pod(namespace, f"web{number}", f"s{number}", labels={"app": "web"})

    def are(expected: dict[str, bool]) -> Callable[[], bool]:
        return lambda: endpoints(bare_control_plane, namespace, "web") == expected

    await_that("both to be ready", are({"s1": True, "s2": True}))
    bare_control_plane.set_pod_ready(namespace, "web1", False)
    await_that("one to be unready", are({"s1": False, "s2": True}))
    bare_control_plane.delete_pod(namespace, "web1")
    await_that("one to be gone", are({"s2": True}))


def test_endpointslices_can_be_written_by_hand(bare_control_plane: ControlPlane) -> None:
    bare_control_plane.make_service("default", "own")
    for ready in (True, False):
        written = [Endpoint("10.245.1.1", "n1"), Endpoint("10.245.1.2", "n2", ready)]
        bare_control_plane.write_endpointslice("default", "own-1", "own", written)
        assert endpoints(bare_control_plane, "default", "own") == {"n1": True, "n2": ready}


def test_nodes_have_the_readiness_and_taints_that_are_written_and_no_others(
    bare_control_plane: ControlPlane,
) -> None:
    taint = {"key": "lab", "effect": "NoExecute"}
    bare_control_plane.make_node("tainted", "10.80.1.9", ready=False, taints=[taint], labels={"zone": "a"})
    node = bare_control_plane.set_node_ready("tainted", True)
    try:
        assert [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"] == ["True"]
        assert node["spec"]["taints"] == [taint]
        assert node["metadata"]["labels"]["zone"] == "a"
        patched = bare_control_plane.patch_node("tainted", {"spec": {"taints": None}})
        assert "taints" not in patched["spec"]
    finally:
        bare_control_plane.delete_node("tainted")


def test_objects_are_applied_and_what_is_wrong_with_one_is_said(bare_control_plane: ControlPlane) -> None:
    good = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "lab", "namespace": "default"}}
    bare_control_plane.apply([good, {**good, "data": {"a": "b"}}])
    config_map = bare_control_plane.api("GET", "/api/v1/namespaces/default/configmaps/lab")
    assert config_map["data"] == {"a": "b"}
    with pytest.raises(LabError, match="kubectl apply|NoSuchKind"):
        bare_control_plane.apply([{**good, "kind": "NoSuchKind"}])


def test_the_api_server_can_be_away_and_come_back_with_its_data(bare_control_plane: ControlPlane) -> None:
    bare_control_plane.make_namespace("kept")
    bare_control_plane.stop()
    try:
        with pytest.raises(ApiError, match="the API server does not answer") as info:
            bare_control_plane.api("GET", "/readyz")
        assert info.value.status == 0
    finally:
        bare_control_plane.start()
    assert bare_control_plane.api("GET", "/api/v1/namespaces/kept")["status"]["phase"] == "Active"
