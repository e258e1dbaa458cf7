"""IPv4 packets and ARP as bytes, of any protocol and with any header, whether a stack would send them or not."""

import random
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from lbless_api.hashing import AH, DCCP, ICMP, SCTP, TCP, UDP, UDPLITE

GRE, OSPF = 47, 89
ERRORS = (3, 11, 12)  # destination unreachable, time exceeded, parameter problem
ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
MULTICAST_MAC = "03:bf:0a:00:00:64"
SENDER_MAC = "02:00:00:00:00:99"
PORTED = (TCP, UDP, UDPLITE, SCTP, DCCP)


@dataclass(frozen=True)
class Fields:
    """What of a packet may be hashed: the client's address, and ports or what stands in for them."""

    source: IPv4Address
    source_port: int
    destination_port: int
    protocol: int


def ipv4(
    source: IPv4Address,
    destination: IPv4Address,
    protocol: int,
    payload: bytes,
    *,
    identification: int = 0,
    options: bytes = b"",
    fragment: int = 0,
) -> bytes:
    """A packet with a right header checksum; `fragment` is the field of flags and offset."""
    words = 5 + len(options) // 4
    length = words * 4 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, length, identification, fragment, 64, protocol, 0)
    head += source.packed + destination.packed
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ethernet(payload: bytes, *, to: str = MULTICAST_MAC, ethertype: int = ETHERTYPE_IPV4) -> bytes:
    """A frame from another host."""
    return _mac(to) + _mac(SENDER_MAC) + struct.pack("!H", ethertype) + payload


def arp(operation: int, sender: IPv4Address, target: IPv4Address, *, sender_mac: str = SENDER_MAC) -> bytes:
    """An ARP packet, without its frame."""
    head = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, operation)
    return head + _mac(sender_mac) + sender.packed + bytes(6) + target.packed


def arp_sender(frame: bytes) -> tuple[int, str, IPv4Address]:
    """Operation, sender's MAC and sender's address of a frame with ARP in it."""
    assert struct.unpack_from("!H", frame, 12) == (ETHERTYPE_ARP,)
    (operation,) = struct.unpack_from("!H", frame, 20)
    return operation, frame[22:28].hex(":"), IPv4Address(frame[28:32])


def transport(fields: Fields, rest: bytes) -> bytes:
    """A transport header with the fields where the protocol has them, then `rest`."""
    pair = struct.pack("!HH", fields.source_port, fields.destination_port)
    if fields.protocol == AH:
        return b"\x06\x04\0\0" + pair + rest
    if fields.protocol == ICMP:
        return b"\x08\0" + pair + rest  # an echo request
    return pair + rest


def icmp_error(rng: random.Random, vip: IPv4Address, fields: Fields, *, options: bytes = b"") -> bytes:
    """An ICMP error about a packet that was sent from `vip` in the flow of `fields`."""
    embedded_ports = struct.pack("!HH", fields.destination_port, fields.source_port) + rng.randbytes(4)
    embedded = ipv4(vip, fields.source, fields.protocol, embedded_ports, options=options)
    return struct.pack("!BBHL", rng.choice(ERRORS), 0, 0, 0) + embedded


def random_client(rng: random.Random) -> IPv4Address:
    """A unicast address, half of them in the upper half of the address space."""
    return IPv4Address(
        rng.randrange(0x80000000, 0xE0000000) if rng.random() < 0.5 else rng.randrange(1 << 24, 0x7F000000)
    )


def random_fields(rng: random.Random, protocol: int) -> Fields:
    """Fields of a packet of `protocol`."""
    return Fields(random_client(rng), rng.randrange(65536), rng.randrange(65536), protocol)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


def tcp(
    fields: Fields, destination: IPv4Address, flags: int, sequence: int = 1, acknowledged: int = 0
) -> bytes:
    """A TCP header from the client with a right checksum, as conntrack asks for, and nothing in it."""
    ports = (fields.source_port, fields.destination_port)
    header = struct.pack("!HHLLHHHH", *ports, sequence, acknowledged, 0x5000 | flags, 64240, 0, 0)
    pseudo = fields.source.packed + destination.packed + struct.pack("!BBH", 0, TCP, len(header))
    return header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]


def icmp(kind: int, rest: bytes) -> bytes:
    """An ICMP message of an even number of bytes, with a right checksum; `rest` is what follows that."""
    head = struct.pack("!BBH", kind, 0, 0)
    return struct.pack("!BBH", kind, 0, checksum(head + rest)) + rest
