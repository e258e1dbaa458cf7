"""How many TCP flows of given buckets this node still has in connection tracking. Reads, changes nothing.

Owns the question to the kernel, the layout of its answer and what counts as a flow that goes on; when a drain is over
is decided elsewhere. pyroute2 can ask the same (`NFCTSocket.dump`, with a tuple as filter), but takes 30 times as long
for each entry (115 µs), and a node behind a busy address has a hundred thousand. Formats: include/uapi/linux/netfilter/
nfnetlink_conntrack.h; order of the attributes: net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from pathlib import Path

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import TCP, bucket
from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.nftables.netlink import (
    AF_IPV4,
    MESSAGE,
    attribute,
    attributes,
    messages,
    open_socket,
)

FILTERED_DUMPS = 4
"""Up to so many addresses are asked for one by one. Each question walks the kernel's whole table (262,144 chains: 16 ms
where it is empty, 33 ms with 100,000 entries, all of which together are sent and looked at in 360 ms), so that for more
of them one dump of all TCP flows is as good or better."""

ATTEMPTS = 5
_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_NESTED = 0x8000
_CODE = struct.Struct("=i")
_HEADER_BYTES = 16
_RECEIVE_BYTES = 1 << 18
_ANSWER_SECONDS = 10

_TUPLE_ORIG, _PROTOINFO, _FILTER = 1, 4, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST = 1, 2
_PROTO_NUM, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_FILTER_ORIG_FLAGS = 1
_BY_DESTINATION, _BY_PROTOCOL = 1 << 1, 1 << 3  # CTA_FILTER_FLAG of the kernel, which has no header for them
_TCP = bytes([TCP])
_NOTHING = memoryview(b"")

# How an IPv4 entry usually begins: CTA_TUPLE_ORIG (its length left out, as a zone may be in it), CTA_TUPLE_IP, source,
# destination.
_USUAL = struct.Struct("=2xHHHHH4xHH4s")
_HEADS = [_NESTED | _TUPLE_ORIG, 20, _NESTED | _TUPLE_IP, 8, _V4_SRC, 8, _V4_DST]
_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")


class FlowsError(Exception):
    """The kernel cannot be asked for its flows; the message is one sentence that says what to do."""


class State(IntEnum):
    """A TCP flow's state in connection tracking (enum tcp_conntrack)."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


