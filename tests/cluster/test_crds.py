"""What the API server refuses by the CRDs alone, each with its sentence, and what `kubectl` shows of them."""

import json

import pytest

from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.rest import APPLY_PATCH
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.segment import Condition, Peer, SegmentReport, parse_segment, render_segment

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

KIND = {"apiVersion": "lbless.dev/v1alpha1", "kind": "ClusterIPNode"}
PATH = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips"


def clusterip(name: str, spec: dict[str, object]) -> dict[str, object]:
    return {
        "apiVersion": "lbless.dev/v1alpha1",
        "kind": "ClusterIP",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


@pytest.fixture
def web(control_plane: ControlPlane):
    """A ClusterIP with nothing but an address."""
    yield control_plane.api("POST", PATH, clusterip("web", {"ip": "192.0.2.10"}))
    control_plane.api("DELETE", f"{PATH}/web")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "spec.ip: Required value"),
        ({"ip": "fd00::1"}, "IPv6 is not supported yet: use an IPv4 address."),
        (
            {"ip": "192.0.2.300"},
            "ip must be an IPv4 address in dotted decimal without leading zeros, such as 192.0.2.10.",
        ),
        ({"ip": "192.0.2.010"}, "ip must be an IPv4 address in dotted decimal"),
        ({"ip": "web.example"}, "ip must be an IPv4 address in dotted decimal"),
        (
            {"ip": "224.0.0.9"},
            "ip cannot be a multicast, loopback, link-local, reserved or broadcast address",
        ),
        ({"ip": "127.0.0.1"}, "ip cannot be a multicast, loopback"),
        ({"ip": "255.255.255.255"}, "ip cannot be a multicast, loopback"),
        (
            {"mac": "02:bf:00:00:00:01"},
            "mac must be a multicast address, so that every node receives the frames",
        ),
        ({"mac": "03:bf:00:00:00:zz"}, "mac must be six bytes in hexadecimal, such as 03:bf:c0:00:02:0a."),
        ({"mac": "03:bf"}, "should be at least 17 chars long"),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, "mac cannot be the broadcast address"),
        (
            {"mac": "01:80:c2:00:00:00"},
            "mac cannot be one of 01:80:c2:00:00:00 to 0f, which no switch forwards",
        ),
        (
            {"mac": "01-80-C2-00-00-0F"},
            "mac cannot be one of 01:80:c2:00:00:00 to 0f, which no switch forwards",
        ),
        (
            {"mac": "01-00-5E-00-01-05", "sourceMAC": "Cluster"},
            "sourceMAC Cluster needs a locally administered mac",
        ),
        ({"hashMode": "Random"}, 'supported values: "SourceIP", "SourceIPSourcePort"'),
        ({"buckets": 4097}, "should be less than or equal to 4096"),
        ({"buckets": 0}, "should be greater than or equal to 1"),
        ({"hashSeed": 4294967296}, "should be less than or equal to 4294967295"),
        ({"sourcePrefixLength": 33}, "should be less than or equal to 32"),
        (
            {"interfaces": ["eth0; drop"]},
            "an interface must be a name or a glob, such as eth0, ens* or bond0.",
        ),
        ({"ports": []}, "should have at least 1 items"),
        ({"ports": [{"port": 80, "endPort": 70}]}, "endPort must not be below port: swap them."),
        ({"workload": {}}, "workload must name exactly one of podSelector and serviceRef."),
        (
            {"workload": {"podSelector": {}, "serviceRef": {"name": "a"}}},
            "workload must name exactly one of podSelector and serviceRef.",
        ),
        ({"drainTimeoutSeconds": -1}, "should be greater than or equal to 0"),
        ({"reservedBuckets": "four"}, "reservedBuckets must be ranges of buckets, such as 12-15 or 0,4-7."),
        ({"reservedBuckets": "1-2-3"}, "reservedBuckets must be ranges of buckets"),
        ({"reservedBuckets": "4,"}, "reservedBuckets must be ranges of buckets"),
        ({"reservedBuckets": "1,\n2"}, "reservedBuckets must be ranges of buckets"),
        ({"reservedBuckets": "0," * 1000 + "0"}, "may not be more than 1024"),
        ({"reservedBuckets": "7-4"}, "reservedBuckets must be in ascending order, such as 0,4-7."),
        ({"reservedBuckets": "9,4"}, "reservedBuckets must be in ascending order"),
        ({"reservedBuckets": "04"}, "reservedBuckets must be ranges of buckets"),
        ({"reservedBuckets": "256"}, "reservedBuckets must be below buckets"),
        ({"reservedBuckets": "14-16", "buckets": 16}, "the last of 16 is 15."),
        ({"reservedBuckets": "0-15", "buckets": 16}, "reservedBuckets leaves the nodes none of the buckets"),
        ({"reservedBuckets": "0-7,8,9-255"}, "reservedBuckets leaves the nodes none of the buckets"),
    ],
)
def test_a_faulty_spec_is_refused_with_a_sentence(control_plane, spec, sentence):
    whole = spec if "ip" in spec or not spec else {"ip": "192.0.2.99", **spec}
    with pytest.raises(LabError) as caught:
        control_plane.api("POST", PATH, clusterip("faulty", whole))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ip": "192.0.2.11"}, "ip is immutable: delete this ClusterIP and create another one"),
        ({"mac": "03:bf:00:00:00:01"}, "mac is immutable, and can neither be set nor removed later"),
        ({"hashMode": "SourceIP"}, "hashMode is immutable"),
        ({"hashFunction": "LegacyClusterIP"}, "hashFunction is immutable"),
        ({"hashSeed": 1}, "hashSeed is immutable"),
        ({"buckets": 16}, "buckets is immutable"),
        ({"sourcePrefixLength": 24}, "sourcePrefixLength is immutable"),
    ],
)
def test_an_immutable_field_cannot_be_changed(control_plane, web, change, sentence):
    with pytest.raises(LabError) as caught:
        control_plane.api("PATCH", f"{PATH}/web", {"spec": change})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "field", ["mac", "hashMode", "hashFunction", "hashSeed", "buckets", "sourcePrefixLength"]
)
def test_unset_then_set_does_not_escape_immutability(control_plane, field):
    """Whether the unsetting is refused or defaulted: what was set in between never stays."""
    values = {
        "mac": ("03:bf:00:00:00:01", "03:bf:00:00:00:02"),
        "hashMode": ("SourceIP", "SourceIPSourcePort"),
        "hashFunction": ("LegacyClusterIP", "JHash"),
        "hashSeed": (7, 8),
        "buckets": (16, 32),
        "sourcePrefixLength": (24, 16),
    }
    first, second = values[field]
    name = f"unset-{field.lower()}"
    control_plane.api("POST", PATH, clusterip(name, {"ip": "192.0.2.50", field: first}))
    refusals = 0
    for value in (None, second):
        try:
            control_plane.api("PATCH", f"{PATH}/{name}", {"spec": {field: value}})
        except LabError as error:
            assert f"{field} is immutable" in str(error)
            refusals += 1
    assert refusals == 2
    assert control_plane.api("GET", f"{PATH}/{name}")["spec"][field] == first
    control_plane.api("DELETE", f"{PATH}/{name}")


