"""What of ours may be in the kernel outside the engine's tables, so that no end of this process loses it.

Owns the journal and its JSON, and the decision what to add and remove; pure. The journal is written
before anything is added and after it was removed: at any moment all that is ours is in it, and nothing
that is not in it is ever removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from lbless_api.fields import integer, ipv4, items, mapping, text
from lbless_nodeagent.dataplane.network import AddressKey, GroupKey, Network

ARP_ANNOUNCE = 2
"""Ask for a client's MAC from an address of the asked subnet only, never from whatever was to be sent."""

_MAX_INDEX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """A shared address on a link, and the group by which frames for it arrive."""

    index: int
    ip: IPv4Address
    mac: str

    @property
    def address(self) -> AddressKey:
        """The address alone."""
        return (self.index, self.ip)

    @property
    def group(self) -> GroupKey:
        """The group alone. Several addresses may share one."""
        return (self.index, self.mac)


@dataclass(frozen=True, slots=True)
class Journal:
    """Addresses and groups that we added, and what arp_announce was on each link that we changed."""

    addresses: frozenset[AddressKey] = frozenset()
    groups: frozenset[GroupKey] = frozenset()
    arp_announce: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changes:
    """What brings the kernel from what was found to what is wanted; nothing that is already so."""

    remove_addresses: tuple[AddressKey, ...] = ()
    leave_groups: tuple[GroupKey, ...] = ()
    arp_announce: Mapping[int, int] = field(default_factory=dict)
    restore_arp_announce: Mapping[int, int] = field(default_factory=dict)
    join_groups: tuple[GroupKey, ...] = ()
    add_addresses: tuple[AddressKey, ...] = ()
    deprecate_addresses: tuple[AddressKey, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)


def changes(journal: Journal, network: Network, wanted: Iterable[Place]) -> Changes:
    """Return what is to be done so that of ours exactly `wanted` is in the kernel.

    Whoever calls has made sure that no wanted address is a foreign one.
    """
    places = list(wanted)
    addresses = {p.address for p in places}
    groups = {p.group for p in places}
    links = {p.index for p in places}
    shared = network.as_shared()
    present = journal.addresses & set(shared)  # a set: its hashes are computed already
    announce = {index: link.arp_announce for index, link in network.links.items()}
    return Changes(
        remove_addresses=tuple(sorted(present - addresses)),
        leave_groups=tuple(sorted((journal.groups & network.groups) - groups)),
        arp_announce={
            i: ARP_ANNOUNCE for i in sorted(links) if announce.get(i, ARP_ANNOUNCE) != ARP_ANNOUNCE
        },
        restore_arp_announce={
            # Only what we set: somebody else's later choice stays.
            index: former
            for index, former in sorted(journal.arp_announce.items())
            if index not in links and announce.get(index) == ARP_ANNOUNCE != former
        },
        join_groups=tuple(sorted(groups - network.groups)),
        add_addresses=tuple(sorted(addresses - shared.keys())),
        deprecate_addresses=tuple(sorted(a for a in addresses & present if not shared[a].deprecated)),
    )


def before(
    journal: Journal, network: Network, wanted: Iterable[Place], held: Iterable[Place] = ()
) -> Journal:
    """Return the journal that must be on disk before `changes` are made: also what will be added.

    `held` are places of which the engine still has what it will give up. Equal: the very same journal.
    """
    places = [*wanted, *held]
    indices = {p.index for p in places} & network.links.keys()
    made = Journal(
        addresses=journal.addresses | {p.address for p in places},
        groups=journal.groups | {p.group for p in places if p.group not in network.groups},
        arp_announce={**{i: network.links[i].arp_announce for i in indices}, **journal.arp_announce},
    )
    return journal if made == journal else made


def after(
    journal: Journal, network: Network, wanted: Iterable[Place], left: frozenset[GroupKey] = frozenset()
) -> Journal:
    """Return the journal for what is left of ours when `changes` were tried and `network` was read again.

    A group of `left` that is still there is somebody else's: the kernel counts who joined, and to leave
    it once more would take it from them. Equal: the very same journal.
    """
    places = list(wanted)
    links = {p.index for p in places}
    announce = {index: link.arp_announce for index, link in network.links.items()}
    made = Journal(
        addresses=(journal.addresses & set(network.as_shared())) | {p.address for p in places},
        groups=(journal.groups - left) & (network.groups | {p.group for p in places}),
        arp_announce={
            index: former
            for index, former in journal.arp_announce.items()
            if index in links or announce.get(index) == ARP_ANNOUNCE != former
        },
    )
    return journal if made == journal else made


def adopt(journal: Journal, network: Network, installed: Iterable[Place]) -> Journal:
    """Return the journal with what the engine's tables prove to be ours, for when the journal was lost.

    The engine had the address before the link did, so an address that it knows, in the form that only we
    give one, was added by us. What arp_announce was is then unknown: it stays.
    """
    shared = network.as_shared()
    ours = [p for p in installed if p.address in shared and shared[p.address].deprecated]
    return Journal(
        addresses=journal.addresses | {p.address for p in ours},
        groups=journal.groups | ({p.group for p in ours} & network.groups),
        arp_announce=journal.arp_announce,
    )


def parse_journal(value: object, boot_id: str) -> Journal:
    """Read journal.json; raises Invalid. That of another boot is empty: the kernel forgot all of it."""
    fields = mapping(value, "the journal")
    addresses = [
        (_index(entry), ipv4(entry.get("ip"), "addresses.ip")) for entry in _entries(fields, "addresses")
    ]
    groups = [
        (_index(entry), text(entry.get("mac"), "groups.mac", limit=17))
        for entry in _entries(fields, "groups")
    ]
    former = {
        _index(entry): integer(entry.get("former"), "arpAnnounce.former", 0, 255)
        for entry in _entries(fields, "arpAnnounce")
    }
    if text(fields.get("bootID"), "bootID") != boot_id:
        return Journal()
    return Journal(frozenset(addresses), frozenset(groups), former)


def render_journal(journal: Journal, boot_id: str) -> dict[str, object]:
    """The JSON of journal.json."""
    return {
        "bootID": boot_id,
        "addresses": [{"index": index, "ip": str(ip)} for index, ip in sorted(journal.addresses)],
        "groups": [{"index": index, "mac": mac} for index, mac in sorted(journal.groups)],
        "arpAnnounce": [{"index": i, "former": former} for i, former in sorted(journal.arp_announce.items())],
    }


def _entries(fields: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    return [mapping(entry, name) for entry in items(fields.get(name), name)]


def _index(entry: Mapping[str, object]) -> int:
    return integer(entry.get("index"), "index", 1, _MAX_INDEX)
