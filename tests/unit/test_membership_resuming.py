"""Rule 12, the successor's half: what a process makes of what a former one has left."""

from lbless_api.heartbeat import Flag, Heartbeat, PeerReport, node_id
from lbless_nodeagent.dataplane.membership import Membership, Memory, Times


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