def test_other_fields_can_be_changed(control_plane, web):
    changed = control_plane.api(
        "PATCH", f"{PATH}/web", {"spec": {"ports": [{"port": 80}], "weighting": "ReadyPods"}}
    )
    assert changed["spec"]["ports"] == [{"port": 80, "protocol": "TCP"}]


def test_reserved_buckets_can_be_set_changed_and_removed(control_plane, web):
    for reserved in ("0,4-7,255", "0-254", "", "1", None):
        changed = control_plane.api("PATCH", f"{PATH}/web", {"spec": {"reservedBuckets": reserved}})
        assert changed["spec"].get("reservedBuckets") == reserved
    with pytest.raises(LabError, match="leaves the nodes none of the buckets"):
        control_plane.api("PATCH", f"{PATH}/web", {"spec": {"reservedBuckets": "0-255"}})


def test_defaults_are_filled_in(web):
    assert web["spec"] == {
        "ip": "192.0.2.10",
        "hashMode": "SourceIPSourcePort",
        "hashFunction": "JHash",
        "hashSeed": 0,
        "buckets": 256,
        "sourcePrefixLength": 32,
        "sourceMAC": "Node",
        "weighting": "Equal",
        "drainTimeoutSeconds": 300,
    }


def test_kubectl_shows_the_columns_and_explains_the_fields(control_plane, web):
    header = control_plane.kubectl("get", "cip").stdout.splitlines()[0].split()
    assert header == ["NAME", "IP", "MAC", "MODE", "NODES", "READY", "MOVING", "AGE"]
    assert "shared address" in control_plane.kubectl("explain", "cip.spec.ip").stdout
    reserved = " ".join(control_plane.kubectl("explain", "cip.spec.reservedBuckets").stdout.split())
    assert "Buckets that machines outside lbless answer for, such as 12-15" in reserved
    assert control_plane.kubectl("get", "lbless", "-A").stdout
    listed = control_plane.kubectl(
        "get", "cip", "--field-selector", "spec.ip=192.0.2.10", "-o", "json"
    ).stdout
    assert [c["metadata"]["name"] for c in json.loads(listed)["items"]] == ["web"]


NODES = "/apis/lbless.dev/v1alpha1/clusteripnodes"


@pytest.fixture
def reporting(control_plane: ControlPlane):
    """A ClusterIPNode; what it is called with becomes the interface of its status."""
    control_plane.api("POST", NODES, {**KIND, "metadata": {"name": "n1"}})

    def report(**interface: object) -> dict:
        status = {"interfaces": [{"name": "eth0", **interface}]}
        body = {**KIND, "metadata": {"name": "n1"}, "status": status}
        path = f"{NODES}/n1/status?fieldManager=lbless-sync&force=true"
        return control_plane.api("PATCH", path, body, content_type=APPLY_PATCH)["status"]["interfaces"][0]

    yield report
    control_plane.api("DELETE", f"{NODES}/n1")


