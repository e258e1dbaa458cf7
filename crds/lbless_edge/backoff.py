"""How long to wait before asking again a server that did not answer well."""

from __future__ import annotations

from random import SystemRandom

CAP_SECONDS = 10.0

_random = SystemRandom()


class Backoff:
    """Full jitter: a random time up to a bound that doubles with each failure, so that a crowd spreads out.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    def __init__(self, base_seconds: float = 0.2, cap_seconds: float = CAP_SECONDS) -> None:
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._failures = 0

    def failed(self, at_least_seconds: float = 0.0) -> float:
        """Count a failure and return the seconds to wait; `at_least_seconds` is the server's own wish.

        The random time comes on top of it: a crowd that was told the same must not come back at the same moment.
        """
        bound = min(self._cap_seconds, self._base_seconds * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return at_least_seconds + _random.uniform(0.0, bound)

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0
