"""Heartbeats on a real segment: nodes and an attacker on a bridge, in a network namespace of the test's own."""

import errno
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from socket import if_nametoindex
from typing import TypeVar

import pytest

from kernel import segment
from kernel.rawpackets import MULTICAST_MAC, ethernet, ipv4
from lbless_api.heartbeat import Flag, Message, node_id
from lbless_api.heartbeat_frame import MAX_BYTES, MIN_BYTES, encode
from lbless_nodeagent.dataplane.tick.filters import ETHERTYPE, GROUP
from lbless_nodeagent.dataplane.tick.inbox import PER_NODE, Inbox, Received
from lbless_nodeagent.dataplane.tick.lateness import Lateness
from lbless_nodeagent.dataplane.tick.packetsocket import WireError
from lbless_nodeagent.dataplane.tick.wire import Wire
from unit.heartbeats import GOLDEN, KEY, golden_frames, heartbeat_of

pytestmark = pytest.mark.root

T = TypeVar("T")

FLOOD = Path(__file__).parent / "inside" / "frame_flood.py"
TICK_SECONDS = 0.1
DEADLINE_SECONDS = 10
VIP, OWN_ADDRESS = IPv4Address("10.8.0.100"), IPv4Address("10.8.0.1")


class Node:
    """A node's wire and inbox, and the number of its last frame."""

    def __init__(self, name: str, interface: str) -> None:
        self.name = name
        self.wire = Wire(interface, if_nametoindex(interface))
        self.inbox = Inbox(self.wire, node_id(name))
        self.sequence = 0

    def close(self) -> None:
        self.wire.close()

    def heartbeat(self) -> Message:
        """The next one."""
        self.sequence += 1
        return replace(heartbeat_of(16, 8), node=node_id(self.name), sequence=self.sequence)

    def send(self) -> Message:
        message = self.heartbeat()
        assert self.wire.send(encode(message, KEY)) == 0
        return message

    def take(self) -> list[Received]:
        return self.inbox.take((KEY,))

    def await_received(self, count: int) -> list[Received]:
        """Wait for so many."""
        return gather(self.take, lambda found: len(found) >= count)

    def await_messages(self, count: int) -> list[Message]:
        """Wait for so many."""
        return [received.message for received in self.await_received(count)]

    def await_dropped(self, expected: dict[str, int]) -> None:
        """Wait until just that has been dropped; nothing must come meanwhile."""
        assert gather(self.take, lambda found: found or self.inbox.dropped() == expected) == []


