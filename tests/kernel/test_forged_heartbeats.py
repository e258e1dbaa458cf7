"""Forged heartbeats at real nodes: none changes anything, each is counted, and what a replay can do is shown here.

The forger is a host of the segment that has recorded every frame so far. It has no key, except where a test says so.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kernel.dataplane import wait_for
from kernel.forgedsegment import SHARES, VIP, ForgedSegment
from kernel.membersegment import KEY
from lab import claim
from lab.lan import Lan
from lbless_api.heartbeat import Flag, Heartbeat, PeerReport, Verdict, node_id
from lbless_api.heartbeat_frame import MIN_BYTES, Kind, decode, encode

pytestmark = pytest.mark.root

KEYS = (bytes.fromhex(KEY),)
WRONG_KEY = bytes(range(32))
NEXT_KEY = "a7" * 32
FLOOD = Path(__file__).parent / "inside" / "frame_flood.py"
RECORDED = 12
HEARD_SECONDS = 0.4
"""A peer that was not heard for so long need not acknowledge."""


@pytest.fixture(scope="module")
def calm() -> Iterator[ForgedSegment]:
    """Three nodes that serve, of which no test here disturbs any."""
    yield from segment("kfh")


@pytest.fixture
def shaken() -> Iterator[ForgedSegment]:
    """Three nodes that serve, to be killed and started; clients' traffic goes on, so that none is deaf. Their leases
    last longer, so that a successor on a busy machine is in time."""
    for made in segment("kfs", "--lease-ms", "1500", "--dead-ms", "1550"):
        made.forger.begin_traffic(VIP)
        yield made


def segment(prefix: str, *arguments: str) -> Iterator[ForgedSegment]:
    with Lan(claim.unique(prefix), nodes=3, sources=1) as lan:
        made = ForgedSegment(lan, lan.directory, arguments)
        try:
            made.begin()
            yield made
        finally:
            made.close()


def record(calm: ForgedSegment, node: str | None = None, count: int = RECORDED) -> list[bytes]:
    """Wait until so many frames of each node, or of one, have passed; return all of them."""
    nodes = [node] if node else list(SHARES)
    wait_for(lambda: all(len(calm.forger.recorded(one)) >= count for one in nodes))
    return calm.forger.recorded(node)


def refused(frame: bytes) -> str:
    """Why a frame that nobody signed is refused: by the kernel's filter, or because of its tag."""
    likely = len(frame) >= MIN_BYTES and frame[0] == 1 and min(Kind) <= frame[1] <= max(Kind)
    return "Unauthenticated" if likely else "Filtered"


def same_everywhere(count: Counter[str]) -> dict[str, Counter[str]]:
    """What each node counts."""
    return {name: count for name in SHARES}  # noqa: C420 - nobody changes it


def newest(frames: Sequence[bytes]) -> Heartbeat:
    """The last heartbeat of them."""
    messages = [decode(frame, KEYS) for frame in frames]
    return [message for message in messages if isinstance(message, Heartbeat)][-1]


def assert_only_counted(calm: ForgedSegment, frames: Sequence[bytes], why: dict[str, Counter[str]]) -> None:
    """Send frames; each node counts each of them, as `why` says, and nothing else happens."""
    before = {name: calm.dropped(name) for name in why}
    world = calm.world()
    calm.forger.send(frames)

    def counted() -> dict[str, Counter[str]]:
        return {name: calm.dropped(name) - before[name] for name in why}

    deadline = time.monotonic() + 10
    while (found := counted()) != why and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == why
    assert calm.world() == world


def test_what_nobody_signed_changes_nothing_and_is_counted_at_every_node(calm: ForgedSegment) -> None:
    real = record(calm)
    one = max(real[-RECORDED:], key=len)
    bits = [(at, bit) for at in range(len(one)) for bit in (0, 7)]
    frames = [
        *(frame[:-16] for frame in real),
        *(frame[:-16] + bytes(16) for frame in real),
        *(encode(decode(frame, KEYS), WRONG_KEY) for frame in real),
        *(one[:length] for length in range(len(one))),
        *(one[:at] + bytes([one[at] ^ 1 << bit]) + one[at + 1 :] for at, bit in bits),
    ]
    assert_only_counted(calm, frames, same_everywhere(Counter(map(refused, frames))))


def test_a_replay_changes_nothing_whether_at_once_or_later(calm: ForgedSegment) -> None:
    record(calm)
    # At once: the newest frame of each, before its next one.
    latest = [calm.forger.recorded(name)[-1] for name in SHARES]
    counts = same_everywhere(Counter({"Own": 1, "Replayed": len(SHARES) - 1}))
    assert_only_counted(calm, latest, counts)
    real = calm.forger.recorded()
    own = {name: len(calm.forger.recorded(name)) for name in SHARES}
    counts = {name: Counter({"Own": own[name], "Replayed": len(real) - own[name]}) for name in SHARES}
    assert_only_counted(calm, real, counts)


