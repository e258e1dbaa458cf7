"""Asking a kernel: real packets of every case through nftables, xt_cluster or the CLUSTERIP target.

`python -m vectors.kernels nft|xt_cluster|clusterip` asks the kernel that it runs on, in a network namespace that
ends with it, and writes the answers to standard output, as `cases` has them. It needs nothing but the standard
library and the programs nft and iptables-legacy.
"""

import os
import re
import struct
import sys
import time
from collections.abc import Callable, Collection
from ipaddress import IPv4Address
from pathlib import Path

from kernel import rawpackets, segment
from lbless_api.hashing import HashFunction, HashMode
from vectors.cases import (
    PROTOCOLS,
    TUPLES,
    Case,
    Tuple,
    cluster_cases,
    clusterip_cases,
    nft_cases,
    render,
    tuples,
)

# An address for each case of a protocol. The sum of the upper and the lower half is always the same, and so are the
# header's checksum and, but for the address, the packets.
FIRST, STEP = IPv4Address("10.8.255.1"), 0xFFFF
ARRIVAL_SECONDS = 60
# After mangle (-150), where iptables' rules are. A packet is known by its identification.
SEEN = """
table ip vectors {{
 set seen {{ typeof ip daddr . ip id . {mark}; flags dynamic; size 1000000; }}
 chain after {{ type filter hook prerouting priority -100;
  iifname "eth0" add @seen {{ ip daddr . ip id . {mark} }} drop
 }}
}}
"""
MODES = {
    HashMode.SOURCE_IP: "sourceip",
    HashMode.SOURCE_IP_SOURCE_PORT: "sourceip-sourceport",
    HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT: "sourceip-sourceport-destport",
}
PORTS = {"esp": ("@th,0,16", "@th,16,16"), "ah": ("@th,32,16", "@th,48,16"), "icmp": (), "gre": ()}

Answers = dict[Case, tuple[int, ...]]


def ask_nft() -> Answers:
    """nftables' jhash, in the ways that make it one function or the other."""
    return _ask(nft_cases(), "meta mark", _nft_rules)


def ask_xt_cluster() -> Answers:
    """The match `cluster` of iptables: a rule for each node says which it is."""
    return _ask(cluster_cases(), "meta mark", _xt_cluster_rules)


def ask_clusterip() -> Answers:
    """The target CLUSTERIP on a node that is all nodes: it writes the node's number, from 1, into the ct mark."""
    return _ask(clusterip_cases(), "ct mark", _clusterip_rules)


def frames(protocol: str) -> list[tuple[bytes, bytes]]:
    """The packets of a protocol, each such as opens a flow for conntrack: what stands before and after the address."""
    packets = [
        rawpackets.ipv4(
            one.source, FIRST, PROTOCOLS[protocol], _payload(protocol, one), identification=identification
        )
        for identification, one in enumerate(tuples())
    ]
    return [(rawpackets.ethernet(packet[:16]), packet[20:]) for packet in packets]


def _ask(cases: list[Case], mark: str, lay_rules: Callable[[dict[Case, IPv4Address]], None]) -> Answers:
    """Send the packets of each case through rules that mark them with their bucket, counted from 1."""
    answers: Answers = {}
    for protocol in PROTOCOLS:
        own = [case for case in cases if case.protocol == protocol]
        addresses = {case: FIRST + STEP * number for number, case in enumerate(own)}
        with segment.namespace():
            segment.link("eth0", "wire0")
            lay_rules(addresses)
            segment.nft(SEEN.format(mark=mark))
            # There since the rules are: the packets have no checksums.
            Path("/proc/sys/net/netfilter/nf_conntrack_checksum").write_text("0")
            seen = _send(protocol, addresses.values())
        answers |= {case: _in_order(case, seen[str(address)]) for case, address in addresses.items()}
    return answers


def _send(protocol: str, addresses: Collection[IPv4Address]) -> dict[str, dict[int, int]]:
    """Send every packet to each address; return for each address the mark of each identification."""
    wire = segment.Wire("wire0")
    parts = frames(protocol)
    for address in addresses:
        wire.send([before + address.packed + after for before, after in parts])
    wire.close()
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while len(elements := _elements()) < TUPLES * len(addresses) and time.monotonic() < deadline:
        time.sleep(0.1)
    seen: dict[str, dict[int, int]] = {str(address): {} for address in addresses}
    for address, identification, mark in elements:
        of_address = seen[address]
        if int(identification) in of_address:
            raise SystemExit(f"packet {identification} of {protocol} has two marks")
        of_address[int(identification)] = int(mark, 16)
    return seen


