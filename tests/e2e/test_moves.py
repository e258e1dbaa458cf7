"""Whatever takes a node out of a ClusterIP: its share, and no other, is on the other nodes, in the kernel too."""

import time
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest

from lab.installation import Installation
from lab.kernelstate import owned_buckets, traces
from lab.objects import Endpoint
from lab.progress import Silence
from lbless_api import WEIGHT_ANNOTATION
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP
from lbless_api.mac import default_mac

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

LABELS = {"app": "web"}
NAMES = ("n1", "n2", "n3")
UNOWNED_SECONDS = 0.5
"""Two nodes apply one epoch within milliseconds of each other; half a second is no longer the update."""


@pytest.fixture
def web(lbless: Installation, vip: str) -> Iterator[ClusterIP]:
    """A ClusterIP for pods of `app=web`, one of them ready on each node."""
    for name in NAMES:
        lbless.control_plane.make_pod("default", f"web-{name}", name, labels=LABELS)
    lbless.create("web", {"ip": vip, "workload": {"podSelector": {"matchLabels": LABELS}}})
    yield lbless.wait_ready("web")
    lbless.delete("web")
    for name in NAMES:
        lbless.control_plane.delete_pod("default", f"web-{name}")


def in_kernel(lbless: Installation, ip: object) -> dict[str, BucketSet]:
    """Which buckets each node's rules keep."""
    return {node.name: owned_buckets(node, str(ip)) for node in lbless.lan.nodes}


def assigned(clusterip: ClusterIP) -> dict[str, BucketSet]:
    """Which buckets each node was given; an empty set where it is not named."""
    named = {a.node: a.buckets for a in clusterip.assignments}
    return {name: named.get(name, BucketSet()) for name in NAMES}


def unowned_seconds(
    lbless: Installation, ip: object, buckets: int, change: Callable[[], object], wanted: Callable[[], bool]
) -> tuple[float, float]:
    """Make a change and watch the kernels: (longest time that some bucket had no owner, whole time).

    From the end of the first look that finds a hole to the beginning of the last: on a busy machine looking takes long.
    """
    whole = BucketSet.full(buckets)
    started = time.monotonic()
    change()
    hole_since: float | None = None
    longest = 0.0
    while not wanted():
        assert time.monotonic() - started < 15, f"the kernels have {in_kernel(lbless, ip)}"
        looked = time.monotonic()
        owned = BucketSet()
        for buckets_there in in_kernel(lbless, ip).values():
            owned |= buckets_there
        if owned == whole:
            hole_since = None
        elif hole_since is None:
            hole_since = time.monotonic()
        else:
            longest = max(longest, looked - hole_since)
    return longest, time.monotonic() - started


def check_moved_away(
    lbless: Installation, before: ClusterIP, change: Callable[[], object], gone: str = "n1"
) -> ClusterIP:
    """Make the change; then the share of `gone` is on the others, nothing else moved, kernels agree."""

    def arrived() -> bool:
        kernels = in_kernel(lbless, before.spec.ip)
        return not kernels[gone] and sum(map(len, kernels.values())) == before.spec.hash.buckets

    hole, whole = unowned_seconds(lbless, before.spec.ip, before.spec.hash.buckets, change, arrived)
    print(f"moved in {whole:.2f} s, some bucket without an owner for {hole:.3f} s of it")
    assert hole < UNOWNED_SECONDS
    now = lbless.wait_ready("web", after_epoch=before.epoch)
    old, new = assigned(before), assigned(now)
    assert new[gone] == BucketSet()
    for name in set(NAMES) - {gone}:
        assert old[name].issubset(new[name]), f"{name} lost buckets that did not have to move"
    assert in_kernel(lbless, before.spec.ip) == new
    check_exclusive_and_complete(now)
    return now


def check_exclusive_and_complete(clusterip: ClusterIP) -> None:
    shares = list(assigned(clusterip).values())
    assert all(one.isdisjoint(two) for one, two in combinations(shares, 2))
    assert sum(map(len, shares)) == clusterip.spec.hash.buckets


def check_returned(lbless: Installation, gone: ClusterIP) -> None:
    """All three nodes share again, evenly, and only buckets for the returned node moved."""
    back = lbless.wait_ready("web", after_epoch=gone.epoch)
    assert sorted(map(len, assigned(back).values())) == [85, 85, 86]
    for name in ("n2", "n3"):
        assert assigned(back)[name].issubset(assigned(gone)[name])
    assert in_kernel(lbless, back.spec.ip) == assigned(back)