def test_whoever_has_the_key_speaks_for_no_older_incarnation_nor_sequence(calm: ForgedSegment) -> None:
    said = newest(record(calm, "n2"))
    worst = replace(
        said,
        flags=Flag.LEAVING | Flag.VALID,
        verdicts=tuple(Verdict(node_id(name), calm.incarnation(name)) for name in ("n1", "n3")),
        peers=(PeerReport(node_id("n1"), calm.incarnation("n1") + 9, 1, 0),),
        group_size=64,
    )
    older = [
        replace(worst, sequence=said.sequence - 1),
        replace(worst, sequence=0),
        replace(worst, incarnation=said.incarnation - 1, sequence=said.sequence + 100_000),
        replace(worst, incarnation=0),
    ]
    frames = [encode(one, KEYS[0]) for one in older]
    replayed = Counter({"Replayed": len(frames)})
    assert_only_counted(calm, frames, {"n1": replayed, "n3": replayed, "n2": Counter({"Own": len(frames)})})


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("random", 4),
        pytest.param("random", 30, marks=pytest.mark.soak),
        pytest.param("likely", 30, marks=pytest.mark.soak),
    ],
)
def test_a_flood_of_10000_frames_a_second_lets_no_lease_lapse_and_kills_nobody(
    calm: ForgedSegment, kind: str, seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """`likely` frames have everything right that can be seen without a key. How late ticks are is printed alone:
    it says as much about the machine."""
    world, before = calm.world(), {name: calm.dropped(name) for name in SHARES}
    quiet = {name: calm.late(name) for name in SHARES}
    client = calm.lan.client
    command = [sys.executable, str(FLOOD), client.interface, "10000", str(seconds), kind]
    flood = client.popen(command, stdout=subprocess.PIPE)
    sent = int(flood.communicate(timeout=seconds + 60)[0])
    reason = "Filtered" if kind == "random" else "Unauthenticated"

    def counted(name: str) -> Counter[str]:
        return calm.dropped(name) - before[name]

    # What found a buffer full is counted too; what the kernel drops before any socket sees it is not.
    wait_for(lambda: all(counted(name).total() >= sent * 0.9 for name in SHARES))
    settled = time.monotonic() + 2.5  # what is counted is told once a second
    while any(counted(name).total() < sent for name in SHARES) and time.monotonic() < settled:
        time.sleep(0.1)
    for name in SHARES:
        found, (ticks, late) = counted(name), calm.late(name)
        assert set(found) <= {reason, "Overflow"}
        assert found.total() <= sent
        with capsys.disabled():
            ticked, lately = ticks - quiet[name][0], late - quiet[name][1]
            print(
                f"\n{kind}, {sent} frames in {seconds:.0f} s, {name}: {dict(found)}; later than 10 ms were "
                f"{lately:.0f} of {ticked:.0f} ticks, before that {quiet[name][1]:.0f} of {quiet[name][0]:.0f}",
                end="",
            )
    wait_for(lambda: calm.world() == world)


def test_keys_are_exchanged_in_three_steps_and_nobody_is_counted_dead(calm: ForgedSegment) -> None:
    world = calm.world()

    def changes(name: str) -> int:
        return calm.planes[name].log.count("keys have changed")

    for keys in ((KEY, NEXT_KEY), (NEXT_KEY, KEY), (NEXT_KEY,)):
        former = {name: changes(name) for name in SHARES}
        for name in SHARES:
            calm.write_keys(name, *keys)
        wait_for(lambda: all(changes(name) > former[name] for name in SHARES))  # noqa: B023
    calm.forger.forget()
    assert all(decode(frame, (bytes.fromhex(NEXT_KEY),)) for frame in record(calm))
    assert calm.world() == world
    for name in SHARES:
        log = calm.planes[name].log
        assert KEY not in log
        assert NEXT_KEY not in log


def test_a_key_file_that_becomes_bad_is_reported_and_the_last_good_keys_stay(calm: ForgedSegment) -> None:
    world = calm.world()
    path, good = calm.key_files["n1"], calm.key_files["n1"].read_text()
    observed = calm.planes["n1"].observed
    secret = "5e" * 15
    try:
        for content, said in ((secret, "has 15 bytes"), (None, "does not exist")):
            if content is None:
                path.unlink()
            else:
                path.write_text(content)
            (problem,) = wait_for(
                lambda: [one for one in observed().problems if said in one]  # noqa: B023
            )
            assert problem.endswith("The keys that were read last stay in use.")
            assert str(path) in problem
        calm.forger.forget()
        record(calm, "n1")
    finally:
        path.write_text(good)
    wait_for(lambda: observed().problems == ())
    assert calm.world() == world
    assert secret not in calm.planes["n1"].log


def test_a_former_incarnations_frames_are_refused_after_the_node_has_a_new_one(calm: ForgedSegment) -> None:
    plane, former = calm.planes["n2"], calm.incarnation("n2")
    plane.intend("handover")
    assert plane.stop() == 0
    old = calm.forger.recorded("n2")  # to its last one, which says that it leaves
    plane.start()
    wait_for(lambda: calm.speaks("n2") and calm.incarnation("n2") > former)
    calm.give_out()
    replayed = Counter({"Replayed": len(old)})
    assert_only_counted(calm, old, {"n1": replayed, "n3": replayed, "n2": Counter({"Own": len(old)})})


def test_a_restarted_node_believes_no_recorded_frame_of_a_dead_one(shaken: ForgedSegment) -> None:
    """If it did, it would see a peer with a lease that acknowledges nothing, and give up its own share."""
    old = record(shaken, "n3")[-RECORDED:]
    shaken.planes["n3"].kill()
    wait_for(lambda: shaken.peers_dead("n1") == shaken.peers_dead("n2") == 1)
    wait_for(lambda: all(shaken.owned_by(node, VIP) != SHARES[node.name] for node in shaken.lan.nodes))
    before = shaken.world()
    # A successor, which goes on within the lease.
    plane = shaken.successor("n1")
    replay(shaken, old)
    assert shaken.world() == before
    # One that begins anew, because the lease has ended.
    plane.kill()
    wait_for(lambda: shaken.peers_heard("n2") == 0)
    said = plane.log.count("has a lease")
    plane.start()
    replay(shaken, old)
    after = shaken.world()
    assert plane.log.count("has a lease") == said + 1, "it did not serve again while the replay went on"
    assert (after.heard, after.lapses) == ({"n1": 1, "n2": 1}, {"n1": 0, "n2": 0})


def replay(shaken: ForgedSegment, frames: Sequence[bytes]) -> None:
    """Send frames to n1 at the pace at which they were recorded, until it has refused all of them."""
    wait_for(lambda: shaken.speaks("n1"))
    before = shaken.dropped("n1")["Replayed"]
    for frame in frames:
        shaken.forger.send([frame])
        time.sleep(0.1)
    wait_for(lambda: shaken.dropped("n1")["Replayed"] >= before + len(frames))


def replay_quickly(shaken: ForgedSegment, frames: Sequence[bytes]) -> None:
    """Send frames one by one, each before the one before it counts no more."""
    for frame in frames:
        shaken.forger.send([frame])
        time.sleep(HEARD_SECONDS / 2)


@pytest.mark.soak
def test_frames_that_a_node_has_missed_show_a_dead_one_alive_while_they_are_replayed(
    shaken: ForgedSegment,
) -> None:
    """What a replay can do: one that has just begun has no lease, or steps down again, as long as it lasts. It has
    no share yet that it could lose, and nobody else is deceived."""
    first, third = shaken.planes["n1"], shaken.planes["n3"]
    record(shaken, "n3")
    first.kill()
    wait_for(lambda: shaken.peers_dead("n2") == 1)
    shaken.forger.forget()
    missed = record(shaken, "n3", 16)
    third.kill()
    wait_for(lambda: shaken.owned_by(shaken.lan.nodes[1], VIP) == "0-31")
    second, began = shaken.world(), len(first.log)
    first.start()
    wait_for(lambda: shaken.speaks("n1") and shaken.peers_heard("n1") == 1)
    with ThreadPoolExecutor(1) as beside:
        # For longer than n1 listens, and so fast that n3 is heard all the while.
        replays = beside.submit(replay_quickly, shaken, missed[:-1])
        while not replays.done():
            assert shaken.disjoint()
        replays.result()
    now = shaken.world()
    assert shaken.owned_by(shaken.lan.nodes[1], VIP) == "0-31"
    assert (now.heard["n2"], now.lapses["n2"]) == (1, second.lapses["n2"])
    assert "steps down" not in shaken.planes["n2"].log
    # The same frames again do nothing, so that it ends with the recording.
    shaken.forger.send(missed[:-1])
    wait_for(lambda: first.log.rfind("has a lease") > max(began, first.log.rfind("steps down")))
    wait_for(lambda: shaken.peers_heard("n1") == 1)
    assert shaken.disjoint()
