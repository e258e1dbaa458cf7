"""Whether the other of dataplane's two processes does its work, as far as this one was awake to see it. Pure."""

from __future__ import annotations

STUCK_SECONDS = 5.0
"""For so long the programming process may be busy or stopped, in which it takes over nothing. Then this node
leaves: its peers can do what it cannot."""
HUNG_SECONDS = 10.0
"""For so long the tick process may say nothing, which its peers take for its death long before."""
PAUSE_SECONDS = 2.0
"""After longer than this between two looks, the machine has slept or both processes were stopped, and the other one has
done no wrong. At work, the tick process looks every second at least, the programming process every 1.5 s."""


class Watch:
    """Times are of one clock, in seconds."""

    def __init__(self, at: float, patience_seconds: float) -> None:
        self._looked_at = self._heard_at = at
        self._patience_seconds = patience_seconds

    def heard(self, at: float) -> None:
        """The other one has said that it does its work, or need not say so."""
        self._heard_at = at

    def is_stuck(self, at: float) -> bool:
        """Whether it has not said so for too long. To be asked at each turn, once: this process may be stopped at any
        point of a turn, and two looks find that out wherever it was."""
        slept, self._looked_at = at - self._looked_at, at
        if slept > PAUSE_SECONDS:
            self._heard_at = min(self._heard_at + slept, at)
        return at - self._heard_at > self._patience_seconds
