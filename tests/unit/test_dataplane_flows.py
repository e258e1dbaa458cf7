"""Which entries of connection tracking count as flows of given buckets, and how a dump that fails is taken."""

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode, bucket
from lbless_nodeagent.dataplane import flows
from lbless_nodeagent.dataplane.flows import Flow, Flows, FlowsError, State
from lbless_nodeagent.dataplane.nftables.netlink import MESSAGE, attribute

VIPS = [IPv4Address(f"10.80.2.{number}") for number in range(1, 4)]
SOURCES = [IPv4Address(f"10.80.16.{number}") for number in range(1, 5)]
NESTED = 0x8000
GOING_ON = {
    State.ESTABLISHED,
    State.FIN_WAIT,
    State.CLOSE_WAIT,
    State.LAST_ACK,
    None,
}

some_flows = st.lists(
    st.builds(
        Flow,
        st.sampled_from(SOURCES),
        st.integers(1024, 1030),
        st.sampled_from([*VIPS, IPv4Address("192.0.2.1")]),
        st.sampled_from([80, 443]),
        st.sampled_from([*map(int, State), None]),
    ),
    max_size=60,
)
some_parameters = st.builds(
    HashParameters,
    st.sampled_from(HashFunction),
    st.sampled_from(HashMode),
    st.integers(0, 3),
    st.integers(1, 16),
    st.sampled_from([24, 32]),
)
some_given = st.dictionaries(
    st.sampled_from(VIPS),
    st.tuples(some_parameters, st.builds(BucketSet, st.sets(st.integers(0, 15)))),
)


@given(some_flows, some_given)
def test_a_flow_counts_if_it_goes_on_and_its_bucket_is_given_for_its_address(
    listed: list[Flow], asked: dict[IPv4Address, tuple[HashParameters, BucketSet]]
) -> None:
    for ip, (parameters, buckets) in asked.items():
        own = {
            (flow.source, flow.source_port, flow.destination_port)
            for flow in listed
            if flow.destination == ip and flow.state in GOING_ON
        }
        expected = [
            (source, port, to)
            for source, port, to in own
            if bucket(
                parameters.function,
                parameters.mode,
                source,
                port,
                to,
                buckets=parameters.buckets,
                seed=parameters.seed,
                prefix_length=parameters.prefix_length,
            )
            in buckets
        ]
        assert flows.count(listed, asked)[ip] == len(expected)
    assert flows.count(listed, asked).keys() == asked.keys()


def tuple_of(
    kind: int, source: IPv4Address, destination: IPv4Address, ports: tuple[int, int], protocol: int = 6
) -> bytes:
    """One direction of a flow, in the kernel's order."""
    addresses = attribute(1, source.packed) + attribute(2, destination.packed)
    numbers = attribute(1, bytes([protocol])) + b"".join(
        attribute(2 + index, port.to_bytes(2, "big")) for index, port in enumerate(ports)
    )
    return attribute(NESTED | kind, attribute(NESTED | 1, addresses) + attribute(NESTED | 2, numbers))


def state_of(state: State) -> bytes:
    return attribute(NESTED | 4, attribute(NESTED | 1, attribute(1, bytes([state])) + attribute(2, b"\7")))


