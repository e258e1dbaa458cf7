"""Rule 12, the successor's half: what a process makes of what a former one has left."""

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import EpochReport, Flag, Heartbeat, PeerReport, clusterip_id, node_id
from lbless_nodeagent.dataplane.membership import Epoch, Kept, Membership, Memory, Named, Times

NOW, TIMES = 100.0, Times.of_tick(0.1)
NAMED = Named("n1", node_id("n1"), 1, BucketSet.parse("0-15"))
NEVER_HEARD = Named("n3", node_id("n3"), 3, BucketSet())


def test_a_process_that_resumes_beside_a_dead_peer_keeps_its_lease():
    """It waits for no acknowledgement of one that is dead: the rest of a lease is shorter than HEARD."""
    now, times = 100.0, Times.of_tick(0.1)
    two, three = (node_id("n2"), 2), (node_id("n3"), 3)
    memory = Memory(1, peers=(two, three), verdicts=(three,))
    machine = Membership("n1", 9, times, now, resumed=memory, lease_end=now + 0.35)
    assert machine.incarnation == 1
    for step in range(1, 100):
        turn = machine.tick(now + step / 100)
        assert turn.lease_end is not None, f"lapsed after {step * 10} ms"
        for beat in turn.heartbeats:
            heard = PeerReport(machine.node, machine.incarnation, beat.sequence, 0)
            said = Heartbeat(*two, beat.sequence, Flag.VALID, 700, 0, 2, two[0], (heard,))
            machine.heard(said, now + step / 100 + 0.001)


def test_a_process_that_comes_too_late_to_resume_begins_as_another_incarnation():
    memory = Memory(7, peers=((node_id("n2"), 2),))
    machine = Membership("n1", 7, Times.of_tick(0.1), 100.0, resumed=memory, lease_end=99.9)
    assert machine.incarnation == 8
    assert machine.tick(100.0).lease_end is None


def resumed(*named: Named, peers: tuple[tuple[bytes, int], ...] = ()) -> Membership:
    """A process that goes on where a former one had epoch 2 in use, which gives this node all."""
    memory = Memory(1, peers=peers, kernel=(("u", 2, Kept(2, owns=True), False),))
    machine = Membership("n1", 9, TIMES, NOW, resumed=memory, lease_end=NOW + 2)
    machine.learn(Epoch("u", "192.0.2.1", 2, 16, BucketSet(), named), NOW)
    return machine


def test_a_process_that_resumes_where_nobody_was_ever_heard_still_waits_for_the_others_to_lose():
    machine = resumed(NAMED, NEVER_HEARD)
    assert not machine.tick(NOW).view.use["u"].gain
    assert not machine.tick(NOW + TIMES.dead + TIMES.hold - 0.05).view.use["u"].gain
    assert machine.tick(NOW + TIMES.dead + TIMES.hold + 0.05).view.use["u"].gain


def test_a_process_that_resumes_gains_nothing_until_each_peer_has_said_whether_it_owns_something():
    """Whom the epochs before named has gone with the former process: it may be anyone."""
    two = (node_id("n2"), 2)
    machine = resumed(NAMED, peers=(two,))
    owning = EpochReport(clusterip_id("u"), held=2, in_use=1, owns=True, named=False)
    other = EpochReport(clusterip_id("v"), held=1, in_use=1, owns=True, named=True)
    lost = owning._replace(in_use=2, owns=False)
    gains = []
    for sequence, said in enumerate(((other,), (other, owning), (lost,)), 1):
        digest = (lost if said == (lost,) else owning).mark() ^ other.mark()
        frame = Heartbeat(*two, sequence, Flag.VALID, 700, 0, 2, two[0], epochs=said, digest=digest)
        machine.heard(frame, NOW + sequence / 100)
        gains.append(machine.tick(NOW + sequence / 100).view.use["u"].gain)
    assert gains == [False, False, True]
