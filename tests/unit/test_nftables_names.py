"""Names are derived, read back, and never come from outside unexamined."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.nftables.library import brief, sentence
from lbless_nodeagent.dataplane.nftables.names import (
    Role,
    answers_chain,
    bucket_set,
    egress_chain,
    entry_chain,
    group_name,
    group_of_answers,
    group_of_entry,
    group_of_judged,
    group_of_set,
    interface_of_egress,
    judged_chain,
    redirect_map,
    valid_interface,
)
from unit.nftables_strategies import groups

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,126}", re.ASCII)
interface_names = st.text("abc09_.@+-", min_size=1, max_size=15).filter(valid_interface)


def test_a_groups_name_can_be_read():
    group = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)
    assert group_name(group) == "jhash_sport_n256_s0_p32"


@given(groups)
def test_a_group_is_known_by_its_names(group: HashParameters):
    assert group_of_set(bucket_set(group, Role.OWNED)) == group
    assert group_of_judged(judged_chain(group)) == group
    assert group_of_answers(answers_chain(group)) == group
    for with_ports in (False, True):
        chain = entry_chain(group, with_ports)
        assert IDENTIFIER.fullmatch(chain)
        assert group_of_entry(chain) == (group, with_ports)


@given(groups)
def test_all_that_a_group_has_is_called_by_names_of_its_own(group: HashParameters):
    sets = [*(bucket_set(group, role) for role in Role), redirect_map(group)]
    chains = [entry_chain(group, False), entry_chain(group, True), judged_chain(group), answers_chain(group)]
    assert len({*sets, *chains}) == len(sets) + len(chains)
    assert [name for name in sets + chains if group_of_set(name)] == [bucket_set(group, Role.OWNED)]
    assert [name for name in chains if group_of_entry(name)] == chains[:2]


@pytest.mark.parametrize(
    "name",
    ["", "owned", "jhash_sport_n256_s0_p32", "jhash_sport_n0256_s0_p32_owned", "x_sport_n1_s0_p1_owned"],
)
def test_a_set_of_another_name_is_no_groups(name: str):
    assert group_of_set(name) is None


@given(interface_names)
def test_an_interface_is_known_by_its_chain(interface: str):
    assert IDENTIFIER.fullmatch(egress_chain(interface))
    assert interface_of_egress(egress_chain(interface)) == interface


@given(interface_names, interface_names)
def test_no_two_interfaces_share_a_chain(one: str, other: str):
    assert (egress_chain(one) == egress_chain(other)) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "eth*",
        'eth0"',
        "a b",
        "a\nb",
        "a\\b",
        "a{b",
        "a/b",
        "a:b",
        "ethé",
        "a" * 16,
        "eth0\n",
        "a;b",
        "a#b",
    ],
)
def test_a_name_that_could_end_a_string_or_mean_several_interfaces_is_refused(name: str):
    assert not valid_interface(name)


def test_a_refused_text_becomes_one_sentence():
    error = "/dev/stdin:1:1-5: Error: Could not process rule: No such file or directory\nadd element ip x\n^^^^^\n"
    assert brief(error) == "Could not process rule: No such file or directory"
    assert sentence(error, "\nadd element ip x\nmore") == (
        "nftables refused a change of lbless's tables (Could not process rule: No such file or directory; "
        "it begins 'add element ip x'): look for another program that edits them."
    )
    assert "CAP_NET_ADMIN" in sentence("Error: Could not process rule: Operation not permitted", "x")