def _elements() -> list[tuple[str, str, str]]:
    """Address, identification and mark of every packet that was seen; as text, which nft writes faster than JSON."""
    listed = segment.run("nft", "list", "set", "ip", "vectors", "seen")
    return re.findall(r"([0-9.]+) \. ([0-9]+) \. (0x[0-9a-f]+)", listed)


def _in_order(case: Case, marks: dict[int, int]) -> tuple[int, ...]:
    """The buckets of all packets. A packet that no rule matched has the mark 0, which is none."""
    wrong = [number for number in range(TUPLES) if not 1 <= marks.get(number, 0) <= case.buckets]
    if wrong:
        raise SystemExit(f"{case}: {len(wrong)} packets have no bucket that there is, such as {wrong[0]}")
    return tuple(marks[number] - 1 for number in range(TUPLES))


def _nft_rules(addresses: dict[Case, IPv4Address]) -> None:
    rules = []
    for case, address in addresses.items():
        mode = HashMode(case.mode)
        ports = PORTS.get(case.protocol, ("th sport", "th dport"))[: mode.words - 1]
        # A word that is left out is a zero word with its 4 bytes in the seed.
        seed = (case.seed + 4 * (mode.words - 1 - len(ports))) & 0xFFFFFFFF
        for condition, source in _nft_sources(case.function):
            words = " . ".join((source, *ports))
            rules.append(
                f"{condition} ip daddr {address} meta mark set jhash {words} mod {case.buckets} seed {seed} offset 1"
            )
    body = "\n  ".join(rules)
    segment.nft(
        f"table ip hashes {{\n chain c {{ type filter hook prerouting priority -150;\n  {body}\n }}\n}}\n"
    )


def _nft_sources(function: str) -> list[tuple[str, str]]:
    if function == HashFunction.JHASH:
        return [("", "ip saddr")]
    # Shifting makes nft swap the address to host order, and loses the first bit.
    half = "((ip saddr << 1) >> 1)"
    return [("ip saddr < 128.0.0.0", half), ("ip saddr >= 128.0.0.0", f"({half} | 0x80000000)")]


def _xt_cluster_rules(addresses: dict[Case, IPv4Address]) -> None:
    for case, address in addresses.items():
        for node in range(1, case.buckets + 1):
            _mangle(
                *(address, "-m", "cluster", "--cluster-total-nodes", case.buckets),
                *("--cluster-local-node", node, "--cluster-hash-seed", case.seed),
                *("-j", "MARK", "--set-mark", node),
            )


def _clusterip_rules(addresses: dict[Case, IPv4Address]) -> None:
    for case, address in addresses.items():
        _mangle(
            *(address, "-j", "CLUSTERIP", "--new", "--hashmode", MODES[HashMode(case.mode)]),
            *("--clustermac", rawpackets.MULTICAST_MAC, "--total-nodes", case.buckets),
            *("--local-node", 1, "--hash-init", case.seed),
        )
        for node in range(2, case.buckets + 1):
            _write(f"/proc/net/ipt_CLUSTERIP/{address}", f"+{node}")


def _mangle(address: IPv4Address, *words: object) -> None:
    chain = ("-t", "mangle", "-A", "PREROUTING", "-i", "eth0", "-d", str(address))
    segment.run("iptables-legacy", "-w", *chain, *map(str, words))


def _write(path: str, text: str) -> None:
    """Write at once: a file object would tell of the kernel's refusal only when it is closed."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _payload(protocol: str, one: Tuple) -> bytes:
    """A transport header with the tuple's ports, or the SPI that they are the halves of."""
    ports = struct.pack("!HH", one.source_port, one.destination_port)
    empty = bytes(20)
    return {
        "tcp": ports + struct.pack("!LLBBHHH", 1, 0, 0x50, 0x02, 8192, 0, 0),  # a SYN
        "udp": ports + struct.pack("!HH", 8, 0),
        # An INIT.
        "sctp": ports + struct.pack("!LLBBHLLHHL", 0, 0, 1, 0, 20, 1, 8192, 1, 1, 1),
        # An echo request, with something where others have their ports.
        "icmp": b"\x08\0" + ports + empty,
        "esp": ports + empty,
        "ah": b"\x06\x04\0\0" + ports + empty,
        # With a key that is no port.
        "gre": struct.pack("!HH", 0x2000, 0x0800) + ports + empty,
    }[protocol]


ASK: dict[str, Callable[[], Answers]] = {
    "nft": ask_nft,
    "xt_cluster": ask_xt_cluster,
    "clusterip": ask_clusterip,
}

if __name__ == "__main__":
    sys.stdout.writelines(render(ASK[sys.argv[1]]()))