def gather(look: Callable[[], list[T]], enough: Callable[[list[T]], object]) -> list[T]:
    """Look again and again; return all that was found as soon as it is enough."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    found = look()
    while not enough(found):
        assert time.monotonic() < deadline, found
        time.sleep(0.005)
        found += look()
    return found


def overflowed() -> int:
    """How many frames the kernel dropped between interfaces and sockets, on all processors since boot."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def waited_seconds() -> float:
    """How long this thread has been ready to run and had no processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def await_traffic(sender: Node, receiver: Node) -> None:
    """Wait until a heartbeat gets through: an interface that has just come up may refuse one, or lose it."""

    def look() -> list[Received]:
        sender.wire.send(encode(sender.heartbeat(), KEY))
        return receiver.take()

    gather(look, bool)


@dataclass
class Bridged:
    """Two nodes and what an attacker sends."""

    one: Node
    two: Node
    attacker: segment.Wire


def plug(interface: str) -> None:
    """Make an interface whose cable is in the bridge."""
    segment.link(interface, f"{interface}-port")
    segment.run("ip", "link", "set", f"{interface}-port", "master", "br0")


@pytest.fixture
def bridged(namespace: None) -> Iterator[Bridged]:
    segment.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    segment.run("ip", "link", "set", "br0", "addrgenmode", "none", "up")
    for interface in ("eth1", "eth2", "evil"):
        plug(interface)
    with (
        closing(Node("n1", "eth1")) as one,
        closing(Node("n2", "eth2")) as two,
        closing(segment.Wire("evil")) as attacker,
    ):
        yield Bridged(one, two, attacker)


def heartbeat_frame(payload: bytes, *, to: bytes = GROUP) -> bytes:
    return ethernet(payload, to=to.hex(":"), ethertype=ETHERTYPE)


def vip_frame(destination: IPv4Address = VIP, *, to: str = MULTICAST_MAC) -> bytes:
    return ethernet(ipv4(IPv4Address("10.8.0.9"), destination, 17, bytes(20)), to=to)


def test_every_kind_of_message_reaches_the_other_node_and_not_the_sender(bridged):
    request = replace(GOLDEN["epoch-request"], node=node_id("n4"))
    messages = [bridged.one.heartbeat(), request, GOLDEN["epoch-piece"]]
    for message in messages:
        assert bridged.one.wire.send(encode(message, KEY)) == 0
    assert bridged.two.await_messages(3) == messages
    assert bridged.one.take() == []
    assert bridged.one.inbox.dropped() == bridged.two.inbox.dropped() == {}


def test_the_group_is_joined_so_that_hardware_lets_it_in_and_left_at_the_end(bridged):
    def groups() -> str:
        return segment.run("ip", "maddress", "show", "dev", "eth1")

    assert GROUP.hex(":") in groups()
    bridged.one.close()
    assert GROUP.hex(":") not in groups()


def test_the_longest_frame_passes_where_an_overlay_takes_a_hundred_bytes(bridged):
    segment.run("ip", "link", "set", "eth1", "mtu", str(MAX_BYTES))
    longest = replace(GOLDEN["epoch-piece"], data=bytes(MAX_BYTES - 53))
    assert len(frame := encode(longest, KEY)) == MAX_BYTES
    assert bridged.one.wire.send(frame) == 0
    assert bridged.two.await_messages(1) == [longest]


def test_frames_say_when_they_arrived_and_not_when_they_were_read(bridged):
    sent = []
    for _ in range(5):
        before = time.monotonic_ns()
        bridged.one.send()
        sent.append((before, time.monotonic_ns()))
        time.sleep(0.02)  # so that arrivals differ by more than the error
    millisecond = 1_000_000
    for (before, after), received in zip(sent, bridged.two.await_received(5), strict=True):
        assert before - millisecond <= received.at_ns <= after + millisecond


def test_forged_frames_are_counted_and_not_delivered(bridged):
    good = encode(bridged.one.heartbeat(), KEY)
    bridged.attacker.send([heartbeat_frame(good)])
    assert len(bridged.two.await_messages(1)) == 1
    bridged.attacker.send(
        [
            heartbeat_frame(good),  # replayed
            heartbeat_frame(encode(bridged.one.heartbeat(), b"a key that nobody here has")),
            heartbeat_frame(good[:-1] + bytes([good[-1] ^ 1])),
            heartbeat_frame(encode(bridged.two.heartbeat(), KEY)),  # two's own, from elsewhere
            heartbeat_frame(b"\x02" + good[1:]),  # from here on, what the kernel refuses
            heartbeat_frame(b"\x01\x07" + good[2:]),
            heartbeat_frame(good, to=b"\xff" * 6),
            heartbeat_frame(good, to=bytes.fromhex(segment.mac_of("eth2").replace(":", ""))),
        ]
    )
    bridged.two.await_dropped({"Replayed": 1, "Unauthenticated": 2, "Own": 1, "Filtered": 4})
    assert bridged.one.send() in bridged.two.await_messages(1)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_frame_cut_at_every_length_or_too_long_is_counted_and_nothing_comes_of_it(bridged, name):
    frame = golden_frames()[name]
    longer = [frame.ljust(length, b"\0") for length in (MAX_BYTES, MAX_BYTES + 1, 1500)]
    cut = [frame[:length] for length in range(1, len(frame))]
    bridged.attacker.send([heartbeat_frame(payload) for payload in cut + longer])
    likely = len(frame) - MIN_BYTES + 1
    bridged.two.await_dropped(
        {"Filtered": len(cut) + 3 - likely, "Unauthenticated": likely}
        if likely
        else {"Filtered": len(cut) + 3}
    )


def test_a_node_that_floods_with_its_own_key_silences_nobody(bridged):
    for _ in range(PER_NODE + 30):
        bridged.one.send()
    bridged.attacker.send(
        [heartbeat_frame(encode(replace(GOLDEN["heartbeat-alone"], node=node_id("n3")), KEY))]
    )
    found = [message.node for message in bridged.two.await_messages(PER_NODE + 1)]
    assert found == [node_id("n1")] * PER_NODE + [node_id("n3")]
    assert bridged.two.inbox.dropped() == {"Excess": 30}


def test_what_finds_the_buffer_full_is_counted_and_said_and_the_next_frame_comes(bridged):
    forged = heartbeat_frame(encode(GOLDEN["heartbeat-alone"], b"a key that nobody here has"))
    bridged.attacker.send([forged] * 20_000)
    assert bridged.two.take() == []
    dropped = bridged.two.inbox.dropped()
    assert dropped["Overflow"] > 0
    assert dropped["Overflow"] + dropped["Unauthenticated"] <= 20_000
    assert not bridged.two.inbox.trustworthy
    message = bridged.one.send()
    assert bridged.two.await_messages(1) == [message]
    assert bridged.two.inbox.trustworthy


def test_traffic_to_shared_addresses_is_counted_and_no_other(bridged):
    wire = bridged.two.wire
    assert wire.vip_traffic() == 0
    own_mac = segment.mac_of("eth2")
    bridged.attacker.send(
        [
            vip_frame(to=own_mac),
            vip_frame(OWN_ADDRESS, to=own_mac),
            vip_frame(IPv4Address("255.255.255.255"), to="ff:ff:ff:ff:ff:ff"),
            vip_frame(IPv4Address("10.8.255.255"), to="ff:ff:ff:ff:ff:ff"),
            vip_frame(IPv4Address("224.0.0.251"), to="01:00:5e:00:00:fb"),
            heartbeat_frame(golden_frames()["heartbeat-alone"]),
            ethernet(bytes(46), to=MULTICAST_MAC, ethertype=0x88CC),
        ]
    )
    bridged.two.await_messages(1)
    assert wire.vip_traffic() == 0
    for to in (MULTICAST_MAC, "01:00:5e:08:00:64"):
        bridged.attacker.send([vip_frame(to=to)] * 1000)
        seen = gather(lambda: [wire.vip_traffic()], lambda counts: sum(counts) >= 1000)
        assert sum(seen) == 1000


def test_without_a_carrier_nothing_comes_and_with_it_everything_does(bridged):
    segment.run("ip", "link", "set", "eth1-port", "down")
    assert bridged.one.wire.send(encode(bridged.one.heartbeat(), KEY)) in {0, errno.ENETDOWN}
    assert bridged.two.take() == []
    segment.run("ip", "link", "set", "eth1-port", "up")
    await_traffic(bridged.one, bridged.two)
    assert not bridged.one.wire.gone


def test_an_interface_that_goes_down_says_so_and_is_the_same_when_it_is_up_again(bridged):
    wire = bridged.one.wire
    segment.run("ip", "link", "set", "eth1", "down")
    assert bridged.one.take() == []
    assert (wire.gone, wire.send(bytes(60))) == (False, errno.ENETDOWN)
    segment.run("ip", "link", "set", "eth1", "up")
    await_traffic(bridged.one, bridged.two)
    await_traffic(bridged.two, bridged.one)


@pytest.mark.parametrize(
    ("name", "flags", "rings"),
    [
        ("heartbeat-of-three", Flag.VALID, False),
        ("heartbeat-largest-values", ~Flag.URGENT, False),
        ("heartbeat-of-three", Flag.VALID | Flag.URGENT, True),
        ("heartbeat-alone", Flag.URGENT, True),
        ("epoch-request", None, True),
        ("epoch-piece", None, True),
    ],
)
def test_the_bell_rings_for_what_is_urgent_until_it_is_taken(bridged, name, flags, rings):
    one, two = bridged.one, bridged.two
    message = GOLDEN[name] if flags is None else replace(GOLDEN[name], flags=flags)
    arrived, bell = select.poll(), select.poll()
    arrived.register(two.wire.fileno(), select.POLLIN)
    bell.register(two.wire.bell, select.POLLIN)
    for _ in range(2):
        assert not bell.poll(0)
        for _ in range(20):
            assert one.wire.send(encode(message, KEY)) == 0
        assert arrived.poll(1000)
        assert bool(bell.poll(20)) is rings
        assert len(gather(lambda: two.wire.drain().frames, lambda found: len(found) >= 20)) == 20
        two.wire.drain()  # the last frame may have rung after it was read


@pytest.mark.parametrize("bell", [False, True])
@pytest.mark.parametrize("renamed", [False, True])
def test_an_interface_that_is_gone_stays_gone_though_another_has_its_name(bridged, renamed, bell):
    wire = bridged.one.wire
    index = if_nametoindex("eth1")
    watching = select.poll()
    watching.register(wire.bell if bell else wire.fileno(), select.POLLIN)
    if renamed:
        for change in (("down",), ("name", "eth9"), ("up",)):
            segment.run("ip", "link", "set", "eth9" if change == ("up",) else "eth1", *change)
    else:
        segment.run("ip", "link", "del", "eth1")
    assert watching.poll(1000), "nothing wakes the tick"
    assert bridged.one.take() == []
    assert wire.gone
    if renamed:
        segment.run("ip", "link", "del", "eth9")
    plug("eth1")
    assert wire.send(encode(bridged.one.heartbeat(), KEY)) == errno.ENODEV
    assert (bridged.two.take(), wire.vip_traffic(), wire.refused()) == ([], 0, 0)
    with pytest.raises(WireError, match=r"^Interface eth1 is no longer the one with index \d+\.$"):
        Wire("eth1", index)
    with closing(Node("n1", "eth1")) as again:
        await_traffic(again, bridged.two)


def test_an_interface_that_is_not_there_is_one_sentence(bridged):
    with pytest.raises(WireError, match=r"^Heartbeats cannot use interface eth7 \(.*\): .*\.$"):
        Wire("eth7", 7)


@pytest.mark.parametrize("kind", ["random", "likely"])
def test_a_flood_of_10000_frames_a_second_delays_no_tick_and_loses_no_heartbeat(bridged, kind, capsys):
    """`likely` frames have everything right that can be seen without a key."""
    one, two, before = bridged.one, bridged.two, overflowed()
    flood = subprocess.Popen(
        [sys.executable, str(FLOOD), "evil", "10000", "4", kind], stdout=subprocess.PIPE, text=True
    )
    try:
        lateness, sent, heard, skipped = Lateness(), [], [], 0
        watching = select.poll()
        watching.register(two.wire.fileno(), select.POLLIN)
        busy, waited, due = time.thread_time(), waited_seconds(), time.monotonic()
        while flood.poll() is None:
            while (left := due - time.monotonic()) > 0:
                if watching.poll(left * 1000):
                    heard += two.take()
            lateness.add(-left * 1000)
            heard += two.take()
            sent.append(one.send())
            due += TICK_SECONDS
            while due <= time.monotonic():
                due += TICK_SECONDS
                skipped += 1
        busy, waited = time.thread_time() - busy, waited_seconds() - waited
        frames = int(flood.communicate()[0])
    finally:
        flood.kill()
        flood.wait()
    # A starved machine loses frames before any socket sees them, and where a socket is read too late.
    heard += gather(
        two.take,
        lambda rest: (
            len(heard) + len(rest) + sum(two.inbox.dropped().values()) + overflowed() - before
            >= frames + len(sent)
        ),
    )
    dropped = two.inbox.dropped()
    lost = overflowed() - before + dropped.get("Overflow", 0)
    with capsys.disabled():
        print(
            f"\n{kind}: {frames} frames, {dropped}, busy {busy / len(sent) * 1000:.1f} ms a tick, "
            f"latest {lateness.worst_ms:.1f} ms, {skipped} skipped, {lost} lost, waited {waited:.1f} s"
        )
    assert frames >= 20_000
    missing = len(sent) - len(heard)
    assert [received.message for received in heard] == [m for m in sent if m in {r.message for r in heard}]
    assert 0 <= missing <= lost
    assert 0 <= frames + len(sent) - len(heard) - sum(dropped.values()) <= lost
    assert dropped["Unauthenticated" if kind == "likely" else "Filtered"] > frames * 0.9 - lost
    # Ticks are late because there is no processor, or not at all; that much also delays them without a flood.
    assert skipped * TICK_SECONDS <= waited
    assert not lost or skipped
    # At most a third of each tick, however busy the machine is.
    assert busy < len(sent) * TICK_SECONDS / 3
