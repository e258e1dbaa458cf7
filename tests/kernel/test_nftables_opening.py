"""The datagram by which a former owner opens a bucket at the new one: what the rules of both do by it."""

import json
import random
import socket
import struct
import time
from ipaddress import IPv4Address

import pytest

from kernel.rawpackets import GRE, SYN, ethernet, icmp, ipv4, tcp
from kernel.segment import DEADLINE_SECONDS, Observer, Wire, mac_of, nft, run
from kernel.test_nftables_moving import (
    BEHIND_STAGE_TWO,
    CLUSTER_MAC,
    GROUPS,
    NODE,
    PORT,
    RESTING,
    SECOND,
    VIP,
    Client,
    host,
    make_vip,
    wanted,
)
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import ICMP, TCP, UDP
from lbless_nodeagent.dataplane import opening
from lbless_nodeagent.dataplane.ladder import GROUP, LAST_MS
from lbless_nodeagent.dataplane.moving import Moving
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.nftables.layout import guard_ms
from lbless_nodeagent.dataplane.opener import Opener
from lbless_nodeagent.dataplane.opening import GUARD_SECONDS
from lbless_nodeagent.dataplane.tick.renewal import Lease

__all__ = ["host"]

pytestmark = pytest.mark.root

GROUP_MAC = "01:00:5e:00:00:01"
OWNED, OPEN, LATER, SHUT = (BucketSet.parse(text) for text in ("0-2", "3-4", "5", "6"))
FIRST, OTHER = (opening.token(b"key", "uid", epoch, (b"a" * 8, b"b" * 8), OPEN) for epoch in (1, 2))
STANDBY = Moving(standby=OPEN | LATER | SHUT, openings=tuple(sorted(((FIRST, OPEN), (OTHER, LATER)))))
SENDS = 5
MARKED = """
table ip marking {
 counter marked { }
 counter let_through { }
 chain first { type filter hook prerouting priority -400; ip id 77 meta mark set 5; }
 chain others { type filter hook prerouting priority -340; ip daddr 224.0.0.1 counter name let_through drop; }
 chain last { type filter hook prerouting priority -100; meta mark != 0 ip id != 77 counter name marked; }
}
"""


def datagram(payload: bytes, *, port: int = opening.PORT) -> bytes:
    """A frame with a datagram to all hosts."""
    udp = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    return ethernet(ipv4(SECOND, IPv4Address(GROUP), UDP, udp), to=GROUP_MAC)


def noted(name: str) -> list[object]:
    """What the kernel has in a set of the rules."""
    listed = json.loads(run("nft", "-j", "list", "set", "ip", "lbless", name))["nftables"]
    (found,) = [one["set"] for one in listed if "set" in one]
    return list(found.get("elem", ()))


