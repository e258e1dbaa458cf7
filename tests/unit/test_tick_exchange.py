"""Epochs travel from a node that has them to one that lacks them: one answers, the others in turn, nobody floods."""

import json
import random
from collections.abc import Iterable

import pytest

from lbless_api.epoch_document import split
from lbless_api.heartbeat import (
    EpochPiece,
    EpochReport,
    EpochRequest,
    Flag,
    Heartbeat,
    clusterip_id,
    node_id,
)
from lbless_nodeagent.dataplane.membership import Membership, Times, epoch_of
from lbless_nodeagent.dataplane.tick.exchange import FRAMES_AT_ONCE, KEPT_EPOCHS, MAX_QUEUED, Exchange
from unit.stateobjects import clusterip, desired_json

UID = "uid-a"
CLUSTERIP = clusterip_id(UID)
NAMES = ("n1", "n2", "n3")
TIMES = Times.of_tick(0.1)
ASKER = node_id("asker")


def document(uid: str = UID, epoch: int = 3, **further: object) -> dict[str, object]:
    return desired_json(uid, "10.80.1.1", {"n1": "0-255"}, epoch=epoch, **further)


def large() -> tuple[bytes, ...]:
    """Pieces of one that needs many, as it cannot be compressed."""
    noise = random.Random(4).randbytes(12_000).hex()
    pieces = split({"noise": noise})
    assert len(pieces) > FRAMES_AT_ONCE
    return pieces


def exchange(name: str = "n1") -> Exchange:
    return Exchange(Membership(name, 1, TIMES, 100.0))


def holders(uid: str = UID, epoch: int = 3) -> dict[str, Exchange]:
    """Three nodes that all hold the epoch, and have told each other so."""
    made = {}
    for name in NAMES:
        membership = Membership(name, 1, TIMES, 100.0)
        membership.learn(epoch_of(clusterip(uid, "10.80.1.1", {"n1": "0-255"}, epoch=epoch)), 100.0)
        for other in NAMES:
            if other != name:
                report = EpochReport(clusterip_id(uid), epoch, 0, owns=False, named=False)
                said = Heartbeat(node_id(other), 1, 1, Flag(0), 700, 0, 1, node_id(other), epochs=(report,))
                membership.heard(said, 100.1)
        made[name] = Exchange(membership)
        made[name].hold(clusterip_id(uid), epoch, split(document(uid, epoch)))
    return made


def request(*wanted: tuple[bytes, int], asker: bytes = ASKER) -> EpochRequest:
    return EpochRequest(asker, 1, 1, wanted)


def pieces(frames: Iterable[object]) -> list[EpochPiece]:
    return [frame for frame in frames if isinstance(frame, EpochPiece)]


def test_of_those_that_hold_it_one_answers_and_each_time_that_it_is_asked_again_the_next():
    nodes = holders()
    answered = []
    for _ in range(2 * len(NAMES)):
        for node in nodes.values():
            node.asked(request((CLUSTERIP, 3)))
        answered.append([name for name, node in nodes.items() if pieces(node.frames(()))])
    assert all(len(names) == 1 for names in answered)
    assert {names[0] for names in answered[:3]} == set(NAMES)
    assert answered[3:] == answered[:3]


def test_askers_are_spread_over_the_nodes():
    nodes = holders()
    first = set()
    for number in range(30):
        for name, node in nodes.items():
            node.asked(request((CLUSTERIP, 3), asker=node_id(f"asker{number}")))
            if pieces(node.frames(())):
                first.add(name)
    assert first == set(NAMES)


def test_what_is_asked_for_arrives_as_it_was():
    giver, taker = exchange(), exchange("n9")
    giver.hold(CLUSTERIP, 3, split(document()))
    wanted = taker.frames([(CLUSTERIP, 3)])
    assert [type(frame) for frame in wanted] == [EpochRequest]
    assert isinstance(wanted[0], EpochRequest)
    giver.asked(wanted[0])
    found = [taker.gathered(piece) for piece in pieces(giver.frames(()))]
    assert [one for one in found if one] == [json.loads(json.dumps(document()))]


