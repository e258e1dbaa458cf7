"""Clients of a shared address, of every kind at once: new and long-lived connections, datagrams, echo requests.

Owns nothing but that they begin and end together; each is its own module's, and what they noticed is `impact`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lab import datagrams, echoes, impact
from lab.datagrams import Datagrams
from lab.echoes import Echoes
from lab.host import Host
from lab.prober import PATIENT_SECONDS, Log, Prober, Sources
from lab.servers import ECHO_PORT, TCP_PORT, UDP_PORT
from lbless_api.clusterip import HashParameters

PER_SECOND = 100
"""New connections."""


@dataclass(frozen=True)
class Clients:
    """Those of one block: `log` grows while it runs, the others are there once it is over."""

    log: Log
    echoes: Echoes
    datagrams: Datagrams

    def impact(self, since: float = 0.0, until: float = float("inf")) -> impact.Impact:
        """What those noticed that began in a span of time (CLOCK_MONOTONIC); of conversations always everything."""
        sent = [d for d in self.datagrams.sent if since <= d.sent < until]
        return impact.impact(self.log.probes(since, until), self.echoes.ended, sent)

    @property
    def late_seconds(self) -> float:
        """By how much the slowest of them was late at the worst: what it cannot measure any finer."""
        return max(self.log.late_seconds, self.echoes.late_seconds, self.datagrams.late_seconds)


@contextmanager
def asking(
    client: Host,
    address: str,
    parameters: HashParameters,
    node_of: Callable[[str], str],
    *,
    addresses: Sequence[str] = (),
    connections: int = echoes.CONNECTIONS,
    per_second: int = PER_SECOND,
    datagrams_per_second: int = datagrams.PER_SECOND,
) -> Iterator[Clients]:
    """Ask all the time inside the block, from `addresses` (by default the first 50 of the client's).

    Services are on `TCP_PORT`, `ECHO_PORT` and `UDP_PORT`; `connections` are kept open. Raises LabError where one kind
    cannot begin or missed something.
    """
    own = addresses or client.addresses[: echoes.ADDRESSES]
    prober = Prober(
        client,
        address,
        TCP_PORT,
        Sources(parameters, TCP_PORT, own),
        node_of,
        per_second=per_second,
        patience_seconds=PATIENT_SECONDS,
    )
    held = echoes.sources(own, connections)
    with ExitStack() as stack:
        lines = stack.enter_context(echoes.echoing(client, address, ECHO_PORT, held))
        sent = stack.enter_context(
            datagrams.sending(client, address, UDP_PORT, own, node_of, per_second=datagrams_per_second)
        )
        log = stack.enter_context(prober)
        yield Clients(log, lines, sent)
