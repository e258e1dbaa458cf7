"""Buckets packed by hand do to the kernel what nft's text does, as a whole or not at all."""

import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kernel import segment
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.nftables import probe, readback
from lbless_nodeagent.dataplane.nftables.batch import Batch
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.library import Library
from lbless_nodeagent.dataplane.nftables.names import Role, bucket_set, redirect_map
from lbless_nodeagent.dataplane.nftables.netlink import (
    AF_IPV4,
    MESSAGE,
    Reader,
    attributes,
    each_attribute,
    messages,
)
from lbless_nodeagent.dataplane.nftables.transactions import (
    MAX_ELEMENTS,
    BucketChange,
    Transaction,
    target,
    transactions,
)

pytestmark = pytest.mark.root

GROUP = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 4096, 32)
NAME = bucket_set(GROUP, Role.OWNED)
NEWSETELEM, NLM_F_DUMP_INTR = 12, 0x10
LARGE = {IPv4Address("10.8.0.1") + n: BucketSet(range(n, n + 85)) for n in range(300)}


@pytest.fixture
def batch(engine: NftablesEngine) -> Iterator[Batch]:
    """With the tables there, and in them one address without a bucket."""
    segment.link("eth0", "wire0")
    engine.apply(wanted({IPv4Address("10.8.0.1"): BucketSet()}))
    made = Batch()
    yield made
    made.close()


@pytest.fixture
def reader(namespace: None) -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def wanted(owned: dict[IPv4Address, BucketSet]) -> Wanted:
    return Wanted(
        {ip: Vip(ip, "eth0", "03:bf:0a:08:00:01", GROUP, None, buckets) for ip, buckets in owned.items()},
        frozenset(),
    )


def elements(reader: Reader) -> set[tuple[bytes, bytes | None, bool, int]]:
    listed = reader.elements(AF_IPV4, "lbless", NAME)
    return {(e.key, e.key_end, e.value is None, e.flags) for e in listed}


def key(bucket: int) -> bytes:
    return IPv4Address("10.8.0.1").packed + bucket.to_bytes(4, "little")


def steps(before: dict[IPv4Address, BucketSet], after: dict[IPv4Address, BucketSet]) -> list[Transaction]:
    return transactions(target(wanted(before)), target(wanted(after)), Layout())


def run(batch: Batch, changes: tuple[BucketChange, ...]) -> None:
    batch.run((change.verb, change.name, change.keys, change.values) for change in changes)


@pytest.mark.parametrize("seed", range(3))
def test_packed_buckets_and_nfts_text_come_to_the_same(batch: Batch, reader: Reader, seed: int) -> None:
    chosen = random.Random(seed)
    library = Library()
    before = {ip: BucketSet() for ip in LARGE}
    for _ in range(4):
        after = {ip: BucketSet(chosen.sample(range(4096), chosen.choice([0, 1, 85]))) for ip in LARGE}
        there, back = steps(before, after), steps(after, before)
        for transaction in there:
            assert transaction.buckets is not None
            run(batch, transaction.buckets)
        packed = elements(reader)
        for transaction in back:
            library.run(transaction.text)
        for transaction in there:
            library.run(transaction.text)
        assert elements(reader) == packed
        assert len(packed) == sum(map(len, after.values()))
        before = after


def test_packed_ways_of_what_is_sent_on_and_nfts_text_come_to_the_same(batch: Batch, reader: Reader) -> None:
    name = redirect_map(GROUP)
    to = [IPv4Address("10.8.0.200") + number % 3 for number in range(4096)]
    change = BucketChange(
        "add", name, tuple(key(number) for number in range(4096)), tuple(address.packed for address in to)
    )

    def listed() -> dict[bytes, bytes]:
        found = reader.elements(AF_IPV4, "lbless", name)
        return {one.key: bytes(attributes(one.value or memoryview(b""))[1]) for one in found}

    run(batch, (change,))
    packed = listed()
    assert packed == dict(zip(change.keys, change.values, strict=True))
    run(batch, (replace(change, verb="delete", values=()),))
    assert listed() == {}
    Library().run(change.text)
    assert listed() == packed
    other = replace(change, keys=change.keys[:9], values=change.values[1:10])
    run(batch, (replace(other, verb="delete", values=()), other))
    assert listed() == packed | dict(zip(other.keys, other.values, strict=True))


def test_ten_thousand_elements_are_one_transaction(batch: Batch, reader: Reader) -> None:
    hundred = dict.fromkeys(LARGE, BucketSet(range(100)))
    first, *_ = steps({ip: BucketSet() for ip in LARGE}, hundred)
    assert first.elements == MAX_ELEMENTS
    assert first.buckets is not None
    generation = reader.generation()
    run(batch, first.buckets)
    assert reader.generation() == generation + 1
    assert len(elements(reader)) == MAX_ELEMENTS