def await_opening() -> None:
    """Wait until nothing waits any more for what a token has opened."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while noted("waiting"):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.function}-{g.mode}")
def test_from_its_token_on_a_bucket_in_standby_takes_what_a_fresh_one_does(
    group: HashParameters, engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    client, here = Client(wire, group, random.Random(request.node.name)), mac_of("eth0")
    engine.apply(wanted(make_vip(group, OWNED, STANDBY), make_vip(group, OWNED, ip=RESTING)))
    nft(MARKED)
    observer = Observer(BEHIND_STAGE_TWO)
    numbers, sent = {}, 0

    def probe(when: str) -> None:
        nonlocal sent
        for at in (*OPEN, *LATER, *SHUT):
            new, data, echo, gre = (client.fields(at, protocol) for protocol in (TCP, UDP, ICMP, GRE))
            udp = struct.pack("!HHHH", data.source_port, PORT, 8, 0)
            for kind, fields, payload, to in (
                ("SYN", new, tcp(new, VIP, SYN), CLUSTER_MAC),
                ("datagram", data, udp, CLUSTER_MAC),
                ("echo", echo, icmp(8, struct.pack("!HH", at, sent)), CLUSTER_MAC),
                ("other", gre, bytes(8), CLUSTER_MAC),
                ("SYN to this host", new, tcp(new, VIP, SYN), here),
                ("other to this host", client.fields(at, GRE), bytes(8), here),
            ):
                sent += 1
                number = 100 + sent
                numbers[number] = (when, at, kind)
                client.send(fields, payload, number, to=to)

    def tell(*frames: bytes) -> None:
        nonlocal sent
        wire.send(frames)
        sent += len(frames)

    probe("before")
    right = opening.datagram(VIP, FIRST)
    nothing = [
        datagram(opening.datagram(VIP, bytes(16))),
        datagram(opening.datagram(VIP, FIRST[:4] + bytes(12))),
        datagram(opening.datagram(RESTING, FIRST)),
        datagram(right, port=opening.PORT + 1),
        *(datagram(right[:length]) for length in range(len(right))),
        *(datagram(random.Random(seed).randbytes(20)) for seed in range(50)),
    ]
    tell(*nothing)
    probe("after what is no token")
    observer.await_arrival(sent)
    assert not noted("opened")
    tell(datagram(right))
    observer.await_arrival(sent)
    await_opening()
    tell(*(SENDS * [datagram(right)]))
    observer.await_arrival(sent)
    assert noted("opened")
    assert not noted("waiting"), "a token that comes again makes nothing wait again"
    probe("open")
    marked = client.fields(min(OPEN))
    client.send(marked, tcp(marked, VIP, SYN), 77)
    sent += 1
    numbers[77] = ("open", min(OPEN), "marked SYN")
    observer.await_arrival(sent)

    taken = ("SYN", "datagram", "echo", "other", "SYN to this host")
    always = ("SYN to this host", "other to this host")
    expected = {
        about
        for about in numbers.values()
        if about[2] in (taken if about[0] == "open" and about[1] in OPEN else always)
    }
    kept = {numbers[number] for _, number in observer.kept() if number in numbers}
    assert kept == expected
    assert engine.counters()["opened"] == 1
    assert f'"packets": {len(nothing)},' in run(
        "nft", "-j", "list", "counter", "ip", "marking", "let_through"
    )
    assert '"packets": 0,' in run("nft", "-j", "list", "counter", "ip", "marking", "marked"), (
        "a mark stayed on a packet"
    )
    assert engine.verify()
    assert engine.audit()
    engine.apply(wanted(make_vip(group, OWNED, Moving(fresh=STANDBY.standby))))
    engine.apply(wanted(make_vip(group, OWNED, Moving(standby=OPEN, openings=((OTHER, OPEN),)))))
    again = client.fields(min(OPEN))
    client.send(again, tcp(again, VIP, SYN), 78)
    observer.await_arrival(sent + 1)
    assert 78 not in {number for _, number in observer.kept()}, "what was opened stays open in another epoch"


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.function}-{g.mode}")
def test_until_its_token_leaves_a_bucket_that_is_given_up_takes_what_a_fresh_one_does(
    group: HashParameters, engine: NftablesEngine, wire: Wire, host: None, request: pytest.FixtureRequest
):
    client = Client(wire, group, random.Random(request.node.name))
    giving_up = Moving(drain=OPEN | LATER | SHUT, openings=tuple(sorted(((FIRST, OPEN), (OTHER, LATER)))))
    engine.apply(wanted(make_vip(group, OWNED, giving_up)))
    observer, opener, index = Observer(BEHIND_STAGE_TWO), Opener(), socket.if_nametoindex("eth0")
    numbers, sent = {}, 0

    def probe(when: str) -> None:
        nonlocal sent
        for at in (*OPEN, *LATER, *SHUT):
            new, data = client.fields(at, TCP), client.fields(at, UDP)
            udp = struct.pack("!HHHH", data.source_port, PORT, 8, 0)
            for kind, fields, payload in (("SYN", new, tcp(new, VIP, SYN)), ("datagram", data, udp)):
                sent += 1
                numbers[100 + sent] = (when, at, kind)
                client.send(fields, payload, 100 + sent)
        observer.await_arrival(sent)

    probe("before")
    assert not opener.send(index, VIP, bytes(16)), "what closes nothing here leaves"
    assert not opener.send(index, RESTING, FIRST)
    probe("after what is no token")
    assert opener.send(index, VIP, FIRST)
    sent += 1  # the other end of the wire is in this namespace, too
    probe("after one")
    assert opener.send(index, VIP, OTHER)
    sent += 1
    probe("after both")
    takes = {
        "before": OPEN | LATER,
        "after what is no token": OPEN | LATER,
        "after one": LATER,
        "after both": BucketSet(),
    }
    expected = {about for about in numbers.values() if about[1] in takes[about[0]]}
    assert {numbers[number] for _, number in observer.kept() if number in numbers} == expected
    assert engine.counters()["closed"] == 2
    assert engine.verify()
    assert engine.audit()
    found = engine.installed()
    assert found is not None
    assert found.vips[VIP].moving == giving_up
    engine.apply(wanted(make_vip(group, OWNED, Moving(drain=giving_up.drain))))
    assert not opener.send(index, VIP, FIRST), "it has been given up"
    probe("given up")
    assert {numbers[number] for _, number in observer.kept() if number in numbers} == expected


@pytest.mark.parametrize(("tick", "timeout"), [(1 / 1000, 4), (1 / 300, 7), (1 / 250, 8), (1 / 100, 20)])
def test_a_bucket_waits_for_its_opening_by_whole_ticks_of_the_clock(
    tick: float, timeout: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "clock_getres", lambda clock: tick if clock == 6 else None)
    assert guard_ms() == timeout
    assert (timeout / 1000) // tick * tick - tick >= GUARD_SECONDS, "as the kernel counts it"


def test_what_a_token_opens_is_open_only_after_a_while(engine: NftablesEngine, wire: Wire, host: None):
    group, waited, arrived = GROUPS[0], [], 0
    client, observer = Client(wire, group, random.Random(1)), Observer(BEHIND_STAGE_TWO)
    for epoch in range(3, 23):
        made = opening.token(b"key", "uid", epoch, (b"a" * 8, b"b" * 8), OPEN)
        engine.apply(wanted(make_vip(group, OWNED, Moving(standby=OPEN, openings=((made, OPEN),)))))
        told, sent = time.monotonic(), {}
        wire.send([datagram(opening.datagram(VIP, made))])
        while time.monotonic() < told + 10 * GUARD_SECONDS:
            number = 1000 * epoch + len(sent)
            new = client.fields(min(OPEN))
            client.send(new, tcp(new, VIP, SYN), number)
            sent[number] = time.monotonic() - told
            time.sleep(0.0003)  # the pace at which clients come
        arrived += 1 + len(sent)
        observer.await_arrival(arrived)
        kept = {number for _, number in observer.kept()} & sent.keys()
        assert kept, "it was never opened"
        assert kept == {number for number in sent if number >= min(kept)}, "it was closed again"
        waited.append(sent[min(kept)])
    print(f"open after {', '.join(f'{1000 * one:.1f}' for one in sorted(waited))} ms")
    # By when they were sent: each may have been taken up a little later.
    assert min(waited) >= GUARD_SECONDS / 2


def test_a_token_leaves_only_while_the_interface_has_a_lease(namespace: None, wire: Wire, host: None):
    engine = NftablesEngine(lease=True)
    giving_up = Moving(drain=OPEN | LATER, openings=tuple(sorted(((FIRST, OPEN), (OTHER, LATER)))))
    engine.apply(wanted(make_vip(GROUPS[0], OWNED, giving_up)))
    opener, lease, index = Opener(), Lease("eth0"), socket.if_nametoindex("eth0")
    assert not opener.send(index, VIP, FIRST)
    assert engine.counters()["closed"] == 0
    lease.renew(time.monotonic() + LAST_MS / 1_000)
    assert opener.send(index, VIP, FIRST)
    lease.end()
    assert not opener.send(index, VIP, OTHER)
    assert engine.counters()["closed"] == 1
    assert not opener.send(9999, VIP, FIRST), "there is no such interface"
    heard = []
    while frame := wire.hear(0.2):
        if frame[12:14] == b"\x08\x00" and frame[23] == UDP:
            heard.append(frame)
    (frame,) = heard
    assert frame[:6].hex(":") == GROUP_MAC
    assert frame[22] == 1, "its time to live"
    assert frame[26:30] == NODE.packed
    assert frame[42:] == opening.datagram(VIP, FIRST)
    lease.close()
    engine.close()


def test_tokens_differ_by_all_that_they_are_about_and_have_a_mark():
    ways = [(b"a" * 8, b"b" * 8), (b"b" * 8, b"a" * 8)]
    made = {
        opening.token(key, uid, epoch, way, BucketSet.parse(buckets))
        for key in (b"1" * 32, b"2" * 32)
        for uid in ("u", "v")
        for epoch in (1, 2)
        for way in ways
        for buckets in ("0", "0-1", "1")
    }
    assert len(made) == 2 * 2 * 2 * 2 * 3
    assert {len(one) for one in made} == {opening.TOKEN_BYTES}
    assert all(opening.mark(one) for one in made)
