"""Lists in sentences: in words, and cut short before nobody reads them."""

from __future__ import annotations

from collections.abc import Iterable

LISTED = 6


def name(parts: Iterable[str], limit: int = LISTED) -> str:
    """Return "a", "a and b", or "a, b, c and 12 more"; at most `limit` of `parts` by themselves."""
    listed = list(parts)
    if len(listed) > limit:
        listed = [*listed[:limit], f"{len(listed) - limit} more"]
    return " and ".join(part for part in (", ".join(listed[:-1]), *listed[-1:]) if part)


def name_nodes(nodes: Iterable[str]) -> str:
    """Return "node n1" or "nodes n1, n2 and n3"."""
    ordered = sorted(nodes)
    return f"node{'' if len(ordered) == 1 else 's'} {name(ordered)}"
