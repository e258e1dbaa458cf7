"""The fault proxy: transparent where nothing is ordered, and each fault is what it is called."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from lab.controlplane import ControlPlane
from lab.faultproxy import FaultProxy
from lab.inside.faultproxy import verb_of
from lbless_edge.kube import Api, ApiError, WatchEvent, connect, in_namespace, named

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

NAMESPACES = "/api/v1/namespaces"
CONFIGMAPS = "/api/v1/configmaps"
QUICK_SECONDS = 1.5

_numbers = count(1)


@pytest.fixture(scope="module")
def proxy(bare_control_plane: ControlPlane) -> Iterator[FaultProxy]:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "proxy-tests"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    }
    bare_control_plane.apply([binding])
    with FaultProxy(bare_control_plane, bare_control_plane.host) as proxy:
        yield proxy
    bare_control_plane.api("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/proxy-tests")


@pytest.fixture
def healthy(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy without a fault, before and after."""
    proxy.heal()
    yield proxy
    proxy.heal()


@pytest.fixture
def kubeconfig(bare_control_plane: ControlPlane, healthy: FaultProxy) -> Path:
    return bare_control_plane.kubeconfig_for_service_account("default", "default", server=healthy.outside_url)


@pytest.fixture
def api(kubeconfig: Path) -> Api:
    return connect(str(kubeconfig), read_timeout_seconds=QUICK_SECONDS)


def make(plane: ControlPlane) -> str:
    """Create a ConfigMap; return its name."""
    name = f"proxied-{next(_numbers)}"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    plane.api("POST", in_namespace(CONFIGMAPS, "default"), body)
    return name


def watch(api: Api) -> Iterator[WatchEvent]:
    """Watch ConfigMaps from now on."""
    _, version = next(api.list_pages(CONFIGMAPS))
    return api.watch(CONFIGMAPS, version, silence_seconds=QUICK_SECONDS)


def status_of(api: Api, path: str = NAMESPACES) -> int:
    """The status of a LIST, 0 without an answer."""
    try:
        list(api.list_pages(path))
    except ApiError as error:
        return error.status
    return 200


def test_without_a_fault_kubectl_and_watches_work_through_it_and_are_recorded(
    bare_control_plane: ControlPlane, healthy: FaultProxy, api: Api
) -> None:
    inside = bare_control_plane.kubeconfig_for_service_account("default", "default", server=healthy.url)
    former = len(healthy.requests())
    through = ["--kubeconfig", str(inside)]
    bare_control_plane.kubectl(*through, "create", "namespace", "proxied")
    directly = bare_control_plane.kubectl("get", "namespaces", "-o", "json").stdout
    proxied = bare_control_plane.kubectl(*through, "get", "namespaces", "-o", "json").stdout
    assert json.loads(proxied)["items"] == json.loads(directly)["items"]
    bare_control_plane.kubectl(*through, "delete", "namespace", "proxied", "--wait=false")
    events = watch(api)
    name = make(bare_control_plane)
    event = next(events)
    assert (event.kind, event.object["metadata"]["name"]) == ("ADDED", name)
    asked = healthy.requests()[former:]
    found = {(a.verb, a.path.split("?")[0], a.outcome) for a in asked}
    assert {
        ("POST", NAMESPACES, 201),
        ("LIST", NAMESPACES, 200),
        ("DELETE", f"{NAMESPACES}/proxied", 200),
        ("WATCH", CONFIGMAPS, 200),
    } <= found
    assert {a.verb for a in healthy.writes()} == {"POST", "DELETE"}


def test_cut_refuses_everybody_and_heals(healthy: FaultProxy, api: Api) -> None:
    events = watch(api)
    healthy.cut()
    with pytest.raises(ApiError, match="broke"):
        next(events)
    with pytest.raises(ApiError, match="Connection refused"):
        api.get(named(NAMESPACES, "default"))
    healthy.heal()
    assert status_of(api) == 200