def test_sequences_never_come_twice():
    giver = exchange()
    giver.hold(CLUSTERIP, 3, large())
    giver.asked(request((CLUSTERIP, 3)))
    sequences = [frame.sequence for _ in range(10) for frame in giver.frames([(b"x" * 8, 1)])]
    assert sequences == sorted(set(sequences))


def test_a_large_document_takes_several_turns():
    giver = exchange()
    giver.hold(CLUSTERIP, 3, large())
    giver.asked(request((CLUSTERIP, 3)))
    sent: list[EpochPiece] = []
    while giver.has_more or not sent:
        frames = giver.frames(())
        assert 0 < len(frames) <= FRAMES_AT_ONCE
        sent += pieces(frames)
    assert [piece.index for piece in sent] == list(range(len(large())))


def test_who_asks_while_it_is_being_sent_gets_it_once():
    giver = exchange()
    giver.hold(CLUSTERIP, 3, large())
    for number in range(20):
        giver.asked(request((CLUSTERIP, 3), asker=node_id(f"asker{number}")))
    count = 0
    while giver.has_more:
        count += len(giver.frames(()))
    assert count == len(large())
    giver.asked(request((CLUSTERIP, 3)))
    assert giver.has_more


def test_what_waits_is_bounded():
    giver = exchange()
    many = [(clusterip_id(f"uid-{number}"), 1) for number in range(400)]
    for key in many:
        giver.hold(*key, large())
        giver.asked(request(key))
    count = 0
    while giver.has_more:
        count += len(giver.frames(()))
    assert MAX_QUEUED - len(large()) < count <= MAX_QUEUED
    giver.asked(request(many[-1]))  # one that found no room is answered later
    assert giver.has_more


@pytest.mark.parametrize("has", ["another epoch", "none", "too large", "forgotten"])
def test_what_it_does_not_have_it_does_not_answer(has: str):
    giver = exchange()
    if has == "another epoch":
        giver.hold(CLUSTERIP, 2, split(document(epoch=2)))
    elif has == "too large":
        giver.hold(CLUSTERIP, 3, ())
    elif has == "forgotten":
        giver.hold(CLUSTERIP, 3, split(document()))
        giver.forget(CLUSTERIP)
    giver.asked(request((CLUSTERIP, 3)))
    assert not giver.has_more
    assert giver.frames(()) == []


def test_what_is_forgotten_while_it_waits_is_not_sent_and_can_be_asked_for_when_it_is_back():
    giver = exchange()
    giver.hold(CLUSTERIP, 3, large())
    giver.asked(request((CLUSTERIP, 3)))
    giver.forget(CLUSTERIP)
    while giver.has_more:
        assert pieces(giver.frames(())) == []
    giver.hold(CLUSTERIP, 3, large())
    giver.asked(request((CLUSTERIP, 3)))
    assert pieces(giver.frames(()))


def test_only_the_newest_epochs_are_kept():
    giver = exchange()
    for number in range(1, KEPT_EPOCHS + 3):
        giver.hold(CLUSTERIP, number, split(document(epoch=number)))
    answers = {}
    for number in range(1, KEPT_EPOCHS + 3):
        giver.asked(request((CLUSTERIP, number)))
        answers[number] = bool(giver.frames(()))
    assert [number for number, answered in answers.items() if answered] == list(range(3, KEPT_EPOCHS + 3))


def test_what_it_holds_it_does_not_gather_and_what_was_of_no_use_it_does_not_ask_for_again():
    taker = exchange()
    (data,) = split(document())
    piece = EpochPiece(node_id("n2"), 1, 1, CLUSTERIP, 3, 0, 1, data)
    assert taker.frames([(CLUSTERIP, 3)])
    assert taker.gathered(piece) is not None
    assert taker.frames([(CLUSTERIP, 3)]) == []
    assert taker.frames([(CLUSTERIP, 4)]) != []
    taker.forget(CLUSTERIP)  # sync may write it again
    assert taker.frames([(CLUSTERIP, 3)]) != []
    taker.hold(CLUSTERIP, 3, (data,))
    assert taker.gathered(piece) is None


def test_a_document_that_is_no_epoch_of_a_sane_size_is_never_cut_to_pieces():
    with pytest.raises(ValueError, match="too large to be sent"):
        split({"x": "y" * 200_000})
