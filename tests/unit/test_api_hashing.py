"""The hash functions against a second implementation, golden vectors, and their own promises.

That the kernel computes the same is shown with real packets in tests/kernel.
"""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.hashing import HashFunction, HashMode, bucket

addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
ports = st.integers(0, 65535)
seeds = st.integers(0, 2**32 - 1)
bucket_counts = st.integers(1, 4096)
functions = st.sampled_from(HashFunction)
modes = st.sampled_from(HashMode)


def kernel_jhash(key: bytes, seed: int) -> int:
    """jhash() of include/linux/jhash.h for at most 12 bytes, written over bytes instead of words."""
    mask = 0xFFFFFFFF

    def rol(x: int, k: int) -> int:
        return (x << k | x >> 32 - k) & mask

    a = b = c = (0xDEADBEEF + len(key) + seed) & mask
    padded = key.ljust(12, b"\0")
    a = (a + int.from_bytes(padded[0:4], "little")) & mask
    b = (b + int.from_bytes(padded[4:8], "little")) & mask
    c = (c + int.from_bytes(padded[8:12], "little")) & mask
    for x, y, k in (
        ("c", "b", 14),
        ("a", "c", 11),
        ("b", "a", 25),
        ("c", "b", 16),
        ("a", "c", 4),
        ("b", "a", 14),
        ("c", "b", 24),
    ):
        v = {"a": a, "b": b, "c": c}
        v[x] = ((v[x] ^ v[y]) - rol(v[y], k)) & mask
        a, b, c = v["a"], v["b"], v["c"]
    return c


def kernel_bytes(
    function: HashFunction, mode: HashMode, source: IPv4Address, sport: int, dport: int
) -> bytes:
    """The bytes that the kernel hashes on a little-endian host: network order, each padded to four."""
    address = source.packed if function is HashFunction.JHASH else source.packed[::-1]
    fields = [address, sport.to_bytes(2, "big") + b"\0\0", dport.to_bytes(2, "big") + b"\0\0"]
    return b"".join(fields[: mode.words])


@given(functions, modes, addresses, ports, ports, seeds, bucket_counts)
def test_a_bucket_is_the_kernels_jhash_scaled_to_the_number_of_buckets(
    function, mode, source, sport, dport, seed, n
):
    expected = kernel_jhash(kernel_bytes(function, mode, source, sport, dport), seed) * n >> 32
    assert bucket(function, mode, source, sport, dport, buckets=n, seed=seed) == expected


@pytest.mark.parametrize(
    ("function", "mode", "expected"),
    [
        ("JHash", "SourceIP", [18, 199, 108]),
        ("JHash", "SourceIPSourcePort", [184, 183, 5]),
        ("JHash", "SourceIPSourcePortDestPort", [12, 2, 231]),
        ("LegacyClusterIP", "SourceIP", [169, 246, 74]),
        ("LegacyClusterIP", "SourceIPSourcePort", [124, 142, 161]),
        ("LegacyClusterIP", "SourceIPSourcePortDestPort", [221, 39, 155]),
    ],
)
def test_golden_vectors_do_not_change(function, mode, expected):
    sources = ["192.0.2.1", "198.51.100.77", "10.255.0.3"]
    assert [bucket(function, mode, s, 40000, 443, buckets=256, seed=7) for s in sources] == expected


@given(functions, modes, addresses, ports, ports, seeds, bucket_counts, st.sampled_from([1, 2, 47, 89]))
def test_protocols_without_ports_hash_as_if_both_were_zero(
    function, mode, source, sport, dport, seed, n, protocol
):
    with_ports = bucket(function, mode, source, sport, dport, buckets=n, seed=seed, protocol=protocol)
    assert with_ports == bucket(function, mode, source, 0, 0, buckets=n, seed=seed, protocol=6)


@given(functions, modes, addresses, ports, ports, st.sampled_from([17, 33, 50, 51, 132, 136]))
def test_protocols_with_ports_or_an_spi_hash_as_tcp_does(function, mode, source, sport, dport, protocol):
    one = bucket(function, mode, source, sport, dport, buckets=256, protocol=protocol)
    assert one == bucket(function, mode, source, sport, dport, buckets=256, protocol=6)


@given(functions, modes, addresses, ports, st.integers(0, 32))
def test_sources_of_one_prefix_share_their_bucket(function, mode, source, sport, length):
    network = IPv4Network((source, length), strict=False)
    found = {
        bucket(function, mode, s, sport, 80, buckets=4096, prefix_length=length)
        for s in (source, network.network_address, network.broadcast_address)
    }
    assert len(found) == 1


def test_many_sources_spread_evenly_over_the_buckets():
    count = [0] * 16
    for host in range(16000):
        count[
            bucket("JHash", "SourceIPSourcePort", IPv4Address(0x0A000000 + host), 1024 + host, 80, buckets=16)
        ] += 1
    assert min(count) > 850
    assert max(count) < 1150


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"buckets": 0}, "buckets 0 is out of range: use 1 to 4096."),
        ({"buckets": 4097}, "buckets 4097 is out of range"),
        ({"seed": 2**32}, "seed 4294967296 is out of range"),
        ({"prefix_length": 33}, "prefix length 33 is out of range"),
        ({"protocol": 256}, "protocol 256 is out of range"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        bucket("JHash", "SourceIP", "10.0.0.1", 1, 1, **{"buckets": 8, **change})


def test_an_unknown_function_or_mode_is_refused():
    with pytest.raises(ValueError, match="MD5"):
        bucket("MD5", "SourceIP", "10.0.0.1", 1, 1, buckets=8)
    with pytest.raises(ValueError, match="Source"):
        bucket("JHash", "Source", "10.0.0.1", 1, 1, buckets=8)
