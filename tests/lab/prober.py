"""A prober: a client that asks all the time, bucket by bucket, and the log of what became of every attempt.

Owns starting and ending it, which addresses and ports probe which bucket, and the log; the asking is
`inside/prober.py`'s, and what the log says about a takeover is `takeover`'s.

Attempts are whole connections that end with the node's name, because that is what users notice. Each is given up
after 150 ms and followed by a fresh one, so that the measure does not depend on TCP's own patience (it sends a lost
SYN again after 1 s); with `PATIENT_SECONDS` it does, and a lost SYN shows by the one that is sent again. The wire is
watched beside it: a SYN-ACK counts as an answer, also one that came too late for its connection, and two of different
senders for one SYN are the double answer that must not be.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from lab.errors import LabError
from lab.host import Host
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import bucket

PER_SECOND = 400
PATIENCE_SECONDS = 0.15
PATIENT_SECONDS = 3.0
START_SECONDS = 15
END_SECONDS = 15
AGAIN_SECONDS = 0.9
"""A SYN-ACK that comes later may be one that a node sent again (after 1 s), the first having been lost."""
# So long until an address and port is used again; what a connection leaves at a node is gone by then.
ROUND_SECONDS = 30
# Below what the kernel gives to connections without a port of their own.
PORTS = range(1024, 32768)


@dataclass(frozen=True, slots=True)
class Probe:
    """An attempt that has ended, in seconds of CLOCK_MONOTONIC: who answered it, or what went wrong.

    `senders` are the nodes that sent a SYN-ACK for it, in their order; `acknowledged` is when the first came, and
    `apart_seconds` how much later the first of the last of them. `syns` are the times of its SYNs on the wire.
    """

    number: int
    bucket: int
    source: str
    port: int
    started: float
    ended: float
    node: str | None
    error: str | None
    senders: tuple[str, ...] = ()
    acknowledged: float | None = None
    apart_seconds: float = 0.0
    syns: tuple[float, ...] = ()

    @property
    def answerer(self) -> str | None:
        """The node that answered it, be it too late for the connection; None if nobody did."""
        return self.node or (self.senders[0] if self._in_time else None)

    @property
    def answered(self) -> float:
        """When the answer came; infinity if none did."""
        if self.node is not None:
            return self.ended
        return self.acknowledged if self.acknowledged is not None and self._in_time else float("inf")

    @property
    def _in_time(self) -> bool:
        return self.acknowledged is not None and self.acknowledged - self.started < AGAIN_SECONDS


class Sources:
    """Addresses and ports of a client by the bucket that their packets fall into, none twice for as long as can be.

    A node that was cut off may hold a connection whose client has long given it up: the same address and port would
    find that, once the node is back.
    """

    def __init__(self, parameters: HashParameters, port: int, addresses: Sequence[str]) -> None:
        """Take all of a client's addresses; `port` is the one that it asks."""
        self.buckets = parameters.buckets
        self._parameters = parameters
        self._port = port
        self._addresses = tuple(addresses)
        self._given = 0
        self._waiting: list[deque[tuple[str, int]]] = [deque() for _ in range(parameters.buckets)]

    def take(self, order: Iterable[int]) -> list[tuple[int, str, int]]:
        """Return (bucket, address, port) for each bucket of `order`. Raises LabError for one that is never reached."""
        return [(number, *self._next(number)) for number in order]

    def _next(self, wanted: int) -> tuple[str, int]:
        for _ in range(len(PORTS) * len(self._addresses)):
            if self._waiting[wanted]:
                return self._waiting[wanted].popleft()
            turn, index = divmod(self._given, len(self._addresses))
            address, source_port = self._addresses[index], PORTS[turn % len(PORTS)]
            self._given += 1
            number = bucket(
                self._parameters.function,
                self._parameters.mode,
                address,
                source_port,
                self._port,
                buckets=self.buckets,
                seed=self._parameters.seed,
                prefix_length=self._parameters.prefix_length,
            )
            self._waiting[number].append((address, source_port))
        raise LabError(f"no packet of {len(self._addresses)} addresses falls into bucket {wanted}")


