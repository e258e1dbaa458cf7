"""The datagrams that renew the kernel's lease of an interface: where they go, and what each port stands for. Pure.

The rules take a datagram to port n as "the lease ends in n milliseconds", and a rule can hold a fixed duration
only: these are the ones to choose from.
"""

from __future__ import annotations

GROUP = "224.0.0.1"
"""All hosts: a group that every interface is in. That is why its time to live of 0 keeps a datagram that no rule
takes from leaving the host; sent to a group that nobody joined it would go out in spite of it."""

END_PORT = 1
FINE_MS, COARSE_MS, FINE_UNTIL_MS, LAST_MS = 20, 100, 1_000, 5_000
RUNGS_MS = (*range(FINE_MS, FINE_UNTIL_MS, FINE_MS), *range(FINE_UNTIL_MS, LAST_MS + 1, COARSE_MS))
"""Ascending. The kernel counts time in jiffies and rounds down: 20 ms are whole jiffies at any HZ that Linux has
(100, 250, 300, 1000). An expiry so comes at most one jiffy early, never late, and a lease of 700 ms is at most
24 ms shorter than it might be; a hold of 2 s, 104 ms."""


def rung(seconds: float) -> int:
    """The port for the longest duration that is not longer: `END_PORT` if none is as short as that."""
    ms = seconds * 1_000
    if ms < FINE_MS:
        return END_PORT
    step = FINE_MS if ms < FINE_UNTIL_MS else COARSE_MS
    return min(int(ms // step) * step, LAST_MS)
