"""A node's share of each ClusterIP: what the kernel has, what membership says of it, and what is told to whom."""

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import ClusterIP, parse_clusterip
from lbless_api.heartbeat import node_id
from lbless_api.interfaces import Interface
from lbless_api.refusal import Taken
from lbless_nodeagent.dataplane.decide import decide, in_force
from lbless_nodeagent.dataplane.desired import Document
from lbless_nodeagent.dataplane.draining import Drains
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.keyfile import KeyFile
from lbless_nodeagent.dataplane.membership import Kept, Use
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.opener import Opener
from lbless_nodeagent.dataplane.opening import token
from lbless_nodeagent.dataplane.shares import KEPT_EPOCHS, Shares
from lbless_nodeagent.dataplane.tick.messages import Applied, Attached, Forgotten, Known, Learnt, Told
from unit.faketick import NODE, Node, interface, seen
from unit.stateobjects import desired_json

UID, OTHER = "uid-a", "uid-b"
IP = "10.80.1.1"
ETH0, ETH1 = interface(), interface("eth1", "10.83.0.11/16")
MINE = {NODE: "0-127", "n2": "128-255"}
LIVES = {"n2": 9}


def document(shares: Mapping[str, str] = MINE, uid: str = UID, ip: str = IP, **further: Any) -> Document:
    """One that names the incarnations that live."""
    incarnations = {NODE: 7, **LIVES}
    value = desired_json(uid, ip, shares, incarnations=incarnations, **further)
    return Document(parse_clusterip(value), json.dumps(value).encode())


class Setup:
    """A node's passes without an engine: what is decided is what the kernel has, unless it `refuses`."""

    def __init__(self, directory: Path, installed: Mapping[IPv4Address, Vip] | None = None) -> None:
        self.node = Node(directory)
        self.keys = KeyFile(directory / "key")
        self.keys.keys = (b"k" * 32,)
        drains = Drains(lambda asked: dict.fromkeys(asked, 0))
        self.shares = Shares(NODE, self.node.ports, drains, self.keys)
        self.shares.can_redirect = False
        self.interfaces: tuple[Interface, ...] = (ETH0, ETH1)
        self.desired: dict[str, Document] = {}
        self.former: dict[str, ClusterIP] = {}
        self.complete = True
        self.refuses = False
        self.installed: Mapping[IPv4Address, Vip] = installed or {}
        self.applications = 0
        self.again = False
        """Whether the last pass asked for another one at once."""
        self.versions: dict[str, int] = {}

    def desire(self, *documents: Document) -> None:
        for one in documents:
            self.desired[one.clusterip.identity.uid] = one

    def run(self) -> Mapping[str, ClusterIP]:
        """A pass; returns what is followed."""
        documents = self.shares.documents(self.desired, complete=self.complete)
        newest = {uid: one.clusterip for uid, one in documents.items()}
        counted = in_force(newest, self.former, unusable=(), complete=self.complete)
        indexes = {one.name: number for number, one in enumerate(self.interfaces, 2)}
        followed = self.shares.follow(
            counted, documents, self.former, self.interfaces, indexes, self.installed
        )
        decision = decide(
            NODE, followed.values(), self.interfaces, Taken(), lambda _: None, self.shares.moving
        )
        wanted = {vip.ip: vip for vip in decision.vips.values()}
        if not self.refuses and wanted != self.installed:
            self.installed = wanted
            self.applications += 1
        self.again = self.shares.open_elsewhere(self.installed)
        self.shares.confirm(self.installed, decision.vips, self.applications)
        for name, port in self.node.ports.items():
            self.node.say(Attached(name, port.incarnation))
        return followed

    def view(self, use: Mapping[str, Use], name: str = "eth0", incarnation: int = 7, **lives: int) -> None:
        """A view in which this node and n2 live, unless others are named."""
        self.versions[name] = self.versions.get(name, 0) + 1
        living = lives or LIVES
        self.node.say(seen(name, incarnation, self.versions[name], living=living, use=use))

    def kernel(self, ip: str = IP) -> str:
        vip = self.installed.get(IPv4Address(ip))
        return str(vip.owned) if vip else "none"

    def reported(self) -> int:
        """The epoch that the API is told."""
        return self.shares.epoch(self.desired[UID].clusterip)

    def applied(self) -> dict[str, tuple[int | None, bool]]:
        """What the tick process was told since the last time that the kernel follows."""
        return {uid: kept[:2] for one in self.node.tick.take(Applied) for uid, kept in one.clusterips}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def serving(setup: Setup, shares: Mapping[str, str] = MINE, **further: Any) -> Setup:
    """Epoch 1 is in use and in the kernel."""
    setup.desire(document(shares, **further))
    setup.run()
    setup.view({UID: Use(1, 1, True)})
    setup.run()
    setup.node.tick.told.clear()
    return setup


