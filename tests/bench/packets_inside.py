"""CPU of a packet that this node keeps, and of one that it drops, by nftables and by xt_cluster; prints JSON.

Started by `bench.packets` as root, never imported. All that it makes is in network namespaces without
names, which end with it.

How CPU is measured: a frame that is written to one end of a veth pair goes through the other end's whole
receive path (driver, hooks, stack, socket) in a softirq of the very thread that writes it, so that this
thread's CPU clock counts sending and receiving, and neither a wait nor another process. What sending
alone takes is measured with the same frames on a wire whose queue discards them, and subtracted.

Each frame of a burst is of a flow of its own, since a few flows would find all of conntrack in the
processor's caches, as no node's traffic does. Each filter has a namespace and a wire for itself. Both switch
conntrack on.
"""

import ctypes
import gc
import json
import os
import random
import re
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count, cycle, islice

from kernel.rawpackets import Fields, ethernet, ipv4, transport
from kernel.segment import link, namespace, nft, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import UDP, HashFunction, HashMode, bucket
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

FLOWS = 10_000
MOST_MESSAGES = 1000  # of one sendmmsg; the kernel takes 1024
FIRST = IPv4Address("10.80.16.1")
"""The addresses are this one and those that follow, all within 10.80.16.0/22."""
PORT, PAYLOAD = 5000, bytes(64)
DEFAULT = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)
"""What a ClusterIP gets that says nothing else."""
OWNED, XT_NODES, XT_SEED = BucketSet(range(64)), 4, 0
"""Both keep a quarter."""
SO_RCVBUFFORCE, RECEIVE_BYTES = 33, 64 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Burst:
    """Frames that are sent with few system calls."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._buffers = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
        self._vectors = [_Vector(ctypes.addressof(one), len(one)) for one in self._buffers]
        self._messages = (_Message * len(frames))(
            *(_Message(_Header(vectors=ctypes.pointer(vector), vector_count=1)) for vector in self._vectors)
        )

    def __len__(self) -> int:
        return len(self._buffers)

    def cpu_ns(self, wire: socket.socket) -> float:
        """Nanoseconds of CPU that each frame took, with all that its arrival caused at once.

        Raises OSError, also if not all of them went.
        """
        began = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)
        for first in range(0, len(self), MOST_MESSAGES):
            number = min(MOST_MESSAGES, len(self) - first)
            sent = _LIBC.sendmmsg(wire.fileno(), ctypes.byref(self._messages[first]), number, 0)
            if sent != number:
                raise OSError(ctypes.get_errno(), f"{sent} of {number} frames were sent")
        return (time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID) - began) / len(self)


def addresses(number: int) -> list[IPv4Address]:
    """The first so many shared addresses."""
    return [FIRST + offset for offset in range(number)]


def clients(*, owned: bool) -> list[Fields]:
    """Flows that both filters keep, or that both drop."""
    rng = random.Random(5)
    everybody = (
        Fields(IPv4Address("10.80.128.0") + rng.randrange(1, 1 << 15), rng.randrange(1024, 65536), PORT, UDP)
        for _ in count()
    )
    return list(islice((one for one in everybody if _nft_keeps(one) == owned == _xt_keeps(one)), FLOWS))


def burst(flows: Sequence[Fields], number: int) -> Burst:
    """A datagram of each flow, for the first so many shared addresses in turn."""
    packets = []
    for flow, vip in zip(flows, cycle(addresses(number)), strict=False):
        datagram = transport(flow, struct.pack("!HH", 8 + len(PAYLOAD), 0) + PAYLOAD)
        packets.append(ethernet(ipv4(flow.source, vip, UDP, datagram), to=default_mac(vip)))
    return Burst(packets)


def _nft_keeps(one: Fields) -> bool:
    hashed = bucket(
        DEFAULT.function, DEFAULT.mode, one.source, one.source_port, PORT, buckets=256, seed=0, protocol=UDP
    )
    return hashed in OWNED


def _xt_keeps(one: Fields) -> bool:
    hashed = bucket(HashFunction.JHASH, HashMode.SOURCE_IP, one.source, 0, 0, buckets=XT_NODES, seed=XT_SEED)
    return hashed == 0


Counted = Callable[[], tuple[int, int]]
"""How many packets a filter has kept and dropped."""


def by_nftables(number: int, *, lease: bool = False) -> Counted:
    """Give this namespace lbless's own rules, for so many addresses."""
    engine = NftablesEngine(lease=lease)
    vips = {ip: Vip(ip, "eth0", default_mac(ip), DEFAULT, None, OWNED) for ip in addresses(number)}
    engine.apply(Wanted(vips, frozenset()))

    def counted() -> tuple[int, int]:
        found = engine.counters()
        return found["kept"], found["foreign"]

    return counted


