"""The shared addresses on this node's links: bringing them there and away, and the journal of it.

Owns the order of journal and kernel, and every change outside the engine's tables. Which addresses are
wanted is decided elsewhere; that each has its rules is the caller's duty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeVar

from lbless_nodeagent.dataplane.journal import Changes, Place, adopt, after, before, changes
from lbless_nodeagent.dataplane.network import AddressKey, Network
from lbless_nodeagent.dataplane.rtnetlink import LinkError, Rtnetlink
from lbless_nodeagent.dataplane.statefiles import JournalFile

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of it: the places that are new, a sentence for each address that could not be brought
    to its link, and sentences about what could not be taken away or set."""

    new: tuple[Place, ...]
    faults: Mapping[IPv4Address, str]
    problems: tuple[str, ...]


class Addresses:
    """What of ours is on the links. `network` is how they were found last."""

    def __init__(self, links: Rtnetlink, journal: JournalFile) -> None:
        self._links = links
        self._journal = journal
        self.network = Network()

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

    def intend(self, places: Iterable[Place]) -> None:
        """Write down what may be added from now on."""
        self._journal.write(before(self._journal.journal, self.network, places))

    def withdraw(self, kept: Container[IPv4Address]) -> frozenset[IPv4Address]:
        """Take away every address but the kept ones, while its rules are still there.

        Return those that could not be taken away. `settle` tries them again, and says why.
        """
        stays = [Place(index, ip, "") for index, ip in self.shared if ip in kept]
        removals = self._changes(stays).remove_addresses
        failed = _each(self._links.remove_address, removals)
        return frozenset(ip for index, ip in removals if (index, ip) in failed)

    def settle(self, places: Collection[Place]) -> Settled:
        """Make the links hold exactly `places` of ours; raises LinkError where they cannot be read."""
        todo = self._changes(places)
        failed = self._act(todo)
        if todo:
            self.refresh()
        left = frozenset(group for group in todo.leave_groups if group not in failed)
        self._journal.write(after(self._journal.journal, self.network, places, left))
        added = {*todo.add_addresses, *todo.join_groups}
        of_place = {p: [failed.pop(key) for key in (p.address, p.group) if key in failed] for p in places}
        return Settled(
            new=tuple(p for p in places if not of_place[p] and (p.address in added or p.group in added)),
            faults={place.ip: sentences[0] for place, sentences in of_place.items() if sentences},
            problems=tuple(failed.values()),
        )

    def on_links(self, places: Iterable[Place]) -> set[IPv4Address]:
        """Return those of the addresses that were on their link when the links were last read."""
        there = self.network.as_shared()
        return {place.ip for place in places if place.address in there}

    def left(self, ip: IPv4Address) -> bool:
        """Whether anything of the address may still be on a link by our doing."""
        return any(address == ip for _, address in self.shared)

    def _changes(self, places: Iterable[Place]) -> Changes:
        return changes(self._journal.journal, self.network, places)

    def _act(self, todo: Changes) -> dict[object, str]:
        """Return a sentence for each that failed; one that does keeps no other from being made."""
        announce = {**todo.restore_arp_announce, **todo.arp_announce}
        failed = _each(self._links.remove_address, todo.remove_addresses)
        failed |= _each(self._links.leave_group, todo.leave_groups)
        failed |= _each(self._links.set_arp_announce, announce.items())
        failed |= _each(self._links.join_group, todo.join_groups)
        failed |= _each(self._links.add_address, todo.add_addresses)
        failed |= _each(self._links.deprecate_address, todo.deprecate_addresses)
        return failed


def _each(act: Callable[[K], None], items: Iterable[K]) -> dict[object, str]:
    failed: dict[object, str] = {}
    for item in items:
        try:
            act(item)
        except LinkError as error:
            failed[item] = str(error)
    return failed
