"""What a node serves, as a function of the desired state and of what the node looks like."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP
from lbless_api.interfaces import Interface
from lbless_api.refusal import Taken, on_link_edges
from lbless_nodeagent.dataplane.decide import Decider, Decision, decide, in_force
from lbless_nodeagent.dataplane.engine import Vip
from unit.stateobjects import clusterip

ETH0 = Interface("eth0", "02:00:00:00:00:01", (IPv4Interface("10.8.0.11/24"),), (IPv4Address("10.8.0.1"),))
ETH1 = Interface("eth1", "02:00:00:00:00:02", (IPv4Interface("10.9.0.11/24"),))
IN_USE = Taken(
    {
        **on_link_edges([IPv4Network("10.8.0.0/24")]),
        IPv4Address("10.8.0.11"): "this node (10.8.0.11/24 on eth0)",
        IPv4Address("10.8.0.1"): "a gateway of this node on eth0",
    },
    {IPv4Network("10.8.0.192/26"): "this node's pod range"},
)


def decided(*clusterips: ClusterIP, node: str = "n1", refuses: str = "") -> Decision:
    return decide(
        node, clusterips, (ETH0, ETH1), IN_USE, lambda vip: refuses if str(vip.ip) == refuses else None
    )


def test_a_clusterip_that_names_this_node_is_served_on_the_interface_of_its_subnet() -> None:
    decision = decided(clusterip("a", "10.9.0.100", {"n1": "0-127", "n2": "128-255"}, ports=[{"port": 443}]))
    vip = decision.vips["a"]
    assert (vip.interface, vip.mac, str(vip.owned)) == ("eth1", "03:bf:0a:09:00:64", "0-127")
    assert vip.ports is not None
    assert vip.ports[0].first == 443


def test_a_node_that_is_named_without_buckets_holds_the_address_and_owns_nothing() -> None:
    assert decided(clusterip("a", "10.8.0.100", {"n1": "", "n2": "0-255"})).vips["a"].owned == BucketSet()


@pytest.mark.parametrize(
    "absent",
    [
        clusterip("a", "10.8.0.100", {"n2": "0-255"}),
        clusterip("a", "10.8.0.100", {"n1": "0-255"}, epoch=0),
        clusterip("a", "10.8.0.100", {}),
        clusterip("a", "10.8.0.11", {"n2": "0-255"}),
    ],
    ids=["another node", "never assigned", "nobody", "another node, though the address is ours"],
)
def test_a_clusterip_that_does_not_name_this_node_is_neither_served_nor_a_failure(absent: ClusterIP) -> None:
    assert decided(absent) == Decision({}, frozenset({"a"}), {})


@pytest.mark.parametrize(
    ("ip", "says"),
    [
        ("10.8.0.11", "Address 10.8.0.11 belongs to this node (10.8.0.11/24 on eth0)"),
        ("10.8.0.1", "belongs to a gateway of this node on eth0"),
        ("10.8.0.200", "lies in this node's pod range 10.8.0.192/26"),
        ("10.8.0.0", "the network address of 10.8.0.0/24"),
        ("10.8.0.255", "the broadcast address of 10.8.0.0/24"),
    ],
)
def test_an_address_in_use_is_refused_with_its_holder_and_what_to_do(ip: str, says: str) -> None:
    failure = decided(clusterip("a", ip, {"n1": "0-255"}, epoch=7)).failures["a"]
    assert (failure.reason, failure.epoch, failure.clusterip) == ("AddressInUse", 7, "default/vip-a")
    assert says in failure.message
    assert "choose an address" in failure.message


@pytest.mark.parametrize(
    ("ip", "spec", "says"),
    [
        ("172.16.0.1", {}, "No interface has an on-link prefix that contains 172.16.0.1"),
        ("10.8.0.100", {"interfaces": ["bond*"]}, "No interface matches spec.interfaces bond*"),
    ],
)
def test_a_node_without_a_fitting_interface_says_which_ones_it_has(
    ip: str, spec: dict[str, list[str]], says: str
) -> None:
    failure = decided(clusterip("a", ip, {"n1": "0-255"}, **spec)).failures["a"]
    assert failure.reason == "NoMatchingInterface"
    assert says in failure.message
    assert "eth0, eth1" in failure.message


def test_what_the_engine_cannot_do_is_a_failure_in_its_words() -> None:
    decision = decided(clusterip("a", "10.8.0.100", {"n1": "0-255"}), refuses="10.8.0.100")
    assert decision.failures["a"].reason == "NotSupported"
    assert not decision.vips


def test_of_two_with_one_address_the_older_works_and_the_newer_names_it() -> None:
    newer = clusterip("a", "10.8.0.100", {"n1": "0-255"}, created="2026-01-02T00:00:00Z")
    older = clusterip("b", "10.8.0.100", {"n1": "0-255"}, created="2026-01-01T00:00:00Z")
    decision = decided(newer, older)
    assert decision.vips.keys() == {"b"}
    assert decision.failures["a"].reason == "AddressConflict"
    assert "default/vip-b" in decision.failures["a"].message


def test_an_older_one_that_does_not_name_this_node_takes_no_address_here() -> None:
    newer = clusterip("a", "10.8.0.100", {"n1": "0-255"}, created="2026-01-02T00:00:00Z")
    older = clusterip("b", "10.8.0.100", {"n2": "0-255"}, created="2026-01-01T00:00:00Z")
    assert decided(newer, older).vips.keys() == {"a"}


CLUSTERIPS = st.lists(
    st.builds(
        clusterip,
        uid=st.integers(0, 30).map(lambda n: f"uid-{n}"),
        ip=st.integers(0, 255).map(lambda n: f"10.8.0.{n}"),
        shares=st.dictionaries(st.sampled_from(["n1", "n2"]), st.just(""), max_size=2),
        epoch=st.integers(0, 3),
        created=st.integers(1, 3).map(lambda n: f"2026-01-0{n}T00:00:00Z"),
    ),
    max_size=12,
    unique_by=lambda c: c.identity.uid,
)


@given(clusterips=CLUSTERIPS, order=st.randoms(use_true_random=False))
def test_each_gets_one_answer_no_address_is_served_twice_and_order_does_not_matter(
    clusterips: list[ClusterIP], order: st.DataObject
) -> None:
    decision = decided(*clusterips)
    answers = [*decision.vips, *decision.elsewhere, *decision.failures]
    assert sorted(answers) == sorted(c.identity.uid for c in clusterips)
    served = [vip.ip for vip in decision.vips.values()]
    assert len(served) == len(set(served))
    assert not set(served) & IN_USE.addresses.keys()
    shuffled = list(clusterips)
    order.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    assert decided(*shuffled) == decision


DESIRED = {"a": clusterip("a", "10.8.0.100", {"n1": "0-255"}, epoch=2)}
FORMER = {
    "a": clusterip("a", "10.8.0.100", {"n1": "0-255"}, epoch=1),
    "b": clusterip("b", "10.8.0.101", {"n1": "0-255"}),
}


def test_what_is_desired_counts_more_than_the_last_good_state() -> None:
    assert in_force(DESIRED, FORMER, unusable=(), complete=True) == DESIRED


def test_what_is_absent_stays_until_sync_has_listed_everything_since_boot() -> None:
    assert in_force(DESIRED, FORMER, unusable=(), complete=False) == {**DESIRED, "b": FORMER["b"]}


def test_the_last_good_state_stays_for_a_file_that_cannot_be_used() -> None:
    assert in_force({}, FORMER, unusable={"a"}, complete=True) == {"a": FORMER["a"]}


def test_a_vip_carries_all_that_the_rules_need() -> None:
    wanted = clusterip("a", "10.8.0.100", {"n1": "1-2"}, hashSeed=5, buckets=7, hashMode="SourceIP")
    assert decided(wanted).vips["a"] == Vip(
        ip=IPv4Address("10.8.0.100"),
        interface="eth0",
        mac="03:bf:0a:08:00:64",
        hash=wanted.spec.hash,
        ports=None,
        owned=BucketSet([1, 2]),
    )


SHARES: list[dict[str, str]] = [{"n1": "0-9"}, {"n1": "10-19", "n2": "0-9"}, {"n2": "0-255"}, {}]
NODES_NOW = [(ETH0, ETH1), (ETH1,), ()]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, ClusterIP], tuple[Interface, ...], Taken]:
    """A few ClusterIPs that fight for a few addresses, on a node that loses and finds its interfaces."""
    counted = {}
    for uid in draw(st.sets(st.sampled_from("abcde"))):
        counted[uid] = clusterip(
            uid,
            draw(st.sampled_from(["10.8.0.100", "10.8.0.101", "10.9.0.100", "10.8.0.11"])),
            draw(st.sampled_from(SHARES)),
            created=draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
        )
    return counted, draw(st.sampled_from(NODES_NOW)), draw(st.sampled_from([IN_USE, Taken()]))


@given(steps=st.lists(st.tuples(worlds(), st.sets(st.sampled_from("abcde"))), min_size=1, max_size=6))
def test_deciding_only_what_changed_comes_to_the_same_as_deciding_all(
    steps: list[tuple[tuple[dict[str, ClusterIP], tuple[Interface, ...], Taken], set[str]]],
) -> None:
    decider = Decider("n1", lambda _: None)
    counted: dict[str, ClusterIP] = {}
    for (changed, interfaces, in_use), kept in steps:
        counted = {**changed, **{uid: c for uid, c in counted.items() if uid in kept}}
        found = decider.decide(counted, interfaces, in_use)
        assert found == decide("n1", counted.values(), interfaces, in_use, lambda _: None)
        assert decider.wanted == {vip.ip: vip for vip in found.vips.values()}


def test_of_a_thousand_the_one_that_changed_is_decided_again() -> None:
    asked: list[str] = []

    def refuses(vip: Vip) -> None:
        asked.append(str(vip.ip))

    counted = {
        f"u{n}": clusterip(f"u{n}", f"10.8.{n // 250}.{n % 250 + 1}", {"n1": "0-9"}) for n in range(1000)
    }
    wide = Interface("eth0", "02:00:00:00:00:01", (IPv4Interface("10.8.0.11/16"),))
    decider = Decider("n1", refuses)
    first = decider.decide(counted, (wide,), Taken())
    assert len(asked) == 1000
    assert decider.decide(dict(counted), (wide,), Taken()) is first
    asked.clear()
    counted["u7"] = clusterip("u7", "10.8.0.8", {"n1": "0-19"}, epoch=2)
    second = decider.decide(dict(counted), (wide,), Taken())
    assert asked == ["10.8.0.8"]
    assert second.vips["u8"] is first.vips["u8"]
    assert str(second.vips["u7"].owned) == "0-19"
