"""The tick process as a list of what it was told, and what a test has it say."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TypeVar, cast

from lbless_api.heartbeat import node_id
from lbless_api.interfaces import Interface
from lbless_nodeagent.dataplane.membership import Memory, Use, View
from lbless_nodeagent.dataplane.memoryfile import MemoryFile
from lbless_nodeagent.dataplane.ports import Ports
from lbless_nodeagent.dataplane.statefiles import IdentityFile
from lbless_nodeagent.dataplane.tick.messages import Attach, Attached, Seen, ToTick
from lbless_nodeagent.dataplane.tickprocess import TickEndedError, TickProcess

M = TypeVar("M")
BOOT = "a-boot"
NODE = "n1"


class FakeTick:
    """`told` is what it was told since `take`; `says` is received next."""

    def __init__(self) -> None:
        self.told: list[ToTick] = []
        self.says: list[object] = []
        self.ended = ""
        self.is_blocked = False

    def send(self, message: ToTick) -> None:
        self.told.append(message)

    def receive(self) -> list[object]:
        if self.ended and not self.says:
            raise TickEndedError(self.ended)
        said, self.says = self.says, []
        return said

    def take(self, kind: type[M]) -> list[M]:
        """What it was told of that kind; all that it was told is forgotten."""
        found = [message for message in self.told if isinstance(message, kind)]
        self.told.clear()
        return found


class Node:
    """The ports of a node: its state directory, its tick process, the leases of its kernel (in seconds)."""

    def __init__(self, directory: Path, leases: Mapping[str, float] | None = None, boot: str = BOOT) -> None:
        self.tick = FakeTick()
        self.identity = IdentityFile(directory)
        left = leases or {}
        self.ports = Ports(
            cast(TickProcess, self.tick),
            self.identity,
            MemoryFile(directory, boot),
            boot,
            fenced=True,
            lease_left=left.get,
        )

    def attach(self, *interfaces: Interface, index: int = 2) -> list[Attach]:
        """Have memberships on all of them; returns what the tick process was asked for."""
        self.ports.attach(interfaces, {i.name: index for i in interfaces}, {i.name for i in interfaces})
        return self.tick.take(Attach)

    def say(self, *messages: object) -> bool:
        self.tick.says += messages
        return self.ports.receive()

    def begin(self, attach: Attach) -> None:
        """The tick process takes the `Attach`."""
        self.say(Attached(attach.interface, attach.incarnation))


def seen(
    interface: str,
    incarnation: int,
    version: int = 1,
    *,
    living: Mapping[str, int] | None = None,
    use: Mapping[str, Use] | None = None,
    unused: tuple[str, ...] = (),
) -> Seen:
    """A view in which this node and the `living` live."""
    lives = {NODE: incarnation, **(living or {})}
    keys = frozenset((node_id(name), number) for name, number in lives.items())
    view = View(version, incarnation, keys, use=use or {})
    return Seen(interface, view, unused, Memory(incarnation))


def interface(name: str = "eth0", address: str = "10.80.0.11/16", *, carrier: bool = True) -> Interface:
    return Interface(name, "02:00:00:00:00:01", (IPv4Interface(address),), carrier=carrier)
