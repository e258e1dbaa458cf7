"""The state directory's files and the node's report survive the way out and back."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability
from lbless_api.digest import applied_digest
from lbless_api.fields import Invalid
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.interfaces import Interface
from lbless_api.node import (
    Drain,
    EngineReport,
    NodeStatus,
    Outstanding,
    parse_node_status,
    render_node_status,
)
from lbless_api.segment import Condition, Peer, SegmentReport
from lbless_api.state import (
    DesiredNode,
    Observed,
    parse_complete,
    parse_desired_node,
    parse_observed,
    render_complete,
    render_desired,
    render_observed,
)

INTERFACE = Interface(
    "eth0",
    "02:00:00:00:00:01",
    (IPv4Interface("10.80.0.1/16"),),
    gateways=(IPv4Address("10.80.255.254"),),
    carrier=False,
    incarnation=1764000000000,
)
SEGMENT = SegmentReport(frozenset({Condition.HELD}), (Peer("n2", 1764000000001),), (Peer("n3", 7),))
IPTABLES = Capability(frozenset({HashFunction.LEGACY_CLUSTERIP}), frozenset(HashMode), 16)
FAILURE = Outstanding(
    "uid-1", "default/web", 7, "AddressInUse", "Address 10.0.0.1 belongs to a gateway: choose another."
)

DRAIN = Drain("uid-1", "default/web", BucketSet.parse("0-84,90"), 212)


def test_observed_is_read_back_as_it_was_written():
    observed = Observed(
        boot_id="b",
        boottime_seconds=12.5,
        kernel="6.18",
        engines=(
            EngineReport("iptables", True, capabilities=(IPTABLES,), unfenced="no libnftables"),
            EngineReport("nftables", False, "no libnftables", active=False),
        ),
        interfaces=(INTERFACE, replace(INTERFACE, name="eth1", segment=SEGMENT)),
        applied={"uid-1": 7},
        failures=(FAILURE,),
        problems=("The disk is full.",),
        counters={"foreign": 9},
        repairs={"rules": 2},
        drains=(DRAIN, replace(DRAIN, uid="uid-2", buckets=BucketSet(), flows=0)),
    )
    assert parse_observed(json.loads(json.dumps(render_observed(observed)))) == observed


def test_a_nodes_report_is_read_back_as_it_was_written():
    status = NodeStatus(
        "6.18",
        (
            EngineReport(
                "iptables",
                True,
                capabilities=(IPTABLES, replace(IPTABLES, max_buckets=32)),
                unfenced="no libnftables",
            ),
        ),
        (INTERFACE,),
        "00ff",
        (FAILURE,),
        (),
        frozenset({b"abcd", b"\0\xff\0\xff"}),
        (DRAIN,),
        frozenset({b"efgh"}),
    )
    assert parse_node_status(json.loads(json.dumps(render_node_status(status)))) == status


@given(uids=st.frozensets(st.from_regex(r"[0-9A-Za-z][0-9A-Za-z-]{0,62}", fullmatch=True)))
def test_the_list_of_all_clusterips_counts_in_its_own_boot_alone(uids):
    written = render_complete("this-boot", uids)
    assert parse_complete(written, "this-boot") == uids
    assert parse_complete(written, "another-boot") is None
    assert parse_complete("", "this-boot") is None


def test_a_desired_file_keeps_what_a_node_needs_and_nothing_else():
    whole = {
        "metadata": {
            "name": "web",
            "namespace": "default",
            "uid": "u",
            "managedFields": [1],
            "annotations": {"a": "b"},
        },
        "spec": {"ip": "10.0.0.1"},
        "status": {"epoch": 3, "assignments": [], "conditions": [1]},
    }
    desired = render_desired(whole)
    assert desired["metadata"] == {"name": "web", "namespace": "default", "uid": "u"}
    assert desired["status"] == {"epoch": 3, "assignments": []}
    assert desired["spec"] == {"ip": "10.0.0.1"}


def test_pod_ranges_of_a_dual_stack_node_are_read():
    parsed = parse_desired_node({"podCIDRs": ["10.244.1.0/24", "fd00::/64"]})
    assert parsed == DesiredNode((IPv4Network("10.244.1.0/24"),))
    with pytest.raises(Invalid, match="podCIDRs '10.244.1.7/24' is not an IPv4 network"):
        parse_desired_node({"podCIDRs": ["10.244.1.7/24"]})


@given(st.dictionaries(st.text("abcdef0123456789", min_size=1), st.integers(1, 9)))
def test_a_digest_knows_any_difference_and_no_order(applied):
    digest = applied_digest(applied)
    assert digest == applied_digest(dict(reversed(applied.items())))
    for uid, epoch in applied.items():
        assert digest != applied_digest({**applied, uid: epoch + 1})
        assert digest != applied_digest({u: e for u, e in applied.items() if u != uid})


@pytest.mark.parametrize("value", [None, [], {}, {"bootID": "b"}, {"bootID": "b", "boottimeSeconds": True}])
def test_a_file_of_another_shape_is_refused(value):
    with pytest.raises(Invalid):
        parse_observed(value)


@pytest.mark.parametrize("wrong", [{"buckets": "4-0"}, {"buckets": 3}, {"flows": -1}, {"uid": None}])
def test_a_drain_that_cannot_be_read_is_refused_with_its_field(wrong):
    entry = {"uid": "u", "clusterIP": "default/web", "buckets": "0", "flows": 1, **wrong}
    with pytest.raises(Invalid, match="drains"):
        parse_observed({"bootID": "b", "boottimeSeconds": 1, "drains": [entry]})
