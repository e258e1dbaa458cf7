"""Which elements addresses gain and lose on their way to other footprints, and in which order. Pure.

The order is what keeps a change harmless that is cut between any two of its steps (`transactions`): a bucket is
given up in every set before it is gained in any, an answer to a SYN is stopped before its bucket drains and until
after that (unless a token is to close it), and what judges by flows is there before anything may be kept that needs it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_nodeagent.dataplane.nftables.footprint import Footprint, Redirects, SetName, changed_elements
from lbless_nodeagent.dataplane.nftables.names import (
    ANSWERS,
    JUDGED,
    MACS,
    MOVING,
    PORT_RANGES,
    PORTS,
    SHARED,
    SOURCE_MACS,
    TOKENS,
    VIPS,
    Family,
    Role,
    bucket_set,
    opening_map,
    redirect_map,
)
from lbless_nodeagent.dataplane.opening import mark

Elements = list[str] | list[bytes]
"""As nft writes them; or packed: the address, a bucket or a token where the key has one, and a value where a map
gains it."""

_REDIRECT, _OPENING = "redirect", "opening"
_TOKENS = SetName(Family.IP, TOKENS)
_MOVING = SetName(Family.IP, MOVING)
_What = SetName | str
"""A set or map, or the role that one of each group has."""

_STEPS: tuple[tuple[str, _What], ...] = (
    ("delete", Role.OWNED),
    ("delete", Role.FRESH),
    ("delete", Role.STANDBY),
    ("delete", Role.DRAIN),
    ("delete", _REDIRECT),
    ("delete", _OPENING),
    ("delete", _TOKENS),
    ("delete", SetName(Family.IP, VIPS)),
    ("delete", SetName(Family.IP, JUDGED)),
    ("delete", SetName(Family.IP, ANSWERS)),
    ("delete", SetName(Family.IP, PORTS)),
    ("delete", SetName(Family.IP, PORT_RANGES)),
    ("delete", SetName(Family.NETDEV, MACS)),  # also one that gets another value: the key goes first
    ("delete", SetName(Family.NETDEV, SOURCE_MACS)),
    ("add", SetName(Family.NETDEV, MACS)),
    ("add", SetName(Family.NETDEV, SOURCE_MACS)),
    ("add", SetName(Family.ARP, SHARED)),
    ("add", SetName(Family.ARP, VIPS)),
    ("add", SetName(Family.IP, SHARED)),
    ("add", SetName(Family.IP, PORTS)),
    ("add", SetName(Family.IP, PORT_RANGES)),
    ("add", SetName(Family.IP, ANSWERS)),
    ("add", SetName(Family.IP, JUDGED)),
    ("add", _MOVING),
    ("add", Role.LEAVING),
    ("add", _REDIRECT),
    ("add", Role.DRAIN),
    ("add", _TOKENS),
    ("add", _OPENING),
    ("add", Role.STANDBY),
    ("add", Role.FRESH),
    ("add", Role.OWNED),
    ("add", SetName(Family.IP, VIPS)),
    ("delete", Role.LEAVING),
    ("delete", _MOVING),
    ("delete", SetName(Family.ARP, VIPS)),
    ("delete", SetName(Family.ARP, SHARED)),
    ("delete", SetName(Family.IP, SHARED)),
)
_PLACES = {step: place for place, step in enumerate(_STEPS)}
_GIVES_UP = _PLACES["delete", Role.OWNED]
_EMPTY = BucketSet()
_MARK = struct.Struct("=L")
_NUMBERS = [struct.pack("=L", bucket) for bucket in range(BucketSet.LIMIT)]


class Changes:
    """Those of some addresses, step by step."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, HashParameters | None], list[str] | list[bytes]] = {}
        self.size = 0

    def gather(self, ip: IPv4Address, old: Footprint, wanted: Footprint) -> None:
        """Add what leads an address from one footprint to another."""
        for name, present, goal in changed_elements(ip, old, wanted):
            self._put("delete", name, None, sorted(present - goal))
            self._put("add", name, None, sorted(goal - present))
        packed = ip.packed
        for role, group in old.buckets.keys() | wanted.buckets.keys():
            before = old.buckets.get((role, group), _EMPTY)
            after = wanted.buckets.get((role, group), _EMPTY)
            if before != after:
                self._put("delete", role, group, [packed + _NUMBERS[b] for b in before - after])
                self._put("add", role, group, [packed + _NUMBERS[b] for b in after - before])
        if old.moving != wanted.moving:
            self._put("add" if wanted.moving else "delete", _MOVING, None, [packed])
        for group in old.redirects.keys() | wanted.redirects.keys():
            there, to_be = (
                _by_bucket(old.redirects.get(group, ())),
                _by_bucket(wanted.redirects.get(group, ())),
            )
            gone = [packed + _NUMBERS[b] for b, to in there.items() if to_be.get(b) != to]
            new = [packed + _NUMBERS[b] + to.packed for b, to in to_be.items() if there.get(b) != to]
            self._put("delete", _REDIRECT, group, gone)
            self._put("add", _REDIRECT, group, new)
        self._gather_openings(packed, old, wanted)

    def _gather_openings(self, packed: bytes, old: Footprint, wanted: Footprint) -> None:
        for group in old.openings.keys() | wanted.openings.keys():
            there, to_be = (
                {bucket: number for number, buckets in one.openings.get(group, ()) for bucket in buckets}
                for one in (old, wanted)
            )
            gone = [packed + _NUMBERS[b] for b, number in there.items() if to_be.get(b) != number]
            new = [packed + _NUMBERS[b] + _MARK.pack(n) for b, n in to_be.items() if there.get(b) != n]
            self._put("delete", _OPENING, group, gone)
            self._put("add", _OPENING, group, new)
        if old.tokens != wanted.tokens:
            self._put("delete", _TOKENS, None, [packed + one for one in sorted(old.tokens - wanted.tokens)])
            added = sorted(wanted.tokens - old.tokens)
            self._put("add", _TOKENS, None, [packed + one + _MARK.pack(mark(one)) for one in added])

    def merge(self, other: Changes) -> None:
        """Add what `other` has gathered of other addresses."""
        for (place, group), found in other._found.items():
            self._put(*_STEPS[place], group, found)

    @property
    def gives_up(self) -> bool:
        """Whether a bucket is no longer owned."""
        return any(place == _GIVES_UP for place, _ in self._found)

    def __iter__(self) -> Iterator[tuple[str, SetName, Elements]]:
        """``add`` or ``delete``, where, and what."""
        for place, group in sorted(self._found):
            verb, what = _STEPS[place]
            yield verb, _name(what, group), self._found[place, group]

    def _put(self, verb: str, what: _What, group: HashParameters | None, changed: Elements) -> None:
        if changed:
            self._found.setdefault((_PLACES[verb, what], group), []).extend(changed)  # type: ignore[arg-type]
            self.size += len(changed)


def _name(what: _What, group: HashParameters | None) -> SetName:
    if isinstance(what, SetName):
        return what
    assert group is not None  # noqa: S101 - for the type checker
    named = {_REDIRECT: redirect_map, _OPENING: opening_map}.get(what)
    return SetName(Family.IP, named(group) if named else bucket_set(group, Role(what)))


def _by_bucket(redirects: Redirects) -> dict[int, IPv4Address]:
    return {bucket: address for address, buckets in redirects for bucket in buckets}
