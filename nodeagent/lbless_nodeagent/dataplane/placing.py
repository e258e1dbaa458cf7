"""Where each Vip's address is to be: a link by its index, for an interface by its name.

Owns the translation, and noticing that it came out differently. Which interface carries an address is
decided in `decide`.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from lbless_api.clusterip import ClusterIP
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.journal import Place
from lbless_nodeagent.dataplane.network import Link


class Placing:
    """Remembers its last answer: the very same tuple comes back as long as it says the same.

    Buckets change often and places hardly ever, and with a thousand of them it is worth knowing.
    """

    def __init__(self) -> None:
        self._vips: Mapping[IPv4Address, Vip] = {}
        self._indices: dict[str, int] = {}
        self._by_ip: dict[IPv4Address, Place] = {}
        self._places: tuple[Place, ...] = ()

    def __call__(self, vips: Mapping[IPv4Address, Vip], links: Mapping[int, Link]) -> tuple[Place, ...]:
        """Return a place for each Vip whose interface there is."""
        indices = {link.name: link.index for link in links.values()}
        if vips is self._vips and indices == self._indices:
            return self._places
        known = self._vips if indices == self._indices else {}
        by_ip = {}
        for ip, vip in vips.items():
            former = known.get(ip)
            if former is not None and (former is vip or _together(former) == _together(vip)):
                place = self._by_ip.get(ip)
            else:
                index = indices.get(vip.interface)
                place = None if index is None else Place(index, ip, vip.mac)
            if place:
                by_ip[ip] = place
        self._vips, self._indices = vips, indices
        if by_ip != self._by_ip:
            self._by_ip, self._places = by_ip, tuple(by_ip.values())
        return self._places


class Served:
    """The link that each ClusterIP was on last, also while none is there to carry it."""

    def __init__(self) -> None:
        self._vips: Mapping[str, Vip] = {}
        self._links: Mapping[int, Link] = {}
        self._last: dict[str, tuple[ClusterIP, str, int]] = {}

    def moved(
        self, vips: Mapping[str, Vip], counted: Mapping[str, ClusterIP], links: Mapping[int, Link]
    ) -> int:
        """Return how many have another link than the last time without being another ClusterIP: theirs
        was renamed or replaced."""
        if vips is self._vips and links is self._links:
            return 0
        self._vips, self._links = vips, links
        indices = {link.name: link.index for link in links.values()}
        last = {uid: was for uid, was in self._last.items() if counted.get(uid) is was[0]}
        moved = 0
        for uid, vip in vips.items():
            index = indices.get(vip.interface)
            if index is not None:
                was, now = last.get(uid), (counted[uid], vip.interface, index)
                moved += was is not None and was[1:] != now[1:]
                last[uid] = now
        self._last = last
        return moved


def _together(vip: Vip) -> tuple[str, str]:
    return vip.interface, vip.mac
