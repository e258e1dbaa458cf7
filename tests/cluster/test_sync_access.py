"""Who may do what with lbless's objects by the rules that it ships: the API server's own answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.syncing import NAMESPACE, RBAC, wait_for
from lab import claim
from lab.controlplane import CONTROLLERS, ControlPlane
from lab.lan import Lan
from lab.progress import Silence

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
NODE = f"system:serviceaccount:{NAMESPACE}:lbless-node"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:lbless-operator"


@pytest.fixture(scope="module")
def access() -> Iterator[ControlPlane]:
    """The shipped rules, and one user of each built-in role in namespace default."""
    # Which the control plane that other modules share does not run.
    controllers = (*CONTROLLERS, "clusterrole-aggregation-controller")
    with (
        Lan(claim.unique("lbaccess"), nodes=0) as lan,
        ControlPlane(lan, progress=Silence(), controllers=controllers) as control_plane,
    ):
        control_plane.apply(RBAC)
        for role in ("view", "edit", "admin"):
            control_plane.kubectl(
                "create", "rolebinding", f"access-{role}", f"--clusterrole={role}", f"--user=a-{role}er"
            )
        yield control_plane


def allowed(
    control_plane: ControlPlane, user: str, verb: str, resource: str, namespace: str, name: str = ""
) -> bool:
    group, _, plural = resource.rpartition("/")
    plural, _, subresource = plural.partition(":")
    attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
    attributes |= {"subresource": subresource} if subresource else {}
    attributes |= {"name": name} if name else {}
    review = control_plane.api(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": user, "groups": ["system:authenticated"], "resourceAttributes": attributes}},
    )
    return bool(review["status"]["allowed"])


@pytest.mark.parametrize(
    ("user", "verb", "resource", "namespace", "name"),
    [
        (NODE, "list", "lbless.dev/clusterips", "", ""),
        (NODE, "patch", "lbless.dev/clusteripnodes:status", "", "n1"),
        (NODE, "patch", "coordination.k8s.io/leases", NAMESPACE, "lbless-node-n1"),
        (OPERATOR, "watch", "lbless.dev/clusterips", "", ""),
        (OPERATOR, "patch", "lbless.dev/clusterips:status", "default", "web"),
        (OPERATOR, "list", "lbless.dev/clusteripnodes", "", ""),
        (OPERATOR, "list", "/pods", "", ""),
        (OPERATOR, "watch", "/nodes", "", ""),
        (OPERATOR, "watch", "discovery.k8s.io/endpointslices", "", ""),
        (OPERATOR, "list", "networking.k8s.io/servicecidrs", "", ""),
        (OPERATOR, "list", "coordination.k8s.io/leases", NAMESPACE, ""),
        (OPERATOR, "create", "coordination.k8s.io/leases", NAMESPACE, ""),
        (OPERATOR, "update", "coordination.k8s.io/leases", NAMESPACE, "lbless-operator"),
        (OPERATOR, "create", "events.k8s.io/events", "default", ""),
    ],
)
def test_the_programs_may_do_what_they_need(
    access: ControlPlane, user: str, verb: str, resource: str, namespace: str, name: str
) -> None:
    assert allowed(access, user, verb, resource, namespace, name)


@pytest.mark.parametrize(
    ("user", "verb", "resource", "namespace", "name"),
    [
        (NODE, "patch", "lbless.dev/clusterips:status", "default", "web"),
        (NODE, "update", "lbless.dev/clusterips", "default", "web"),
        (NODE, "delete", "lbless.dev/clusteripnodes", "", "n1"),
        (NODE, "list", "lbless.dev/clusteripnodes", "", ""),
        (NODE, "patch", "/nodes", "", "n1"),
        (NODE, "list", "/pods", "", ""),
        (NODE, "list", "/secrets", NAMESPACE, ""),
        (NODE, "patch", "coordination.k8s.io/leases", "kube-node-lease", "n1"),
        (OPERATOR, "update", "lbless.dev/clusterips", "default", "web"),
        (OPERATOR, "patch", "lbless.dev/clusterips", "default", "web"),
        (OPERATOR, "delete", "lbless.dev/clusterips", "default", "web"),
        (OPERATOR, "patch", "lbless.dev/clusteripnodes:status", "", "n1"),
        (OPERATOR, "patch", "/nodes", "", "n1"),
        (OPERATOR, "list", "/secrets", NAMESPACE, ""),
        (OPERATOR, "list", "/services", "default", ""),
        (OPERATOR, "delete", "events.k8s.io/events", "default", ""),
        (OPERATOR, "update", "coordination.k8s.io/leases", NAMESPACE, "lbless-node-n1"),
        (OPERATOR, "list", "coordination.k8s.io/leases", "kube-node-lease", ""),
    ],
)
def test_the_programs_may_do_nothing_else(
    access: ControlPlane, user: str, verb: str, resource: str, namespace: str, name: str
) -> None:
    assert not allowed(access, user, verb, resource, namespace, name)


def test_who_may_view_a_namespace_sees_its_clusterips_and_nobody_else_may_make_them(
    access: ControlPlane,
) -> None:
    def aggregated() -> bool:
        return "clusterips" in str(access.api("GET", f"{ROLES}/view").get("rules"))

    wait_for("the aggregation of lbless-view into view", aggregated)
    for user in ("a-viewer", "a-editer", "a-adminer"):
        for verb in ("get", "list", "watch"):
            assert allowed(access, user, verb, "lbless.dev/clusterips", "default"), f"{user} may not {verb}"
        for verb in ("create", "update", "patch", "delete"):
            assert not allowed(access, user, verb, "lbless.dev/clusterips", "default"), f"{user} may {verb}"
