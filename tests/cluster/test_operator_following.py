"""What the operator reads of a cluster: pods and endpoints only where somebody asks, and nothing missed of these."""

from __future__ import annotations

import pytest

from cluster.operatorworld import Operator, World, end, until
from lab.objects import Endpoint

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


def relabel(world: World, pod: str, app: str) -> None:
    path = f"/api/v1/namespaces/{world.namespace}/pods/{pod}"
    world.control_plane.api("PATCH", path, {"metadata": {"labels": {"app": app}}})


def selecting(app: str) -> dict[str, object]:
    return {"podSelector": {"matchLabels": {"app": app}}}


def test_pods_and_slices_are_asked_for_only_where_a_clusterip_asks_for_them(program: Operator, world: World):
    cluster = world.control_plane
    a, b = world.nodes("a", "b")
    for namespace in (world.namespace, "default"):
        cluster.make_pod(namespace, f"{world.namespace}-web", a, labels={"app": "web"})
    before = len(cluster.requests())
    process = program.start()
    world.clusterip("plain", ip=world.ip)
    world.wait_shares({a: 8, b: 8}, "plain")
    asked = {request.resource for request in cluster.requests()[before:]}
    assert not asked & {"pods", "endpointslices"}
    world.patch({"spec": {"workload": selecting("web")}}, "plain")
    world.wait_shares({a: 16}, "plain")
    end(process)
    # Its watches, which count when they have ended, are among them.
    requests = [r for r in cluster.requests()[before:] if r.resource in {"pods", "endpointslices"}]
    assert {(r.resource, r.namespace, r.code) for r in requests} == {("pods", world.namespace, 200)}
    assert {r.verb for r in requests} == {"list", "watch"}


def test_a_selector_that_changes_finds_pods_that_were_none_of_ours_and_their_deletion(
    program: Operator, world: World
):
    cluster = world.control_plane
    a, b = world.nodes("a", "b")
    cluster.make_pod(world.namespace, "web", a, labels={"app": "web"})
    cluster.make_pod(world.namespace, "db", b, labels={"app": "db"})
    program.start()
    world.clusterip(workload=selecting("web"))
    world.wait_shares({a: 16})
    world.patch({"spec": {"workload": selecting("db")}})
    world.wait_shares({b: 16})
    cluster.make_pod(world.namespace, "db-2", a, labels={"app": "db"})
    world.wait_shares({a: 8, b: 8})
    cluster.delete_pod(world.namespace, "db")
    world.wait_shares({a: 16})
    # Relabelled, it is none of ours any more; and the other way round.
    relabel(world, "web", "db")
    relabel(world, "db-2", "none")
    cluster.make_pod(world.namespace, "db-3", b, labels={"app": "db"})
    world.wait_shares({a: 8, b: 8})
    relabel(world, "web", "none")
    world.wait_shares({b: 16})


def test_slices_of_another_service_in_the_namespace_decide_nothing(program: Operator, world: World):
    cluster = world.control_plane
    a, b = world.nodes("a", "b")
    cluster.write_endpointslice(world.namespace, "web-1", "web", [Endpoint("10.245.9.1", a)])
    cluster.write_endpointslice(world.namespace, "db-1", "db", [Endpoint("10.245.9.2", b)])
    program.start()
    world.clusterip(workload={"serviceRef": {"name": "web"}})
    world.wait_shares({a: 16})
    cluster.write_endpointslice(world.namespace, "web-2", "web", [Endpoint("10.245.9.3", b)])
    world.wait_shares({a: 8, b: 8})
    path = f"/apis/discovery.k8s.io/v1/namespaces/{world.namespace}/endpointslices/web-1"
    cluster.api("DELETE", path)
    world.wait_shares({b: 16})


def test_a_namespace_whose_last_asking_clusterip_is_gone_is_watched_no_longer(
    program: Operator, world: World
):
    cluster = world.control_plane
    a = world.node("a")
    cluster.make_pod(world.namespace, "web", a, labels={"app": "web"})
    program.start()
    world.clusterip(workload=selecting("web"))
    world.wait_shares({a: 16})
    before = len(cluster.requests())
    world.delete()

    def watch_ended() -> bool:
        return any(
            (r.verb, r.resource, r.namespace) == ("watch", "pods", world.namespace)
            for r in cluster.requests()[before:]
        )

    until("the watch of its pods to end", watch_ended)
