"""Epochs' documents between nodes: whole or not at all, whatever the pieces are."""

import json
import random
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.epoch_document import MAX_DOCUMENT_BYTES, MAX_PIECES, Gathering, join, split
from lbless_api.fields import Invalid
from lbless_api.heartbeat import MAX_NUMBER, EpochPiece, clusterip_id, node_id
from lbless_api.heartbeat_frame import MAX_DATA_BYTES, decode, encode
from unit.heartbeats import KEY

SENTENCE = r"^[A-Z].*\.$"
documents = st.dictionaries(
    st.text(max_size=20), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20)
)


def largest() -> dict[str, object]:
    """64 nodes with the longest names there can be, 4,096 buckets dealt out at random."""
    rng = random.Random(6)
    owners = [rng.randrange(64) for _ in range(4096)]
    return {
        "epoch": MAX_NUMBER,
        "ip": "10.80.100.100",
        "buckets": 4096,
        "assignments": [
            {
                "node": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789-.", k=253)),
                "incarnation": rng.randrange(MAX_NUMBER),
                "buckets": str(BucketSet(b for b, owner in enumerate(owners) if owner == node)),
            }
            for node in range(64)
        ],
    }


LARGEST = largest()


def pieces_of(document: dict[str, object], **changed: object) -> list[EpochPiece]:
    """The pieces as a node sends and another one receives them."""
    data = split(document)
    made = [
        replace(EpochPiece(node_id("n1"), 5, 100 + i, clusterip_id("uid"), 7, i, len(data), one), **changed)
        for i, one in enumerate(data)
    ]
    return [decode(encode(piece, KEY), (KEY,)) for piece in made]


def gather(gathering: Gathering, pieces: list[EpochPiece]) -> list[object]:
    """All documents that were complete."""
    return [found for piece in pieces if (found := gathering.add(piece)) is not None]


@given(documents)
def test_a_document_arrives_as_it_was_sent(document):
    assert join(split(document)) == document


def test_the_largest_document_fits_with_room_to_spare():
    pieces = pieces_of(LARGEST)
    assert 10 < len(pieces) <= MAX_PIECES * 2 // 3
    assert len(json.dumps(LARGEST)) <= MAX_DOCUMENT_BYTES // 2
    assert gather(Gathering(), pieces) == [LARGEST]


@given(st.randoms(use_true_random=False))
def test_pieces_may_come_in_any_order_and_twice(rng):
    pieces = pieces_of(LARGEST)
    rng.shuffle(pieces)
    doubled = [piece for piece in pieces[:-1] for _ in range(rng.randint(1, 2))]
    gathering = Gathering()
    assert gather(gathering, doubled) == []
    assert gather(gathering, pieces[-1:]) == [LARGEST]
    assert len(gathering) == 0


def test_a_document_with_a_piece_missing_never_comes():
    for missing in range(len(pieces_of(LARGEST))):
        pieces = pieces_of(LARGEST)
        del pieces[missing]
        assert gather(Gathering(), pieces) == []


def test_pieces_of_different_senders_incarnations_clusterips_and_epochs_do_not_mix():
    own = pieces_of(LARGEST)
    others = [
        pieces_of(LARGEST, **changed)
        for changed in (
            {"node": node_id("n2")},
            {"incarnation": 6},
            {"clusterip": clusterip_id("another")},
            {"epoch": 8},
        )
    ]
    for other in others:
        gathering = Gathering()
        assert gather(gathering, own[:3] + other[3:]) == []
        assert len(gathering) == 2


def test_of_a_sender_that_contradicts_itself_the_later_word_counts():
    pieces = pieces_of(LARGEST)
    wrong = [replace(piece, data=b"something else") for piece in pieces[:4]]
    gathering = Gathering()
    assert gather(gathering, wrong + pieces) == [LARGEST]
    longer = [replace(piece, count=len(pieces) + 1) for piece in pieces[:4]]
    assert gather(gathering, longer + pieces) == [LARGEST]
    assert len(gathering) == 0


def test_what_came_before_a_contradiction_is_forgotten():
    pieces = pieces_of(LARGEST)
    gathering = Gathering()
    assert gather(gathering, [replace(piece, data=b"something else") for piece in pieces[:-1]]) == []
    assert gather(gathering, [pieces[0], pieces[-1]]) == []
    assert gather(gathering, pieces[1:-1]) == [LARGEST]


def test_only_so_many_documents_are_waited_for():
    gathering = Gathering(limit=3)
    for number in range(10):
        gather(gathering, pieces_of(LARGEST, epoch=number)[:-1])
    assert len(gathering) == 3
    assert gather(gathering, pieces_of(LARGEST, epoch=9)[-1:]) == [LARGEST]
    assert gather(gathering, pieces_of(LARGEST, epoch=0)[-1:]) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not compressed",
        zlib.compress(b"{}")[:-1],
        zlib.compress(b"{}") + b"more",
        zlib.compress(b"not JSON"),
        zlib.compress(b"[]"),
        zlib.compress(b"[" * 100_000),
        zlib.compress(b'{"a": ' + b"9" * 10_000 + b"}"),
        zlib.compress(b'{"a": "\xff"}'),
        zlib.compress(json.dumps({"a": "x" * MAX_DOCUMENT_BYTES}).encode()),
    ],
)
def test_what_is_no_document_is_one_sentence(data):
    with pytest.raises(Invalid, match=SENTENCE):
        join([data])


def test_a_document_that_would_be_huge_is_not_unpacked():
    data = zlib.compress(bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(Invalid):
            join([data])
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_DOCUMENT_BYTES
    finally:
        tracemalloc.stop()


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_pieces_are_no_document(data):
    with pytest.raises(Invalid, match=SENTENCE):
        join(data)


def test_after_a_document_that_was_none_the_next_one_is_taken():
    gathering = Gathering()
    (piece,) = pieces_of({"epoch": 7})
    with pytest.raises(Invalid):
        gathering.add(replace(piece, data=b"nonsense"))
    assert gathering.add(piece) == {"epoch": 7}
    with pytest.raises(Invalid, match=SENTENCE):
        gathering.add(replace(piece, count=MAX_PIECES + 1))


def test_a_document_that_is_too_large_is_not_sent():
    noise = random.Random(1).randbytes(MAX_PIECES * MAX_DATA_BYTES).hex()
    for value in ("x" * MAX_DOCUMENT_BYTES, noise[: MAX_DOCUMENT_BYTES - 100]):
        with pytest.raises(ValueError, match=SENTENCE):
            split({"a": value})
