"""The incarnation of each interface: a number that never comes twice, also if the clock goes back.

Owns identity.json. What peers conclude from an incarnation is membership's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lbless_api.clusterip import MAX_INCARNATION
from lbless_api.fields import integer, mapping, text

_KEPT = 64
"""Interfaces that are gone and still remembered; the newest, so that one that comes back counts on."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """An interface's incarnation and the boot in which it began."""

    number: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Identity:
    """identity.json: the incarnation of each interface that was ever seen, by name."""

    interfaces: Mapping[str, Incarnation] = field(default_factory=dict)

    def numbers(self) -> dict[str, int]:
        """The incarnations alone."""
        return {name: incarnation.number for name, incarnation in self.interfaces.items()}


def with_interfaces(identity: Identity, names: Iterable[str], boot_id: str, unix_ms: int) -> Identity:
    """Return the identity in which each named interface has an incarnation of this boot.

    One that has it keeps it, because what the kernel runs for it goes on; another gets
    max(its last + 1, unix time in ms).
    """
    present = set(names)
    made = {}
    for name in present:
        last = identity.interfaces.get(name)
        if last and last.boot_id == boot_id:
            made[name] = last
        else:
            number = max(last.number + 1 if last else 0, unix_ms)
            made[name] = Incarnation(min(number, MAX_INCARNATION), boot_id)
    gone = [(name, last) for name, last in identity.interfaces.items() if name not in present]
    gone.sort(key=lambda item: item[1].number, reverse=True)
    return Identity(dict(sorted([*made.items(), *gone[:_KEPT]])))


def with_new(identity: Identity, name: str, boot_id: str, unix_ms: int) -> Identity:
    """Return the identity in which an interface has an incarnation that it never had."""
    last = identity.interfaces.get(name)
    number = min(max(last.number + 1 if last else 0, unix_ms), MAX_INCARNATION)
    return Identity({**identity.interfaces, name: Incarnation(number, boot_id)})


def with_number(identity: Identity, name: str, boot_id: str, number: int) -> Identity:
    """Return the identity in which an interface has this incarnation, or the one it has if that is newer."""
    last = identity.interfaces.get(name)
    if last and last.number >= number:
        return identity
    return Identity({**identity.interfaces, name: Incarnation(number, boot_id)})


def parse_identity(value: object) -> Identity:
    """Read identity.json; raises Invalid."""
    entries = mapping(mapping(value, "identity.json").get("interfaces"), "interfaces")
    read = {}
    for name, entry in entries.items():
        fields = mapping(entry, f"interfaces.{name}")
        read[name] = Incarnation(
            integer(fields.get("incarnation"), f"interfaces.{name}.incarnation", 0, MAX_INCARNATION),
            text(fields.get("bootID"), f"interfaces.{name}.bootID"),
        )
    return Identity(read)


def render_identity(identity: Identity) -> dict[str, object]:
    """The JSON of identity.json."""
    return {
        "interfaces": {
            name: {"incarnation": one.number, "bootID": one.boot_id}
            for name, one in identity.interfaces.items()
        }
    }
