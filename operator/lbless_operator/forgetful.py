"""kopf's storages of what it knew of each object, keeping nothing: only low-level handlers are in use here.

The default ones copy every object of every event twice, to compare what nobody asks about. That was most of
what an event cost.
"""

from __future__ import annotations

from typing import Any, cast

import kopf
from kopf import BodyEssence


class NoDifferences(kopf.DiffBaseStorage):
    """No object is compared with its former self."""

    def build(self, **_: Any) -> BodyEssence:
        """Nothing."""
        return cast(BodyEssence, {})

    def fetch(self, **_: Any) -> BodyEssence | None:
        """Nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Never called: there are no handlers of changes."""


class NoProgress(kopf.ProgressStorage):
    """No handler is ever retried, so none has a progress."""

    def fetch(self, **_: Any) -> None:
        """Nothing."""

    def store(self, **_: Any) -> None:
        """Never called."""

    def purge(self, **_: Any) -> None:
        """Nothing to do."""

    def touch(self, **_: Any) -> None:
        """Nothing to do."""

    def clear(self, *, essence: BodyEssence) -> BodyEssence:
        """As it is."""
        return essence