def test_as_long_as_nothing_is_known_the_kernel_stays_as_the_former_process_has_left_it(
    setup: Setup, tmp_path: Path
):
    serving(setup)
    successor = Setup(tmp_path, setup.installed)
    successor.former = {UID: document().clusterip}
    successor.desire(document({NODE: "200-255", "n2": "0-199"}, epoch=2))
    for _ in range(3):
        successor.run()
        assert successor.kernel() == "0-127"
    assert successor.applications == 0
    successor.view({UID: Use(1, 1)})
    successor.run()
    assert successor.kernel() == "0-127"
    successor.view({UID: Use(2, 2)})
    successor.run()
    assert successor.kernel() == ""


def test_a_last_good_state_that_is_newer_than_the_file_is_what_a_successor_goes_on_with(
    setup: Setup, tmp_path: Path
):
    newer = document({NODE: "200-255", "n2": "0-199"}, epoch=2, hashSeed=5)
    serving(setup)
    former = setup.installed[IPv4Address(IP)]
    kept = replace(former, owned=BucketSet(range(200, 256)), hash=newer.clusterip.spec.hash)
    successor = Setup(tmp_path, {kept.ip: kept})
    successor.former = {UID: newer.clusterip}
    successor.desire(document())
    successor.run()
    assert successor.kernel() == "200-255"
    known = successor.node.tick.take(Known)
    assert known[0].epoch.number == 2  # the one that the memory says is in use
    successor.view({UID: Use(2, 2, True)})
    successor.run()
    assert successor.kernel() == "200-255"
    assert successor.applied() == {UID: (2, True)}


def test_everything_is_told_before_a_membership_begins(setup: Setup):
    setup.desire(*(document(uid=f"uid-{number}", ip=f"10.80.1.{number}") for number in range(1, 201)))
    setup.run()
    kinds = [type(message) for message in setup.node.tick.told]
    assert kinds.count(Known) == 200
    assert kinds.index(Told) > max(index for index, kind in enumerate(kinds) if kind is Known)


def test_losing_is_at_once_and_gaining_when_it_is_allowed(setup: Setup):
    serving(setup)
    setup.desire(document({NODE: "64-200", "n2": "0-63,201-255"}, epoch=2))
    setup.run()
    assert (setup.kernel(), setup.reported()) == ("0-127", 1)
    setup.view({UID: Use(2, 2)})
    setup.run()
    assert (setup.kernel(), setup.reported()) == ("64-127", 1), (
        "the peers are told that 2 is in use, the API is not"
    )
    assert setup.applied() == {UID: (2, True)}
    setup.view({UID: Use(2, 2, True)})
    setup.run()
    assert (setup.kernel(), setup.reported()) == ("64-200", 2)


def test_who_has_nothing_to_gain_waits_for_nobody_to_report_an_epoch(setup: Setup):
    serving(setup)
    setup.desire(document({NODE: "64-127", "n2": "0-63,128-255"}, epoch=2))
    setup.view({UID: Use(2, 2)})
    setup.run()
    assert (setup.kernel(), setup.reported()) == ("64-127", 2)


def test_a_dead_nodes_buckets_come_here_and_a_new_incarnation_owns_nothing(setup: Setup):
    serving(setup)
    setup.view({UID: Use(1, 1, True)}, n3=1)
    setup.run()
    assert setup.kernel() == "0-255"
    setup.view({UID: Use()}, incarnation=8)
    setup.run()
    assert setup.kernel() == ""


