"""What an engine can do, against what a ClusterIP asks for: one sentence that says what can be had."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.capabilities import (
    Capability,
    Demand,
    demand,
    keeps_flows,
    parse_capabilities,
    refusal,
    render_capabilities,
)
from lbless_api.clusterip import HashParameters, SourceMAC, parse_spec
from lbless_api.fields import Invalid
from lbless_api.hashing import HashFunction, HashMode

TARGET = Capability(frozenset({HashFunction.LEGACY_CLUSTERIP}), frozenset(HashMode), 16)
MATCH = Capability(frozenset({HashFunction.JHASH}), frozenset({HashMode.SOURCE_IP}), 32)
ANY = Capability(frozenset(HashFunction), frozenset(HashMode), 4096, 1, True, frozenset(SourceMAC))
ABLE = st.builds(
    Capability,
    st.frozensets(st.sampled_from(HashFunction), min_size=1),
    st.frozensets(st.sampled_from(HashMode), min_size=1),
    st.integers(1, 4096),
    st.integers(1, 32),
    st.booleans(),
    st.frozensets(st.sampled_from(SourceMAC), min_size=1),
    st.booleans(),
)
ASKED = st.builds(
    Demand,
    st.builds(
        HashParameters,
        st.sampled_from(HashFunction),
        st.sampled_from(HashMode),
        st.just(0),
        st.integers(1, 4096),
        st.integers(1, 32),
    ),
    st.booleans(),
    st.sampled_from(SourceMAC),
)


def asked(**spec: object) -> Demand:
    return demand(parse_spec({"ip": "10.8.0.100", **spec}))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"hashMode": "SourceIP"},
            "256 buckets with hashFunction JHash: use 1 to 32.",
        ),
        (
            {"buckets": 12},
            "hashMode SourceIPSourcePort with hashFunction JHash: "
            "use SourceIP, or hashFunction LegacyClusterIP.",
        ),
        (
            {"hashMode": "SourceIP", "buckets": 12, "sourcePrefixLength": 24},
            "sourcePrefixLength 24 with hashFunction JHash: use 32.",
        ),
        (
            {"hashFunction": "LegacyClusterIP", "buckets": 16, "ports": [{"port": 80}]},
            "ports with hashFunction LegacyClusterIP: use a ClusterIP without ports, or another engine.",
        ),
        ({"hashFunction": "LegacyClusterIP", "buckets": 16}, None),
        ({"hashMode": "SourceIP", "buckets": 32}, None),
    ],
)
def test_what_an_engine_cannot_do_is_said_with_what_it_can(spec, sentence):
    expected = f"the iptables engine cannot do {sentence}" if sentence else None
    assert refusal("iptables", (TARGET, MATCH), asked(**spec)) == expected


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (
            {"functions": frozenset({HashFunction.LEGACY_CLUSTERIP})},
            "hashFunction JHash: use LegacyClusterIP.",
        ),
        ({"modes": frozenset({HashMode.SOURCE_IP})}, "hashMode SourceIPSourcePort: use SourceIP."),
        ({"max_buckets": 255}, "256 buckets: use 1 to 255."),
        ({"min_prefix_length": 25}, "sourcePrefixLength 24: use 25 to 32."),
        ({"ports": False}, "ports: use a ClusterIP without ports, or another engine."),
        ({"source_macs": frozenset({SourceMAC.NODE})}, "sourceMAC Cluster: use Node."),
    ],
)
def test_each_thing_that_is_asked_for_is_compared(lacking, words):
    spec = parse_spec({"ip": "10.8.0.100", "sourcePrefixLength": 24, "ports": [{"port": 80}]})
    wanted = replace(demand(spec), source_mac=SourceMAC.CLUSTER)
    assert refusal("e", (ANY,), wanted) is None
    assert refusal("e", (replace(ANY, **lacking),), wanted) == f"the e engine cannot do {words}"


@given(able=st.lists(ABLE, min_size=1, max_size=4), wanted=ASKED)
def test_nothing_is_refused_that_one_of_the_alternatives_can_do_and_all_else_is(able, wanted):
    possible = any(
        wanted.hash.function in c.functions
        and wanted.hash.mode in c.modes
        and wanted.hash.buckets <= c.max_buckets
        and wanted.hash.prefix_length >= c.min_prefix_length
        and (c.ports or not wanted.ports)
        and wanted.source_mac in c.source_macs
        for c in able
    )
    assert (refusal("e", tuple(able), wanted) is None) == possible


def test_an_older_agent_that_does_not_say_what_it_can_do_counts_as_able():
    assert refusal("nftables", (), asked()) is None


@given(able=st.lists(ABLE, max_size=4))
def test_capabilities_are_read_back_as_they_were_written(able):
    assert parse_capabilities(json.loads(json.dumps(render_capabilities(able))), "here") == tuple(able)


def test_what_a_newer_agent_can_do_besides_is_no_fault():
    (written,) = render_capabilities([MATCH])
    newer = {**written, "functions": ["JHash", "Toeplitz"], "maxBuckets": 65536, "colour": "blue"}
    assert parse_capabilities([newer], "here") == (replace(MATCH, max_buckets=65536),)


@pytest.mark.parametrize(
    "entry", [5, {}, {"maxBuckets": 0}, {"maxBuckets": 4, "modes": [1]}, {"maxBuckets": 4, "ports": "no"}]
)
def test_what_is_no_capability_is_one_sentence(entry):
    with pytest.raises(Invalid, match=r"here.*\.$"):
        parse_capabilities([entry], "here")


def test_flows_are_kept_by_an_engine_that_does_so_in_the_way_that_is_asked_for():
    moving = replace(ANY, moves=True)
    assert keeps_flows((moving,), asked())
    assert not keeps_flows((ANY,), asked())
    assert not keeps_flows((), asked())
    assert not keeps_flows((replace(TARGET, moves=True), MATCH), asked(hashMode="SourceIP", buckets=16))
