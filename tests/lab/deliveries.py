"""Datagrams and ICMP errors accounted for one by one: which node's socket got which; see `inside/deliveries.py`."""

import json
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lab.errors import LabError
from lab.host import Host

START_SECONDS = 10
AWAIT_SECONDS = 10


@dataclass(frozen=True, order=True)
class Datagram:
    """A datagram by who sent it and what was in it."""

    source: str
    source_port: int
    length: int
    digest: str


@dataclass(frozen=True, order=True)
class IcmpError:
    """An error as a socket had it: about an answer to `source`, who is in error said by `offender`.

    `value` is the path's MTU where the error is about that.
    """

    source: str
    source_port: int
    errno: int
    code: int
    value: int
    offender: str


@dataclass(frozen=True)
class Received:
    """What the sockets of the nodes have got so far, by node."""

    datagrams: dict[str, list[Datagram]]
    errors: dict[str, list[IcmpError]]


class Receivers:
    """A UDP socket of each of some nodes, bound to a shared address."""

    def __init__(self, processes: dict[str, subprocess.Popen[str]]) -> None:
        self._processes = processes

    def reply(self, length: int) -> None:
        """Have each send a datagram of so many bytes to everyone from whom it has one; none is fragmented."""
        for process in self._processes.values():
            _tell(process, f"reply {length}\n")

    def received(self) -> Received:
        """What has arrived."""
        found: dict[str, Any] = {}
        for name, process in self._processes.items():
            _tell(process, "report\n")
            found[name] = json.loads(_line(process, name))
        return Received(
            {name: sorted(Datagram(*d) for d in one["datagrams"]) for name, one in found.items()},
            {
                name: sorted(IcmpError(ip, port, errno, *rest) for ip, port, errno, _, *rest in one["errors"])
                for name, one in found.items()
            },
        )

    def await_that(self, what: str, condition: Callable[[Received], bool]) -> Received:
        """Return what has arrived once the condition holds. Raises LabError, with `what`, if it never does."""
        deadline = time.monotonic() + AWAIT_SECONDS
        while not condition(found := self.received()):
            if time.monotonic() > deadline:
                counts = {n: (len(found.datagrams[n]), len(found.errors[n])) for n in found.datagrams}
                raise LabError(f"{what} not within {AWAIT_SECONDS} s: datagrams and errors are {counts}")
            time.sleep(0.02)
        return found


@contextmanager
def receiving(nodes: Sequence[Host], address: str, port: int) -> Iterator[Receivers]:
    """Receive on every node inside the block; the address must be there."""
    with ExitStack() as running:
        processes = {
            node.name: running.enter_context(_running(node, "receive", address, str(port))) for node in nodes
        }
        for name, process in processes.items():
            _line(process, name)
        yield Receivers(processes)


@contextmanager
def sent(host: Host, address: str, port: int, lengths: Sequence[int]) -> Iterator[list[Datagram]]:
    """Send a datagram of each length from the host's addresses in turn; the sockets are open inside the block."""
    written = ",".join(map(str, lengths))
    with _running(host, "send", address, str(port), written, ",".join(host.addresses)) as process:
        yield [Datagram(*one) for one in json.loads(_line(process, host.name))]


@contextmanager
def _running(host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = host.popen(
        host.inside("deliveries", *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="deliveries"
    )
    try:
        yield process
    finally:
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tell(process: subprocess.Popen[str], command: str) -> None:
    assert process.stdin is not None
    process.stdin.write(command)
    process.stdin.flush()


def _line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if readable else ""
    if not line.endswith("\n"):
        raise LabError(f"what is to account for datagrams on {name} says nothing: see its log")
    return line