def test_changed_parameters_of_the_hash_lose_everything_first(setup: Setup):
    serving(setup)
    setup.desire(document({NODE: "0-127", "n2": "128-255"}, epoch=2, hashSeed=5))
    setup.view({UID: Use(2, 2)})
    setup.run()
    assert setup.kernel() == ""
    setup.run()
    assert setup.applied()[UID] == (2, False)
    setup.view({UID: Use(2, 2, True)})
    setup.run()
    assert setup.kernel() == "0-127"
    assert setup.installed[IPv4Address(IP)].hash.seed == 5


def test_an_epoch_is_confirmed_only_after_the_losses(setup: Setup):
    serving(setup)
    setup.desire(document({NODE: "0-63", "n2": "64-255"}, epoch=2))
    setup.view({UID: Use(2, 2, True)})
    setup.refuses = True
    for _ in range(3):
        setup.run()
        told = setup.node.tick.take(Applied)
        assert all(one.version is None for one in told)
        assert all(kept.epoch is None for one in told for _, kept in one.clusterips)
    setup.refuses = False
    setup.run()
    (told,) = setup.node.tick.take(Applied)
    assert (told.version, told.clusterips) == (2, ((UID, Kept(2, owns=True, ready=2)),))
    setup.run()
    assert setup.node.tick.take(Applied) == []


def test_of_two_with_one_address_the_one_that_has_not_got_it_keeps_nobody_waiting(setup: Setup):
    serving(setup)
    setup.desire(document({NODE: "200-255"}, uid=OTHER, created="2026-02-01T00:00:00Z"))
    setup.run()
    setup.view({UID: Use(1, 1, True), OTHER: Use(1, 1, True)})
    setup.run()
    assert setup.kernel() == "0-127"
    told = setup.node.tick.take(Applied)
    assert any(one.version == 2 for one in told)
    assert {entry for one in told for entry in one.clusterips} == {
        (OTHER, Kept(1, owns=False, ready=1, gained=False))
    }


def learn(setup: Setup, one: Document) -> None:
    setup.node.say(Learnt("eth0", json.loads(one.content)))
    setup.run()


def test_a_newer_document_of_a_peer_counts_and_can_be_sent_on(setup: Setup):
    serving(setup)
    learn(setup, document({NODE: "0-63", "n2": "64-255"}, epoch=2))
    (known,) = setup.node.tick.take(Known)
    assert known.epoch.number == 2
    assert known.pieces
    setup.view({UID: Use(2, 2, True)})
    setup.run()
    assert setup.kernel() == "0-63"
    followed = setup.shares.document(UID)
    assert followed is not None
    assert parse_clusterip(json.loads(followed.content)) == followed.clusterip  # so that it can be kept


def test_an_older_one_does_not(setup: Setup):
    serving(setup, epoch=1)
    setup.desire(document(epoch=3))
    setup.run()
    setup.node.tick.told.clear()
    learn(setup, document(epoch=2))
    assert setup.node.tick.take(Known) == []
    learn(setup, document(epoch=5))
    learn(setup, document(epoch=4))  # one peer is behind the other
    assert [one.epoch.number for one in setup.node.tick.take(Known)] == [5]
    newest = setup.shares.documents(setup.desired, complete=True)[UID]
    assert newest.clusterip.epoch == 5


def test_one_of_an_unknown_clusterip_counts_until_sync_has_listed_all_and_is_then_not_asked_for(setup: Setup):
    setup.complete = False
    serving(setup)
    learn(setup, document(uid=OTHER, ip="10.80.1.2"))
    assert [one.epoch.uid for one in setup.node.tick.take(Known)] == [OTHER]
    setup.view({OTHER: Use(1, 1, True)})
    assert OTHER in setup.run()
    assert setup.kernel("10.80.1.2") == "0-127"
    setup.complete = True
    assert OTHER not in setup.run()
    assert setup.kernel("10.80.1.2") == "none"
    assert Forgotten("eth0", OTHER) in setup.node.tick.take(Forgotten)


