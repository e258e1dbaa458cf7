"""Heartbeats and other messages for tests: strategies for all that a frame can hold, and the golden ones.

`PYTHONPATH=tests python -m unit.heartbeats` writes the golden frames anew. Only a new version may change them.
"""

from functools import reduce
from operator import xor
from pathlib import Path

from hypothesis import strategies as st

from lbless_api.heartbeat import (
    MAX_NUMBER,
    EpochPiece,
    EpochReport,
    EpochRequest,
    Flag,
    Heartbeat,
    Message,
    PeerReport,
    Verdict,
    clusterip_id,
    node_id,
)
from lbless_api.heartbeat_frame import MAX_DATA_BYTES, MAX_SEQUENCE, MAX_WANTED, encode, fit

KEY = bytes(range(32))

ids = st.binary(min_size=8, max_size=8)
numbers = st.integers(0, MAX_NUMBER)
sequences = st.integers(0, MAX_SEQUENCE)
u16 = st.integers(0, 0xFFFF)

peers = st.builds(PeerReport, ids, numbers, sequences, st.integers(0, 0x3FFF), st.booleans(), st.booleans())
verdicts = st.builds(Verdict, ids, numbers)
epochs = st.builds(EpochReport, ids, numbers, numbers, *([st.booleans()] * 7))

heartbeats = st.builds(
    Heartbeat,
    ids,
    numbers,
    sequences,
    st.integers(0, 255).map(Flag),
    u16,
    u16,
    st.integers(0, 255),
    ids,
    st.lists(peers, max_size=70).map(tuple),
    st.lists(verdicts, max_size=8).map(tuple),
    st.lists(epochs, max_size=8).map(tuple),
    st.integers(0, 0xFFFFFF),
).map(fit)
requests = st.builds(
    EpochRequest,
    ids,
    numbers,
    sequences,
    st.lists(st.tuples(ids, numbers), min_size=1, max_size=MAX_WANTED).map(tuple),
)
pieces = st.integers(1, 255).flatmap(
    lambda count: st.builds(
        EpochPiece,
        ids,
        numbers,
        sequences,
        ids,
        numbers,
        st.integers(0, count - 1),
        st.just(count),
        st.binary(min_size=1, max_size=MAX_DATA_BYTES),
    )
)
messages: st.SearchStrategy[Message] = st.one_of(heartbeats, requests, pieces)


def heartbeat_of(nodes: int, clusterips: int) -> Heartbeat:
    """What the first of `nodes` says that knows of all the others and reports `clusterips` epochs."""
    epochs = tuple(
        EpochReport(
            clusterip_id(f"uid-{n}"),
            n + 1,
            n,
            n % 2 == 0,
            n % 3 == 0,
            acting=n % 4 == 3,
            ready=n % 5 == 0,
            gained=n % 3 == 1,
            sends=n % 5 == 1,
            drains=n % 5 > 2,
        )
        for n in range(clusterips)
    )
    return Heartbeat(
        node_id("n0"),
        1_790_000_000_000,
        86_400_000,
        Flag.VALID | Flag.ACTING,
        lease_ms=700,
        hold_ms=2000,
        group_size=nodes,
        smallest_member=node_id("n0"),
        peers=tuple(
            PeerReport(
                node_id(f"n{n}"),
                1_790_000_000_000 + n,
                3_600_000 * n,
                n % 100,
                complete=n % 2 == 0,
                direct=n % 3 != 2,
            )
            for n in range(1, nodes)
        ),
        verdicts=(Verdict(node_id("gone"), 1_780_000_000_000),),
        epochs=epochs,
        digest=reduce(xor, (epoch.mark() for epoch in epochs), 0),
    )


GOLDEN: dict[str, Message] = {
    "heartbeat-alone": Heartbeat(
        node_id("n1"), 1, 1, Flag.LISTENING, 700, 0, group_size=1, smallest_member=node_id("n1")
    ),
    "heartbeat-of-three": heartbeat_of(3, 5),
    "heartbeat-largest-values": Heartbeat(
        b"\xff" * 8,
        MAX_NUMBER,
        MAX_SEQUENCE,
        Flag(255),
        0xFFFF,
        0xFFFF,
        255,
        b"\xff" * 8,
        (PeerReport(b"\xfe" * 8, MAX_NUMBER, MAX_SEQUENCE, 0x3FFF),),
        (Verdict(b"\xfd" * 8, MAX_NUMBER),),
        (EpochReport(b"\xfc" * 8, MAX_NUMBER, MAX_NUMBER, *([True] * 7)),),
        digest=0xFFFFFF,
    ),
    "epoch-request": EpochRequest(
        node_id("n2"), 7, 8, ((clusterip_id("uid-1"), 3), (clusterip_id("uid-2"), 2**40))
    ),
    "epoch-piece": EpochPiece(node_id("n3"), 9, 10, clusterip_id("uid-1"), 3, 1, 2, b"the end"),
}
"""By the name under which their bytes are on file; their key is KEY."""

DATA = Path(__file__).parents[1] / "vectors" / "heartbeats.txt"


def golden_frames() -> dict[str, bytes]:
    """The bytes on file, by name."""
    lines = (line.split() for line in DATA.read_text().splitlines() if not line.startswith("#"))
    return {name: bytes.fromhex(digits) for name, digits in lines}


if __name__ == "__main__":
    lines = [f"{name} {encode(message, KEY).hex()}\n" for name, message in GOLDEN.items()]
    DATA.write_text("# Frames of heartbeats, version 1: see README.md.\n" + "".join(lines))