@pytest.mark.parametrize("within_event", [False, True])
def test_a_watch_is_cut_in_the_middle_of_its_stream_and_of_a_line(
    bare_control_plane: ControlPlane, healthy: FaultProxy, api: Api, within_event: bool
) -> None:
    events = watch(api)
    make(bare_control_plane)
    assert next(events).kind == "ADDED"
    assert healthy.cut_watches("/configmaps", within_event=within_event) == 1
    with pytest.raises(ApiError, match="broke") as error:
        next(events)
    assert error.value.status == 0
    assert healthy.cut_watches("/configmaps") == 0


def test_an_expired_watch_ends_with_410(healthy: FaultProxy, api: Api) -> None:
    events = watch(api)
    assert healthy.expire_watches() == 1
    with pytest.raises(ApiError, match="too old resource version") as error:
        next(events)
    assert error.value.status == 410


def test_a_half_open_connection_is_silent_without_end_while_new_ones_work(
    bare_control_plane: ControlPlane, healthy: FaultProxy, api: Api, kubeconfig: Path
) -> None:
    assert status_of(api) == 200  # leaves an idle connection
    events = watch(api)
    healthy.stall()
    make(bare_control_plane)
    with pytest.raises(ApiError, match="nothing was heard for too long"):
        next(events)
    assert status_of(connect(str(kubeconfig))) == 200


def test_of_several_half_open_idle_connections_one_time_out_is_paid_for(
    healthy: FaultProxy, api: Api
) -> None:
    def four_at_once() -> list[int]:
        healthy.delay(0.3, verbs=["LIST"])  # so that they need one connection each
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda _: status_of(api), range(4)))

    assert four_at_once() == [200] * 4
    healthy.stall()
    assert status_of(api) == 0
    assert four_at_once() == [200] * 4


def test_new_connections_hang_as_well_where_that_is_wanted(
    healthy: FaultProxy, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbless_edge.kube.CONNECT_TIMEOUT_SECONDS", QUICK_SECONDS)
    healthy.stall(new_too=True)
    began = time.monotonic()
    assert status_of(connect(str(kubeconfig))) == 0
    assert time.monotonic() - began >= QUICK_SECONDS
    healthy.heal()
    assert status_of(connect(str(kubeconfig))) == 200


def test_faults_of_requests_strike_those_that_they_name(
    healthy: FaultProxy, api: Api, kubeconfig: Path
) -> None:
    healthy.delay(1, verbs=["LIST"], path="/namespaces")
    began = time.monotonic()
    assert status_of(api) == 200
    assert time.monotonic() - began >= 1
    assert status_of(api, CONFIGMAPS) == 200
    healthy.answer(429, verbs=["GET"], path="/namespaces/default", retry_after_seconds=7)
    with pytest.raises(ApiError, match="the fault proxy answers 429") as error:
        api.get(named(NAMESPACES, "default"))
    assert error.value.retry_after_seconds == 7
    assert api.get(named(NAMESPACES, "kube-system"))
    healthy.heal()
    healthy.answer(500, path="/configmaps")
    healthy.hang(verbs=["LIST"], path="/secrets")
    assert (status_of(api, CONFIGMAPS), status_of(api, "/api/v1/secrets"), status_of(api)) == (500, 0, 200)
    healthy.heal()
    healthy.drop(every=3, verbs=["LIST"])
    assert [status_of(api) for _ in range(6)] == [200, 200, 0, 200, 200, 0]


@pytest.mark.parametrize(
    ("method", "target", "verb"),
    [
        ("GET", "/api/v1/pods?limit=500", "LIST"),
        ("GET", "/api/v1/namespaces", "LIST"),
        ("GET", "/api/v1/namespaces/x", "GET"),
        ("GET", "/apis/lbless.dev/v1alpha1/namespaces/x/clusterips", "LIST"),
        ("GET", "/apis/lbless.dev/v1alpha1/namespaces/x/clusterips/y", "GET"),
        ("GET", "/api/v1/nodes?watch=true&limit=3", "WATCH"),
        ("GET", "/version", "GET"),
        ("PATCH", "/api/v1/nodes/n/status", "PATCH"),
    ],
)
def test_verbs_are_told_apart_as_access_rules_do(method: str, target: str, verb: str) -> None:
    assert verb_of(method, target) == verb
