"""Bad input gets one clear sentence in a condition, and harms nothing else."""

import pytest

from lab import verdict
from lab.installation import Installation
from lab.kernelstate import traces
from lab.progress import Silence

pytestmark = [pytest.mark.root, pytest.mark.apiserver]


@pytest.fixture
def good(lbless: Installation, vip: str):
    """A ClusterIP that works, beside whatever is refused."""
    lbless.create("good", {"ip": vip})
    yield lbless.wait_ready("good")
    lbless.delete("good")


@pytest.mark.parametrize(
    ("spec", "reason", "sentence"),
    [
        ({"ip": "10.80.1.2"}, "AddressInUse", "10.80.1.2 belongs to node n2"),
        ({"ip": "10.81.0.101"}, "AddressInUse", "10.81.0.101 belongs to node n1"),
        ({"ip": "10.80.0.1"}, "AddressInUse", "10.80.0.1 belongs to the gateway of node n"),
        ({"ip": "10.244.2.9"}, "AddressInUse", "10.244.2.9 lies in the pod range of node n2"),
        ({"ip": "10.96.0.50"}, "AddressInUse", "10.96.0.50 lies in"),
        ({"ip": "10.81.0.10"}, "AddressInUse", "API server"),
        ({"ip": "10.80.9.9", "interfaces": ["ens*"]}, "NoEligibleNode", "ens*"),
        ({"ip": "172.16.9.9"}, "NoEligibleNode", "172.16.9.9"),
        ({"ip": "10.80.9.9", "nodeSelector": {"no": "such"}}, "NoEligibleNode", "no=such"),
        (
            {"ip": "10.80.9.9", "workload": {"podSelector": {"matchLabels": {"app": "absent"}}}},
            "NoEligibleNode",
            "app=absent",
        ),
        ({"ip": "10.80.9.9", "workload": {"serviceRef": {"name": "absent"}}}, "NoEligibleNode", "absent"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_sentence_and_harms_nothing_else(
    lbless, good, spec, reason, sentence
):
    lbless.create("bad", spec)
    try:
        Silence().until(
            f"the reason {reason}",
            lambda: lbless.condition("bad").get("reason") == reason,
            timeout_seconds=10,
        )
        condition = lbless.condition("bad")
        assert condition["status"] == "False"
        assert sentence in condition["message"]
        assert "\n" not in condition["message"]
        assert not lbless.get("bad")["status"].get("assignments")
        if spec["ip"].startswith("10.80.9."):
            for node in lbless.lan.nodes:
                assert not traces(node, spec["ip"], "03:bf:0a:50:09:09")
        assert verdict.tcp(lbless.lan, good, 100).faults == ()
    finally:
        lbless.delete("bad")


def test_events_tell_what_happened_to_a_clusterip(lbless, good):
    described = Silence().until(
        "the Assigned event",
        lambda: (
            (text := lbless.control_plane.kubectl("describe", "cip", "good").stdout)
            and "Assigned" in text
            and text
        ),
        timeout_seconds=10,
    )
    events = described[described.index("Events:") :]
    assert "Assigned" in events
    assert "256 buckets" in events
