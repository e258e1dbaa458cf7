"""The bytes of heartbeats: what is sent is what is read, and nothing else is read at all."""

import hmac
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbless_api.heartbeat import (
    MAX_NUMBER,
    EpochReport,
    Flag,
    Heartbeat,
    PeerReport,
    Verdict,
    node_id,
)
from lbless_api.heartbeat_frame import (
    MAX_BYTES,
    MAX_SEQUENCE,
    MIN_BYTES,
    TAG_BYTES,
    Reason,
    Refused,
    Stamp,
    decode,
    encode,
    fit,
    stamp,
)
from unit.heartbeats import GOLDEN, KEY, golden_frames, heartbeat_of, messages

OTHER_KEY = b"another key of thirty-two bytes!"
PADDED_BELOW = 46  # Ethernet fills up shorter payloads


def why(payload: bytes, *keys: bytes) -> Reason | None:
    """Why a payload is refused; None if it is not."""
    try:
        decode(payload, keys or (KEY,))
    except Refused as refused:
        return refused.reason
    return None


def signed(unsigned: bytes) -> bytes:
    return unsigned + hmac.digest(KEY, unsigned, "sha256")[:TAG_BYTES]


def unsigned(name: str) -> bytearray:
    return bytearray(encode(GOLDEN[name], KEY)[:-TAG_BYTES])


@given(messages)
def test_what_is_encoded_is_decoded_and_no_frame_is_padded_or_too_long(message):
    frame = encode(message, KEY)
    assert decode(frame, (KEY,)) == message
    assert stamp(frame, (KEY,)) == Stamp(message.node, message.incarnation, message.sequence)
    assert PADDED_BELOW <= MIN_BYTES <= len(frame) <= MAX_BYTES


@pytest.mark.parametrize("name", GOLDEN)
def test_the_frames_on_file_are_still_what_is_sent_and_understood(name):
    assert encode(GOLDEN[name], KEY).hex() == golden_frames()[name].hex()
    assert decode(golden_frames()[name], (KEY,)) == GOLDEN[name]


def test_the_layout_is_the_documented_one():
    peer = PeerReport(b"peer-id8", 0x0102_0304_0506, 0x11_1213_1415, 0x2122, complete=True, direct=False)
    other = peer._replace(age_ms=0x3132, complete=False, direct=True)
    verdict = Verdict(b"dead-id8", 0x3132_3334_3536)
    epoch = EpochReport(b"clusip-8", 0x4142_4344_4546, 0x5152_5354_5556, owns=True, named=False, ready=True)
    another = epoch._replace(
        owns=False, named=True, ready=False, gained=True, sends=True, drains=True, acting=True
    )
    message = Heartbeat(
        b"node-id8",
        0x6162_6364_6566,
        0x71_7273_7475,
        Flag.HELD,
        0x8182,
        0x9192,
        5,
        b"smallest",
        (peer, other),
        (verdict,),
        (epoch, another),
        0xA1A2A3,
    )
    written = (
        b"\x01\x01node-id8abcdefqrstu"
        b"\x10\x81\x82\x91\x92\x05smallest\xa1\xa2\xa3\x02\x01"
        b"peer-id8\x01\x02\x03\x04\x05\x06\x11\x12\x13\x14\x15\xa1\x22"
        b"peer-id8\x01\x02\x03\x04\x05\x06\x11\x12\x13\x14\x15\x71\x32"
        b"dead-id8123456"
        b"clusip-8ABCDEFQRSTUV\x09"
        b"clusip-8ABCDEFQRSTUV\x76"
    )
    assert encode(message, KEY) == signed(written)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_frame_cut_at_any_length_or_with_more_behind_it_is_refused(name):
    frame = golden_frames()[name]
    for length in range(len(frame)):
        expected = Reason.TRUNCATED if length < MIN_BYTES else Reason.UNAUTHENTICATED
        assert why(frame[:length]) == expected, length
    assert why(frame + b"\0") == Reason.UNAUTHENTICATED
    assert why(frame.ljust(MAX_BYTES + 1, b"\0")) == Reason.TOO_LONG


