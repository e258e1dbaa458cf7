"""What is read of each object, and that two facts are equal where nothing happened that matters."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.fields import Invalid
from lbless_operator.facts import (
    AgentFact,
    ClusterIPFact,
    Kind,
    LeaseFact,
    NodeFact,
    PodFact,
    RangeFact,
    SliceFact,
    parse,
)
from unit import operatorobjects as objects


def fact_of(seen, kind):
    assert isinstance(seen.fact, kind)
    return seen.fact


def test_a_nodes_heartbeats_do_not_change_its_fact():
    one = objects.node("n1", 1, nodeInfo={"kernelVersion": "6.1"}, allocatable={"cpu": "1"})
    other = objects.node("n1", 2, nodeInfo={"kernelVersion": "6.2"}, allocatable={"cpu": "2"})
    assert one.fact == other.fact


def test_a_node_is_read_whole():
    seen = objects.node(
        "n1",
        ready=False,
        labels={"zone": "a"},
        annotations={"lbless.dev/weight": "5", "other": "x"},
        taints=[{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute"}],
        addresses=("192.0.2.1", "fd00::1", "n1.example"),
        pod_ranges=("10.244.1.0/24", "fd00:1::/64"),
    )
    assert seen.fact == NodeFact(
        name="n1",
        uid="uid-n1",
        labels={"zone": "a"},
        weight="5",
        no_execute=("b",),
        ready=False,
        addresses=(IPv4Address("192.0.2.1"),),
        pod_ranges=(IPv4Network("10.244.1.0/24"),),
    )


@pytest.mark.parametrize(
    ("seen", "ready"),
    [
        (objects.pod("p", "n1"), True),
        (objects.pod("p", "n1", ready=False), False),
        (objects.pod("p", "n1", deletionTimestamp="2026-01-01T00:00:00Z"), False),
    ],
)
def test_a_pod_is_ready_by_its_condition_unless_it_is_terminating(seen, ready):
    assert fact_of(seen, PodFact).ready is ready


def test_a_pod_that_is_not_scheduled_is_none_of_ours():
    assert objects.pod("p", "").fact is None


def test_an_endpoint_whose_readiness_is_not_said_counts_as_ready():
    fact = fact_of(objects.endpoints("s", {"n1": True, "n2": None, "n3": False}), SliceFact)
    assert {node for node, _ in fact.ready} == {"n1", "n2"}


def test_an_endpoint_that_ends_is_not_ready_and_kept_apart_while_it_serves():
    fact = fact_of(objects.endpoints("s", {"a": True, "b": False, "c": False}, ending="b"), SliceFact)
    assert ({node for node, _ in fact.ready}, {node for node, _ in fact.ending}) == ({"a"}, {"b"})
    always = fact_of(objects.endpoints("s", {"a": True}, ending="a"), SliceFact)
    assert {node for node, _ in always.ready} == {"a"}, "as with publishNotReadyAddresses"


def test_other_leases_are_none_of_ours():
    other = {"metadata": objects.metadata("lbless-operator", 1, "lbless-system"), "spec": {}}
    assert parse(Kind.LEASE, other).fact is None
    assert objects.lease("n1").fact == LeaseFact("n1", "2026-01-01T00:00:00.000000Z")


def test_a_garbled_report_is_a_fault_and_counts_as_none():
    fact = fact_of(objects.agent("n1", interfaces=[{"name": "eth0"}]), AgentFact)
    assert fact.report is None
    assert "status.interfaces.mac must be a string" in fact.fault


def test_an_agent_that_has_not_reported_yet_has_no_report():
    assert parse(Kind.AGENT, {"metadata": objects.metadata("n1", 1)}).fact == AgentFact("n1", None)


def test_a_service_range_is_read_without_its_ipv6_half():
    body = {"metadata": objects.metadata("kubernetes", 1), "spec": {"cidrs": ["10.96.0.0/12", "fd00::/108"]}}
    assert parse(Kind.SERVICE_RANGE, body).fact == RangeFact((IPv4Network("10.96.0.0/12"),))


def test_a_spec_that_breaks_the_contract_is_a_fault_that_keeps_identity_and_address():
    fact = fact_of(objects.clusterip(spec={"buckets": 0}), ClusterIPFact)
    assert fact.spec is None
    assert fact.fault is not None
    assert fact.fault.reason == "Invalid"
    assert (fact.identity.key, fact.address) == ("shop/web", IPv4Address("192.0.2.10"))


@pytest.mark.parametrize(
    "assignments",
    [
        [{"node": "a", "buckets": "0-3"}, {"node": "b", "buckets": "3"}],
        [{"node": "a", "buckets": "zero"}],
        [{"node": "a"}, {"node": "a"}],
        "none",
    ],
)
def test_a_status_that_somebody_garbled_counts_as_empty_with_its_epoch(assignments):
    fact = fact_of(objects.clusterip(status={"epoch": 7, "assignments": assignments}), ClusterIPFact)
    assert (fact.status.epoch, fact.status.assignments) == (7, ())


@pytest.mark.parametrize("version", ["", "abc", "-1", None])
def test_an_object_without_a_version_that_grows_is_invalid(version):
    with pytest.raises(Invalid):
        parse(Kind.NODE, {"metadata": {"name": "n1", "resourceVersion": version}})


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "ip", "mac", "hashMode", "hashFunction", "hashSeed", "buckets", "sourcePrefixLength", "interfaces", "ports",
    "sourceMAC", "nodeSelector", "workload", "weighting", "drainTimeoutSeconds",
)  # fmt: skip
STATUS_FIELDS = (
    "observedGeneration",
    "mac",
    "nodes",
    "epoch",
    "assignments",
    "moves",
    "moving",
    "conditions",
)


@given(
    spec=json | st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json)),
    status=json | st.fixed_dictionaries({}, optional=dict.fromkeys(STATUS_FIELDS, json)),
)
def test_whatever_is_in_a_spec_or_status_is_at_most_a_fault_of_this_one_object(spec, status):
    metadata = objects.metadata("web", 5, "shop", creationTimestamp="2026-01-01T00:00:00Z", generation=1)
    fact = fact_of(
        parse(Kind.CLUSTERIP, {"metadata": metadata, "spec": spec, "status": status}), ClusterIPFact
    )
    assert (fact.spec is None) == (fact.fault is not None)
    assert fact.fault is None or len(str(fact.fault)) < 500


def test_an_annotation_of_any_size_beside_the_weight_does_not_keep_a_node_from_being_read():
    annotations = {"example.com/large": "x" * 200_000, "lbless.dev/weight": "40"}
    node = {"metadata": objects.metadata("n1", 5, annotations=annotations), "spec": {}, "status": {}}
    assert fact_of(parse(Kind.NODE, node), NodeFact).weight == "40"
