"""Reading a ClusterIP: what is accepted, with which defaults, and the sentence for each fault."""

import copy
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import (
    PodWorkload,
    PortRange,
    Protocol,
    ServiceWorkload,
    parse_clusterip,
    parse_identity,
)
from lbless_api.fields import Invalid
from lbless_api.hashing import HashFunction, HashMode

WHOLE = {
    "metadata": {
        "namespace": "default",
        "name": "web",
        "uid": "6f1c1f9e-0c62-4c3c-9b1e-111111111111",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "generation": 3,
    },
    "spec": {"ip": "192.0.2.10"},
    "status": {
        "epoch": 7,
        "assignments": [
            {"node": "node-1", "incarnation": 1764000000000, "buckets": "0-127", "share": 128},
            {"node": "node-2", "incarnation": 1764000000001, "buckets": "128-255", "share": 128},
            {"node": "node-3", "buckets": ""},
        ],
        "moves": [{"buckets": "3", "from": "node-1", "to": "node-2"}],
    },
}


def changed(**spec: object) -> dict[str, object]:
    whole = copy.deepcopy(WHOLE)
    whole["spec"].update(spec)
    return whole


def test_defaults_are_those_of_the_crd():
    spec = parse_clusterip(WHOLE).spec
    assert spec.mac == "03:bf:c0:00:02:0a"
    assert (spec.hash.function, spec.hash.mode) == (HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT)
    assert (spec.hash.seed, spec.hash.buckets, spec.hash.prefix_length) == (0, 256, 32)
    assert spec.ports is None
    assert spec.workload is None
    assert spec.drain_timeout_seconds == 300


def test_the_status_is_what_nodes_act_on():
    clusterip = parse_clusterip(WHOLE)
    assert clusterip.epoch == 7
    assert clusterip.identity.key == "default/web"
    assert clusterip.assigned_to("node-2").buckets == BucketSet(range(128, 256))
    assert clusterip.assigned_to("node-3").buckets == BucketSet()
    assert clusterip.assigned_to("node-4") is None
    assert clusterip.moves[0].destination == "node-2"


def test_ports_are_merged_where_they_overlap_or_touch():
    ports = [
        {"port": 443},
        {"port": 80, "endPort": 90},
        {"port": 85, "endPort": 99},
        {"port": 100},
        {"protocol": "UDP", "port": 90},
    ]
    assert parse_clusterip(changed(ports=ports)).spec.ports == (
        PortRange(Protocol.TCP, 80, 100),
        PortRange(Protocol.TCP, 443, 443),
        PortRange(Protocol.UDP, 90, 90),
    )


def test_reserved_buckets_are_none_unless_given_and_the_status_may_still_assign_them():
    for nothing in ({}, {"reservedBuckets": ""}, {"reservedBuckets": None}):
        assert parse_clusterip(changed(**nothing)).spec.reserved == BucketSet()
    given_away = parse_clusterip(changed(reservedBuckets="0,100-199"))
    assert given_away.spec.reserved == BucketSet([0, *range(100, 200)])
    assert given_away.assigned_to("node-1").buckets == BucketSet(range(128))


def test_both_workload_forms_are_read():
    pods = parse_clusterip(changed(workload={"podSelector": {"matchLabels": {"app": "web"}}})).spec.workload
    assert isinstance(pods, PodWorkload)
    assert pods.selector.matches({"app": "web", "x": "y"})
    assert not pods.selector.matches({"app": "db"})
    service = parse_clusterip(changed(workload={"serviceRef": {"name": "web"}})).spec.workload
    assert service == ServiceWorkload("web")


