"""The shared addresses on this node's links: bringing them there and away, and the journal of it.

Owns the order of journal and kernel, and every change outside the engine's tables. Which addresses are
wanted is decided elsewhere; that each has its rules is the caller's duty.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TypeVar

from lbless_nodeagent.dataplane.journal import Changes, Journal, Place, adopt, after, before, changes
from lbless_nodeagent.dataplane.latest import Latest
from lbless_nodeagent.dataplane.network import AddressKey, GroupKey, Network
from lbless_nodeagent.dataplane.rtnetlink import LinkError, Rtnetlink
from lbless_nodeagent.dataplane.statefiles import JournalFile

K = TypeVar("K")

_NO_GROUPS: frozenset[GroupKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of it: the places that are new, a sentence for each address that could not be brought
    to its link, sentences about what could not be taken away or set, and how many of each kind had been
    there before, and were undone by somebody else."""

    new: tuple[Place, ...] = ()
    faults: Mapping[IPv4Address, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    repaired: Mapping[str, int] = field(default_factory=dict)


class Addresses:
    """What of ours is on the links. `network` is how they were found last."""

    def __init__(
        self, links: Rtnetlink, journal: JournalFile, go_on: Callable[[], None] = lambda: None
    ) -> None:
        """`go_on` is called after each change of a link."""
        self._go_on = go_on
        self._links = links
        self._journal = journal
        self.network = Network()
        self._settled: tuple[Place, ...] = ()
        self._before = Latest(before)
        self._changes = Latest(changes)
        self._after = Latest(after)
        self._present = Latest(_present)
        self._missing = Latest(_missing)

    @property
    def shared(self) -> frozenset[AddressKey]:
        """The addresses that are ours and not the node's own."""
        return self._journal.journal.addresses

    def refresh(self, *, thorough: bool = False) -> None:
        """Learn how the links are now, `thorough` without believing the kernel's notifications; raises
        LinkError."""
        self.network = self._links.read(thorough=thorough)

    def adopt(self, installed: Iterable[Place]) -> None:
        """Take for ours what the engine's tables prove to be."""
        self._journal.write(adopt(self._journal.journal, self.network, installed))

    def intend(self, places: tuple[Place, ...], held: tuple[Place, ...]) -> None:
        """Write down what may be added from now on, and what the engine holds until then."""
        self._journal.write(self._before(self._journal.journal, self.network, places, held))

    def withdraw(self, kept: Container[IPv4Address]) -> frozenset[IPv4Address]:
        """Take away every address but the kept ones, while its rules are still there.

        Return those that could not be taken away. `settle` tries them again, and says why.
        """
        present = self._present(self._journal.journal, self.network)
        removals = sorted(key for key in present if key[1] not in kept)
        failed = self._each(self._links.remove_address, removals)
        return frozenset(ip for index, ip in removals if (index, ip) in failed)

    def settle(self, places: tuple[Place, ...]) -> Settled:
        """Make the links hold exactly `places` of ours; raises LinkError where they cannot be read."""
        todo = self._changes(self._journal.journal, self.network, places)
        repaired = _repaired(todo, self._settled)
        failed = self._act(todo)
        if todo:
            self.refresh()
        left = frozenset(group for group in todo.leave_groups if group not in failed) or _NO_GROUPS
        self._journal.write(self._after(self._journal.journal, self.network, places, left))
        self._settled = places
        if not todo:
            return Settled()
        added = {*todo.add_addresses, *todo.join_groups}
        of_place = {p: [failed.pop(key) for key in (p.address, p.group) if key in failed] for p in places}
        return Settled(
            new=tuple(p for p in places if not of_place[p] and (p.address in added or p.group in added)),
            faults={place.ip: sentences[0] for place, sentences in of_place.items() if sentences},
            problems=tuple(failed.values()),
            repaired=repaired,
        )

    def missing(self, places: tuple[Place, ...]) -> frozenset[IPv4Address]:
        """Return those of the addresses that were not on their link when the links were last read."""
        return self._missing(self.network, places)

    def undone(self, places: tuple[Place, ...]) -> bool:
        """Whether an address, when the links were last read, was not there as `settle` puts it there.

        Not whether a group was, or a setting: one that a driver does not list would be made without end.
        """
        todo = self._changes(self._journal.journal, self.network, places)
        return bool(todo.add_addresses or todo.deprecate_addresses)

    def left(self, ip: IPv4Address) -> bool:
        """Whether the address may still be on a link by our doing. Its group may be there in any case."""
        return any(address == ip for _, address in self.shared)

    def _act(self, todo: Changes) -> dict[object, str]:
        """Return a sentence for each that failed; one that does keeps no other from being made."""
        announce = {**todo.restore_arp_announce, **todo.arp_announce}
        failed = self._each(self._links.remove_address, todo.remove_addresses)
        failed |= self._each(self._links.leave_group, todo.leave_groups)
        failed |= self._each(self._links.set_arp_announce, announce.items())
        failed |= self._each(self._links.join_group, todo.join_groups)
        failed |= self._each(self._links.add_address, todo.add_addresses)
        failed |= self._each(self._links.deprecate_address, todo.deprecate_addresses)
        return failed

    def _each(self, act: Callable[[K], None], items: Iterable[K]) -> dict[object, str]:
        failed: dict[object, str] = {}
        for item in items:
            try:
                act(item)
            except LinkError as error:
                failed[item] = str(error)
            self._go_on()
        return failed


def _present(journal: Journal, network: Network) -> frozenset[AddressKey]:
    """Those of our addresses that are on their link."""
    return journal.addresses & set(network.as_shared())


def _missing(network: Network, places: tuple[Place, ...]) -> frozenset[IPv4Address]:
    there = network.as_shared()
    return frozenset(place.ip for place in places if place.address not in there)


def _repaired(todo: Changes, settled: Iterable[Place]) -> dict[str, int]:
    """How many of what is to be done was done before: somebody else undid it."""
    if not todo:
        return {}
    former = list(settled)
    addresses = {place.address for place in former}
    counts = {
        "address": len(addresses.intersection(todo.add_addresses)),
        "address_lifetime": len(addresses.intersection(todo.deprecate_addresses)),
        "group": len({place.group for place in former}.intersection(todo.join_groups)),
        "arp_announce": len({place.index for place in former}.intersection(todo.arp_announce)),
    }
    return {what: count for what, count in counts.items() if count}
