"""A node is drained as people do it, and no connection breaks: what it began it finishes, new ones go elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from e2e.moving import NAMES
from lab import clients
from lab.echoes import Conversation
from lab.impact import Impact
from lab.installation import DATAPLANE, SYNC, Installation, owner
from lab.kernelstate import owned_buckets
from lab.progress import Silence
from lab.servers import ECHO_PORT
from lbless_api.clusterip import ClusterIP

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

LABELS = {"app": "web"}
CONNECTIONS, SYNS_PER_SECOND = 200, 100
NODE, POD = "n1", "/api/v1/namespaces/default/pods/web-n1"


@pytest.fixture
def web(lbless: Installation, vip: str) -> Iterator[ClusterIP]:
    """A ClusterIP for pods of `app=web`, one of them ready on each node."""
    for name in NAMES:
        lbless.control_plane.make_pod("default", f"web-{name}", name, labels=LABELS)
    lbless.create("web", {"ip": vip, "workload": {"podSelector": {"matchLabels": LABELS}}})
    try:
        yield lbless.wait_ready("web")
    finally:
        lbless.delete("web")
        for name in NAMES:
            lbless.control_plane.delete_pod("default", f"web-{name}")


def evict(lbless: Installation) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "web-n1", "namespace": "default"},
    }
    lbless.control_plane.api("POST", f"{POD}/eviction", body)


def delete(lbless: Installation) -> None:
    lbless.control_plane.api("DELETE", POD)


def taint(lbless: Installation) -> None:
    taints = [{"key": "maintenance", "effect": "NoExecute"}]
    lbless.control_plane.patch_node(NODE, {"spec": {"taints": taints}})


def make_pod_anew(lbless: Installation) -> None:
    """What the kubelet and a controller do once the old one has finished."""
    lbless.control_plane.delete_pod("default", "web-n1")
    lbless.control_plane.make_pod("default", "web-n1", NODE, labels=LABELS)


def untaint(lbless: Installation) -> None:
    lbless.control_plane.patch_node(NODE, {"spec": {"taints": []}})


def through(lbless: Installation, web: ClusterIP, leave: Callable[[Installation], None]) -> Impact:
    """What clients notice while the node is taken out, which must be all through when they have ended."""
    node, ip = lbless.lan.nodes[0], str(web.spec.ip)
    with clients.asking(
        lbless.lan.client,
        ip,
        web.spec.hash,
        lbless.lan.owner_of,
        connections=CONNECTIONS,
        per_second=SYNS_PER_SECOND,
    ) as seen:
        leave(lbless)
        Silence().until("the move", lambda: not owned_buckets(node, ip), timeout_seconds=10)
        since = time.monotonic()
        Silence().until("what n1 drains to be said", lambda: draining(lbless) > 0, timeout_seconds=10)
        await_more(seen)  # while the node only finishes
    own = [one for one in seen.echoes.ended if first_owner(web, one) == NODE]
    assert len(own) > CONNECTIONS // 6
    assert NODE not in {probe.answerer for probe in seen.log.probes(since)}
    Silence().until(
        "the drain to be over", lambda: not lbless.get("web")["status"].get("moves"), timeout_seconds=30
    )
    return seen.impact()


def await_more(seen: clients.Clients) -> None:
    """Until so many more connections were made and are over."""
    since = time.monotonic()
    Silence().until(
        "more connections", lambda: len(seen.log.probes(since)) >= SYNS_PER_SECOND, timeout_seconds=30
    )


def first_owner(web: ClusterIP, one: Conversation) -> str:
    return owner(web, one.source, one.source_port, ECHO_PORT)


def draining(lbless: Installation) -> int:
    """How many flows the node still has to finish, as users are told."""
    status = lbless.get("web")["status"]
    if not any(move["from"] == NODE for move in status.get("moves", [])):
        return 0
    report = lbless.control_plane.api("GET", f"/apis/lbless.dev/v1alpha1/clusteripnodes/{NODE}")["status"]
    flows = sum(one["flows"] for one in report.get("drains", []) if one["clusterIP"] == "default/web")
    return flows if f"{NODE} " in lbless.condition("web", "Programmed")["message"] else 0


@pytest.mark.parametrize(
    ("leave", "comeback"), [(evict, make_pod_anew), (delete, make_pod_anew), (taint, untaint)]
)
def test_a_node_that_is_drained_finishes_what_it_has_and_gets_its_share_back(
    lbless: Installation, web: ClusterIP, leave, comeback
) -> None:
    try:
        noticed = through(lbless, web, leave)
    finally:
        comeback(lbless)
    print(noticed)
    assert [fault for row in noticed.rows for fault in row.faults] == []
    node, ip = lbless.lan.nodes[0], str(web.spec.ip)
    Silence().until("its share", lambda: len(owned_buckets(node, ip)) in {85, 86}, timeout_seconds=20)


def test_kubectl_drain_waits_for_what_the_node_finishes_and_breaks_nothing(
    lbless: Installation, web: ClusterIP
) -> None:
    control_plane = lbless.control_plane
    arguments = ("drain", NODE, "--ignore-daemonsets", "--force", "--timeout=60s")
    with ThreadPoolExecutor(1) as pool:
        drain: Future[object] | None = None

        def leave(_: Installation) -> None:
            nonlocal drain
            drain = pool.submit(control_plane.kubectl, *arguments, timeout=90)

        try:
            noticed = through(lbless, web, leave)
            assert drain is not None
            assert not drain.done()
        finally:
            make_pod_anew(lbless)
            if drain is not None:
                drain.result(60)
            control_plane.kubectl("uncordon", NODE)
    print(noticed)
    assert [fault for row in noticed.rows for fault in row.faults] == []


def test_the_agents_pod_of_a_node_is_deleted_and_made_anew_and_nothing_breaks(
    lbless: Installation, web: ClusterIP
) -> None:
    """The DaemonSet's: both of its programs end, in any order, and begin again. No bucket moves."""
    lan, node = lbless.lan, lbless.lan.nodes[0]
    with clients.asking(
        lan.client,
        str(web.spec.ip),
        web.spec.hash,
        lan.owner_of,
        connections=CONNECTIONS,
        per_second=SYNS_PER_SECOND,
    ) as seen:
        for programs in ((SYNC, DATAPLANE), (DATAPLANE, SYNC)):
            for program in programs:
                lbless.stop(program, node)
            before = lbless.serving(node)
            for program in programs:
                lbless.start(program, node)
            Silence().until("it to serve", lambda: lbless.serving(node) > before, timeout_seconds=20)  # noqa: B023
            await_more(seen)
    noticed = seen.impact()
    print(noticed)
    assert [fault for row in noticed.rows for fault in row.faults] == []
    assert lbless.get("web")["status"]["epoch"] == web.epoch
