"""A network namespace of the test's own with one interface, frames put on its wire, and what the kernel kept.

The namespace has no name: it ends with the test, whatever ends that. Both ends of the wire are in it, so
that a frame sent on `wire0` arrives at `eth0` as from another host.
"""

import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

from lab.claim import NAMESPACES

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
DEADLINE_SECONDS = 10
_LIBC = ctypes.CDLL(None, use_errno=True)

# Sees a packet before (-399: reassembled, not yet filtered) and after (-300) the engine, and stops it there.
# A packet is known by its identification, which each frame of a test has for itself.
AFTER = -300
OBSERVER = """
table ip observer {
 set kept { typeof ip daddr . ip id; flags dynamic; size 65535; }
 counter arrived { }
 counter not_for_host { }
 chain before { type filter hook prerouting priority -399; iifname != "lo" counter name arrived; }
 chain after { type filter hook prerouting priority AFTER;
  iifname "lo" accept
  meta pkttype != host counter name not_for_host drop
  add @kept { ip daddr . ip id } drop
 }
}
"""


@contextmanager
def namespace() -> Iterator[None]:
    """Move this thread, and what it starts, to a network namespace that ends with the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_LIBC.unshare(CLONE_NEWNET))
        try:
            run("ip", "link", "set", "lo", "up")
            yield
        finally:
            _check(_LIBC.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Move this thread, for the block, to the network namespace of that name: what it opens there stays there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_LIBC.setns(there, CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_LIBC.setns(home, CLONE_NEWNET))
    finally:
        os.close(there)
        os.close(home)


def run(*command: str, text: str | None = None) -> str:
    """Run a program that must succeed; return its output."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def nft(text: str) -> str:
    """Run a text through the nft program."""
    return run("nft", "-f", "-", text=text)


def ruleset() -> str:
    """Everything that nftables holds, with handles and without counts."""
    return run("nft", "-s", "-a", "list", "ruleset")


def link(interface: str, wire: str) -> None:
    """Make an interface and the wire that leads to it."""
    run("ip", "link", "add", interface, "type", "veth", "peer", "name", wire)
    for name in (interface, wire):
        run("ip", "link", "set", name, "addrgenmode", "none", "up")


def mac_of(interface: str) -> str:
    """The hardware address of an interface of this namespace."""
    (found,) = json.loads(run("ip", "-j", "link", "show", "dev", interface))
    return str(found["address"])


class Wire:
    """The far end of an interface: sends frames to it and hears what it sends."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(ETH_P_ALL)
        )
        self._socket.bind((name, ETH_P_ALL))

    def close(self) -> None:
        self._socket.close()

    def send(self, frames: Sequence[bytes]) -> None:
        """Put frames on the wire."""
        for frame in frames:
            self._socket.send(frame)

    def hear(self, seconds: float) -> bytes | None:
        """Return the next frame that the host sends, or None if none comes within `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame, origin = self._socket.recvfrom(65535)
            except TimeoutError:
                break
            if origin[2] != socket.PACKET_OUTGOING:
                return frame
        return None


class Observer:
    """What came in and what was kept, of the packets that are not from the host itself."""

    def __init__(self, after: int = AFTER) -> None:
        """`after` is the priority at which a packet counts as kept."""
        nft(OBSERVER.replace("AFTER", str(after)))

    def counters(self) -> dict[str, int]:
        listed = json.loads(run("nft", "-j", "list", "counters", "table", "ip", "observer"))["nftables"]
        return {one["counter"]["name"]: one["counter"]["packets"] for one in listed if "counter" in one}

    def await_arrival(self, packets: int) -> None:
        """Wait until so many packets have come in altogether."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.counters()["arrived"] < packets:
            assert time.monotonic() < deadline, f"of {packets} packets {self.counters()} were seen"
            time.sleep(0.01)
        assert self.counters()["arrived"] == packets

    def kept(self) -> set[tuple[IPv4Address, int]]:
        """Destination and identification of every packet that got past the engine, as one for this host."""
        assert self.counters()["not_for_host"] == 0
        listed = json.loads(run("nft", "-j", "list", "set", "ip", "observer", "kept"))["nftables"]
        (found,) = [one["set"] for one in listed if "set" in one]
        concats = [element["concat"] for element in found.get("elem", ())]
        return {(IPv4Address(address), identification) for address, identification in concats}


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