class Log:
    """What became of every attempt; it grows while the prober runs."""

    def __init__(self, node_of: Callable[[str], str]) -> None:
        """`node_of` tells which node has a hardware address."""
        self._node_of = node_of
        self._ended: dict[int, tuple[int, str, int, float, float, str | None, str | None]] = {}
        self._senders: dict[int, dict[str, float]] = {}
        self._syns: dict[int, list[float]] = {}
        self._lock = threading.Lock()
        self.late_seconds = 0.0
        """By how much the prober itself was late at the worst; known after its end."""
        self.missed = 0
        """How many SYNs and SYN-ACKs it was too busy to see; known after its end."""

    def add(self, line: str) -> None:
        """Take one line of the program's output."""
        kind, *words = line.rstrip("\n").split(maxsplit=8)
        with self._lock:
            match kind, words:
                case "syn", [number, at]:
                    self._syns.setdefault(int(number), []).append(float(at))
                case "ack", [number, at, mac]:
                    self._senders.setdefault(int(number), {}).setdefault(self._node_of(mac), float(at))
                case "end", [number, one, source, port, started, ended, node, error]:
                    answer = (None if node == "-" else node, None if error == "-" else error)
                    times = (float(started), float(ended))
                    self._ended[int(number)] = (int(one), source, int(port), *times, *answer)
                case "late", [seconds]:
                    self.late_seconds = float(seconds)
                case "missed", [count]:
                    self.missed = int(count)
                case _:
                    raise LabError(f"the prober said {line!r}")

    def probes(self, since: float = 0.0, until: float = float("inf")) -> list[Probe]:
        """The attempts that began in a span of time, in the order in which they began."""
        with self._lock:
            found = []
            for number, ended in self._ended.items():
                if since <= ended[3] < until:
                    senders = self._senders.get(number, {})
                    first = min(senders.values(), default=None)
                    apart = max(senders.values()) - first if first is not None else 0.0
                    syns = tuple(self._syns.get(number, ()))
                    found.append(Probe(number, *ended, tuple(senders), first, apart, syns))
        return sorted(found, key=lambda probe: probe.number)


class Prober:
    """`with Prober(client, "10.80.2.1", 8080, sources, lan.owner_of) as log:` asks until the block ends."""

    def __init__(
        self,
        client: Host,
        address: str,
        port: int,
        sources: Sources,
        node_of: Callable[[str], str],
        *,
        weights: Mapping[int, int] | None = None,
        per_second: int = PER_SECOND,
        patience_seconds: float = PATIENCE_SECONDS,
        round_seconds: int = ROUND_SECONDS,
    ) -> None:
        """Plan it. `weights` says how much more often than once a turn a bucket is asked for.

        After `round_seconds` addresses and ports come again.
        """
        self._client = client
        self._plan = {
            "interface": client.interface,
            "address": address,
            "port": port,
            "per_second": per_second,
            "patience_seconds": patience_seconds,
            "attempts": sources.take(_order(sources.buckets, weights or {}, per_second * round_seconds)),
        }
        self.log = Log(node_of)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self._fault: Exception | None = None

    def __enter__(self) -> Log:
        self._process = self._client.popen(
            self._client.inside("prober"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="prober"
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._plan) + "\n")
        self._process.stdin.flush()
        if not self._ready.wait(START_SECONDS):
            self._kill()
            raise LabError(f"the prober does not start: {self._client.last_words('prober')}")
        return self.log

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, reader = self._process, self._reader
        assert process is not None
        assert process.stdin is not None
        assert reader is not None
        process.stdin.close()
        reader.join(END_SECONDS)
        self._kill()
        if error is None and (process.returncode != 0 or self._fault):
            why = self._fault or self._client.last_words("prober")
            raise LabError(f"the prober on {self._client.namespace} broke off: {why}")
        if error is None and self.log.missed:
            raise LabError(
                f"the prober on {self._client.namespace} missed {self.log.missed} frames, so it proves nothing: "
                f"try again on a calmer machine"
            )

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line == "ready\n":
                    self._ready.set()
                else:
                    self.log.add(line)
        except Exception as error:  # noqa: BLE001 - the block's end raises it
            self._fault = error

    def _kill(self) -> None:
        process = self._process
        assert process is not None
        if self._reader is not None and self._reader.is_alive():
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _order(buckets: int, weights: Mapping[int, int], count: int) -> list[int]:
    """Buckets in turn, each evenly spread over a round however often it comes in it."""
    turns = [
        ((turn + number / buckets) / weights.get(number, 1), number)
        for number in range(buckets)
        for turn in range(weights.get(number, 1))
    ]
    order = [number for _, number in sorted(turns)]
    return (order * (count // len(order) + 1))[:count]


def await_probes(
    log: Log, what: str, enough: Callable[[list[Probe]], bool], *, since: float, seconds: float
) -> None:
    """Wait until the attempts that began after `since` are `enough`; LabError says `what` is missing."""
    deadline = time.monotonic() + seconds
    while not enough(log.probes(since)):
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
