"""How the tables are built on this node: what their texts depend on besides groups and interfaces. Values alone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from lbless_nodeagent.dataplane.opening import GUARD_SECONDS

_FORMAT = "lbless nftables 7"
"""Raise the number with any change of a text in `rules` or `movingrules`: then a new version replaces what it
finds instead of adopting it."""


_CLOCK_MONOTONIC_COARSE = 6
"""linux/time.h; it advances by ticks."""


def guard_ms() -> int:
    """The timeout of an element that is to be there for `GUARD_SECONDS` at least, in ms: the kernel counts it in
    whole ticks of its clock, and the first of them may be nearly over."""
    tick = time.clock_getres(_CLOCK_MONOTONIC_COARSE)
    return math.ceil((math.ceil(GUARD_SECONDS / tick) + 1) * tick * 1_000)


@dataclass(frozen=True, slots=True)
class Layout:
    """`redirect`: this kernel can send on what a bucket's former owner no longer takes. `lease`: nothing is kept
    on an interface without one. `guard_ms`: how long a bucket waits for its opening after the token."""

    redirect: bool = True
    lease: bool = False
    guard_ms: int = field(default_factory=guard_ms)

    @property
    def comment(self) -> str:
        """The comment of each table: one of another layout is replaced, like that of another version."""
        parts = (
            _FORMAT,
            "redirect" if self.redirect else "",
            "lease" if self.lease else "",
            f"{self.guard_ms}ms",
        )
        return " ".join(filter(None, parts))
