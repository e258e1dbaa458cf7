"""Which ClusterIP to look at next: each once, not before its time, and nobody behind a thousand others for long.

For one thread.
"""

from __future__ import annotations

import heapq

FEW = 16
"""News that concern no more ClusterIPs than this are urgent: a pod's readiness, not a node's."""
URGENT_IN_A_ROW = 3
"""After so many urgent ones the longest due of all has its turn, so that every one of them has, whatever happens."""


class KeyQueue:
    """ClusterIPs by their keys. Urgent ones come before the others, the newest of them first."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        # Entries whose key has another time by now, or none, are passed over when they come up.
        self._heap: list[tuple[float, str]] = []
        self._urgent: dict[str, None] = {}
        self._in_a_row = 0

    def add(self, key: str, due: float, *, urgent: bool = False) -> None:
        """Look at a ClusterIP at `due`, or earlier if that was asked for already; an urgent one is due now."""
        known = self._due.get(key)
        if known is None or due < known:
            self._set(key, due)
        if urgent:
            self._urgent.pop(key, None)
            self._urgent[key] = None

    def postpone(self, key: str, due: float) -> None:
        """Look at it at `due` and not earlier, whatever was asked for."""
        self._urgent.pop(key, None)
        self._set(key, due)

    def take(self, now: float) -> str | None:
        """Return one that is due and forget it; None if none is."""
        if self._urgent and self._in_a_row < URGENT_IN_A_ROW:
            self._in_a_row += 1
            key, _ = self._urgent.popitem()
            del self._due[key]
            return key
        self._in_a_row = 0
        due = self.next_due()
        if due is None or due > now:
            return None
        _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._urgent.pop(key, None)
        return key

    def next_due(self) -> float | None:
        """When the next one is due."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._due)

    def _set(self, key: str, due: float) -> None:
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(when, which) for which, when in self._due.items()]
            heapq.heapify(self._heap)
