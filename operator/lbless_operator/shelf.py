"""All objects of one kind, the newest version of each, from events and LISTs in any order.

Owns what is newer; what an object means is the state's. Resource versions are numbers that grow across
all objects (Kubernetes promises that since 1.35, and etcd always kept it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lbless_operator.facts import Fact, Seen


@dataclass(frozen=True, slots=True)
class Change:
    """An object as it is now, and what was known of it before."""

    seen: Seen
    old: Fact | None


class Shelf:
    """The known objects of one kind by ``namespace/name``; those without a fact are not kept."""

    def __init__(self) -> None:
        self._kept: dict[str, Seen] = {}
        self._deleted: dict[str, int] = {}
        self._listed: dict[str, int] = {}

    def get(self, key: str) -> Fact | None:
        """What is known of an object, None if there is none."""
        seen = self._kept.get(key)
        return seen.fact if seen else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def facts(self) -> Iterator[Fact]:
        """Everything known."""
        return (seen.fact for seen in self._kept.values() if seen.fact is not None)

    def put(self, seen: Seen) -> Change | None:
        """Take in an event; return what it changes, None if it is not newer than what is known.

        Not newer is also what a completed LIST must already have shown, so that an event that was long on
        its way brings no deleted object back.
        """
        return self._keep(seen) if seen.version > self._version(seen) else None

    def replace(
        self, namespace: str, version: int, listed: Iterable[Seen], unread: Iterable[str] = ()
    ) -> list[Change]:
        """Take in a complete LIST at a version, of one namespace or (empty) of all; return what it changes.

        Deletions that no event told are made up, at its version. What it shows was there at its version: only
        what is known to have been deleted since stays away. The objects with the keys `unread` are there too, and
        stay as they are known.
        """
        changes, present = [], set(unread)
        for seen in listed:
            present.add(seen.key)
            kept = self._kept.get(seen.key)
            if kept.version < seen.version if kept else self._deleted.get(seen.key, 0) <= version:
                changes.append(self._keep(seen))
        for key, kept in list(self._kept.items()):
            in_scope = not namespace or kept.namespace == namespace
            if in_scope and key not in present and kept.version <= version:
                changes.append(self._keep(Seen(kept.kind, kept.namespace, kept.name, version, None)))
        self._listed[namespace] = max(version, self._listed.get(namespace, 0))
        # A LIST at a later version speaks for itself; only newer deletions need to be remembered.
        self._deleted = {
            key: deleted
            for key, deleted in self._deleted.items()
            if deleted > self._floor(key.partition("/")[0])
        }
        return changes

    def drop_namespace(self, namespace: str) -> None:
        """Forget a namespace altogether, or (empty) all of them, as if it had never been listed."""
        self._listed.pop(namespace, None)
        self._kept = {
            key: seen for key, seen in self._kept.items() if namespace and seen.namespace != namespace
        }
        self._deleted = {
            key: version
            for key, version in self._deleted.items()
            if namespace and key.partition("/")[0] != namespace
        }

    def _version(self, seen: Seen) -> int:
        """The newest version at which something is known of an object."""
        kept = self._kept.get(seen.key)
        if kept:
            return kept.version
        return max(self._floor(seen.namespace), self._deleted.get(seen.key, 0))

    def _floor(self, namespace: str) -> int:
        return max(self._listed.get("", 0), self._listed.get(namespace, 0))

    def _keep(self, seen: Seen) -> Change:
        old = self._kept.pop(seen.key, None)
        if seen.fact is None:
            self._deleted[seen.key] = seen.version
        else:
            self._kept[seen.key] = seen
            self._deleted.pop(seen.key, None)
        return Change(seen, old.fact if old else None)