def test_of_a_refused_transaction_nothing_takes_effect_and_the_next_one_works(
    batch: Batch, reader: Reader
) -> None:
    batch.run([("add", NAME, [key(1), key(2)], [])])
    generation = reader.generation()
    for refused in (
        [("add", NAME, [key(3)], []), ("delete", NAME, [key(9)], [])],
        [("delete", NAME, [key(9)], []), ("add", NAME, [key(3)], [])],
        [("delete", NAME, [key(1)], []), ("add", "no_such_set", [key(3)], [])],
        [("delete", NAME, [key(1)], []), ("add", NAME, [key(3) * 2], [])],
    ):
        with pytest.raises(EngineError, match="The kernel refused a change of lbless's sets"):
            batch.run(refused)
        assert {found[0] for found in elements(reader)} == {key(1), key(2)}
    assert reader.generation() == generation
    batch.run([("delete", NAME, [key(1)], []), ("add", NAME, [key(4)], [])])
    assert {found[0] for found in elements(reader)} == {key(2), key(4)}


def test_a_bucket_that_is_there_already_may_be_added_again(batch: Batch, reader: Reader) -> None:
    for _ in range(2):
        batch.run([("add", NAME, [key(1)], [])])
    assert {found[0] for found in elements(reader)} == {key(1)}


def test_no_change_is_no_transaction(batch: Batch, reader: Reader) -> None:
    generation = reader.generation()
    batch.run([("add", NAME, [], [])])
    assert reader.generation() == generation


def test_what_was_written_a_moment_ago_is_read_back_whole(batch: Batch, reader: Reader) -> None:
    """Meanwhile the kernel enlarges the set's hash table, and a dump of it may be wrong without saying so."""
    nothing = {ip: BucketSet() for ip in LARGE}
    some = {ip: BucketSet(range(30)) for ip in LARGE}
    for before, after in [(nothing, some), (some, nothing)] * 3:
        (transaction,) = steps(before, after)
        assert transaction.buckets is not None
        run(batch, transaction.buckets)
        found = readback.read(reader, probe.layout(Library())).footprints
        owned = {ip: mark.buckets[Role.OWNED, GROUP] for ip, mark in found.items() if mark.buckets}
        assert owned == {ip: buckets for ip, buckets in after.items() if buckets}


Spoil = Callable[[bytes, list[bytes]], bytes]
"""Makes of an answer, and the elements in it, the one that is read."""


class SpoilingSocket:
    """Spoils so many of the answers that list several elements, as the kernel does itself now and then."""

    def __init__(self, real: socket.socket, spoil: Spoil, times: int) -> None:
        self._real = real
        self._spoil = spoil
        self.times = times

    def send(self, request: bytes) -> int:
        return self._real.send(request)

    def recv(self, size: int) -> bytes:
        received = self._real.recv(size)
        for _, kind, _, whole in messages(memoryview(received)):
            listed = attributes(whole[MESSAGE.size :]).get(3) if kind & 0xFF == NEWSETELEM else None
            found = [bytes(element) for _, element in each_attribute(listed)] if listed else []
            if len(found) > 1 and self.times:
                self.times -= 1
                return self._spoil(received, found)
        return received


def list_one_twice(received: bytes, elements: list[bytes]) -> bytes:
    """And another not at all: the set's hash table grows."""
    return received.replace(elements[-1], elements[0])


def say_interrupted(received: bytes, _: list[bytes]) -> bytes:
    """Somebody committed meanwhile."""
    return received[:6] + bytes([received[6] | NLM_F_DUMP_INTR]) + received[7:]


@pytest.mark.parametrize("spoil", [list_one_twice, say_interrupted])
@pytest.mark.parametrize("times", [1, 5])
def test_a_spoilt_dump_is_repeated(
    batch: Batch, reader: Reader, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, times: int
) -> None:
    batch.run([("add", NAME, [key(1), key(2), key(3)], [])])
    whole, owned = elements(reader), readback.read(reader, probe.layout(Library())).footprints
    spoiling = SpoilingSocket(reader._socket, spoil, times)
    monkeypatch.setattr(reader, "_socket", spoiling)
    assert elements(reader) == whole
    assert spoiling.times == 0
    spoiling.times = times
    assert readback.read(reader, probe.layout(Library())).footprints == owned
    assert spoiling.times == 0


@pytest.mark.parametrize("spoil", [list_one_twice, say_interrupted])
def test_a_dump_that_is_always_spoilt_is_given_up_with_a_sentence(
    batch: Batch, reader: Reader, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    batch.run([("add", NAME, [key(1), key(2), key(3)], [])])
    monkeypatch.setattr(reader, "_socket", SpoilingSocket(reader._socket, spoil, 1000))
    for read in (elements, lambda one: readback.read(one, probe.layout(Library()))):
        with pytest.raises(EngineError, match="so fast that it cannot be read"):
            read(reader)
