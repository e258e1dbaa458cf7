"""The operator without the permission to list something: what depends on it does not change, and that is said."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster.operatorworld import (
    NAMESPACE,
    Agents,
    Operator,
    World,
    await_log,
    conditions,
    end,
    log_of,
    until,
)
from lab.controlplane import ControlPlane

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


ROUND_SECONDS = 0.5


def without(rules: list[dict[str, Any]], plural: str) -> list[dict[str, Any]]:
    """Access rules less those that allow to list a resource."""
    lacking = []
    for rule in rules:
        kept = [r for r in rule["resources"] if r != plural or "list" not in rule["verbs"]]
        if kept:
            lacking.append({**rule, "resources": kept})
    return lacking


def await_work(world: World, name: str) -> None:
    """Wait until a ClusterIP's status is about its spec as it is now."""

    def works() -> bool:
        clusterip = world.get(name)
        return bool(clusterip["status"]["observedGeneration"] == clusterip["metadata"]["generation"])

    until(f"work on {name}", works)


@pytest.fixture(scope="module")
def assigned(control_plane: ControlPlane, agents: Agents, tmp_path_factory: pytest.TempPathFactory):
    """ClusterIPs of every kind of workload, assigned by an operator that has ended."""
    world = World(control_plane, agents)
    program = Operator(control_plane, tmp_path_factory.mktemp("first"))
    a, b = world.nodes("a", "b")
    labels = {"app": "web"}
    for node in (a, b):
        control_plane.make_pod(world.namespace, f"web-{node}", node, labels=labels)
    control_plane.make_service(world.namespace, "web", selector=labels)
    world.clusterip("stays")
    world.clusterip("pods", ip=world.beside(1), workload={"podSelector": {"matchLabels": labels}})
    world.clusterip("service", ip=world.beside(2), workload={"serviceRef": {"name": "web"}})
    operator = program.start()
    for name in ("stays", "pods", "service"):
        world.wait_shares({a: 8, b: 8}, name)
        world.wait_condition("Programmed", "True", "Programmed", name)
    assert end(operator) == 0
    yield world
    program.close()
    world.close()


@pytest.mark.parametrize(
    "plural", ["clusterips", "clusteripnodes", "nodes", "leases", "pods", "endpointslices", "servicecidrs"]
)
def test_without_the_permission_to_list_one_resource_what_depends_on_it_does_not_change_and_that_is_said(
    assigned: World, program: Operator, plural: str
) -> None:
    group = "/apis/rbac.authorization.k8s.io/v1"
    role = f"{group}/clusterroles/lbless-operator"
    if plural == "leases":
        role = f"{group}/namespaces/{NAMESPACE}/roles/lbless-operator"
    rules = assigned.control_plane.api("GET", role)["rules"]
    names = ("stays", "pods", "service")
    before = {name: assigned.get(name) for name in names}
    assigned.control_plane.api("PATCH", role, {"rules": without(rules, plural)})
    try:
        operator = program.start(round_seconds=ROUND_SECONDS)
        # Without a kind of workload only the ClusterIPs that have one wait; who watches it says so as well.
        whose = " about some ClusterIPs" if plural in {"pods", "endpointslices"} else ""
        line = await_log(operator, f"Nothing is decided{whose}: A permission is missing, grant it")
        assert f"{plural}" in line
        assert "is forbidden" in line
        # More attempts, which are not worth a line each; and what was known at the start is too old by then.
        time.sleep(4 * ROUND_SECONDS)
        assert log_of(operator).count("A permission is missing") == (2 if whose else 1)
        assert {name: assigned.get(name) for name in names} == before
        for name in names:
            assigned.patch({"spec": {"drainTimeoutSeconds": 100 + len(plural)}}, name)
        kept = {"pods": ("pods",), "endpointslices": ("service",)}.get(plural, names)
        for name in set(names) - set(kept):
            await_work(assigned, name)
        for name in kept:
            assert assigned.get(name)["status"] == before[name]["status"]
    finally:
        assigned.control_plane.api("PATCH", role, {"rules": rules})
    await_log(operator, "answers every LIST again", 30)
    # It works again, on all that it knew before.
    for name in names:
        await_work(assigned, name)
        assert assigned.get(name)["status"]["assignments"] == before[name]["status"]["assignments"]
        assert assigned.get(name)["status"]["epoch"] == before[name]["status"]["epoch"]
        assert conditions(assigned.get(name))["Ready"]["status"] == "True"