def test_a_pod_that_turns_unready_takes_its_nodes_share_away_and_brings_it_back(lbless, web):
    control_plane = lbless.control_plane
    gone = check_moved_away(lbless, web, lambda: control_plane.set_pod_ready("default", "web-n1", False))
    Silence().until(  # it has no flows to finish, and finds that within two seconds
        "nothing of the address on n1",
        lambda: not traces(lbless.lan.nodes[0], str(web.spec.ip), web.spec.mac),
        timeout_seconds=10,
    )
    control_plane.set_pod_ready("default", "web-n1", True)
    check_returned(lbless, gone)


@pytest.mark.parametrize(
    ("patch", "undo"),
    [
        pytest.param(
            {"spec": {"taints": [{"key": "maintenance", "effect": "NoExecute"}]}},
            {"spec": {"taints": []}},
            id="NoExecute taint",
        ),
        pytest.param(
            {"metadata": {"annotations": {WEIGHT_ANNOTATION: "0"}}},
            {"metadata": {"annotations": {WEIGHT_ANNOTATION: None}}},
            id="weight 0",
        ),
        pytest.param(
            {"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}},
            {"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": None}}},
            id="exclude label",
        ),
    ],
)
def test_a_node_that_is_taken_out_loses_its_share_and_gets_it_back(lbless, web, patch, undo):
    gone = check_moved_away(lbless, web, lambda: lbless.control_plane.patch_node("n1", patch))
    lbless.control_plane.patch_node("n1", undo)
    check_returned(lbless, gone)


def test_a_cordoned_node_keeps_its_share(lbless, web):
    lbless.control_plane.patch_node("n1", {"spec": {"unschedulable": True}})
    try:
        # Something that does make an epoch: had the cordon counted, it would be in it.
        gone = check_moved_away(
            lbless, web, lambda: lbless.control_plane.set_pod_ready("default", "web-n2", False), gone="n2"
        )
        assert assigned(web)["n1"].issubset(assigned(gone)["n1"])
    finally:
        lbless.control_plane.patch_node("n1", {"spec": {"unschedulable": None}})
        lbless.control_plane.set_pod_ready("default", "web-n2", True)


def test_a_changed_node_selector_moves_the_share_of_the_node_that_it_leaves_out(lbless, web):
    for name in ("n2", "n3"):
        lbless.control_plane.patch_node(name, {"metadata": {"labels": {"tier": "edge"}}})
    path = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips/web"

    def select(selector: object) -> None:
        lbless.control_plane.api("PATCH", path, {"spec": {"nodeSelector": selector}})

    gone = check_moved_away(lbless, web, lambda: select({"tier": "edge"}))
    select(None)
    check_returned(lbless, gone)


def test_a_deleted_node_loses_its_share(lbless, web):
    gone = check_moved_away(lbless, web, lambda: lbless.control_plane.delete_node("n1"))
    node = lbless.lan.nodes[0]
    lbless.control_plane.make_node(node.name, node.address, pod_cidr="10.244.1.0/24")
    # The agent's token was bound to the Node that is gone: as a new pod would, it gets a new one.
    lbless.stop("lbless-sync", node)
    lbless.start("lbless-sync", node)
    check_returned(lbless, gone)


def test_an_emptied_endpointslice_moves_the_shares_of_its_nodes(lbless, vip):
    control_plane = lbless.control_plane
    everywhere = [Endpoint(f"10.244.{i}.9", f"n{i}") for i in (1, 2, 3)]
    control_plane.make_service("default", "api")
    control_plane.write_endpointslice("default", "api-1", "api", everywhere[:1])
    control_plane.write_endpointslice("default", "api-2", "api", everywhere[1:])
    lbless.create("web", {"ip": vip, "workload": {"serviceRef": {"name": "api"}}})
    try:
        ready = lbless.wait_ready("web")
        assert sorted(map(len, assigned(ready).values())) == [85, 85, 86]
        gone = check_moved_away(
            lbless, ready, lambda: control_plane.write_endpointslice("default", "api-1", "api", [])
        )
        control_plane.write_endpointslice("default", "api-1", "api", everywhere[:1])
        check_returned(lbless, gone)
    finally:
        lbless.delete("web")


def test_without_any_eligible_node_the_assignment_stays_and_the_condition_says_why(lbless, web):
    for name in NAMES:
        lbless.control_plane.set_pod_ready("default", f"web-{name}", False)
    Silence().until(
        "NoEligibleNode",
        lambda: lbless.condition("web").get("reason") == "NoEligibleNode",
        timeout_seconds=10,
    )
    assert "app=web" in lbless.condition("web")["message"]
    held = {a["node"]: a["buckets"] for a in lbless.get("web")["status"]["assignments"]}
    assert sum(len(BucketSet.parse(b)) for b in held.values()) == 256
    for name in NAMES:
        lbless.control_plane.set_pod_ready("default", f"web-{name}", True)
    lbless.wait_ready("web")


def test_the_default_mac_is_in_the_status(lbless, web):
    assert lbless.get("web")["status"]["mac"] == default_mac(web.spec.ip)