def by_nftables_leased(number: int) -> Counted:
    """The same where the interface needs a lease, and has one for longer than is measured."""
    counted = by_nftables(number, lease=True)
    nft('add element ip lbless lease { "eth0" timeout 1h }')
    return counted


def by_xt_cluster(number: int) -> Counted:
    """Give it the same filter with iptables: two rules for each address."""
    match = (
        f"-m cluster --cluster-total-nodes {XT_NODES} --cluster-local-node 1 --cluster-hash-seed {XT_SEED}"
    )
    rules = "".join(
        f"-A PREROUTING -d {ip}/32 -i eth0 {match} -j ACCEPT\n-A PREROUTING -d {ip}/32 -i eth0 -j DROP\n"
        for ip in addresses(number)
    )
    run("iptables-legacy-restore", "-w", "10", text=f"*mangle\n{rules}COMMIT\n")

    def counted() -> tuple[int, int]:
        saved = run("iptables-legacy-save", "-c", "-t", "mangle")
        kept, dropped = (
            sum(map(int, re.findall(rf"^\[(\d+):\d+\] -A PREROUTING .*-j {end}$", saved, re.MULTILINE)))
            for end in ("ACCEPT", "DROP")
        )
        return kept, dropped

    return counted


def by_nobody(_number: int) -> Counted:
    """Give it conntrack, and a counter, and no filter: what a kept packet costs at least."""
    hook = "type filter hook prerouting priority 0; policy accept;"
    nft(f"table ip counted {{ chain arrivals {{ {hook} ct state invalid drop\ncounter accept\n }}\n}}")

    def counted() -> tuple[int, int]:
        (packets,) = re.findall(r"counter packets (\d+)", run("nft", "list", "ruleset"))
        return int(packets), 0

    return counted


@dataclass(frozen=True)
class Node:
    """A node in a namespace of its own, which lives as long as its sockets, and what is sent to it."""

    wire: socket.socket
    server: socket.socket
    bursts: Mapping[str, Burst]

    @classmethod
    def made(cls, number: int, rules: Callable[[int], Counted], bursts: Mapping[str, Burst]) -> "Node":
        """Raises RuntimeError if the filter does not do with each burst what it is measured for."""
        with namespace():
            link("eth0", "wire")
            run("ip", "address", "add", "10.80.0.1/16", "dev", "eth0")
            run("ip", "route", "add", "local", "10.80.16.0/22", "dev", "eth0")
            counted = rules(number)
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
            server.bind(("0.0.0.0", PORT))
            server.setblocking(False)
            made = cls(_raw("wire"), server, bursts)
            for kind, one in bursts.items():
                before = counted()
                one.cpu_ns(made.wire)
                came, (kept, dropped) = made.drain(), counted()
                seen = (came, kept - before[0], dropped - before[1])
                if seen != ((FLOWS, FLOWS, 0) if kind == "owned" else (0, 0, FLOWS)):
                    raise RuntimeError(f"of {FLOWS} {kind} frames {seen} were delivered, kept and dropped")
            return made

    def drain(self) -> int:
        """Empty the server's socket; return how many datagrams were in it."""
        taken = 0
        with suppress(BlockingIOError):
            while self.server.recv(128):
                taken += 1
        return taken


def generator() -> socket.socket:
    """A wire whose queue takes the frames and frees them at once."""
    with namespace():
        link("eth0", "wire")
        run("tc", "qdisc", "replace", "dev", "wire", "root", "blackhole")
        return _raw("wire")


def _raw(interface: str) -> socket.socket:
    """A socket that sends frames and hears nothing."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.bind((interface, 0))
    return found


def main(many: int, rounds: int) -> None:
    """Print {"nftables 1 owned": [ns, …], …}: a sample a round, less what sending alone took in that round."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    flows = {kind: clients(owned=kind == "owned") for kind in ("owned", "foreign")}
    bursts = {number: {kind: burst(some, number) for kind, some in flows.items()} for number in (1, many)}
    nodes = {
        f"{name} {number}": Node.made(number, rules, bursts[number])
        for name, rules in (("nftables", by_nftables), ("xt_cluster", by_xt_cluster))
        for number in (1, many)
    }
    nodes["leased 1"] = Node.made(1, by_nftables_leased, bursts[1])
    nodes["unfiltered 1"] = Node.made(1, by_nobody, {"owned": bursts[1]["owned"]})
    sink = generator()
    found = defaultdict(list)
    gc.disable()
    for turn in range(rounds):
        sending = bursts[1]["owned"].cpu_ns(sink)
        found["sending"].append(sending)
        names = list(nodes)
        first = turn % len(names)
        for name in names[first:] + names[:first]:  # nobody is always the first
            for kind, one in nodes[name].bursts.items():
                found[f"{name} {kind}"].append(one.cpu_ns(nodes[name].wire) - sending)
                nodes[name].drain()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