def test_one_that_was_deleted_is_not_resurrected_and_not_asked_for_again(setup: Setup):
    serving(setup)
    learn(setup, document(uid=OTHER, ip="10.80.1.2"))
    told = list(setup.node.tick.told)
    assert OTHER not in setup.run()
    assert not any(isinstance(one, Known) for one in told)
    assert Forgotten("eth0", OTHER) in told
    setup.desire(document(uid=OTHER, ip="10.80.1.2"))  # sync was only later
    assert OTHER in setup.run()


@pytest.mark.parametrize("value", [{}, {"metadata": 3}, {**desired_json(UID, "::1", MINE, epoch=9)}])
def test_a_document_that_is_none_is_left_aside(setup: Setup, value: dict[str, Any]):
    serving(setup)
    setup.node.say(Learnt("eth0", value))
    setup.run()
    assert setup.kernel() == "0-127"
    assert setup.node.tick.take(Known) == []


def test_documents_are_forgotten_but_for_those_in_use_and_the_newest(setup: Setup):
    serving(setup)
    for epoch in range(2, KEPT_EPOCHS + 20):
        setup.desire(document(epoch=epoch))
        setup.run()
    held = setup.shares._documents[UID]
    assert len(held) <= KEPT_EPOCHS + 1
    assert {1, KEPT_EPOCHS + 19} <= held.keys()
    setup.view({UID: Use(KEPT_EPOCHS + 19, KEPT_EPOCHS + 19, True)})
    setup.run()
    assert list(held) == [KEPT_EPOCHS + 19]
    assert {number for _, number in setup.shares._epochs} == {KEPT_EPOCHS + 19}


def test_each_interface_follows_its_own_view(setup: Setup):
    setup.desire(document(), document(uid=OTHER, ip="10.83.1.1"))
    setup.run()
    setup.view({UID: Use(1, 1, True)}, "eth0")
    setup.run()
    assert (setup.kernel(), setup.kernel("10.83.1.1")) == ("0-127", "")
    setup.view({OTHER: Use(1, 1, True)}, "eth1", n3=1)
    setup.run()
    assert (setup.kernel(), setup.kernel("10.83.1.1")) == ("0-127", "0-255")


def test_one_whose_interface_changes_loses_everything_and_begins_on_the_other(setup: Setup):
    serving(setup, interfaces=["eth0"])
    setup.desire(document(epoch=2, interfaces=["eth1"]))
    setup.run()
    assert setup.node.tick.told.count(Forgotten("eth0", UID)) == 1
    assert [(one.interface, one.epoch.number) for one in setup.node.tick.take(Known)] == [("eth1", 2)]
    setup.view({}, "eth1")
    setup.view({UID: Use()}, "eth1")
    setup.run()
    assert setup.kernel() == ""
    assert setup.installed[IPv4Address(IP)].interface == "eth1"
    setup.view({UID: Use(2, 2, True)}, "eth1")
    setup.run()
    assert setup.kernel() == "0-127"


def test_an_address_that_changes_is_the_old_one_until_the_epoch_is_in_use(setup: Setup):
    serving(setup)
    setup.desire(document(epoch=2, ip="10.80.1.9"))
    setup.run()
    assert (setup.kernel(), setup.kernel("10.80.1.9")) == ("0-127", "none")
    setup.view({UID: Use(2, 2)})
    setup.run()
    assert (setup.kernel(), setup.kernel("10.80.1.9")) == ("none", "")
    setup.view({UID: Use(2, 2, True)})
    setup.run()
    assert setup.kernel("10.80.1.9") == "0-127"


def test_nothing_is_computed_or_told_twice(setup: Setup):
    serving(setup)
    first = setup.run()
    setup.node.tick.told.clear()
    assert setup.run() is first
    assert setup.node.tick.told == []


def test_who_acts_shares_by_names_whatever_the_epoch_says(setup: Setup):
    serving(setup)
    setup.desire(document({"n5": "0-255", NODE: ""}, epoch=2))
    setup.view({UID: Use(1, 2, True, (NODE,))}, n2=9)
    setup.run()
    assert setup.kernel() == "0-255"
    assert setup.node.ports["eth0"].confirmed[UID] == (
        7,
        Kept(1, owns=True, ready=1),
    )  # never the epoch that is not in use


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, bytes]]:
    """The tokens that were sent: on which interface, for which address."""
    sent: list[tuple[int, str, bytes]] = []
    monkeypatch.setattr(Opener, "send", lambda _, index, ip, token: sent.append((index, str(ip), token)))
    return sent


