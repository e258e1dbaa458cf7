"""Which nodes may own buckets, and every sentence that says why others may not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from lbless_api import EXCLUDE_LABEL
from lbless_api.capabilities import Capability
from lbless_api.clusterip import Spec, parse_spec
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.interfaces import Interface
from lbless_api.node import EngineReport, NodeStatus
from lbless_operator.agents import Freshness
from lbless_operator.eligibility import (
    Candidate,
    Cause,
    Readiness,
    Standing,
    Verdict,
    describe,
    explain_incapable,
    explain_none,
    explain_undrained,
    judge,
)
from lbless_operator.facts import NodeFact, parse_weight

PODS = {"workload": {"podSelector": {"matchLabels": {"app": "web"}}}}
SERVICE = {"workload": {"serviceRef": {"name": "web"}}}


def spec_of(**fields: object) -> Spec:
    return parse_spec({"ip": "192.0.2.10", **fields})


def node(**fields: object) -> NodeFact:
    values = {
        "name": "n1",
        "uid": "u1",
        "labels": {},
        "weight": None,
        "no_execute": (),
        "ready": True,
        "addresses": (),
        "pod_ranges": (),
    }
    return NodeFact(**{**values, **fields})  # type: ignore[arg-type] # a test's shorthand


def report(
    address: str = "192.0.2.1/24", *, carrier: bool = True, engines: tuple[EngineReport, ...] = ()
) -> NodeStatus:
    interface = Interface(
        "eth0", "02:00:00:00:00:01", (IPv4Interface(address),), carrier=carrier, incarnation=7
    )
    return NodeStatus("6.1", engines, (interface,), "", (), ())


def verdict(
    spec: Spec | None = None,
    fact: NodeFact | None = None,
    freshness: Freshness = Freshness.FRESH,
    said: NodeStatus | None = None,
    *,
    ready: int = 1,
    named: bool = False,
    incarnation: int = 7,
    silent: bool = False,
    deleted: bool = False,
) -> Verdict:
    candidate = Candidate(
        name="n1",
        node=None if deleted else fact or node(),
        freshness=freshness,
        report=None if silent else said or report(),
    )
    readiness = Readiness({"n1": ready} if ready else {}, exists=True)
    return judge(spec or spec_of(), candidate, readiness, named=named, incarnation=incarnation)


def test_a_ready_node_with_a_fresh_agent_is_eligible_with_its_weight_and_its_interfaces_incarnation():
    assert verdict() == Verdict("n1", Standing.ELIGIBLE, None, 100, 7, True, address=IPv4Address("192.0.2.1"))


@pytest.mark.parametrize(
    ("fields", "fact", "cause"),
    [
        ({"nodeSelector": {"zone": "a"}}, node(labels={"zone": "b"}), Cause.NOT_SELECTED),
        ({}, node(labels={EXCLUDE_LABEL: ""}), Cause.EXCLUDED),
        ({}, node(weight="0"), Cause.WEIGHT_ZERO),
        ({}, node(no_execute=("k",)), Cause.TAINTED),
        (PODS, node(name="n2"), Cause.NO_READY_POD),
        (SERVICE, node(name="n2"), Cause.NO_READY_ENDPOINT),
        ({"interfaces": ["bond*"]}, node(), Cause.NO_MATCHING_INTERFACE),
    ],
)
def test_a_node_that_can_be_told_is_out_whether_it_is_named_or_not(fields, fact, cause):
    for named in (False, True):
        found = verdict(spec_of(**fields), fact, named=named)
        assert (found.standing, found.cause) == (Standing.OUT, cause)


def test_an_interface_without_carrier_takes_the_node_out():
    found = verdict(said=report(carrier=False), named=True)
    assert (found.standing, found.cause) == (Standing.OUT, Cause.NO_CARRIER)


ABLE = Capability(frozenset(HashFunction), frozenset(HashMode), 4096, 1, ports=True)
IPTABLES = EngineReport(
    "iptables",
    True,
    capabilities=(Capability(frozenset({HashFunction.LEGACY_CLUSTERIP}), frozenset(HashMode), 16),),
)
ASKS_LITTLE = {"hashFunction": "LegacyClusterIP", "buckets": 16}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, "hashFunction JHash: use LegacyClusterIP."),
        ({**ASKS_LITTLE, "buckets": 17}, "17 buckets: use 1 to 16."),
        ({**ASKS_LITTLE, "sourcePrefixLength": 24}, "sourcePrefixLength 24: use 32."),
        (
            {**ASKS_LITTLE, "ports": [{"port": 80}]},
            "ports: use a ClusterIP without ports, or another engine.",
        ),
        (ASKS_LITTLE, ""),
    ],
)
def test_a_node_whose_engine_cannot_do_what_is_asked_is_out_with_its_sentence(fields, detail, named):
    found = verdict(spec_of(**fields), said=report(engines=(IPTABLES,)), named=named)
    if not detail:
        assert found.standing is Standing.ELIGIBLE
        return
    assert (found.standing, found.cause) == (Standing.OUT, Cause.ENGINE_INCAPABLE)
    assert found.detail == f"the iptables engine cannot do {detail}"


def test_the_engine_in_use_is_what_counts_and_one_that_says_nothing_is_an_older_versions():
    unused = EngineReport("nftables", True, active=False, capabilities=(ABLE,))
    assert verdict(said=report(engines=(unused, IPTABLES))).cause is Cause.ENGINE_INCAPABLE
    assert verdict(said=report(engines=(EngineReport("nftables", True),))).standing is Standing.ELIGIBLE


@pytest.mark.parametrize("named", [False, True])
def test_a_node_whose_engine_does_not_work_is_out_with_what_it_says(named):
    useless = EngineReport("nftables", False, "This kernel has no nftables.")
    found = verdict(said=report(engines=(useless,)), named=named)
    assert (found.standing, found.cause) == (Standing.OUT, Cause.ENGINE_INCAPABLE)
    assert found.detail == "the nftables engine does not work there: This kernel has no nftables."
    long = verdict(said=report(engines=(EngineReport("nftables", False, "m" * 2000),)))
    assert len(long.detail) < 400


def test_an_agent_that_cannot_even_run_for_its_engine_keeps_what_it_has_as_it_cannot_let_go():
    nothing = NodeStatus("6.1", (EngineReport("nftables", False, "No permission."),), (), "", (), ())
    kept = verdict(said=nothing, named=True)
    assert (kept.standing, kept.cause) == (Standing.PINNED, Cause.ENGINE_INCAPABLE)
    assert "No permission." in kept.detail
    assert verdict(said=nothing).standing is Standing.OUT


def test_what_a_person_did_and_the_workload_come_before_the_engine():
    said = report(engines=(IPTABLES,))
    assert verdict(fact=node(weight="0"), said=said).cause is Cause.WEIGHT_ZERO
    assert verdict(spec_of(**PODS), said=said, ready=0).cause is Cause.NO_READY_POD


def test_a_node_that_is_not_ready_but_hears_is_eligible():
    """Kubernetes taints it NoExecute itself when its pods are to go."""
    assert verdict(fact=node(ready=False)).standing is Standing.ELIGIBLE


@pytest.mark.parametrize("freshness", [Freshness.SILENT, Freshness.ABSENT])
def test_a_silent_agent_on_a_ready_node_pins_what_the_node_has(freshness):
    found = verdict(freshness=freshness, named=True)
    assert (found.standing, found.cause) == (Standing.PINNED, Cause.AGENT_SILENT)
    assert verdict(freshness=freshness, named=False).standing is Standing.OUT


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ({"nodeSelector": {"zone": "a"}}, node()),
        ({}, node(weight="0")),
        ({}, node(no_execute=("k",))),
        (PODS, node(name="n2")),
    ],
)
def test_nothing_takes_buckets_from_a_node_that_may_be_serving_and_cannot_be_told(fields, fact):
    assert verdict(spec_of(**fields), fact, Freshness.SILENT, named=True).standing is Standing.PINNED


@pytest.mark.parametrize("freshness", [Freshness.SILENT, Freshness.ABSENT])
def test_a_silent_agent_on_a_node_that_is_not_ready_is_gone(freshness):
    found = verdict(spec_of(), node(ready=False), freshness, named=True)
    assert (found.standing, found.cause, found.selected) == (Standing.GONE, Cause.NODE_NOT_READY, True)
    elsewhere = verdict(spec_of(nodeSelector={"zone": "a"}), node(ready=False), freshness, named=True)
    assert not elsewhere.selected


def test_an_agent_not_watched_for_long_enough_is_pinned_even_on_a_node_that_is_not_ready():
    found = verdict(spec_of(), node(ready=False), Freshness.UNKNOWN, named=True)
    assert found.standing is Standing.PINNED
    assert verdict(spec_of(), node(), Freshness.UNKNOWN).standing is Standing.OUT


@pytest.mark.parametrize("freshness", list(Freshness))
def test_a_deleted_node_is_gone_and_does_not_stay_named(freshness):
    found = verdict(freshness=freshness, deleted=True, named=True)
    assert (found.standing, found.cause, found.selected) == (Standing.GONE, Cause.NODE_DELETED, False)


def test_a_fresh_agent_without_a_report_keeps_what_its_node_has_and_gets_nothing():
    assert verdict(silent=True, named=True).standing is Standing.PINNED
    assert verdict(silent=True, named=False) == Verdict("n1", Standing.OUT, Cause.NO_AGENT, selected=True)
    nothing = NodeStatus("", (), (), "", (), ())
    assert verdict(said=nothing, named=True).standing is Standing.PINNED


def test_ready_pods_weighting_multiplies_and_needs_a_workload():
    assert verdict(spec_of(**PODS, weighting="ReadyPods"), node(weight="50"), ready=3).weight == 150
    assert verdict(spec_of(weighting="ReadyPods"), node(weight="50"), ready=3).weight == 50
    assert verdict(spec_of(**PODS), node(weight="50"), ready=3).weight == 50


@pytest.mark.parametrize(
    ("annotation", "weight"),
    [
        (None, 100),
        ("0", 0),
        ("1000", 1000),
        ("1001", None),
        ("-1", None),
        ("1.5", None),
        ("007", None),
        (" 5", None),
        ("", None),
        ("5" * 5000, None),
        ("٣", None),
    ],
)
def test_a_weight_is_an_integer_from_0_to_1000(annotation, weight):
    assert parse_weight(annotation) == weight


def test_a_weight_that_is_none_counts_as_the_default():
    assert verdict(fact=node(weight="lots")).weight == 100


def out(name: str, cause: Cause) -> Verdict:
    return Verdict(name, Standing.OUT, cause)


@pytest.mark.parametrize(
    ("verdicts", "fields", "exists", "sentence"),
    [
        ([], {}, True, "The cluster has no nodes."),
        ([out("a", Cause.NODE_DELETED)], {}, True, "The cluster has no nodes."),
        (
            [out("a", Cause.NO_READY_POD), out("b", Cause.NO_READY_POD), out("c", Cause.TAINTED)],
            PODS,
            True,
            "No node is eligible, of 3 nodes: 2 have no ready pod matching app=web, 1 is tainted NoExecute.",
        ),
        (
            [out("a", Cause.NOT_SELECTED), out("b", Cause.NOT_SELECTED)],
            {"nodeSelector": {"zone": "a", "disk": "ssd"}},
            True,
            "No node matches spec.nodeSelector disk=ssd,zone=a (of 2 nodes): label the nodes, or correct the selector.",
        ),
        (
            [out("a", Cause.NO_READY_POD)],
            PODS,
            False,
            "No pod in namespace shop matches spec.workload.podSelector app=web: "
            "create the pods, or correct the selector.",
        ),
        (
            [out("a", Cause.NO_READY_ENDPOINT)],
            SERVICE,
            False,
            "Service web of spec.workload.serviceRef has no EndpointSlice in namespace shop: "
            "create the Service, or correct the name.",
        ),
        (
            [out("a", Cause.NO_AGENT)],
            {},
            True,
            "No node is eligible: the only one has no lbless agent.",
        ),
        (
            [out("a", Cause.NO_MATCHING_INTERFACE), out("b", Cause.NO_MATCHING_INTERFACE)],
            {},
            True,
            "No node has an interface whose subnet contains 192.0.2.10 (of 2 nodes): "
            "use an address of the nodes' own subnet.",
        ),
        (
            [out("a", Cause.NO_MATCHING_INTERFACE)],
            {"interfaces": ["eth*", "bond0"]},
            True,
            "No node has an interface that matches spec.interfaces eth*, bond0 (of 1 node): correct them.",
        ),
        (
            [out("a", Cause.NOT_SELECTED), out("b", Cause.NO_MATCHING_INTERFACE)],
            {"nodeSelector": {"zone": "a"}},
            True,
            "No node is eligible, of 2 nodes: 1 has no interface whose subnet contains 192.0.2.10, "
            "1 does not match nodeSelector zone=a.",
        ),
    ],
)
def test_why_no_node_is_eligible_is_one_counted_sentence(verdicts, fields, exists, sentence):
    assert explain_none(spec_of(**fields), verdicts, Readiness({}, exists), "shop") == sentence


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_words_for_one_and_for_many(cause):
    for fields in (PODS, SERVICE):
        one, many = (describe(cause, spec_of(**fields), plural=plural) for plural in (False, True))
        assert one.split()[0] in {"has", "is", "does"}
        assert many.split()[0] in {"have", "are", "do"}
        assert "{" not in one + many


def incapable(name: str, detail: str) -> Verdict:
    return Verdict(name, Standing.OUT, Cause.ENGINE_INCAPABLE, detail=detail)


def test_nodes_with_the_same_engine_are_named_together_and_sixty_four_are_not_listed():
    detail = "the iptables engine cannot do 256 buckets: use 1 to 16."
    many = [incapable(f"n{number:02}", detail) for number in range(64)]
    assert explain_incapable([out("a", Cause.TAINTED)]) == ""
    assert explain_incapable(many[:1]) == f"Node n00: {detail}"
    assert explain_incapable(many) == f"Nodes n00, n01, n02, n03, n04, n05 and 58 more: {detail}"
    different = [incapable(f"n{number:02}", f"the engine says {number}.") for number in range(64)]
    said = explain_incapable(different)
    assert said.startswith("Node n00: the engine says 0. Node n01:")
    assert said.endswith("Node n05: the engine says 5. 58 more nodes have other troubles of that kind.")


def test_where_no_node_is_eligible_the_engines_sentence_is_there():
    detail = "the iptables engine cannot do 256 buckets: use 1 to 16."
    one = explain_none(spec_of(), [incapable("a", detail)], Readiness(), "shop")
    assert one == f"No node is eligible: the only one has no engine that can serve it. Node a: {detail}"
    verdicts = [incapable("a", detail), incapable("b", detail), out("c", Cause.TAINTED)]
    assert explain_none(spec_of(), verdicts, Readiness(), "shop") == (
        "No node is eligible, of 3 nodes: 2 have no engine that can serve it, 1 is tainted NoExecute. "
        f"Nodes a and b: {detail}"
    )


@pytest.mark.parametrize(
    ("known", "lives"),
    [
        ({"named": True}, True),
        ({"fact": node(weight="0")}, True),
        ({"fact": node(no_execute=("k",)), "named": True}, True),
        ({"spec": spec_of(**PODS), "ready": 0, "named": True}, True),
        ({"freshness": Freshness.SILENT, "named": True}, True),
        ({"named": True, "incarnation": 6}, False),
        ({"freshness": Freshness.SILENT, "fact": node(ready=False), "named": True}, False),
        ({"deleted": True}, False),
    ],
)
def test_who_leaves_can_finish_its_connections_unless_it_is_dead_or_began_another_life(known, lives):
    assert verdict(**known).lives is lives


def test_an_engine_that_keeps_no_flows_is_named_with_what_may_be_done_about_it():
    keeps = EngineReport("nftables", True, capabilities=(replace(ABLE, moves=True),))
    assert verdict(said=report(engines=(keeps,))).undrained == ""
    assert verdict(said=report(engines=(EngineReport("nftables", True),))).undrained == "", "it does not say"
    loses = replace(keeps, name="iptables", capabilities=(ABLE,))
    found = verdict(said=report(engines=(loses,)))
    assert found.standing is Standing.ELIGIBLE
    assert explain_undrained([found, replace(found, node="n2"), replace(found, node="n3")], {"n1", "n2"}) == (
        "Nodes n1 and n2: the iptables engine cannot finish connections of buckets that it gives up. "
        "Use another engine there, or set spec.drainTimeoutSeconds to 0 if they may end."
    )
    told = verdict(
        said=report(engines=(replace(loses, message="nf_conntrack_tcp_be_liberal is 1: set it to 0."),))
    )
    assert told.undrained == (
        "the iptables engine cannot finish connections of buckets that it gives up: "
        "nf_conntrack_tcp_be_liberal is 1: set it to 0."
    )
    assert explain_undrained([verdict()], {"n1"}) == ""
