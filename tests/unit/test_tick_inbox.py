"""What of a wire's frames is believed, and how the rest is counted."""

import hmac
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.heartbeat import Heartbeat, Message, PeerReport, node_id
from lbless_api.heartbeat_frame import TAG_BYTES, Stamp, encode
from lbless_nodeagent.dataplane.membership import Memory
from lbless_nodeagent.dataplane.memoryfile import MemoryFile
from lbless_nodeagent.dataplane.tick.freshness import MAX_NODES, Freshness
from lbless_nodeagent.dataplane.tick.inbox import PER_NODE, Inbox, Received
from lbless_nodeagent.dataplane.tick.wire import Arrived, Drained
from unit.heartbeats import GOLDEN, KEY

OWN = node_id("n9")
ALONE = GOLDEN["heartbeat-alone"]


class StillWire:
    """A wire on which the test puts frames; each draining takes them."""

    def __init__(self) -> None:
        self.frames: list[Arrived] = []
        self.lost, self.behind, self.refused_by_kernel = 0, False, 0

    def drain(self) -> Drained:
        frames, self.frames = self.frames, []
        return Drained(len(frames), frames, self.lost, self.behind)

    def refused(self) -> int:
        return self.refused_by_kernel


class Node:
    """An inbox and its wire."""

    def __init__(self) -> None:
        self.wire = StillWire()
        self.inbox = Inbox(self.wire, OWN)  # type: ignore[arg-type]

    def hear(self, frames: Iterable[bytes], keys: tuple[bytes, ...] = (KEY,)) -> list[Received]:
        self.wire.frames = [Arrived(frame, at) for at, frame in enumerate(frames)]
        return self.inbox.take(keys)


def numbered(sequence: int, incarnation: int = 5, node: str = "n1") -> Message:
    return replace(ALONE, node=node_id(node), incarnation=incarnation, sequence=sequence)


def frame(sequence: int, incarnation: int = 5, node: str = "n1") -> bytes:
    return encode(numbered(sequence, incarnation, node), KEY)


def test_messages_come_in_the_order_of_their_arrival_with_the_time_of_it():
    messages = [numbered(1), numbered(1, node="n2"), numbered(2), GOLDEN["epoch-piece"]]
    heard = Node().hear(encode(message, KEY) for message in messages)
    assert heard == [Received(message, at) for at, message in enumerate(messages)]


def test_everything_that_is_dropped_is_counted_by_why_and_changes_nothing():
    node = Node()
    node.hear([frame(10)])
    node.wire.lost, node.wire.refused_by_kernel = 3, 4
    unreadable = encode(numbered(12), KEY)[:-TAG_BYTES] + b"more"
    heard = node.hear(
        [
            b"",
            bytes(60),
            bytes(2000),
            encode(numbered(11), b"a key that nobody here has"),
            frame(11)[:-1],
            frame(10),
            frame(9),
            frame(99, incarnation=4),
            frame(1, node="n9"),
            unreadable + hmac.digest(KEY, unreadable, "sha256")[:TAG_BYTES],
            frame(13),
        ]
    )
    assert [received.message for received in heard] == [numbered(13)]
    assert node.inbox.dropped() == {
        "Truncated": 1,
        "TooLong": 1,
        "Version": 1,
        "Unauthenticated": 2,
        "Malformed": 1,
        "Replayed": 3,
        "Own": 1,
        "Overflow": 3,
        "Filtered": 4,
    }


def test_a_forged_frame_with_a_high_number_does_not_make_the_next_ones_old():
    node = Node()
    assert node.hear([encode(numbered(2**39, incarnation=2**47), b"a key that nobody here has")]) == []
    assert len(node.hear([frame(1)])) == 1


def test_while_frames_were_lost_or_are_left_the_silence_of_a_peer_says_nothing():
    node = Node()
    node.hear([])
    assert node.inbox.trustworthy
    node.wire.lost = 1
    node.hear([])
    assert not node.inbox.trustworthy
    node.wire.lost, node.wire.behind = 0, True
    node.hear([])
    assert not node.inbox.trustworthy
    node.wire.behind = False
    node.hear([])
    assert node.inbox.trustworthy


