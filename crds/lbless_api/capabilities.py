"""What a netfilter engine can do, as data: a node reports it, its agent and the operator go by it.

Owns the comparison of what a ClusterIP asks for with that, as one sentence, and both directions of its
JSON. Whether the engine works on a node at all is its report's (`lbless_api.node`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from lbless_api.clusterip import HashParameters, SourceMAC, Spec
from lbless_api.fields import MAX_INTEGER, boolean, integer, items, mapping, text
from lbless_api.hashing import HashFunction, HashMode

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Capability:
    """One way in which an engine can filter: every combination of these is possible.

    Buckets are 1 to `max_buckets`, the prefix lengths `min_prefix_length` to 32. `ports`: whether it can
    open some ports only. `moves`: whether established flows stay where they are when a bucket moves; `redirect`:
    whether meanwhile it sends new ones on to the new owner, so that a move has no gap.
    """

    functions: frozenset[HashFunction]
    modes: frozenset[HashMode]
    max_buckets: int
    min_prefix_length: int = 32
    ports: bool = False
    source_macs: frozenset[SourceMAC] = frozenset({SourceMAC.NODE})
    moves: bool = False
    redirect: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a ClusterIP asks of an engine. `ports`: whether some of them only are to be open."""

    hash: HashParameters
    ports: bool
    source_mac: SourceMAC


def demand(spec: Spec) -> Demand:
    """What a ClusterIP's spec asks of the engine of each node that serves it."""
    return Demand(spec.hash, spec.ports is not None, spec.source_mac)


def refusal(engine: str, capabilities: Sequence[Capability], wanted: Demand) -> str | None:
    """Return one sentence why the engine named `engine` cannot do what is `wanted`, or None.

    An engine that says of nothing that it can do it is an older version's, which refuses by itself.
    """
    able, chosen = list(capabilities), list[_Aspect]()  # chosen: by what the able ones were told from others
    for aspect in _ASPECTS if able else ():
        unable, able = able, [c for c in able if aspect.has(c, wanted)]
        if not able:
            among = "".join(f" with {former.asked(wanted)}" for former in chosen)
            instead = aspect.offers(unable)
            for former in chosen[:1]:
                others = [c for c in capabilities if aspect.has(c, wanted) and not former.has(c, wanted)]
                instead += f", or {former.name} {former.offers(others)}" if others else ""
            return f"the {engine} engine cannot do {aspect.asked(wanted)}{among}: use {instead}."
        if len(able) < len(unable):
            chosen.append(aspect)
    return None


def keeps_flows(capabilities: Iterable[Capability], wanted: Demand) -> bool:
    """Whether an engine that does what is `wanted` keeps the established flows of buckets that move."""
    return any(c.moves and all(aspect.has(c, wanted) for aspect in _ASPECTS) for c in capabilities)


@dataclass(frozen=True, slots=True)
class _Aspect:
    """Something that a ClusterIP asks for: how it is written, who has it, and what can be had instead."""

    name: str
    asked: Callable[[Demand], str]
    has: Callable[[Capability, Demand], bool]
    offers: Callable[[Iterable[Capability]], str]


_ASPECTS = (
    _Aspect(
        "hashFunction",
        lambda d: f"hashFunction {d.hash.function}",
        lambda c, d: d.hash.function in c.functions,
        lambda able: _words(function for c in able for function in c.functions),
    ),
    _Aspect(
        "hashMode",
        lambda d: f"hashMode {d.hash.mode}",
        lambda c, d: d.hash.mode in c.modes,
        lambda able: _words(mode for c in able for mode in c.modes),
    ),
    _Aspect(
        "buckets",
        lambda d: f"{d.hash.buckets} buckets",
        lambda c, d: 1 <= d.hash.buckets <= c.max_buckets,
        lambda able: f"1 to {max(c.max_buckets for c in able)}",
    ),
    _Aspect(
        "sourcePrefixLength",
        lambda d: f"sourcePrefixLength {d.hash.prefix_length}",
        lambda c, d: c.min_prefix_length <= d.hash.prefix_length <= 32,
        lambda able: "32" if (least := min(c.min_prefix_length for c in able)) == 32 else f"{least} to 32",
    ),
    _Aspect(
        "ports",
        lambda _: "ports",
        lambda c, d: c.ports or not d.ports,
        lambda _: "a ClusterIP without ports, or another engine",
    ),
    _Aspect(
        "sourceMAC",
        lambda d: f"sourceMAC {d.source_mac}",
        lambda c, d: d.source_mac in c.source_macs,
        lambda able: _words(mac for c in able for mac in c.source_macs),
    ),
)


def _words(words: Iterable[str]) -> str:
    return " or ".join(sorted(set(words)))


def parse_capabilities(value: object, where: str) -> tuple[Capability, ...]:
    """Read a list of capabilities; raises Invalid.

    A function, mode or source MAC that this version does not know is left out: nothing can ask for it.
    """
    return tuple(_parse(entry, where) for entry in items(value, where))


def render_capabilities(capabilities: Iterable[Capability]) -> list[dict[str, object]]:
    """The JSON of a list of capabilities."""
    return [
        {
            "functions": sorted(c.functions),
            "modes": sorted(c.modes),
            "maxBuckets": c.max_buckets,
            "minPrefixLength": c.min_prefix_length,
            "ports": c.ports,
            "sourceMACs": sorted(c.source_macs),
            "moves": c.moves,
            "redirect": c.redirect,
        }
        for c in capabilities
    ]


def _parse(value: object, where: str) -> Capability:
    entry = mapping(value, where)
    return Capability(
        functions=_known(HashFunction, entry.get("functions") or [], f"{where}.functions"),
        modes=_known(HashMode, entry.get("modes") or [], f"{where}.modes"),
        max_buckets=integer(entry.get("maxBuckets"), f"{where}.maxBuckets", 1, MAX_INTEGER),
        min_prefix_length=integer(entry.get("minPrefixLength", 32), f"{where}.minPrefixLength", 1, 32),
        ports=boolean(entry.get("ports", False), f"{where}.ports"),
        source_macs=_known(SourceMAC, entry.get("sourceMACs") or [SourceMAC.NODE], f"{where}.sourceMACs"),
        moves=boolean(entry.get("moves", False), f"{where}.moves"),
        redirect=boolean(entry.get("redirect", False), f"{where}.redirect"),
    )


def _known(kind: type[E], value: object, where: str) -> frozenset[E]:
    words = {text(word, where) for word in items(value, where)}
    return frozenset(member for member in kind if member in words)