OVER = frozenset({State.NONE, State.SYN_SENT, State.SYN_SENT2, State.SYN_RECV, State.TIME_WAIT, State.CLOSE})
"""States in which a flow needs its node no more, or not yet.

CLOSE and TIME_WAIT are after its end: what still comes is answered alike by a node that knows nothing of it. SYN_SENT
and SYN_SENT2 have no answer yet: a draining node takes no SYN, so they are the next owner's. NONE is of an entry whose
first packet is just being looked at. SYN_RECV stays for a minute where the client has had no answer, or another node's;
who has had this one's has said so long before a drain can be over.
"""


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP flow as its first packet had it, before any DNAT; its state, None where a flow table has taken it over.

    A flow that is offloaded is established, and the kernel does not say so.
    """

    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    state: int | None


Given = Mapping[IPv4Address, tuple[HashParameters, BucketSet]]
"""Of each shared address: how its buckets are computed, and which of them are asked about."""


def count(flows: Iterable[Flow], given: Given) -> dict[IPv4Address, int]:
    """How many of the flows are of the given buckets and not over, for each address, also where there are none.

    One that is listed twice is one flow: the kernel repeats a part of a dump during which an entry went away, and a
    flow may be tracked in two zones.
    """
    found: dict[IPv4Address, set[tuple[IPv4Address, int, int]]] = {ip: set() for ip in given}
    for flow in flows:
        if flow.destination in given and flow.state not in OVER:
            parameters, buckets = given[flow.destination]
            if _bucket(parameters, flow) in buckets:
                found[flow.destination].add((flow.source, flow.source_port, flow.destination_port))
    return {ip: len(own) for ip, own in found.items()}


def liberal() -> str | None:
    """Return what is wrong with this network namespace's conntrack settings, in one sentence; None if nothing.

    A liberal node takes for its own what it sees of a flow that another node now has, and resets it. Without the
    setting there is no connection tracking, or it is not liberal.
    """
    try:
        setting = _LIBERAL.read_text()
    except OSError:
        return None
    if setting.strip() == "0":
        return None
    return (
        f"net.netfilter.nf_conntrack_tcp_be_liberal is {setting.strip()}, with which a node resets connections of "
        f"buckets that it has given up: set it to 0 on this node."
    )


class Flows:
    """A socket for such questions, one at a time."""

    def __init__(self) -> None:
        """Raises FlowsError where there is no nfnetlink."""
        try:
            self._socket = open_socket()
        except EngineError as error:
            raise FlowsError(str(error)) from None
        self._socket.settimeout(_ANSWER_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def count(self, given: Given) -> dict[IPv4Address, int]:
        """How many flows that are not over are in the given buckets of each address; raises FlowsError.

        Takes some 1 µs for each flow to another address, beside the kernel's 2, and 25 µs for each to one of these,
        most of it to parse it and to compute its bucket: with 100,000 of them ask at a pace of some seconds.
        """
        asked = {ip: which for ip, which in given.items() if which[1]}
        return count(self.to(asked), given)

    def to(self, destinations: Iterable[IPv4Address]) -> list[Flow]:
        """All TCP flows whose first packet went to one of the addresses, some of them twice; raises FlowsError."""
        wanted = frozenset(ip.packed for ip in destinations)
        questions = [_question(packed) for packed in sorted(wanted)]
        if len(questions) > FILTERED_DUMPS:
            questions = [_question(None)]
        try:
            return [flow for question in questions for flow in self._dump(question, wanted)]
        except (OSError, EngineError) as error:
            raise FlowsError(_sentence(error)) from None

    def _dump(self, question: bytes, wanted: frozenset[bytes]) -> list[Flow]:
        """A dump may be cut short by the kernel (EINTR) or by a full buffer (ENOBUFS), and is then repeated."""
        for _ in range(ATTEMPTS - 1):
            try:
                return list(self._answers(question, wanted))
            except OSError as error:
                if error.errno not in (errno.EINTR, errno.ENOBUFS):
                    raise
        return list(self._answers(question, wanted))

    def _answers(self, question: bytes, wanted: frozenset[bytes]) -> Iterator[Flow]:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        length = MESSAGE.size + len(question)
        head = MESSAGE.pack(length, _GET, _REQUEST | _DUMP, self._sequence, 0, AF_IPV4, 0, 0)
        self._socket.send(head + question)
        interrupted = False
        while True:
            try:
                received = memoryview(self._socket.recv(_RECEIVE_BYTES))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                interrupted = True  # read on to its end: the kernel begins no second dump on a socket
                continue
            for flags, kind, sequence, whole in messages(received):
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                interrupted |= bool(flags & _INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    # DONE carries a code too: that of a dump that broke off.
                    code = -_CODE.unpack_from(whole, _HEADER_BYTES)[0] if len(whole) > _HEADER_BYTES else 0
                    code = code or (errno.EINTR if interrupted else 0)
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    return
                if (flow := parse(whole[MESSAGE.size :], wanted)) is not None:
                    yield flow


def parse(entry: memoryview, wanted: frozenset[bytes]) -> Flow | None:
    """Parse an entry of the kernel's answer; None if it is not TCP over IPv4 to one of the packed addresses.

    What is not ours is told by the kernel's usual order of attributes, ten times as fast as one by one: most entries
    of a big table are not. Raises EngineError for a malformed one.
    """
    if len(entry) >= _USUAL.size:
        *heads, destination = _USUAL.unpack_from(entry)
        if heads == _HEADS and destination not in wanted:
            return None
    found = attributes(entry)
    tuple_ = attributes(found.get(_TUPLE_ORIG, _NOTHING))
    addresses, protocol = (
        attributes(tuple_.get(_TUPLE_IP, _NOTHING)),
        attributes(tuple_.get(_TUPLE_PROTO, _NOTHING)),
    )
    destination = bytes(addresses.get(_V4_DST, _NOTHING))
    if bytes(protocol.get(_PROTO_NUM, _NOTHING)) != _TCP or destination not in wanted:
        return None
    tcp = attributes(attributes(found.get(_PROTOINFO, _NOTHING)).get(_PROTOINFO_TCP, _NOTHING))
    return Flow(
        IPv4Address(bytes(addresses[_V4_SRC])),
        int.from_bytes(protocol[_SOURCE_PORT], "big"),
        IPv4Address(destination),
        int.from_bytes(protocol[_DESTINATION_PORT], "big"),
        tcp[_TCP_STATE][0] if _TCP_STATE in tcp else None,
    )


def _bucket(parameters: HashParameters, flow: Flow) -> int:
    return bucket(
        parameters.function,
        parameters.mode,
        flow.source,
        flow.source_port,
        flow.destination_port,
        buckets=parameters.buckets,
        seed=parameters.seed,
        prefix_length=parameters.prefix_length,
    )


def _question(packed: bytes | None) -> bytes:
    """Let the kernel (Linux 5.8) send only TCP flows, with an address those to it; an older one sends all it has."""
    protocol = attribute(_NESTED | _TUPLE_PROTO, attribute(_PROTO_NUM, bytes([TCP])))
    flags, address = _BY_PROTOCOL, b""
    if packed is not None:
        flags |= _BY_DESTINATION
        address = attribute(_NESTED | _TUPLE_IP, attribute(_V4_DST, packed))
    chosen = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
    return attribute(_NESTED | _TUPLE_ORIG, address + protocol) + attribute(_NESTED | _FILTER, chosen)


def _sentence(error: OSError | EngineError) -> str:
    match error:
        case EngineError():
            return "The kernel's answer about its connections is malformed: report it with the version of the kernel."
        case TimeoutError():
            return f"The kernel did not answer about its connections within {_ANSWER_SECONDS} s."
        case PermissionError():
            return "No permission to read connection tracking: run as root, or with the capability CAP_NET_ADMIN."
        case OSError(errno=errno.EINVAL | errno.EOPNOTSUPP | errno.ENOENT):
            # What nfnetlink says to a subsystem that it does not know.
            return (
                "This kernel cannot list its connections, so nobody knows when a drain is over: use one with "
                "CONFIG_NF_CT_NETLINK, or load the module nf_conntrack_netlink."
            )
        case OSError(errno=errno.EINTR | errno.ENOBUFS):
            return (
                f"The list of connections changes so fast that it cannot be read ({ATTEMPTS} attempts): "
                f"it is tried again."
            )
    return f"Cannot read connection tracking: {error.strerror}."
