"""How the tables are built on this node: what their texts depend on besides groups and interfaces. Values alone."""

from __future__ import annotations

from dataclasses import dataclass

_FORMAT = "lbless nftables 6"
"""Raise the number with any change of a text in `rules` or `movingrules`: then a new version replaces what it
finds instead of adopting it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`redirect`: this kernel can send on what a bucket's former owner no longer takes. `lease`: nothing is kept
    on an interface without one."""

    redirect: bool = True
    lease: bool = False

    @property
    def comment(self) -> str:
        """The comment of each table: one of another layout is replaced, like that of another version."""
        return f"{_FORMAT}{' redirect' if self.redirect else ''}{' lease' if self.lease else ''}"
