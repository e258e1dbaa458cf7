"""lbless-sync where something is not there yet: the CRDs, the access rules, the Node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.conftest import install_crds
from cluster.syncing import ACCOUNT, NAMESPACE, RBAC, SyncedNode, create, wait_for
from lab import claim
from lab.controlplane import ControlPlane
from lab.lan import Lan
from lab.progress import Silence

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


@pytest.fixture(scope="module")
def empty_plane() -> Iterator[ControlPlane]:
    """One without CRDs, access rules and Nodes, which the one test here then makes."""
    with Lan(claim.unique("lbbare"), nodes=0) as lan, ControlPlane(lan, progress=Silence()) as control_plane:
        yield control_plane


def test_it_says_what_it_waits_for_and_works_as_soon_as_that_is_there(
    empty_plane: ControlPlane, tmp_path: Path
) -> None:
    empty_plane.make_namespace(NAMESPACE)
    empty_plane.make_service_account(NAMESPACE, ACCOUNT)
    # Not bound to the Node, which does not exist yet.
    kubeconfig = empty_plane.kubeconfig_for_service_account(NAMESPACE, ACCOUNT, outside=True)
    with SyncedNode(empty_plane, "late", tmp_path, kubeconfig) as node:
        node.observe({})
        node.start()

        wait_for("the sentence about permissions", lambda: 'cannot list resource "nodes"' in node.log)
        permission = (
            f'User "system:serviceaccount:{NAMESPACE}:{ACCOUNT}" cannot list resource "clusterips" in API group '
            '"lbless.dev" at the cluster scope'
        )
        wait_for("the other one", lambda: permission in node.log)
        assert "A permission is missing, grant it (helm/lbless/rbac/): " in node.log

        empty_plane.apply(RBAC)
        crds = "The CustomResourceDefinition clusterips.lbless.dev is not installed: kubectl apply -f crds/"
        wait_for("the sentence about the CRDs", lambda: crds in node.log, seconds=40)
        wait_for(
            "the sentence about the Node", lambda: "Node late does not exist: waiting" in node.log, seconds=40
        )
        assert not (node.state / "desired" / ".complete").exists()

        install_crds(empty_plane)
        create(empty_plane, "web")
        wait_for("the file", lambda: "web" in node.desired, seconds=40)
        wait_for("completeness", lambda: node.complete)

        empty_plane.make_node("late", "10.80.0.99")
        node.observe()  # it was silent for long
        wait_for("the report", lambda: node.ready["status"] == "True", seconds=40)
        node.observe()
        wait_for("the Lease", lambda: node.lease, seconds=6)
        wait_for("the news that all is well", lambda: node.log.count(" again.") >= 2)
        assert node.log.count(crds) == 1, "each sentence is logged once"
        assert node.log.count(permission) == 1
        assert node.stop() == 0
