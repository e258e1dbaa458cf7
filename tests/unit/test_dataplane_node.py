"""What a node sees of itself: interfaces, addresses in use, incarnations; and the frames that it announces by."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.fields import Invalid
from lbless_api.refusal import refusal
from lbless_nodeagent.dataplane import announce
from lbless_nodeagent.dataplane.identity import (
    Identity,
    Incarnation,
    parse_identity,
    render_identity,
    with_interfaces,
    with_new,
    with_number,
)
from lbless_nodeagent.dataplane.network import Address, Link, Network, interfaces, own_addresses, taken


def link(index: int, name: str, *, kind: str = "", enslaved: bool = False, ethernet: bool = True) -> Link:
    return Link(index, name, f"02:00:00:00:00:0{index}", ethernet, carrier=True, kind=kind, enslaved=enslaved)


def address(index: int, ip: str, prefix_length: int) -> Address:
    return Address(index, IPv4Address(ip), prefix_length)


NETWORK = Network(
    links={
        1: link(1, "lo", ethernet=False),
        2: link(2, "eth0"),
        3: link(3, "eth1", enslaved=True),
        4: link(4, "br0", kind="bridge"),
        5: link(5, "veth1", kind="veth"),
        6: link(6, "cali2", kind="veth"),
        7: link(7, "lan0", kind="veth"),
        8: link(8, "kube-ipvs0", kind="dummy", ethernet=False),
        9: link(9, "vrf-port", enslaved=True),
        10: link(10, "dummy0", kind="dummy", ethernet=False),
    },
    addresses=(
        address(1, "127.0.0.1", 8),
        address(2, "10.8.0.11", 24),
        address(2, "10.8.0.100", 32),
        address(2, "10.8.0.12", 32),
        address(4, "10.9.0.11", 24),
        address(6, "169.254.1.1", 32),
        address(7, "10.10.0.11", 24),
        address(8, "10.96.0.10", 32),
        address(9, "10.11.0.11", 24),
        address(10, "10.8.0.13", 32),
    ),
    gateways=frozenset({(2, IPv4Address("10.8.0.1")), (4, IPv4Address("10.9.0.1"))}),
)
SHARED = {(2, IPv4Address("10.8.0.100"))}
OWN = own_addresses(NETWORK, SHARED)


def test_interfaces_are_those_that_can_carry_an_address_without_the_shared_ones_on_them() -> None:
    found = {i.name: [str(a) for a in i.addresses] for i in interfaces(NETWORK, OWN)}
    assert found == {
        "br0": ["10.9.0.11/24"],
        "eth0": ["10.8.0.11/24", "10.8.0.12/32"],
        "lan0": ["10.10.0.11/24"],
        "vrf-port": ["10.11.0.11/24"],
    }


def test_an_interface_knows_its_gateways() -> None:
    eth0 = next(i for i in interfaces(NETWORK, OWN) if i.name == "eth0")
    assert eth0.gateways == (IPv4Address("10.8.0.1"),)


@pytest.mark.parametrize(
    ("ip", "says"),
    [
        ("10.8.0.11", "this node (10.8.0.11/24 on eth0)"),
        ("10.8.0.12", "this node (10.8.0.12/32 on eth0)"),
        ("10.8.0.13", "this node (10.8.0.13/32 on dummy0)"),
        ("10.9.0.1", "a gateway of this node on br0"),
        ("10.8.0.255", "the broadcast address of 10.8.0.0/24"),
        ("10.244.1.7", "this node's pod range"),
    ],
)
def test_what_is_in_use_on_any_link_is_refused(ip: str, says: str) -> None:
    in_use = taken(NETWORK, OWN, [IPv4Network("10.244.1.0/24")])
    assert says in (refusal(IPv4Address(ip), in_use) or "")


def test_an_address_that_kube_proxy_keeps_for_ipvs_is_not_in_use() -> None:
    assert refusal(IPv4Address("10.96.0.10"), taken(NETWORK, OWN, [])) is None


def test_a_shared_address_that_is_already_here_is_not_in_use() -> None:
    assert refusal(IPv4Address("10.8.0.100"), taken(NETWORK, OWN, [])) is None


def test_an_own_address_that_equals_a_shared_one_on_another_link_is_in_use() -> None:
    own = own_addresses(NETWORK, {(4, IPv4Address("10.8.0.100"))})
    assert refusal(IPv4Address("10.8.0.100"), taken(NETWORK, own, []))


@given(
    runs=st.lists(
        st.tuples(
            st.sets(st.sampled_from(["eth0", "eth1", "bond0"])), st.sampled_from("abc"), st.integers(0, 2**42)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_an_incarnation_lasts_for_a_boot_and_never_comes_twice(runs: list[tuple[set[str], str, int]]) -> None:
    """Boots in any order with a clock that jumps; `boot` numbers them, as ids never come back."""
    identity = Identity()
    seen: dict[str, list[int]] = {}
    for boot, (names, letter, unix_ms) in enumerate(runs):
        boot_id = f"{boot}{letter}"
        identity = with_interfaces(identity, names, boot_id, unix_ms)
        again = with_interfaces(parse_identity(render_identity(identity)), names, boot_id, unix_ms + 5000)
        assert again == identity
        for name in names:
            number = identity.numbers()[name]
            assert number >= unix_ms
            assert all(number > former for former in seen.setdefault(name, []))
            seen[name].append(number)


def test_interfaces_that_came_and_went_do_not_grow_the_file_for_ever() -> None:
    identity = Identity()
    for number in range(500):
        identity = with_interfaces(identity, {"eth0", f"tmp{number}"}, "boot", number)
    assert len(identity.interfaces) < 100
    assert identity.interfaces["eth0"] == Incarnation(0, "boot")


@pytest.mark.parametrize(
    "garbage", [None, [], {}, {"interfaces": {"eth0": {"incarnation": -1, "bootID": ""}}}]
)
def test_an_identity_that_is_none_is_refused(garbage: object) -> None:
    with pytest.raises(Invalid):
        parse_identity(garbage)


def test_an_announcement_carries_the_cluster_mac_in_arp_and_the_nodes_own_in_ethernet() -> None:
    request, reply = announce.frames(IPv4Address("10.8.0.100"), "03:bf:0a:08:00:64", "02:00:00:00:00:02")
    ethernet = bytes.fromhex("ffffffffffff 020000000002 0806")
    sender = bytes.fromhex("03bf0a080064 0a080064")
    assert request == ethernet + bytes.fromhex("0001 0800 06 04 0001") + sender + bytes(6) + sender[6:]
    assert reply == ethernet + bytes.fromhex("0001 0800 06 04 0002") + sender + b"\xff" * 6 + sender[6:]


@given(st.none() | st.integers(0, 2**48 - 2), st.integers(0, 2**47), st.integers(0, 2**48 - 1))
def test_a_new_incarnation_is_above_the_last_and_a_number_that_was_taken_never_takes_it_back(
    stored: int | None, unix_ms: int, number: int
) -> None:
    others = {"br0": Incarnation(3, "a")}
    identity = Identity({**others, **({"eth0": Incarnation(stored, "a")} if stored is not None else {})})
    new = with_new(identity, "eth0", "b", unix_ms)
    assert new.interfaces["eth0"].boot_id == "b"
    assert new.interfaces["eth0"].number == max(unix_ms, -1 if stored is None else stored + 1)
    taken = with_number(new, "eth0", "c", number)
    assert taken.interfaces["eth0"].number == max(number, new.interfaces["eth0"].number)
    assert with_new(taken, "eth0", "c", unix_ms).interfaces["eth0"].number > number or number == 2**48 - 1
    assert parse_identity(render_identity(taken)) == taken
    assert taken.interfaces["br0"] == others["br0"]
