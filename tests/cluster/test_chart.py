"""The chart: a real API server takes what it renders, wrong values are named, upgrades keep the key."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import claim, valuestable
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.helm import CHART, PROGRAM, HelmError, helm
from lab.installation import CRDS, NAMESPACE
from lab.lan import Lan
from lab.progress import Silence
from lab.rest import ApiError
from lbless_nodeagent.dataplane.keyfile import load_keys

pytestmark = [
    pytest.mark.root,
    pytest.mark.apiserver,
    pytest.mark.skipif(not PROGRAM.exists(), reason="there is no helm for this kind of machine"),
]

RELEASE, EMPTY = "lbless", "empty"
NODES_PATH = "/apis/lbless.dev/v1alpha1/clusteripnodes"
VALUES = [
    [],
    ["image.registry=r.example:5000/x", "image.tag=v1", "image.pullPolicy=Always", "image.pullSecrets={a,b}"],
    ["crds.install=false", "log.format=text", "log.level=debug", "admissionPolicy=false"],
    ["crds.keep=false", "heartbeat.enabled=false"],
    ["heartbeat.existingSecret=other", "heartbeat.tickMilliseconds=50"],
    [
        "operator.replicas=1",
        "operator.leaseSeconds=30",
        "operator.livenessPort=9000",
        "operator.metricsPort=9001",
    ],
    ["operator.resources.limits.memory=1Gi", "operator.priorityClassName=", "operator.podAnnotations.a=b"],
    ["operator.nodeSelector.a=b", "operator.tolerations=null", "operator.affinity.nodeAffinity=null"],
    ["node.engine=iptables", "node.redirect=false", "node.realtime=true", "node.stateDirectory=/srv/lbless"],
    ["node.syncMetricsPort=9002", "node.dataplaneMetricsPort=9003", "node.maxSurge=10%"],
    ["node.syncResources.limits.memory=1Gi", "node.dataplaneResources.limits.memory=1Gi"],
    ["node.priorityClassName=", "node.nodeSelector.a=b", "node.tolerations=null", "node.podAnnotations.a=b"],
]
"""Each value of the chart, in some setting other than the usual one."""


def settings(values: list[str]) -> list[str]:
    """The arguments that give these values, and the one that nobody can do without."""
    return [f"--set={value}" for value in ("image.registry=registry.example", *values)]


def rendered(*values: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart renders without a cluster, by kind and name."""
    text = helm("template", RELEASE, CHART, f"--namespace={NAMESPACE}", *settings(list(values)))
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane in which Helm alone has installed anything."""
    with Lan(claim.unique("chart"), nodes=0) as lan, ControlPlane(lan, progress=Silence()) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def release(cluster: ControlPlane) -> ControlPlane:
    """The chart is installed in it."""
    arguments = ["install", RELEASE, CHART, f"--namespace={NAMESPACE}", "--create-namespace", *settings([])]
    print(helm(*arguments, kubeconfig=cluster.kubeconfig))
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": EMPTY}})
    for name in ("n1", "n2"):
        cluster.make_node(name, f"10.80.240.{name[1]}")
    return cluster


def key(cluster: ControlPlane) -> bytes:
    """The key file of the heartbeats."""
    secret = cluster.api("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/lbless-heartbeat")
    return b64decode(secret["data"]["keys"])


def test_lint_finds_nothing():
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_its_crds_are_the_projects_own():
    own = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    assert own
    assert {path.name: path.read_text() for path in (CHART / "files/crds").glob("*.yaml")} == own


def test_every_value_is_in_the_schema_and_has_a_line_that_says_what_it_is():
    schema = json.loads((CHART / "values.schema.json").read_text())
    lines = (CHART / "values.yaml").read_text().splitlines()

    def check(values: dict[str, Any], known: dict[str, Any], path: str) -> None:
        assert set(values) == set(known["properties"]) - {"global"}, path
        for name, value in values.items():
            inner = known["properties"][name]
            if "properties" in inner:
                check(value, inner, f"{path}{name}.")
            else:
                indent = "  " * path.count(".")
                at = next(i for i, line in enumerate(lines) if line.startswith(f"{indent}{name}:"))
                assert lines[at - 1].strip().startswith("#"), f"{path}{name}"

    check(yaml.safe_load("\n".join(lines)), schema, "")


def test_the_table_of_values_is_the_one_that_they_make():
    assert (CHART / "README.md").read_text() == valuestable.table((CHART / "values.yaml").read_text())


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("operator.replicas=many", "operator.replicas: Invalid type. Expected: integer, given: string"),
        ("node.engin=auto", "node: Additional property engin is not allowed"),
        ("node.engine=ipvs", 'node.engine must be one of the following: "auto", "nftables", "iptables"'),
        ("node.maxSurge=0", "node.maxSurge: Must be greater than or equal to 1"),
        ("log.level=loud", "log.level must be one of the following"),
        ("node.stateDirectory=var", "node.stateDirectory: Does not match pattern"),
        ("heartbeat.tickMilliseconds=1", "heartbeat.tickMilliseconds: Must be greater than or equal to 20"),
        (
            "image.registry=",
            "Set image.registry to where you have pushed the images: docs/images.md says how",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(value: str, sentence: str):
    with pytest.raises(HelmError) as refused:
        rendered(value)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("values", VALUES, ids=lambda values: ",".join(values) or "defaults")
def test_whatever_is_set_the_api_server_takes_all_that_is_rendered(release: ControlPlane, values: list[str]):
    # In another namespace: what differs from the installed one would be merged with it.
    documents = helm("template", RELEASE, CHART, f"--namespace={EMPTY}", *settings(values))
    done = release.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"), stdin=documents
    )
    assert "daemonset.apps/lbless-node" in done.stdout


def test_every_value_is_among_those_that_were_tried():
    tried = {value.split("=")[0] for values in VALUES for value in values}

    def leaves(known: dict[str, Any], path: str) -> Iterator[str]:
        for name, inner in known["properties"].items():
            if "properties" in inner:
                yield from leaves(inner, f"{path}{name}.")
            elif name != "global":
                yield f"{path}{name}"

    schema = json.loads((CHART / "values.schema.json").read_text())
    untried = {
        leaf for leaf in leaves(schema, "") if not any(f"{one}.".startswith(f"{leaf}.") for one in tried)
    }
    assert untried - {"image.repository"} == set()


def test_dataplane_has_two_capabilities_and_no_token_and_sync_a_token_and_no_capability():
    pod = rendered()["DaemonSet", "lbless-node"]["spec"]["template"]["spec"]
    sync, dataplane = pod["containers"]
    assert (sync["name"], dataplane["name"]) == ("sync", "dataplane")
    assert "add" not in sync["securityContext"]["capabilities"]
    assert dataplane["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "NET_RAW"]
    tokens = {volume["name"] for volume in pod["volumes"] if "projected" in volume}
    assert tokens == {"token"}
    assert pod["automountServiceAccountToken"] is False
    assert tokens & {mount["name"] for mount in dataplane["volumeMounts"]} == set()
    assert tokens < {mount["name"] for mount in sync["volumeMounts"]}
    operator = rendered()["Deployment", "lbless-operator"]["spec"]["template"]["spec"]
    assert operator["securityContext"]["runAsNonRoot"] is True
    for container in (sync, dataplane, *operator["containers"]):
        context = container["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
    for one in (pod, operator):
        assert one["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_key_is_one_and_stays_through_upgrade_and_rollback(release: ControlPlane, tmp_path: Path):
    made = key(release)
    (tmp_path / "keys").write_bytes(made)
    assert [len(one) for one in load_keys(tmp_path / "keys")] == [32]
    here = {"kubeconfig": release.kubeconfig}
    helm("upgrade", RELEASE, CHART, f"--namespace={NAMESPACE}", *settings(["log.level=debug"]), **here)
    assert key(release) == made
    helm("rollback", RELEASE, "1", f"--namespace={NAMESPACE}", **here)
    assert key(release) == made


def write(release: ControlPlane, token: Path, **body: Any) -> None:
    release.kubectl(
        *(f"--kubeconfig={token}", "apply", "--server-side", "--field-manager=test", "-f", "-"),
        stdin=json.dumps(body),
    )


def write_report(release: ControlPlane, token: Path, name: str) -> None:
    write(release, token, apiVersion="lbless.dev/v1alpha1", kind="ClusterIPNode", metadata={"name": name})


def write_lease(release: ControlPlane, token: Path, name: str) -> None:
    metadata, spec = {"name": name, "namespace": NAMESPACE}, {"holderIdentity": "test"}
    write(release, token, apiVersion="coordination.k8s.io/v1", kind="Lease", metadata=metadata, spec=spec)


def test_a_nodes_token_writes_its_own_objects_and_no_other_nodes(release: ControlPlane):
    token = release.kubeconfig_for_service_account(NAMESPACE, "lbless-node", "n1")
    write_report(release, token, "n1")
    write_lease(release, token, "lbless-node-n1")
    for attempt, name, own in (
        (write_report, "n2", "n1"),
        (write_lease, "lbless-node-n2", "lbless-node-n1"),
        (write_lease, "lbless-operator", "lbless-node-n1"),
    ):
        with pytest.raises(LabError) as refused:
            attempt(release, token, name)
        assert f"node n1 may write {own} alone, not {name}" in str(refused.value)
    unbound = release.kubeconfig_for_service_account(NAMESPACE, "lbless-node")
    with pytest.raises(LabError) as refused:
        write_report(release, unbound, "n1")
    assert "names no node" in str(refused.value)


def test_uninstalled_it_leaves_the_crds_and_nothing_else(release: ControlPlane):
    helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", kubeconfig=release.kubeconfig)
    left = release.kubectl(
        "get",
        "all,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets",
        f"--namespace={NAMESPACE}",
        "-o",
        "name",
    ).stdout.split()
    assert [name for name in left if "lbless" in name] == []
    with pytest.raises(ApiError):
        release.api("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/lbless-node")
    assert release.api("GET", NODES_PATH)["items"]