def opening(buckets: str, epoch: int, *way: str) -> bytes:
    """The token for that."""
    source, destination = map(node_id, way)
    return token(b"k" * 32, UID, epoch, (source, destination), BucketSet.parse(buckets))


def moving_to(shares: Mapping[str, str], *moves: tuple[str, str, str], epoch: int = 2) -> Document:
    """Epoch 2, with moves: buckets, from, to."""
    entries = [{"buckets": buckets, "from": source, "to": to} for buckets, source, to in moves]
    return document(shares, epoch=epoch, moves=entries)


def test_what_is_given_up_is_opened_at_each_new_owner_that_may_take_it(setup: Setup, told: list[Any]):
    serving(setup)
    moves = (("100-119", NODE, "n2"), ("120-127", NODE, "n3"), ("130", "n2", "n3"))
    setup.desire(moving_to({NODE: "0-99", "n2": "100-119,128-255", "n3": "120-127"}, *moves))
    setup.run()
    setup.view({UID: Use(2, 2, gain=True, lose=False, settled=False)})
    setup.run()
    assert told == []
    setup.view({UID: Use(2, 2, gain=True, lose=True, ready=True, settled=False)})
    setup.run()
    gone = {opening("100-119", 2, NODE, "n2"): "100-119", opening("120-127", 2, NODE, "n3"): "120-127"}
    assert sorted(told) == sorted((2, IP, one) for one in gone)
    moving = setup.installed[IPv4Address(IP)].moving
    assert str(moving.drain) == "100-127"
    assert {one: str(buckets) for one, buckets in moving.openings} == gone, "the kernel closes as they leave"
    assert setup.again
    assert setup.applied()[UID] == (None, True)
    setup.run()
    assert len(told) == 2, "it was said again"
    assert setup.installed[IPv4Address(IP)].moving == Moving(drain=BucketSet.parse("100-127"))
    assert not setup.again
    assert setup.applied()[UID] == (2, True)


def test_nothing_is_opened_by_one_whose_kernel_did_not_change_or_sends_on(setup: Setup, told: list[Any]):
    serving(setup)
    setup.desire(moving_to({NODE: "0-99", "n2": "100-255"}, ("100-127", NODE, "n2")))
    setup.run()
    setup.refuses = True
    setup.view({UID: Use(2, 2, gain=True, lose=True, settled=False)})
    setup.run()
    assert setup.kernel() == "0-127"
    assert (told, setup.again) == ([], False)
    setup.refuses = False
    setup.run()
    assert setup.kernel() == "0-99"
    assert told == [(2, IP, opening("100-127", 2, NODE, "n2"))]
    told.clear()
    setup.run()
    setup.shares.can_redirect = True
    moved = moving_to({NODE: "0-89", "n2": "90-255"}, ("90-127", NODE, "n2"), epoch=3)
    address = IPv4Address("10.80.0.12")
    named = tuple(replace(one, address=address) for one in moved.clusterip.assignments)
    setup.desire(Document(replace(moved.clusterip, assignments=named), moved.content))
    setup.run()
    setup.view({UID: Use(3, 3, gain=True, lose=True, ready=True, settled=False)})
    setup.run()
    assert setup.installed[IPv4Address(IP)].moving.redirect == ((address, BucketSet.parse("90-99")),)
    assert (setup.kernel(), told) == ("0-89", [])


def test_what_a_former_process_was_about_to_give_up_is_not_said_by_its_successor(
    setup: Setup, tmp_path: Path, told: list[Any]
):
    """Meanwhile others may have taken it: this node knows that no sooner than it has a view."""
    serving(setup)
    setup.desire(moving_to({NODE: "0-99", "n2": "100-255"}, ("100-127", NODE, "n2")))
    setup.run()
    setup.view({UID: Use(2, 2, gain=True, lose=True, settled=False)})
    setup.run()
    told.clear()
    successor = Setup(tmp_path / "successor", setup.installed)
    successor.desire(moving_to({NODE: "0-99", "n2": "100-255"}, ("100-127", NODE, "n2")))
    successor.run()
    assert successor.installed == setup.installed
    assert (told, successor.again) == ([], False)
    successor.view({UID: Use(2, 2, gain=True, lose=True, settled=False)})
    successor.run()
    assert successor.installed[IPv4Address(IP)].moving == Moving(drain=BucketSet.parse("100-127"))
    assert told == []