@pytest.mark.parametrize(
    ("spec", "reason", "sentence"),
    [
        ({"ip": "fd00::1"}, "NotSupported", "IPv6 is not supported yet"),
        (
            {"ip": "192.0.2.300"},
            "Invalid",
            "spec.ip '192.0.2.300' is not an IPv4 address: write it as 192.0.2.10",
        ),
        ({"ip": 5}, "Invalid", "spec.ip must be a string, not a number"),
        ({"ip": None}, "Invalid", "spec.ip must be a string, not absent"),
        ({"ip": "224.0.0.9"}, "Invalid", "cannot be a shared address"),
        ({"ip": "127.0.0.1"}, "Invalid", "cannot be a shared address"),
        ({"mac": "02:00:00:00:00:01"}, "Invalid", "is a unicast one"),
        ({"mac": "03:00"}, "Invalid", "malformed"),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, "Invalid", "broadcast"),
        ({"hashMode": "Random"}, "Invalid", "unknown: use SourceIP or SourceIPSourcePort or"),
        ({"buckets": 5000}, "Invalid", "spec.buckets is 5000: use 1 to 4096"),
        ({"buckets": True}, "Invalid", "spec.buckets must be an integer, not a boolean"),
        ({"sourceMAC": "Switch"}, "Invalid", "spec.sourceMAC 'Switch' is unknown: use Node or Cluster"),
        ({"sourceMAC": "Cluster", "mac": "01:00:5e:00:01:05"}, "Invalid", "not locally administered"),
        ({"interfaces": ["eth0; drop"]}, "Invalid", "spec.interfaces 'eth0; drop' is malformed"),
        ({"interfaces": ['eth0"']}, "Invalid", "malformed"),
        ({"reservedBuckets": 4}, "Invalid", "spec.reservedBuckets must be a string, not a number"),
        ({"reservedBuckets": "four"}, "Invalid", "spec.reservedBuckets: bucket set 'four' is malformed"),
        ({"reservedBuckets": "9,4"}, "Invalid", "spec.reservedBuckets: .* is not in ascending order"),
        ({"reservedBuckets": "3,3"}, "Invalid", "is not in ascending order"),
        ({"reservedBuckets": "256"}, "Invalid", "bucket 256 in '256' is out of range: there are 256 buckets"),
        (
            {"reservedBuckets": "0-7,8-15", "buckets": 16},
            "Invalid",
            "spec.reservedBuckets 0-15 leaves the nodes none of the 16 buckets: leave out at least one",
        ),
        ({"reservedBuckets": "0", "buckets": 1}, "Invalid", "leaves the nodes none"),
        ({"ports": []}, "Invalid", "spec.ports is empty"),
        ({"ports": [{"port": 80, "endPort": 70}]}, "Invalid", "endPort 70 is below port 80"),
        ({"ports": [{"port": 0}]}, "Invalid", "spec.ports\\[0\\].port is 0"),
        ({"workload": {}}, "Invalid", "exactly one of podSelector and serviceRef"),
        ({"workload": {"podSelector": {}, "serviceRef": {"name": "a"}}}, "Invalid", "exactly one of"),
        ({"workload": {"serviceRef": {"name": "../x"}}}, "Invalid", "is not a Kubernetes name"),
        (
            {"workload": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}},
            "Invalid",
            "'Is' is unknown",
        ),
        ({"nodeSelector": {"a": 1}}, "Invalid", "spec.nodeSelector.a must be a string"),
    ],
)
def test_a_faulty_spec_is_refused_with_one_sentence(spec, reason, sentence):
    with pytest.raises(Invalid, match=sentence) as caught:
        parse_clusterip(changed(**spec))
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_bucket_of_two_owners_is_refused():
    whole = copy.deepcopy(WHOLE)
    whole["status"]["assignments"][1]["buckets"] = "127-255"
    with pytest.raises(Invalid, match="gives buckets 127 to two nodes"):
        parse_clusterip(whole)


def test_a_node_named_twice_is_refused():
    whole = copy.deepcopy(WHOLE)
    whole["status"]["assignments"][2]["node"] = "node-1"
    with pytest.raises(Invalid, match="names node node-1 twice"):
        parse_clusterip(whole)


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "a/b", ".hidden", "a" * 64, "a\n"])
def test_a_uid_that_could_not_name_a_file_is_refused(uid):
    whole = copy.deepcopy(WHOLE)
    whole["metadata"]["uid"] = uid
    with pytest.raises(Invalid, match=r"metadata\.uid"):
        parse_identity(whole)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "ip",
        "mac",
        "hashMode",
        "hashFunction",
        "hashSeed",
        "buckets",
        "sourcePrefixLength",
        "interfaces",
        "ports",
        "sourceMAC",
        "reservedBuckets",
    ]
    + ["nodeSelector", "workload", "weighting", "drainTimeoutSeconds"]
)


@given(st.dictionaries(fields, json_values, max_size=4))
def test_no_json_whatever_raises_anything_but_one_sentence(spec):
    try:
        made = parse_clusterip(changed(**spec))
    except Invalid as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(made.spec.ip, IPv4Address)


@given(json_values)
def test_no_object_whatever_raises_anything_but_one_sentence(obj):
    with pytest.raises(Invalid):
        parse_clusterip(obj)
