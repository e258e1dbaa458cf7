"""Membership rule by rule, where a single node and its peers' frames show it best."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import EpochReport, Flag, Heartbeat, PeerReport, Verdict, clusterip_id, node_id
from lbless_api.heartbeat_frame import decode, encode
from lbless_api.successors import rank
from lbless_nodeagent.dataplane.membership import (
    Condition,
    Epoch,
    Intent,
    Kept,
    Membership,
    Named,
    Times,
    Use,
    View,
    owned,
)
from unit.segment.ablation import NoRepeats, OldIncarnation

TIMES = Times.of_tick(0.1)
A, B, C = (node_id(name) for name in "abc")


def epoch(
    number: int = 1, shares: dict[str, str] | None = None, incarnation: int = 1, uid: str = "u"
) -> Epoch:
    """An epoch that names nodes at one incarnation."""
    shares = {"a": "0-7", "b": "8-15"} if shares is None else shares
    named = tuple(Named(n, node_id(n), incarnation, BucketSet.parse(b)) for n, b in shares.items())
    return Epoch(uid, "192.0.2.1", number, 16, BucketSet(), named)


def beat(
    node: bytes = B, sequence: int = 1, incarnation: int = 1, flags: Flag = Flag.VALID, **more
) -> Heartbeat:
    """A heartbeat of a peer."""
    return Heartbeat(node, incarnation, sequence, flags, 700, 0, 1, node, **more)


class Driver:
    """A membership of node a, by hand: it ticks every 100 ms of its own time."""

    def __init__(self, kind: type[Membership] = Membership, incarnation: int = 1, **more) -> None:
        self.now = 100.0
        self.machine = kind("a", incarnation, TIMES, self.now, **more)
        self.turn = self.machine.tick(self.now)
        self.machine.followed_view(self.turn.view.version)
        self.sequence = 0

    def run(self, seconds: float, *peers: bytes, **said) -> list[str]:
        """Let time pass while peers send heartbeats that acknowledge all; returns what happened."""
        events: list[str] = []
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.machine.heard_traffic(self.now)
            for peer in peers:
                self.sequence += 1
                report = PeerReport(A, self.machine.incarnation, self.machine.sequence, 0)
                self.machine.heard(beat(peer, self.sequence, peers=(report,), **said), self.now)
            self.tick()
            events += self.turn.events
        return events

    def tick(self) -> None:
        """One turn; the kernel follows at once."""
        self.turn = self.machine.tick(self.now)
        for uid, use in self.turn.view.use.items():
            self.machine.applied(uid, Kept(use.epoch, use.epoch > 0 or use.acting is not None, use.epoch))
        self.machine.followed_view(self.turn.view.version)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lease": 0.71}, "LEASE of 0.71 s and DEAD of 0.75 s could give a bucket two owners"),
        ({"tick": 0.0}, "TICK of 0 s is out of range"),
        ({"quiet": 0.8}, "do not work together"),
        ({"heard": 0.1}, "do not work together"),
        ({"tick": 0.71}, "TICK of 0.71 s is out of range: use 0.01 to 0.7 s."),
        ({"dead": 5.1}, "DEAD of 5.1 s is out of range: use at most 5 s."),
        ({"hold": 0.2}, "A hold of 0.2 s is out of range"),
        ({"hold": 5.1}, r"A hold of 5.1 s is out of range: use DEAD \(0.75 s\) to 5 s."),
    ],
)
def test_times_that_would_not_work_together_are_refused_with_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(TIMES, **wrong)


@pytest.mark.parametrize("tick", [0.02, 0.05, 0.1, 0.5, 0.7])
def test_every_tick_has_times_that_work_together(tick):
    assert Times.of_tick(tick).lease <= Times.of_tick(tick).dead - 0.05 + 1e-9


def view(
    living: dict[str, int], held: str = "", gain: bool = True, acting: tuple[str, ...] | None = None
) -> View:
    use = {"u": Use(0 if acting else 1, 1, gain, acting)}
    return View(
        1, 1, frozenset((node_id(n), i) for n, i in living.items()), frozenset(map(node_id, held)), use
    )


@given(st.sets(st.sampled_from("abcde"), min_size=1), st.sets(st.sampled_from("abcde")), st.integers(0, 255))
def test_the_dead_nodes_buckets_go_to_the_first_in_rank_and_no_others_move(living, held, octet):
    shares = {"a": "0-3", "b": "4-6", "c": "7-9", "d": "10-12", "e": "13-15"}
    document = replace(epoch(shares=shares), ip=f"192.0.2.{octet}")
    seen = view(dict.fromkeys(living, 1), held="".join(held))
    for bucket in range(16):
        assigned = next(n for n, b in shares.items() if bucket in BucketSet.parse(b))
        heirs = rank(IPv4Address(document.ip), bucket, living - held or living)
        expected = [assigned] if assigned in living else heirs[:1]
        assert [n for n in "abcde" if bucket in owned(document, seen, n)] == expected


def test_a_former_incarnations_buckets_are_not_its_successors():
    assert str(owned(epoch(shares={"a": "0-7", "b": "8-15"}), view({"a": 2, "b": 1}), "a")) == ""
    assert str(owned(epoch(shares={"a": "0-7", "b": "8-15"}), view({"a": 2, "b": 1}), "b")) == "0-15"


def test_nobody_takes_over_from_a_node_without_heartbeats_and_it_keeps_its_share_when_it_sends_some():
    """Such a node is named with incarnation 0."""
    named = (Named("a", node_id("a"), 0, BucketSet([0, 1])), Named("b", node_id("b"), 5, BucketSet([2, 3])))
    mixed = Epoch("u", "10.0.0.1", 1, 4, BucketSet(), named)
    view = View(1, 5, frozenset({(node_id("b"), 5)}), frozenset(), {"u": Use(1, 1, gain=True)})
    assert owned(mixed, view, "b") == BucketSet([2, 3])
    alone = View(1, 7, frozenset({(node_id("a"), 7)}), frozenset(), {"u": Use(1, 1, gain=True)})
    assert BucketSet([0, 1]).issubset(owned(mixed, alone, "a"))


def test_reserved_buckets_are_nobodys_neither_by_takeover_nor_by_acting():
    document = replace(epoch(shares={"a": "0-3", "b": "8-15"}), reserved=BucketSet.parse("4-7"))
    assert str(owned(document, view({"a": 1}), "a")) == "0-3,8-15"
    assert str(owned(document, view({}, acting=("a",)), "a")) == "0-3,8-15"


def test_a_node_listens_for_dead_and_until_its_kernel_owns_nothing():
    driver = Driver()
    driver.machine.followed = -1
    for _ in range(20):
        driver.now += 0.1
        driver.turn = driver.machine.tick(driver.now)
    assert Condition.LISTENING in driver.turn.conditions
    assert driver.turn.lease_end is None
    driver.run(0.6)
    assert Condition.LISTENING not in driver.turn.conditions
    assert driver.turn.lease_end is not None


def test_an_older_frame_is_dropped_and_counted():
    driver = Driver()
    assert driver.machine.heard(beat(sequence=7), driver.now)
    assert not driver.machine.heard(beat(sequence=7), driver.now)
    assert not driver.machine.heard(beat(sequence=9, incarnation=0), driver.now)
    assert driver.machine.dropped == {"stale": 2}


def test_a_peer_dies_for_good_and_only_a_new_incarnation_lives():
    driver = Driver()
    driver.machine.learn(epoch(), driver.now)
    driver.run(1.5, B)
    assert (B, 1) in driver.turn.view.living
    driver.run(1.0)
    assert (B, 1) not in driver.turn.view.living
    driver.run(0.1, B)
    assert (B, 1) not in driver.turn.view.living
    driver.machine.heard(beat(sequence=1, incarnation=2), driver.now)
    driver.tick()
    assert (B, 2) in driver.turn.view.living


def test_a_peer_with_a_longer_lease_or_hold_is_dead_later():
    driver = Driver()
    driver.run(1.5)
    driver.machine.heard(replace(beat(sequence=10**6), lease_ms=1400), driver.now)
    driver.run(1.3)
    assert (B, 1) in driver.turn.view.living
    driver.run(0.3)
    assert (B, 1) not in driver.turn.view.living


def test_nobody_counts_an_unfenced_node_dead_by_its_silence():
    driver = Driver()
    driver.run(1.5, B, flags=Flag.VALID | Flag.UNFENCED)
    driver.run(5)
    assert (B, 1) in driver.turn.view.living
    driver.machine.heard(beat(sequence=10**6, flags=Flag.LEAVING | Flag.UNFENCED), driver.now)
    driver.tick()
    assert (B, 1) not in driver.turn.view.living


def test_a_lease_reaches_as_far_as_the_oldest_acknowledgement():
    driver = Driver()
    driver.run(1.5, B, C)
    full = driver.turn.lease_end
    assert full == pytest.approx(driver.now + 0.6, abs=0.01)
    sequence = driver.machine.sequence
    for _ in range(3):
        driver.now += 0.1
        driver.sequence += 1
        now = PeerReport(A, 1, driver.machine.sequence, 0)
        driver.machine.heard(beat(B, driver.sequence, peers=(now,)), driver.now)
        driver.machine.heard(beat(C, driver.sequence, peers=(now._replace(sequence=sequence),)), driver.now)
        driver.tick()
    assert driver.turn.lease_end == pytest.approx(full + 0.1, abs=0.01)


def test_the_lower_rank_steps_down_in_a_dispute_and_the_higher_counts_it_dead():
    for size, survives in ((0, True), (3, False)):
        driver = Driver()
        driver.run(1.5, B)
        accusing = replace(beat(sequence=10**6, verdicts=(Verdict(A, 1),)), group_size=size)
        driver.now += 0.02
        driver.machine.heard(accusing, driver.now)
        driver.tick()
        assert (driver.machine.incarnation == 1) is survives
        assert ((B, 1) in driver.turn.view.living) is not survives
        assert (driver.turn.lease_end is not None) is survives
        assert bool(driver.turn.heartbeats)


def test_epochs_are_asked_for_where_a_peer_shows_one_that_is_lacking():
    driver = Driver()
    said = (EpochReport(clusterip_id("u"), held=4, in_use=4, owns=True, named=True),)
    driver.machine.heard(beat(epochs=said), driver.now)
    driver.tick()
    assert driver.turn.wanted == ((clusterip_id("u"), 4),)
    driver.machine.learn(epoch(4), driver.now)
    driver.run(0.5, B)
    assert driver.turn.wanted == ()


def test_a_forgotten_clusterip_is_neither_followed_nor_asked_for():
    driver = Driver()
    said = (EpochReport(clusterip_id("u"), held=4, in_use=4, owns=True, named=True),)
    driver.machine.learn(epoch(4), driver.now)
    driver.run(1.5, B, epochs=said)
    assert driver.turn.view.use["u"].epoch == 4
    driver.machine.forget("u")
    wanted = []
    told = []
    for _ in range(5):
        driver.run(0.1, B, epochs=said)
        wanted += driver.turn.wanted
        told += [report for frame in driver.turn.heartbeats for report in frame.epochs]
    assert "u" not in driver.turn.view.use
    assert wanted == []
    assert EpochReport(clusterip_id("u"), 0, 0, owns=False, named=False) in told


def test_filtered_heartbeats_are_told_and_nobody_is_taken_over():
    driver = Driver()
    driver.machine.learn(epoch(), driver.now)
    driver.run(59)
    assert Condition.NO_PEERS_HEARD not in driver.turn.conditions, "others may only start later"
    assert "u" not in driver.turn.view.use or driver.turn.view.use["u"].epoch == 0
    driver.run(3)
    assert str(owned(epoch(), driver.turn.view, "a")) == "0-7"
    assert Condition.NO_PEERS_HEARD in driver.turn.conditions


def test_one_that_acts_and_hears_nobody_leaves_the_others_what_the_next_epoch_gives_them():
    """After a power cut, say, at which the switch began to filter heartbeats: all of them act, until they are told."""
    driver = Driver(incarnation=2)
    driver.machine.learn(epoch(), driver.now)
    driver.run(3)
    assert str(owned(epoch(), driver.turn.view, "a")) == "0-15"
    present = epoch(2, incarnation=2)
    driver.machine.learn(present, driver.now)
    driver.run(3)
    assert driver.turn.view.use["u"].acting == ("a",)
    assert str(owned(present, driver.turn.view, "a")) == "0-7"
    driver.run(60)
    assert driver.turn.view.use["u"] == Use(2, 2, gain=True)
    assert str(owned(present, driver.turn.view, "a")) == "0-7"


def test_what_is_confirmed_of_a_former_incarnation_is_not_told_as_the_present_ones():
    driver = Driver()
    driver.machine.learn(epoch(shares={"a": "0-15"}), driver.now)
    driver.run(1.5, B)
    driver.machine.heard(beat(sequence=10**6, verdicts=(Verdict(A, 1),), flags=Flag.VALID), driver.now)
    driver.machine.rule7_new_incarnation("the test says so")
    driver.turn = driver.machine.tick(driver.now)
    driver.machine.applied("u", Kept(1, owns=True))
    driver.turn = driver.machine.tick(driver.now + 0.1)
    assert [report.in_use for frame in driver.turn.heartbeats for report in frame.epochs] == [0]


@pytest.mark.parametrize(("peers", "clusterips"), [(15, 1000), (63, 3), (63, 1000), (0, 1000)])
def test_frames_fit_into_1400_bytes_and_all_epochs_are_told_within_two_ticks(peers, clusterips):
    driver = Driver()
    driver.run(1.0)
    for number in range(peers):
        driver.machine.heard(beat(node_id(f"n{number}")), driver.now)
    for number in range(clusterips):
        driver.machine.learn(epoch(uid=f"u{number}", shares={"a": "0-15"}), driver.now)
    told: set[bytes] = set()
    for _ in range(2):
        driver.now += 0.1
        driver.turn = driver.machine.tick(driver.now)
        for frame in driver.turn.heartbeats:
            assert decode(encode(frame, b"a key"), (b"a key",)) == frame
            told |= {report.clusterip for report in frame.epochs}
    assert len(told) == clusterips


def test_a_node_that_holds_keeps_its_lease_only_when_all_have_acknowledged_it():
    driver = Driver()
    driver.machine.learn(epoch(), driver.now)
    driver.run(1.5, B, epochs=(EpochReport(clusterip_id("u"), 1, 1, owns=True, named=True),))
    driver.now += 0.01
    driver.machine.stop(Intent.HOLD, driver.now)
    driver.tick()
    assert driver.turn.heartbeats[0].flags & Flag.HELD
    assert not driver.turn.done
    driver.run(0.1, B)
    assert driver.turn.done
    assert driver.turn.lease_end == pytest.approx(driver.now + 1.9, abs=0.02)


def test_a_node_does_not_hold_beside_a_held_peer_while_a_dead_nodes_buckets_are_taken_over():
    driver = Driver()
    driver.machine.learn(epoch(shares={"a": "0-4", "b": "5-9", "c": "10-15"}), driver.now)
    uses = (EpochReport(clusterip_id("u"), 1, 1, owns=True, named=True),)
    driver.run(1.5, B, C, epochs=uses)
    driver.run(1.5, B, epochs=uses, flags=Flag.VALID | Flag.HELD)
    assert driver.turn.view.living == {(A, 1), (B, 1)}
    driver.now += 0.01
    driver.machine.stop(Intent.HOLD, driver.now)
    driver.tick()
    assert driver.turn.heartbeats[0].flags & (Flag.HELD | Flag.LEAVING) == Flag.LEAVING


def test_a_node_that_cannot_hold_leaves_and_says_so_more_than_once():
    driver = Driver()
    driver.machine.learn(epoch(), driver.now)
    driver.run(1.5, B)
    driver.machine.stop(Intent.HOLD, driver.now)
    frames = []
    while not driver.turn.done:
        driver.now += 0.05
        driver.tick()
        frames += driver.turn.heartbeats
    assert driver.turn.lease_end is None
    assert sum(bool(frame.flags & Flag.LEAVING) for frame in frames) >= 3


ids = st.sampled_from([A, B, C, bytes(8)])
small = st.integers(0, 3)
reports = st.builds(
    PeerReport, ids, small, st.integers(0, 2**40), st.integers(0, 0x3FFF), st.booleans(), st.booleans()
)
said = st.builds(
    EpochReport, st.sampled_from([clusterip_id("u"), bytes(8)]), small, small, st.booleans(), st.booleans()
)
frames = st.builds(
    Heartbeat,
    ids,
    small,
    st.integers(0, 2**40),
    st.integers(0, 127).map(Flag),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.integers(0, 255),
    ids,
    st.lists(reports, max_size=3).map(tuple),
    st.lists(st.builds(Verdict, ids, small), max_size=3).map(tuple),
    st.lists(said, max_size=3).map(tuple),
    st.integers(0, 2**24 - 1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(frames, st.floats(0, 0.5)), max_size=40))
def test_whatever_authentic_frames_say_it_goes_on_and_its_lease_is_never_longer_than_a_lease(heard):
    driver = Driver()
    driver.machine.learn(epoch(), driver.now)
    for frame, pause in heard:
        driver.machine.heard(frame, driver.now)
        driver.now += pause
        driver.tick()
        if driver.turn.lease_end is not None:
            assert driver.turn.lease_end <= driver.now + TIMES.lease
        assert driver.turn.wake > driver.now


def test_one_whose_peers_know_a_newer_incarnation_of_it_takes_a_newer_one_still():
    driver = Driver()
    driver.machine.heard(beat(peers=(PeerReport(A, 7, 5, 0),)), driver.now)
    driver.tick()
    assert driver.machine.incarnation == 8
    deprived = OldIncarnation("a", 1, TIMES, 100.0)
    deprived.heard(beat(peers=(PeerReport(A, 7, 5, 0),)), 100.0)
    deprived.tick(100.0)
    assert deprived.incarnation == 1


def test_a_peer_that_missed_a_report_has_all_of_them_told_anew():
    def told(kind: type[Membership]) -> set[bytes]:
        driver = Driver(kind=kind)
        for number in range(300):
            driver.machine.learn(epoch(uid=f"u{number}", shares={"a": "0-15"}), driver.now)
        driver.run(1.5, B)
        report = PeerReport(A, 1, driver.machine.sequence, 0, complete=False)
        driver.now += 0.01
        driver.machine.heard(beat(B, 10**6, peers=(report,)), driver.now)
        driver.tick()
        return {said.clusterip for frame in driver.turn.heartbeats for said in frame.epochs}

    assert len(told(Membership)) == 300
    assert len(told(NoRepeats)) < 10


def test_only_what_tells_something_new_is_urgent_and_only_who_can_wait_is_calm():
    driver = Driver()
    urgent = []
    for _ in range(12):
        driver.run(0.1, B)
        urgent.append(any(Flag.URGENT in frame.flags for frame in driver.turn.heartbeats))
    assert any(urgent), "its listening has ended"
    assert driver.turn.calm
    assert not urgent[-1]
    driver.machine.learn(epoch(), driver.now)
    told = []
    for _ in range(4):
        driver.run(0.1, B)
        told += [Flag.URGENT in frame.flags for frame in driver.turn.heartbeats]
    assert told[:2] == [True, True], "the second is for who has missed the first"
    assert told[-1] is False
    # B is heard, and acknowledges nothing any more: the lease has 0.7 s from the last that it did.
    calm = []
    for _ in range(6):
        driver.now += 0.1
        driver.sequence += 1
        driver.machine.heard(beat(B, driver.sequence), driver.now)
        driver.tick()
        assert driver.turn.lease_end is not None
        calm.append(driver.turn.calm and driver.turn.lease_end - driver.now)
    assert all(left is False or left > 2 * TIMES.tick for left in calm)
    assert calm[0] is not False
    assert calm[-1] is False


def test_one_that_acts_has_its_lease_again_beside_another_whatever_epoch_that_one_last_used():
    driver = Driver(incarnation=2)
    driver.machine.learn(epoch(), driver.now)
    driver.run(3)
    assert driver.turn.view.use["u"].acting == ("a",)
    acts = (EpochReport(clusterip_id("u"), held=1, in_use=1, owns=True, named=False, acting=True),)
    driver.run(1, B, incarnation=2, epochs=acts)
    assert driver.turn.view.use["u"].acting == ("a", "b")
    for _ in range(9):  # it hears B, but B does not hear it
        driver.now += 0.1
        driver.sequence += 1
        driver.machine.heard(beat(B, driver.sequence, incarnation=2, epochs=acts), driver.now)
        driver.tick()
    assert driver.turn.lease_end is None
    driver.run(0.3, B, incarnation=2, epochs=acts)
    assert driver.turn.lease_end is not None