def test_of_a_node_that_sends_too_much_the_newest_is_read_and_of_the_others_all():
    node = Node()
    loud = [frame(sequence) for sequence in range(PER_NODE + 50)]
    heard = node.hear([*loud[:70], frame(1, node="n2"), *loud[70:]])
    sequences = [r.message.sequence for r in heard if r.message.node == node_id("n1")]
    assert sequences == list(range(50, PER_NODE + 50))
    assert node_id("n2") in {received.message.node for received in heard}
    assert node.inbox.dropped() == {"Excess": 50}
    assert node.hear([frame(49)]) == []


def test_a_new_key_is_used_from_the_next_draining_on():
    node, key = Node(), b"the key that everybody gets next"
    assert node.hear([encode(numbered(1), key)]) == []
    assert len(node.hear([encode(numbered(1), key)], (KEY, key))) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_what_is_admitted_of_a_node_only_rises(stamps):
    freshness, newest = Freshness(), {}
    for name, incarnation, sequence in stamps:
        number = (incarnation, sequence)
        admitted = freshness.admit(Stamp(node_id(name), *number))
        assert admitted == (number > newest.get(name, (-1, -1)))
        if admitted:
            newest[name] = number


def test_the_nodes_that_are_remembered_are_limited_and_those_that_speak_are_not_forgotten():
    freshness = Freshness()
    for number in range(3 * MAX_NODES):
        assert freshness.admit(Stamp(node_id(f"stranger-{number}"), 1, 1))
        assert freshness.admit(Stamp(node_id("n1"), 1, number))
    assert not freshness.admit(Stamp(node_id("n1"), 1, 5))
    assert len(freshness._newest) == MAX_NODES


def test_a_successor_refuses_what_the_former_process_has_taken_and_takes_what_is_newer():
    former = Node()
    former.hear([frame(7), frame(3, node="n2")])
    wire = StillWire()
    successor = Inbox(wire, OWN, former.inbox.newest())  # type: ignore[arg-type]
    wire.frames = [
        Arrived(one, 0) for one in (frame(6), frame(7), frame(99, incarnation=4), frame(3, node="n2"))
    ]
    assert successor.take((KEY,)) == []
    assert successor.dropped() == {"Replayed": 4}
    wire.frames = [Arrived(frame(8), 0), Arrived(frame(1, node="n3"), 0)]
    assert [received.message for received in successor.take((KEY,))] == [numbered(8), numbered(1, node="n3")]


def test_what_was_taken_is_written_down_and_counts_in_another_boot_too(tmp_path):
    newest = (Stamp(node_id("n1"), 5, 7), Stamp(node_id("n2"), 2**48 - 1, 2**40 - 1))
    written = MemoryFile(tmp_path, "boot-1")
    written.keep("eth0", Memory(1, newest=newest))
    again, rebooted = MemoryFile(tmp_path, "boot-1"), MemoryFile(tmp_path, "boot-2")
    assert again.former == {"eth0": Memory(1, newest=newest)}
    assert rebooted.former == {}
    assert again.newest == rebooted.newest == {"eth0": newest}


def reporting(sequence: int, reported: int, node: str = "n1", about: str = "n2") -> bytes:
    """A frame that reports another node."""
    report = PeerReport(node_id(about), 5, reported, 20, complete=True, direct=True)
    return encode(replace(numbered(sequence, node=node), peers=(report,)), KEY)


def reported(heard: list[Received]) -> list[tuple[int, ...]]:
    """The sequences that each message reports."""
    messages = (one.message for one in heard)
    return [
        tuple(p.sequence for p in message.peers) for message in messages if isinstance(message, Heartbeat)
    ]


def test_of_what_frames_say_of_each_other_only_news_is_read():
    node = Node()
    assert reported(node.hear([reporting(1, 7), frame(7, node="n2"), reporting(2, 8)])) == [(), (), (8,)]
    assert reported(node.hear([reporting(3, 7), reporting(4, 9), reporting(5, 3, about="n9")])) == [
        (),
        (9,),
        (3,),
    ]
    newer = PeerReport(node_id("n2"), 6, 1, 20, complete=True, direct=True)
    assert reported(node.hear([encode(replace(numbered(6), peers=(newer,)), KEY)])) == [(1,)]


def test_what_only_a_former_process_has_heard_is_news_when_others_report_it():
    wire = StillWire()
    inbox = Inbox(wire, OWN, [Stamp(node_id("n2"), 5, 7)])  # type: ignore[arg-type]
    wire.frames = [Arrived(reporting(1, 7), 0), Arrived(frame(7, node="n2"), 1)]
    assert reported(inbox.take([KEY])) == [(7,)], "it is not known that it lives"
