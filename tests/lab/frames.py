"""Frames: bytes from the wire parsed into values, and the questions that tests ask about a row of them.

Where they are captured is `capture`'s. A question about answers yields the Ethernet sources, so its length says how
often something was answered and its content by whom.
"""

import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address

from lab.errors import LabError

ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17
ECHO_REPLY, ECHO_REQUEST = 0, 8


class Arrival(IntEnum):
    """How a frame met the interface: the kernel's packet types."""

    HOST = 0
    BROADCAST = 1
    MULTICAST = 2
    OTHERHOST = 3
    OUTGOING = 4


class Flags(IntFlag):
    """TCP flags."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10


NO_FLAGS = Flags(0)


class ArpOperation(IntEnum):
    """What an ARP packet is; a gratuitous one may be either."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True)
class Arp:
    """An ARP packet."""

    operation: ArpOperation
    sender_mac: str
    sender: str
    target_mac: str
    target: str


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet; ports and flags are 0 where the protocol has none."""

    source: str
    destination: str
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    flags: Flags = NO_FLAGS
    icmp_type: int = 0
    icmp_code: int = 0
    identifier: int = 0
    sequence: int = 0


@dataclass(frozen=True)
class Frame:
    """An Ethernet frame; `content` is None for what is neither ARP nor IPv4."""

    time_ns: int
    arrival: Arrival
    source: str
    destination: str
    ethertype: int
    content: Arp | Packet | None


@dataclass(frozen=True)
class Flow:
    """Client and server of a TCP or UDP conversation."""

    client: str
    client_port: int
    server: str
    server_port: int


EchoKey = tuple[str, int, int]
"""Client address, identifier and sequence of an echo request."""


class Frames:
    """Frames in the order in which they came; a capture appends to it while it runs."""

    def __init__(self, vip: str | None = None, frames: tuple[Frame, ...] = ()) -> None:
        self._vip = vip
        self._frames = list(frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(tuple(self._frames))

    def __len__(self) -> int:
        return len(self._frames)

    def __add__(self, other: "Frames") -> "Frames":
        """Return the frames of both, by time: those of two places where no frame is seen twice."""
        return Frames(self._vip, tuple(sorted((*self, *other), key=lambda frame: frame.time_ns)))

    def append(self, frame: Frame) -> None:
        """Add one frame."""
        self._frames.append(frame)

    def await_that(
        self, what: str, condition: Callable[["Frames"], object], timeout_seconds: float = 5
    ) -> None:
        """Wait, while the capture runs, until `condition(frames)` holds; LabError says `what` if it never does."""
        deadline = time.monotonic() + timeout_seconds
        while not condition(self):
            if time.monotonic() >= deadline:
                raise LabError(
                    f"not on the wire within {timeout_seconds:g} s: {what} ({len(self)} frames were)"
                )
            time.sleep(0.01)

    def packets(self, protocol: int | None = None) -> Iterator[tuple[Frame, Packet]]:
        """Yield the IPv4 packets, of one protocol or all."""
        for frame in self:
            if isinstance(frame.content, Packet) and protocol in (None, frame.content.protocol):
                yield frame, frame.content

    def arp(self) -> Iterator[tuple[Frame, Arp]]:
        """Yield the ARP packets."""
        for frame in self:
            if isinstance(frame.content, Arp):
                yield frame, frame.content

    def syns(self) -> dict[Flow, list[str]]:
        """Return who sent SYNs of which flow; more than one is a retransmission."""
        found: dict[Flow, list[str]] = defaultdict(list)
        for frame, packet in self.packets(TCP):
            if packet.flags & (Flags.SYN | Flags.ACK) == Flags.SYN:
                found[_sent_by_client(packet)].append(frame.source)
        return dict(found)

    def syn_acks(self) -> dict[Flow, list[str]]:
        """Return which Ethernet sources sent SYN-ACKs of which flow, each once.

        The same one sent again, as a slow machine does where it has not seen the client's ACK yet, is no second answer.
        """
        found: dict[Flow, dict[tuple[str, int], str]] = defaultdict(dict)
        for frame, packet in self.packets(TCP):
            if packet.flags & (Flags.SYN | Flags.ACK) == Flags.SYN | Flags.ACK:
                found[_sent_by_server(packet)][frame.source, packet.sequence] = frame.source
        return {flow: list(answers.values()) for flow, answers in found.items()}

    def resets(self) -> list[Frame]:
        """Return the TCP segments with RST, of either side."""
        return [frame for frame, packet in self.packets(TCP) if packet.flags & Flags.RST]

    def udp_answers(self) -> dict[Flow, list[str]]:
        """Return which Ethernet sources sent datagrams from the shared address, by flow."""
        found: dict[Flow, list[str]] = defaultdict(list)
        for frame, packet in self.packets(UDP):
            if packet.source == self._address:
                found[_sent_by_server(packet)].append(frame.source)
        return dict(found)

    def echo_replies(self) -> dict[EchoKey, list[str]]:
        """Return which Ethernet sources sent replies from the shared address, by echo request."""
        found: dict[EchoKey, list[str]] = defaultdict(list)
        for frame, packet in self.packets(ICMP):
            if packet.icmp_type == ECHO_REPLY and packet.source == self._address:
                found[packet.destination, packet.identifier, packet.sequence].append(frame.source)
        return dict(found)

    def icmp_errors(self) -> list[Frame]:
        """Return the ICMP packets that are no echo: unreachable ports and the like."""
        echo = (ECHO_REPLY, ECHO_REQUEST)
        return [frame for frame, packet in self.packets(ICMP) if packet.icmp_type not in echo]

    def answers(self) -> list[Frame]:
        """Return the IPv4 frames whose source is the shared address."""
        return [frame for frame, packet in self.packets() if packet.source == self._address]

    @property
    def _address(self) -> str:
        if self._vip is None:
            raise LabError("this capture was not told the shared address: Capture(host, vip=…)")
        return self._vip


def parse(time_ns: int, arrival: int, data: bytes) -> Frame:
    """Parse a frame, of which the first 256 bytes are enough."""
    (ethertype,) = struct.unpack_from("!H", data, 12)
    content: Arp | Packet | None = None
    if ethertype == ETHERTYPE_IPV4:
        content = _parse_packet(data[14:])
    elif ethertype == ETHERTYPE_ARP:
        content = _parse_arp(data[14:])
    return Frame(time_ns, Arrival(arrival), _mac(data[6:12]), _mac(data[0:6]), ethertype, content)


def _parse_arp(data: bytes) -> Arp:
    (operation,) = struct.unpack_from("!H", data, 6)
    return Arp(
        ArpOperation(operation),
        _mac(data[8:14]),
        _address(data[14:18]),
        _mac(data[18:24]),
        _address(data[24:28]),
    )


def _parse_packet(data: bytes) -> Packet:
    header = (data[0] & 0x0F) * 4
    protocol = data[9]
    source, destination = _address(data[12:16]), _address(data[16:20])
    (fragment,) = struct.unpack_from("!H", data, 6)
    if fragment & 0x1FFF:
        return Packet(source, destination, protocol)  # not the first fragment: no ports in it
    if protocol in (TCP, UDP):
        source_port, destination_port = struct.unpack_from("!HH", data, header)
        if protocol == UDP:
            return Packet(source, destination, protocol, source_port, destination_port)
        flags, (sequence,) = Flags(data[header + 13] & 0x1F), struct.unpack_from("!L", data, header + 4)
        return Packet(source, destination, protocol, source_port, destination_port, flags, sequence=sequence)
    if protocol == ICMP:
        kind, code, _, identifier, sequence = struct.unpack_from("!BBHHH", data, header)
        return Packet(
            source,
            destination,
            protocol,
            icmp_type=kind,
            icmp_code=code,
            identifier=identifier,
            sequence=sequence,
        )
    return Packet(source, destination, protocol)


def _sent_by_client(packet: Packet) -> Flow:
    return Flow(packet.source, packet.source_port, packet.destination, packet.destination_port)


def _sent_by_server(packet: Packet) -> Flow:
    return Flow(packet.destination, packet.destination_port, packet.source, packet.source_port)


def _mac(data: bytes) -> str:
    return data.hex(":")


def _address(data: bytes) -> str:
    return str(IPv4Address(data))