FORTH = tuple_of(1, SOURCES[0], VIPS[0], (1024, 80))
BACK = tuple_of(2, IPv4Address("10.244.1.2"), SOURCES[0], (8080, 1024))
FLOW = Flow(SOURCES[0], 1024, VIPS[0], 80, State.ESTABLISHED)
OURS = frozenset({VIPS[0].packed})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (FORTH + BACK + state_of(State.ESTABLISHED), FLOW),
        (state_of(State.ESTABLISHED) + BACK + FORTH, FLOW),
        (FORTH + BACK, Flow(SOURCES[0], 1024, VIPS[0], 80, None)),
        (tuple_of(1, SOURCES[0], VIPS[1], (1024, 80)) + state_of(State.ESTABLISHED), None),
        (state_of(State.ESTABLISHED) + tuple_of(1, SOURCES[0], VIPS[1], (1024, 80)), None),
        (tuple_of(1, SOURCES[0], VIPS[0], (1024, 53), protocol=17), None),
        (tuple_of(1, VIPS[0], SOURCES[0], (80, 1024)) + state_of(State.ESTABLISHED), None),
        (b"", None),
    ],
    ids=[
        "as the kernel has it",
        "in another order",
        "offloaded, so that its state is not told",
        "to another address",
        "to another address, in another order",
        "of another protocol",
        "begun by the shared address",
        "of a kind that has no addresses",
    ],
)
def test_an_entry_is_read_in_whatever_order_its_attributes_come(entry: bytes, expected: Flow | None) -> None:
    assert flows.parse(memoryview(entry), OURS) == expected


class Kernel:
    """The far end of the socket: answers that are there before they are asked for."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def entry(self, sequence: int, *, interrupted: bool = False) -> bytes:
        body = FORTH + BACK + state_of(State.ESTABLISHED)
        flags = 0x2 | (0x10 if interrupted else 0)
        return MESSAGE.pack(MESSAGE.size + len(body), 0x100, flags, sequence, 0, 2, 0, 0) + body

    def end(self, sequence: int, kind: int = 3, code: int = 0) -> bytes:
        return struct.pack("=LHHLLi", 20, kind, 2, sequence, 0, -code)

    def says(self, *answers: bytes) -> None:
        self._end.send(b"".join(answers))


class Overflowing:
    """A socket that has once no room for what the kernel sends."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._overflows = True
        self.settimeout, self.send = inner.settimeout, inner.send

    def recv(self, size: int) -> bytes:
        received = self._inner.recv(size)
        if self._overflows:
            self._overflows = False
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return received


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(flows, "open_socket", lambda: near)
    with near, far:
        yield Kernel(far)


def test_a_dump_that_was_interrupted_or_lost_a_part_is_repeated_and_nothing_of_it_is_kept(
    kernel: Kernel,
) -> None:
    kernel.says(kernel.entry(1, interrupted=True), kernel.end(1))
    kernel.says(kernel.entry(2), kernel.end(2, code=errno.EINTR))
    kernel.says(kernel.entry(3), kernel.end(3, kind=2, code=errno.ENOBUFS))
    kernel.says(kernel.entry(3), kernel.entry(4), kernel.end(4))
    assert Flows().to([VIPS[0]]) == [FLOW]


def test_a_dump_of_which_a_part_found_no_room_is_read_to_its_end_and_repeated(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = flows.open_socket()
    monkeypatch.setattr(flows, "open_socket", lambda: Overflowing(near))
    kernel.says(kernel.entry(1))
    kernel.says(kernel.end(1))
    kernel.says(kernel.entry(2), kernel.end(2))
    assert Flows().to([VIPS[0]]) == [FLOW]


def test_a_dump_that_is_interrupted_each_time_is_given_up_with_a_sentence(kernel: Kernel) -> None:
    for sequence in range(1, flows.ATTEMPTS + 1):
        kernel.says(kernel.end(sequence, code=errno.EINTR))
    with pytest.raises(FlowsError, match="changes so fast"):
        Flows().to([VIPS[0]])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.EINVAL, "load the module nf_conntrack_netlink"),
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.EIO, "Cannot read connection tracking: Input/output error"),
    ],
)
def test_what_the_kernel_refuses_is_said_in_one_sentence(kernel: Kernel, code: int, sentence: str) -> None:
    kernel.says(kernel.end(1, kind=2, code=code))
    with pytest.raises(FlowsError, match=sentence):
        Flows().to([VIPS[0]])


def test_nobody_is_asked_where_no_bucket_is_given(kernel: Kernel) -> None:
    parameters = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 0, 16, 32)
    assert Flows().count({VIPS[0]: (parameters, BucketSet())}) == {VIPS[0]: 0}