def test_a_token_that_was_sent_is_not_sent_again_while_the_kernel_takes_nothing_new(
    setup: Setup, told: list[Any]
):
    """Buckets go both ways: what is still awaited has its tokens, too."""
    serving(setup)
    both = (("100-127", NODE, "n2"), ("128-139", "n2", NODE))
    setup.desire(moving_to({NODE: "0-99,128-139", "n2": "100-127,140-255"}, *both))
    setup.run()
    sources = frozenset({node_id("n2")})
    setup.view({UID: Use(2, 2, gain=False, lose=True, settled=False, unfinished=sources)})
    setup.run()
    assert (told, setup.again) == ([(2, IP, opening("100-127", 2, NODE, "n2"))], True)
    setup.refuses = True
    for _ in range(3):
        setup.run()
        assert setup.again is False
    assert len(told) == 1
    setup.refuses = False
    setup.run()
    assert (len(told), setup.again) == (1, False)
    moving = setup.installed[IPv4Address(IP)].moving
    assert [str(buckets) for _, buckets in moving.openings] == ["128-139"]


def test_what_is_given_up_costs_nothing_that_is_awaited_its_token(setup: Setup, told: list[Any]):
    serving(setup, {NODE: "0-999", "n2": "1000-4095"}, buckets=4096)
    shares = {NODE: "1000-2499", "n2": "0-999,2500-4095"}
    entries = [
        {"buckets": "0-999", "from": NODE, "to": "n2"},
        {"buckets": "1000-2499", "from": "n2", "to": NODE},
    ]
    setup.desire(document(shares, epoch=2, moves=entries, buckets=4096))
    setup.run()
    sources = frozenset({node_id("n2")})
    setup.view({UID: Use(2, 2, gain=False, lose=True, settled=False, unfinished=sources)})
    setup.run()
    moving = setup.installed[IPv4Address(IP)].moving
    assert (str(moving.standby), str(moving.drain)) == ("1000-2499", "0-999")
    assert [str(buckets) for _, buckets in moving.openings] == ["1000-2499"]
    assert told == []


def test_of_more_buckets_than_can_be_changed_at_once_nothing_is_said(setup: Setup, told: list[Any]):
    serving(setup, {NODE: "0-4000", "n2": "4001-4095"}, buckets=4096)
    shares = {NODE: "0-1999", "n2": "2000-4095"}
    entry = {"buckets": "2000-4000", "from": NODE, "to": "n2"}
    setup.desire(document(shares, epoch=2, moves=[entry], buckets=4096))
    setup.run()
    setup.view({UID: Use(2, 2, gain=True, lose=True, settled=False)})
    setup.run()
    assert setup.installed[IPv4Address(IP)].moving == Moving(drain=BucketSet.parse("2000-4000"))
    assert told == []


def test_where_a_new_owners_address_is_not_known_it_is_opened(setup: Setup, told: list[Any]):
    serving(setup)
    setup.shares.can_redirect = True
    setup.desire(moving_to({NODE: "0-99", "n2": "100-255"}, ("100-127", NODE, "n2")))
    setup.run()
    setup.view({UID: Use(2, 2, gain=True, lose=True, ready=True, settled=False)})
    setup.run()
    assert told == [(2, IP, opening("100-127", 2, NODE, "n2"))]


def test_of_what_it_did_not_take_itself_a_former_owner_says_nothing(setup: Setup, told: list[Any]):
    """It still finishes flows in some of what moves by this epoch, as another has taken that since."""
    serving(setup)
    setup.desire(moving_to({NODE: "0-99", "n2": "128-255", "n3": "100-127"}, ("100-127", NODE, "n3")))
    setup.run()
    setup.view({UID: Use(2, 2, gain=True, lose=True, settled=False)})
    setup.run()
    told.clear()
    later = (("90-127", NODE, "n2"), ("100-127", "n3", "n2"))
    setup.desire(moving_to({NODE: "0-89", "n2": "90-255", "n3": ""}, *later, epoch=3))
    setup.run()
    setup.view({UID: Use(3, 3, gain=True, lose=True, settled=False)})
    setup.run()
    assert told == [(2, IP, opening("90-99", 3, NODE, "n2"))]