@pytest.mark.parametrize("name", GOLDEN)
def test_a_frame_with_any_bit_flipped_is_refused(name):
    frame = golden_frames()[name]
    for bit in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        assert why(bytes(flipped)) == (Reason.VERSION if bit < 8 else Reason.UNAUTHENTICATED), bit


@given(st.binary(max_size=2000), st.booleans())
def test_random_bytes_are_refused(payload, versioned):
    assert why(b"\x01" + payload if versioned else payload) in {
        Reason.TRUNCATED,
        Reason.TOO_LONG,
        Reason.VERSION,
        Reason.UNAUTHENTICATED,
    }


@given(st.binary(min_size=MIN_BYTES - TAG_BYTES - 2, max_size=MAX_BYTES - TAG_BYTES - 2), st.integers(0, 4))
@settings(max_examples=500)
def test_random_bytes_that_a_node_signs_are_a_message_or_refused(rest, kind):
    frame = signed(bytes((1, kind)) + rest)
    reason = why(frame)
    assert reason in {None, Reason.KIND, Reason.MALFORMED}
    if reason is None:
        assert encode(decode(frame, (KEY,)), KEY) == frame


@pytest.mark.parametrize("name", GOLDEN)
@given(data=st.data())
def test_a_signed_frame_with_a_changed_byte_is_a_message_or_refused(name, data):
    changed = unsigned(name)
    changed[data.draw(st.integers(1, len(changed) - 1))] = data.draw(st.integers(0, 255))
    frame = signed(bytes(changed))
    if why(frame) is None:
        assert encode(decode(frame, (KEY,)), KEY) == frame
    else:
        assert why(frame) in {Reason.KIND, Reason.MALFORMED}


def test_any_of_the_keys_verifies_so_that_keys_can_be_exchanged():
    frame = encode(GOLDEN["heartbeat-of-three"], OTHER_KEY)
    assert why(frame, KEY, OTHER_KEY) is None
    assert why(frame, OTHER_KEY, KEY) is None
    assert why(frame, KEY) == Reason.UNAUTHENTICATED
    assert decode(frame, (KEY, OTHER_KEY)) == GOLDEN["heartbeat-of-three"]
    with pytest.raises(Refused):
        decode(frame, ())


@pytest.mark.parametrize(
    ("name", "at", "value", "reason"),
    [
        ("heartbeat-of-three", 1, 0, Reason.KIND),
        ("heartbeat-of-three", 1, 4, Reason.KIND),
        ("heartbeat-of-three", 38, 9, Reason.MALFORMED),  # more peers than are there
        ("heartbeat-of-three", 39, 255, Reason.MALFORMED),
        ("heartbeat-of-three", 39, 0, Reason.MALFORMED),  # the epochs are a verdict longer than they can be
        ("heartbeat-of-three", -1, 0x80, Reason.MALFORMED),  # a state that nobody knows
        ("epoch-piece", 35, 2, Reason.MALFORMED),  # the third of two
        ("epoch-piece", 36, 0, Reason.MALFORMED),
    ],
)
def test_a_signed_frame_with_a_field_out_of_its_range_is_refused(name, at, value, reason):
    frame = unsigned(name)
    assert why(signed(bytes(frame))) is None
    frame[at] = value
    assert why(signed(bytes(frame))) == reason


ALONE = GOLDEN["heartbeat-alone"]
PEER = PeerReport(node_id("n2"), 1, 1, 1)