def test_what_a_node_says_of_its_segment_is_kept_as_it_is_and_an_empty_list_is_not_lost(reporting):
    said = SegmentReport(frozenset({Condition.HELD}), (Peer("n2", MAX_NUMBER),), (Peer("#" + "0f" * 8, 1),))
    assert parse_segment(reporting(**render_segment(said)), "interfaces") == said
    assert parse_segment(reporting(**render_segment(SegmentReport())), "interfaces") == SegmentReport()
    assert parse_segment(reporting(), "interfaces") is None


@pytest.mark.parametrize(
    ("interface", "sentence"),
    [
        ({"heardPeers": [{"node": "n", "incarnation": 1}] * 65}, "must have at most 64 items"),
        ({"deadPeers": [{"node": "n", "incarnation": 1}] * 65}, "must have at most 64 items"),
        ({"heardPeers": [{"node": "n" * 254, "incarnation": 1}]}, "may not be more than 253"),
        ({"heardPeers": [{"node": "n"}]}, "incarnation: Required value"),
        ({"deadPeers": [{"node": "n", "incarnation": -1}]}, "should be greater than or equal to 0"),
        ({"membership": ["Deaf"] * 9}, "must have at most 8 items"),
    ],
)
def test_a_report_of_a_segment_beyond_its_bounds_is_refused(reporting, interface, sentence):
    with pytest.raises(LabError) as caught:
        reporting(**interface)
    assert sentence in str(caught.value)


def test_kubectl_explains_what_a_node_says_of_its_segment(control_plane):
    for field, words in {
        "membership": "nobody acknowledges its heartbeats, so it must not answer",
        "heardPeers": "Together with the node itself they are its group",
        "deadPeers.node": "first 8 bytes of its SHA-256 in hex",
    }.items():
        said = control_plane.kubectl("explain", f"cipn.status.interfaces.{field}").stdout
        assert words in " ".join(said.split()), said


def test_kubectl_explains_moves_and_what_drains(control_plane):
    for field, words in {
        "cip.status.moving": "absent where none moves",
        "cip.status.moves": "which still finishes connections in them",
        "cip.status.assignments.address": "by which the others reach it",
        "cip.spec.drainTimeoutSeconds": "connections in a bucket end when it moves",
        "cipn.status.drains": "still finishes established connections in them",
        "cipn.status.drains.flows": "How many TCP connections are left",
        "cipn.status.unlistedDrains": "ClusterIPs for which drains has no room",
    }.items():
        said = control_plane.kubectl("explain", field).stdout
        assert words in " ".join(said.split()), said


def status_of(control_plane: ControlPlane, **status: object) -> dict:
    body = {**KIND, "kind": "ClusterIP", "metadata": {"name": "web"}, "status": status}
    path = f"{PATH}/web/status?fieldManager=lbless-operator&force=true"
    return control_plane.api("PATCH", path, body, content_type=APPLY_PATCH)["status"]


def test_moves_are_kept_as_they_are_and_shown(control_plane, web):
    move = {"buckets": "0-84", "from": "n1", "to": "n2"}
    assignment = {"node": "n2", "incarnation": 1, "buckets": "0-255", "share": 256, "address": "192.0.2.2"}
    said = status_of(control_plane, moves=[move], moving="85", assignments=[assignment])
    assert (said["moves"], said["moving"], said["assignments"]) == ([move], "85", [assignment])
    lines = control_plane.kubectl("get", "cip", "web").stdout.splitlines()
    at = lines[0].index("MOVING")
    assert lines[1][at:].split()[0] == "85"
    assert status_of(control_plane, moves=[]).get("moving") is None
    lines = control_plane.kubectl("get", "cip", "web").stdout.splitlines()
    assert lines[1][lines[0].index("MOVING") :].split()[0] != "85"


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"moves": [{"buckets": "0", "from": "a", "to": "b"}] * 257}, "must have at most 256 items"),
        ({"moves": [{"buckets": "0", "from": "a"}]}, "to: Required value"),
        ({"moving": "123456789"}, "may not be more than 8"),
        ({"assignments": [{"node": "a", "address": "2001:db8::1:1:1:1"}]}, "may not be more than 15"),
    ],
)
def test_moves_beyond_their_bounds_are_refused(control_plane, web, status, sentence):
    with pytest.raises(LabError) as caught:
        status_of(control_plane, **status)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"drains": [{"uid": "u"}] * 65}, "must have at most 64 items"),
        ({"drains": [{"clusterIP": "a/b"}]}, "uid: Required value"),
        ({"drains": [{"uid": "u", "flows": -1}]}, "should be greater than or equal to 0"),
        ({"drains": [{"uid": "u", "buckets": "0," * 10000}]}, "may not be more than 16384"),
        ({"unlistedDrains": "A" * 5465}, "may not be more than 5464"),
    ],
)
def test_drains_beyond_their_bounds_are_refused(control_plane, reporting, status, sentence):
    body = {**KIND, "metadata": {"name": "n1"}, "status": status}
    path = f"{NODES}/n1/status?fieldManager=lbless-sync&force=true"
    with pytest.raises(LabError) as caught:
        control_plane.api("PATCH", path, body, content_type=APPLY_PATCH)
    assert sentence in str(caught.value)
