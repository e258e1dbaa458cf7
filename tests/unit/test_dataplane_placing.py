"""What is remembered between passes: the same object for the same answer, and another for another."""

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.journal import Place
from lbless_nodeagent.dataplane.latest import Latest
from lbless_nodeagent.dataplane.network import Link
from lbless_nodeagent.dataplane.placing import Placing, Served
from unit.stateobjects import clusterip

HASH = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)
IP = IPv4Address("10.8.0.100")
VIP = Vip(IP, "eth0", "03:bf:0a:08:00:64", HASH, None, BucketSet([1]))
CLUSTERIP = clusterip("a", str(IP), {"n1": "1"})


def links(**indices: int) -> dict[int, Link]:
    return {i: Link(i, name, "02:00:00:00:00:01", ethernet=True, carrier=True) for name, i in indices.items()}


def test_a_function_is_called_again_only_with_other_arguments() -> None:
    calls: list[tuple[object, object]] = []

    def together(first: list[int], second: list[int]) -> list[int]:
        calls.append((first, second))
        return first + second

    latest = Latest(together)
    one, two = [1], [2]
    assert latest(one, two) is latest(one, two)
    assert latest(one, [3]) == [1, 3]
    assert latest(one, two) == [1, 2]
    assert len(calls) == 3


def test_other_buckets_are_the_same_places() -> None:
    placing = Placing()
    first = placing({IP: VIP}, links(eth0=2))
    assert first == (Place(2, IP, VIP.mac),)
    assert placing({IP: replace(VIP, owned=BucketSet([7]))}, links(eth0=2)) is first


vips = st.dictionaries(
    st.integers(1, 5).map(lambda n: IPv4Address(f"10.8.0.{n}")),
    st.builds(
        replace, st.just(VIP), interface=st.sampled_from(["eth0", "eth1"]), mac=st.sampled_from(["x", "y"])
    ),
)


@given(
    st.lists(
        st.tuples(vips, st.fixed_dictionaries({}, optional={n: st.integers(2, 4) for n in ("eth0", "eth1")}))
    )
)
def test_places_are_those_of_a_memory_that_is_new(
    steps: list[tuple[dict[IPv4Address, Vip], dict[str, int]]],
) -> None:
    placing = Placing()
    for drawn, indices in steps:
        found = {ip: replace(vip, ip=ip) for ip, vip in drawn.items()}
        there = links(**indices)
        assert set(placing(found, there)) == set(Placing()(found, there))


def test_a_clusterip_whose_interface_is_another_one_moved_also_after_a_while_without_any() -> None:
    served = Served()
    counted = {"a": CLUSTERIP}
    assert served.moved({"a": VIP}, counted, links(eth0=2)) == 0
    assert served.moved({}, counted, links()) == 0
    assert served.moved({"a": VIP}, counted, links(eth0=3)) == 1
    assert served.moved({"a": replace(VIP, interface="lan0")}, counted, links(lan0=3)) == 1
    assert served.moved({"a": replace(VIP, interface="lan0")}, counted, links(lan0=3)) == 0


def test_a_clusterip_that_was_changed_itself_did_not_move() -> None:
    served = Served()
    served.moved({"a": VIP}, {"a": CLUSTERIP}, links(eth0=2, eth1=3))
    other = clusterip("a", str(IP), {"n1": "1"}, interfaces=["eth1"])
    assert served.moved({"a": replace(VIP, interface="eth1")}, {"a": other}, links(eth0=2, eth1=3)) == 0