@pytest.mark.parametrize(
    "message",
    [
        replace(ALONE, node=b"short"),
        replace(ALONE, node=b"far too long"),
        replace(ALONE, smallest_member=b""),
        replace(ALONE, incarnation=MAX_NUMBER + 1),
        replace(ALONE, incarnation=-1),
        replace(ALONE, sequence=MAX_SEQUENCE + 1),
        replace(ALONE, flags=Flag(256)),
        replace(ALONE, lease_ms=0x10000),
        replace(ALONE, hold_ms=-1),
        replace(ALONE, group_size=256),
        replace(ALONE, digest=1 << 24),
        replace(ALONE, digest=-1),
        replace(ALONE, peers=(PEER._replace(sequence=-1),)),
        replace(ALONE, peers=(PEER._replace(age_ms=-1),)),
        replace(ALONE, peers=(PEER,) * 65),
        replace(ALONE, verdicts=(Verdict(b"?", 1),)),
        replace(ALONE, epochs=(EpochReport(b"eightbyt", 2**48, 0, False, False),)),
        replace(GOLDEN["epoch-request"], wanted=()),
        replace(GOLDEN["epoch-request"], wanted=((b"eightbyt", 1),) * 98),
        replace(GOLDEN["epoch-piece"], data=b""),
        replace(GOLDEN["epoch-piece"], data=bytes(MAX_BYTES)),
        replace(GOLDEN["epoch-piece"], index=2),
        replace(GOLDEN["epoch-piece"], count=256),
    ],
    ids=str,
)
def test_a_message_that_no_frame_can_hold_is_refused_with_a_sentence(message):
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$") as refused:
        encode(message, KEY)
    assert not isinstance(refused.value, struct.error)


def test_more_peers_than_a_segment_has_are_refused_though_there_is_room_for_another():
    whole = replace(heartbeat_of(64, 0), verdicts=())
    frame = bytearray(encode(whole, KEY)[:-TAG_BYTES])
    frame[38] += 1
    assert why(signed(bytes(frame) + bytes(21))) == Reason.MALFORMED


def test_an_age_that_no_frame_can_hold_is_very_old():
    for age_ms in (0x3FFF, 0x4000, 10**9):
        peer = PEER._replace(age_ms=age_ms, complete=False, direct=False)
        said = decode(encode(replace(ALONE, peers=(peer,)), KEY), (KEY,))
        assert said.peers == (peer._replace(age_ms=0x3FFF),)


@pytest.mark.parametrize(("nodes", "epochs"), [(2, 62), (3, 61), (16, 48), (64, 0)])
def test_all_peers_and_as_many_epochs_as_fit_are_in_a_frame(nodes, epochs):
    whole = heartbeat_of(nodes, 1000)
    sent = fit(whole)
    assert (sent.peers, sent.verdicts) == (whole.peers, whole.verdicts)
    assert sent.epochs == whole.epochs[:epochs]
    assert decode(encode(sent, KEY), (KEY,)) == sent
    assert fit(sent) == sent
    with pytest.raises(ValueError, match="does not fit"):
        encode(replace(sent, epochs=whole.epochs[: epochs + 1]), KEY)


def test_a_frame_of_64_nodes_without_a_verdict_still_reports_an_epoch():
    said = fit(replace(heartbeat_of(64, 1000), verdicts=()))
    assert (len(said.peers), len(said.epochs)) == (63, 1)
    assert len(encode(said, KEY)) == MAX_BYTES


def test_a_report_that_differs_in_anything_has_another_mark_and_every_mark_fits_into_a_frame():
    report = EpochReport(b"eightbyt", 3, 2, owns=True, named=False)
    others = (
        report._replace(held=4),
        report._replace(in_use=3),
        report._replace(owns=False),
        report._replace(named=True),
        report._replace(ready=True),
        report._replace(gained=True),
        report._replace(sends=True),
        report._replace(drains=True),
        report._replace(acting=True),
        report._replace(clusterip=b"EIGHTBYT"),
    )
    marks = {one.mark() for one in (report, *others)}
    assert len(marks) == len(others) + 1
    for mark in marks:
        assert decode(encode(replace(ALONE, digest=mark), KEY), (KEY,)).digest == mark


def test_of_more_nodes_than_a_segment_may_have_the_first_are_reported():
    whole = replace(heartbeat_of(80, 10), verdicts=())
    assert fit(whole).peers == whole.peers[:63]
    encode(fit(whole), KEY)
