"""The known ClusterIPs: who holds which address, and what was last assigned to each.

Owns the order of age between those with one address, and the memory of assignments that the API server
has lost. Whether an address may be used at all is `taken`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from lbless_operator.conditions import Type, find
from lbless_operator.facts import ClusterIPFact
from lbless_operator.status import Status, ownership


@dataclass(slots=True)
class Memory:
    """What nodes act on, and since when its epoch is known.

    `tampered`: the API server holds another assignment for this epoch, or an earlier epoch: somebody
    else has written the status, or restored a backup. `said_at`: since when the condition Programmed has its message.
    `moving_since`: since when buckets move, None while none do, and where they did so before anybody looked.
    """

    status: Status
    since: float
    said_at: float
    tampered: bool = False
    moving_since: float | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    """All of a ClusterIP that matters to others with its address. `holds`: it keeps it from younger ones."""

    address: IPv4Address
    age_order: tuple[str, str]
    holds: bool


class Claims:
    """All ClusterIPs by their keys ``namespace/name``."""

    def __init__(self) -> None:
        self._facts: dict[str, ClusterIPFact] = {}
        self._by_address: dict[IPv4Address, set[str]] = {}
        self._memories: dict[str, Memory] = {}
        self._keys: dict[str, str] = {}
        self._moving: set[str] = set()
        self._claims: dict[str, _Claim] = {}

    def learn(self, key: str, fact: ClusterIPFact | None, now: float) -> set[str]:
        """A ClusterIP is now so, or None: deleted. Return the keys that it concerns, its own included."""
        old, before = self._facts.pop(key, None), self._claims.pop(key, None)
        if old:
            if old.address:
                self._by_address[old.address].discard(key)
                if not self._by_address[old.address]:
                    del self._by_address[old.address]
            if fact is None or fact.identity.uid != old.identity.uid:
                del self._memories[old.identity.uid], self._keys[old.identity.uid]
                self._moving.discard(old.identity.uid)
        if fact is not None:
            self._facts[key] = fact
            self._keys[fact.identity.uid] = key
            self._remember(fact, now)
            if fact.address:
                self._by_address.setdefault(fact.address, set()).add(key)
                holds = fact.spec is not None or bool(self.memory(fact).status.assignments)
                self._claims[key] = _Claim(fact.address, fact.identity.age_order, holds)
        after = self._claims.get(key)
        concerned = set() if fact is None else {key}
        if before != after:
            # Others with the address: not with every write of this one's status, or a thousand would never end.
            for claim in (before, after):
                concerned |= self._by_address.get(claim.address, set()) if claim else set()
        return concerned

    @property
    def moving(self) -> int:
        """How many ClusterIPs have buckets that move."""
        return len(self._moving)

    def get(self, key: str) -> ClusterIPFact | None:
        """A ClusterIP, None if it is deleted."""
        return self._facts.get(key)

    def keys(self) -> set[str]:
        """The keys of all ClusterIPs."""
        return set(self._facts)

    def keys_of(self, uids: Iterable[str]) -> set[str]:
        """The keys of those with these UIDs."""
        return {self._keys[uid] for uid in uids if uid in self._keys}

    def memory(self, fact: ClusterIPFact) -> Memory:
        """What nodes act on for a known ClusterIP."""
        return self._memories[fact.identity.uid]

    def older(self, key: str) -> str | None:
        """The oldest ClusterIP that holds the same address, None if that is this one.

        One whose spec is refused holds its address only as long as it has an assignment from before.
        """
        fact = self._facts[key]
        if fact.address is None:
            return None
        own = fact.identity.age_order
        rivals = (other for other in self._by_address[fact.address] if other != key)
        holders = [other for other in rivals if self._claims[other].holds]
        oldest = min(holders, key=lambda other: self._claims[other].age_order, default=None)
        return oldest if oldest is not None and self._claims[oldest].age_order <= own else None

    def _remember(self, fact: ClusterIPFact, now: float) -> None:
        uid, status = fact.identity.uid, fact.status
        memory = self._memories.get(uid)
        if memory is None:
            self._memories[uid] = memory = Memory(status, since=now, said_at=now)
        else:
            _update(memory, status, now)
        if memory.status.moves:
            self._moving.add(uid)
        else:
            self._moving.discard(uid)


def _update(memory: Memory, status: Status, now: float) -> None:
    """Take in what the API server has now. A node's address may be another within an epoch."""
    kept = memory.status
    if status.epoch > kept.epoch:
        memory.since, memory.tampered = now, False
    else:
        memory.tampered = status.epoch < kept.epoch or ownership(status.assignments) != ownership(
            kept.assignments
        )
    if memory.tampered:
        status = replace(status, epoch=kept.epoch, assignments=kept.assignments, moves=kept.moves)
    memory.status = status
    if find(status.conditions, Type.PROGRAMMED) != find(kept.conditions, Type.PROGRAMMED):
        memory.said_at = now
    if not status.moves:
        memory.moving_since = None
    elif not kept.moves:
        memory.moving_since = now
