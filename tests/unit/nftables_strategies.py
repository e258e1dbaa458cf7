"""Random states that an engine may be asked for."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters, PortRange, Protocol, SourceMAC
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.moving import AT_REST, Moving
from lbless_nodeagent.dataplane.opening import TOKEN_BYTES

seeds = st.one_of(st.sampled_from([0, 1, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))


def groups_of(max_buckets: int) -> st.SearchStrategy[HashParameters]:
    """Any parameters with at most so many buckets."""
    return st.builds(
        HashParameters,
        function=st.sampled_from(HashFunction),
        mode=st.sampled_from(HashMode),
        seed=seeds,
        buckets=st.one_of(st.sampled_from([1, max_buckets]), st.integers(1, max_buckets)),
        prefix_length=st.integers(1, 32),
    )


groups = groups_of(4096)
addresses = st.integers(0, 15).map(lambda n: IPv4Address("10.8.0.0") + n)
macs = st.integers(0, (1 << 40) - 1).map(lambda n: "03:" + n.to_bytes(5, "big").hex(":"))


@st.composite
def port_lists(draw: st.DrawFn) -> tuple[PortRange, ...]:
    """Sorted and merged, as parsing leaves them."""
    ports = []
    for protocol in sorted(draw(st.sets(st.sampled_from(Protocol), min_size=1))):
        bounds = sorted(draw(st.sets(st.integers(1, 65535), min_size=2, max_size=6)))
        ports += [
            PortRange(protocol, first, draw(st.sampled_from([first, last - 1])))
            for first, last in zip(bounds[::2], bounds[1::2], strict=False)
            if last - first > 1
        ]
    return tuple(ports) or (PortRange(Protocol.TCP, 80, 80),)


@st.composite
def movings(draw: st.DrawFn, buckets: int, owned: BucketSet) -> Moving:
    """Any states of some of the buckets that are not owned, ways for some of those that drain, and tokens for
    some of those and of those in standby."""
    free = [bucket for bucket in range(buckets) if bucket not in owned]
    some = draw(st.lists(st.sampled_from(free), max_size=24, unique=True)) if free else []
    states: list[list[int]] = [[], [], [], []]
    for bucket in some:
        states[draw(st.integers(0, 3))].append(bucket)
    standby, fresh, drain, ending = map(BucketSet, states)
    ways: dict[IPv4Address, list[int]] = {}
    for bucket in drain:
        if draw(st.booleans()):
            ways.setdefault(IPv4Address("10.8.1.0") + draw(st.integers(0, 2)), []).append(bucket)
    redirect = tuple(sorted((address, BucketSet(to)) for address, to in ways.items()))
    opened: dict[bytes, list[int]] = {}
    for bucket in standby | drain:
        if draw(st.booleans()):
            opened.setdefault(bytes([draw(st.integers(1, 3))]) * TOKEN_BYTES, []).append(bucket)
    openings = tuple(sorted((token, BucketSet(to)) for token, to in opened.items()))
    return Moving(standby, fresh, drain, ending, redirect, openings)


@st.composite
def vips(
    draw: st.DrawFn, ip: IPv4Address, group_pool: Sequence[HashParameters], interfaces: Sequence[str]
) -> Vip:
    group = draw(st.sampled_from(group_pool))
    low, high = sorted(draw(st.tuples(st.integers(0, group.buckets), st.integers(0, group.buckets))))
    owned = BucketSet(
        range(low, high) if draw(st.booleans()) else (b for b in (low, high) if b < group.buckets)
    )
    return Vip(
        ip=ip,
        interface=draw(st.sampled_from(interfaces)),
        mac=draw(macs),
        source_mac=draw(st.sampled_from(SourceMAC)),
        hash=group,
        ports=draw(st.none() | port_lists()),
        owned=owned,
        moving=draw(movings(group.buckets, owned)) if draw(st.booleans()) else AT_REST,
    )


@st.composite
def wanteds(draw: st.DrawFn, interfaces: Sequence[str] = ("eth0",), max_buckets: int = 4096) -> Wanted:
    """Some addresses that share few groups, and local sources in the kernel's form: none within another."""
    pool = draw(st.lists(groups_of(max_buckets), min_size=1, max_size=3))
    chosen = draw(st.sets(addresses, max_size=6))
    sources = draw(
        st.lists(
            st.builds(
                lambda a, p: IPv4Network((a, p), strict=False), st.integers(0, 0xFFFFFFFF), st.integers(0, 32)
            ),
            max_size=4,
        )
    )
    return Wanted(
        {ip: draw(vips(ip, pool, interfaces)) for ip in chosen}, frozenset(collapse_addresses(sources))
    )
