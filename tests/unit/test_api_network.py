"""Which interface carries an address, which addresses are refused, and the MAC of one that names none."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from lbless_api.fields import Invalid
from lbless_api.interfaces import Interface, choose_interface, own_address
from lbless_api.mac import default_mac, parse_mac, unicast_mac
from lbless_api.refusal import Taken, on_link_edges, refusal

VIP = IPv4Address("10.80.0.100")


def interface(name: str, *addresses: str) -> Interface:
    return Interface(name, "02:00:00:00:00:01", tuple(IPv4Interface(a) for a in addresses))


def test_without_globs_the_on_link_prefix_decides_and_the_longest_wins():
    found = [
        interface("mgmt0", "10.81.0.1/24"),
        interface("wide0", "10.0.0.1/8"),
        interface("eth0", "10.80.0.1/16"),
    ]
    assert choose_interface(VIP, [], found).name == "eth0"


def test_globs_restrict_and_the_prefix_still_decides_among_matches():
    found = [
        interface("ens1", "10.81.0.1/24"),
        interface("ens2", "10.80.0.1/16"),
        interface("eth0", "10.80.0.2/16"),
    ]
    assert choose_interface(VIP, ["ens*"], found).name == "ens2"


def test_globs_may_name_an_interface_of_another_subnet():
    found = [interface("bond0", "10.1.0.1/24"), interface("eth0")]
    assert choose_interface(VIP, ["eth0", "bond*"], found).name == "eth0"


@pytest.mark.parametrize(
    ("globs", "sentence"),
    [
        (["ens*"], r"No interface matches spec.interfaces ens\* \(the node has eth0\): correct the globs."),
        ([], "No interface has an on-link prefix that contains 10.80.0.100"),
    ],
)
def test_no_interface_is_said_with_what_the_node_has(globs, sentence):
    with pytest.raises(Invalid, match=sentence) as caught:
        choose_interface(VIP, globs, [interface("eth0", "192.0.2.1/24", "10.80.0.100/32")])
    assert caught.value.reason == "NoMatchingInterface"


@pytest.mark.parametrize(
    ("addresses", "own"),
    [
        (["10.80.0.1/24"], "10.80.0.1"),
        (["192.0.2.1/24", "10.80.0.7/24"], "10.80.0.7"),
        (["10.80.3.3/16", "10.80.0.7/24", "10.80.0.8/24"], "10.80.0.7"),
        (["192.0.2.1/25", "192.0.2.2/24"], "192.0.2.1"),
        (["10.80.0.100/24", "10.80.0.7/24"], "10.80.0.7"),
        (["10.80.0.100/32", "10.80.0.99/32"], None),
        ([], None),
    ],
)
def test_a_node_is_reached_by_its_own_address_on_the_shared_ones_subnet(addresses, own):
    assert own_address(VIP, interface("eth0", *addresses)) == (IPv4Address(own) if own else None)


def test_an_address_in_use_is_refused_with_its_holder():
    taken = Taken(
        {VIP: "node node-1", **on_link_edges([IPv4Network("10.80.0.0/24")])},
        {IPv4Network("10.244.0.0/16"): "the pod range of node node-1"},
    )
    assert "belongs to node node-1" in (refusal(VIP, taken) or "")
    assert "broadcast address" in (refusal(IPv4Address("10.80.0.255"), taken) or "")
    assert "network address" in (refusal(IPv4Address("10.80.0.0"), taken) or "")
    assert "lies in the pod range of node node-1 10.244.0.0/16" in (
        refusal(IPv4Address("10.244.3.9"), taken) or ""
    )
    assert refusal(IPv4Address("10.80.0.7"), taken) is None


def test_the_unicast_mac_is_the_same_without_the_group_bit():
    assert unicast_mac("03:bf:0a:00:00:64") == "02:bf:0a:00:00:64"
    assert unicast_mac("ff:ff:ff:ff:ff:fe") == "fe:ff:ff:ff:ff:fe"


@pytest.mark.parametrize("mac", ["01:00:5e:00:01:05", "01:00:00:00:00:00", "fd:00:00:00:00:01"])
def test_a_mac_whose_unicast_one_may_be_a_real_interfaces_has_none(mac: str):
    with pytest.raises(ValueError, match="not locally administered"):
        unicast_mac(mac)


def test_the_default_mac_is_derived_from_the_address():
    assert default_mac(IPv4Address("10.0.0.100")) == "03:bf:0a:00:00:64"


def test_a_mac_is_normalised():
    assert parse_mac("03-BF-0A-00-00-64") == "03:bf:0a:00:00:64"


@pytest.mark.parametrize("mac", ["01:80:c2:00:00:00", "01-80-C2-00-00-0E"])
def test_a_mac_that_bridges_keep_to_themselves_is_refused(mac: str) -> None:
    with pytest.raises(ValueError, match="no switch forwards"):
        parse_mac(mac)
    assert parse_mac("01:80:c2:00:00:10") == "01:80:c2:00:00:10"
