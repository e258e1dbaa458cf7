"""The durations that membership works with, in seconds, all derived from one tick unless given."""

from __future__ import annotations

from dataclasses import dataclass

from lbless_nodeagent.dataplane.ladder import LAST_MS

MARGIN_SECONDS = 0.05
"""How much later than the end of a node's lease, at the earliest, its peers count it dead."""

LONGEST_SECONDS = LAST_MS / 1000
"""The kernel's lease can be set no further ahead, and nobody renews it during a hold."""
LONGEST_TICK_SECONDS = 0.7
"""Of which DEAD follows, 4.95 s."""


@dataclass(frozen=True, slots=True)
class Times:
    """Durations in seconds. Raises ValueError with one sentence where they would not work together.

    `tick` between two heartbeats; `lease` after which a node without acknowledgement serves no more; `dead`
    after which a silent one is counted dead; `heard` within which a peer must have been heard for its
    acknowledgement to count; `quiet` after which a node that hears nothing is deaf; `hold` for which a node
    may be silent that announced it; `unheard` for which a node waits that never heard any peer at all.
    """

    tick: float
    lease: float
    dead: float
    heard: float
    quiet: float
    hold: float = 2.0
    unheard: float = 60.0

    def __post_init__(self) -> None:
        if not 0.01 <= self.tick <= LONGEST_TICK_SECONDS:
            raise ValueError(
                f"TICK of {self.tick:g} s is out of range: use 0.01 to {LONGEST_TICK_SECONDS:g} s."
            )
        if self.lease > self.dead - MARGIN_SECONDS + 1e-9:
            raise ValueError(
                f"LEASE of {self.lease:g} s and DEAD of {self.dead:g} s could give a bucket two owners: "
                f"use a LEASE of at most DEAD - {MARGIN_SECONDS:g} s."
            )
        if not 2 * self.tick <= self.heard < self.quiet < self.lease:
            raise ValueError(
                f"HEARD of {self.heard:g} s, QUIET of {self.quiet:g} s and LEASE of {self.lease:g} s do not "
                f"work together: use 2 TICK <= HEARD < QUIET < LEASE."
            )
        if self.dead > LONGEST_SECONDS:
            raise ValueError(f"DEAD of {self.dead:g} s is out of range: use at most {LONGEST_SECONDS:g} s.")
        if not self.dead <= self.hold <= LONGEST_SECONDS:
            raise ValueError(
                f"A hold of {self.hold:g} s is out of range: use DEAD ({self.dead:g} s) to {LONGEST_SECONDS:g} s."
            )

    @classmethod
    def of_tick(cls, tick: float) -> Times:
        """The durations of a tick of so many seconds: at 0.1 the ones of the design."""
        lease = 7 * tick
        dead = lease + MARGIN_SECONDS
        return cls(tick, lease, dead, 4 * tick, 4.5 * tick, max(2.0, dead))

    @property
    def steady(self) -> float:
        """3 TICKs: for so long a node must have heard without a gap before it judges others."""
        return 3 * self.tick