def test_a_new_owner_expects_the_token_of_whoever_had_the_bucket_by_the_epoch_before(setup: Setup):
    serving(setup, {NODE: "0-99", "n2": "100-199", "n3": "200-255"})
    # n3 still finishes flows in what n2 has taken since.
    moves = (("100-149", "n2", NODE), ("140-149,200-209", "n3", NODE))
    setup.desire(moving_to({NODE: "0-149,200-209", "n2": "150-199", "n3": "210-255"}, *moves))
    setup.run()
    sources = frozenset({node_id("n2"), node_id("n3")})
    setup.view({UID: Use(2, 2, gain=False, unfinished=sources)})
    setup.run()
    moving = setup.installed[IPv4Address(IP)].moving
    assert str(moving.standby) == "100-149,200-209"
    assert {one: str(buckets) for one, buckets in moving.openings} == {
        opening("100-149", 2, "n2", NODE): "100-149",
        opening("200-209", 2, "n3", NODE): "200-209",
    }
    setup.view({UID: Use(2, 2, gain=True, unfinished=sources)})
    setup.run()
    assert setup.installed[IPv4Address(IP)].moving.openings == ()


def test_one_that_stood_by_in_vain_expects_the_same_node_in_the_next_epoch(setup: Setup):
    serving(setup, {NODE: "0-99", "n2": "100-199", "n3": "200-255"})
    setup.desire(moving_to({NODE: "0-149", "n2": "150-199", "n3": "200-255"}, ("100-149", "n2", NODE)))
    setup.run()
    sources = frozenset({node_id("n2")})
    setup.view({UID: Use(2, 2, gain=False, unfinished=sources)})
    setup.run()
    setup.desire(moving_to({NODE: "0-119", "n2": "120-199"}, ("100-119", "n2", NODE), epoch=3))
    setup.run()
    setup.view({UID: Use(3, 3, gain=False, unfinished=sources)})
    setup.run()
    moving = setup.installed[IPv4Address(IP)].moving
    assert moving.openings == ((opening("100-119", 3, "n2", NODE), BucketSet.parse("100-119")),)


def test_without_a_key_nothing_is_expected(setup: Setup, told: list[Any]):
    setup.shares = Shares(NODE, setup.node.ports, setup.shares.drains)
    setup.shares.can_redirect = False
    serving(setup)
    both = (("100-127", NODE, "n2"), ("130-139", "n2", NODE))
    setup.desire(moving_to({NODE: "0-99,130-139", "n2": "100-129,140-255"}, *both))
    setup.run()
    setup.view({UID: Use(2, 2, gain=False, unfinished=frozenset({node_id("n2")}))})
    setup.run()
    assert setup.installed[IPv4Address(IP)].moving.openings == ()
    assert told == []


def test_what_a_token_may_have_opened_counts_as_taken_until_the_kernel_has_lost_it(setup: Setup):
    """Else a third node would gain it by the next epoch where this node's kernel does not take that."""
    serving(setup, {NODE: "0-99", "n2": "100-255"})
    setup.desire(moving_to({NODE: "0-149", "n2": "150-255"}, ("100-149", "n2", NODE)))
    setup.run()
    setup.view({UID: Use(2, 2, gain=False, unfinished=frozenset({node_id("n2")}))})
    setup.run()
    assert setup.applied()[UID] == (2, True)
    setup.desire(
        moving_to({NODE: "0-99", "n2": "150-255", "n3": "100-149"}, ("100-149", "n2", "n3"), epoch=3)
    )
    setup.run()
    setup.refuses = True
    setup.view({UID: Use(3, 3, gain=True)})
    setup.run()
    assert 3 not in [epoch for epoch, _ in setup.applied().values()]
    setup.refuses = False
    setup.run()
    assert setup.applied()[UID][0] == 3
