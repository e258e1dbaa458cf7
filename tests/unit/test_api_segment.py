"""What a node says of its segment, as JSON: both directions, and what nobody may write there."""

from __future__ import annotations

from typing import Any

import pytest

from lbless_api.fields import Invalid
from lbless_api.heartbeat import MAX_NUMBER, node_id
from lbless_api.node import parse_interfaces, render_interfaces
from lbless_api.segment import (
    Condition,
    Peer,
    SegmentReport,
    by_id,
    name_peers,
    parse_segment,
    render_segment,
)

REPORT = SegmentReport(
    conditions=frozenset({Condition.ACTING, Condition.HELD}),
    heard=(Peer("n1", 7), Peer("#" + node_id("n2").hex(), 8)),
    dead=(Peer("n3", MAX_NUMBER),),
)


def test_a_report_survives_its_json_and_an_interface_without_heartbeats_says_nothing():
    assert parse_segment(render_segment(REPORT), "interfaces") == REPORT
    assert parse_segment(render_segment(SegmentReport()), "interfaces") == SegmentReport()
    assert render_segment(None) == {}
    assert parse_segment({"name": "eth0", "heardPeers": []}, "interfaces") is None
    rendered = [{"name": "eth0", "mac": "02:00:00:00:00:01", **render_segment(REPORT)}]
    (interface,) = parse_interfaces(rendered, "interfaces")
    assert interface.segment == REPORT
    assert parse_interfaces(render_interfaces([interface]), "interfaces") == (interface,)


def test_a_condition_of_a_later_version_is_no_fault_and_makes_its_sender_count_for_nothing():
    parsed = parse_segment({"membership": ["Held", "Enlightened"]}, "interfaces")
    assert parsed is not None
    assert parsed.conditions == {Condition.HELD, Condition.OTHER}
    assert not parsed.is_reliable
    assert REPORT.is_reliable


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"membership": "Deaf"}, "interfaces.membership must be a list, not a string."),
        ({"heardPeers": ["n1"]}, "interfaces.heardPeers must be an object, not a string."),
        ({"deadPeers": [{"incarnation": 1}]}, "interfaces.deadPeers.node must be a string, not absent."),
        ({"heardPeers": [{"node": "n1", "incarnation": -1}]}, "incarnation is -1"),
        ({"heardPeers": [{"node": "#0102"}]}, "'#0102' is not # and 16 hexadecimal digits."),
        ({"heardPeers": [{"node": "#zz"}]}, "'#zz' is not #"),
        ({"heardPeers": [{"node": "n" * 254}]}, "254 characters long"),
        ({"heardPeers": [{"node": f"n{i}"} for i in range(65)]}, "heardPeers has 65 entries: 64 at most"),
    ],
)
def test_nonsense_is_one_sentence(fields: dict[str, Any], sentence: str):
    with pytest.raises(Invalid) as caught:
        parse_segment({"membership": [], **fields}, "interfaces")
    assert sentence in str(caught.value)


def test_a_peer_is_the_same_by_name_and_by_id():
    assert by_id(Peer("n1", 7)).life == Peer("n1", 7).life == (node_id("n1"), 7)
    assert by_id(by_id(Peer("n1", 7))) == by_id(Peer("n1", 7))


def test_peers_are_named_where_the_name_is_known_in_order_and_only_the_newest_life_of_each():
    lives = [(node_id("b"), 1), (node_id("a"), 3), (node_id("b"), 2), (b"\1" * 8, 9)]
    names = {node_id(name): name for name in "ab"}
    assert name_peers(lives, names) == (Peer("#" + "01" * 8, 9), Peer("a", 3), Peer("b", 2))
    assert len(name_peers([(bytes([n]) * 8, 1) for n in range(100)], {})) == 64
