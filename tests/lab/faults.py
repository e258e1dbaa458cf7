"""What can happen to a node: each fault as acts at known times, and what makes the node well again.

Owns what is done and its undoing; what comes of it is for `failover` to measure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lab import servers
from lab.host import Host
from lab.installation import DATAPLANE, SYNC
from lab.lan import GATEWAY
from lab.site import Site

P = TypeVar("P")
"""What is struck: a `Site`, or something simpler that a test of the trials makes."""

FLAP_SECONDS, FLAPS = 0.3, 5
LOSS = """
table bridge lab_loss_{node} {{
 chain forward {{ type filter hook forward priority 0; policy accept; {direction} "{node}" drop; }}
}}
"""


@dataclass(frozen=True)
class Act(Generic[P]):
    """One thing that is done to a node, so long after the fault began."""

    after_seconds: float
    what: str
    do: Callable[[P, Host], None]


@dataclass(frozen=True)
class Fault(Generic[P]):
    """Acts in the order of their times; `repair` brings the node back. `victims` nodes are struck at once.

    `from_last_act`: a takeover is timed from the last act, since it may be undone as long as they go on.
    """

    name: str
    acts: tuple[Act[P], ...]
    repair: Callable[[P, Host], None]
    victims: int = 1
    from_last_act: bool = False


def descendants(process: int) -> list[int]:
    """The ids of what a process started, and of what those started."""
    found: list[int] = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            own = [int(word) for word in children.read_text().split()]
        except OSError:
            continue  # the thread has ended meanwhile
        for child in own:
            found += [child, *descendants(child)]
    return found


def kill_dataplane(site: Site, node: Host) -> None:
    """Kill dataplane with all its processes."""
    _signal_all(site, node, DATAPLANE, signal.SIGKILL)


def kill_programming(site: Site, node: Host) -> None:
    """Kill dataplane's first process, and leave it to the others to notice."""
    site.lbless.process(DATAPLANE, node).kill()


def pause_dataplane(site: Site, node: Host) -> None:
    """Stop dataplane with all its processes where they are."""
    _signal_all(site, node, DATAPLANE, signal.SIGSTOP)


def resume_dataplane(site: Site, node: Host) -> None:
    """Let them go on."""
    _signal_all(site, node, DATAPLANE, signal.SIGCONT)


def stop_dataplane(site: Site, node: Host) -> None:
    """End dataplane cleanly, as before a restart."""
    site.lbless.stop(DATAPLANE, node)


def start_dataplane(site: Site, node: Host) -> None:
    """Start it again."""
    site.lbless.start(DATAPLANE, node)


def restart_dataplane(site: Site, node: Host) -> None:
    """Start dataplane where it was killed."""
    site.lbless.stop(DATAPLANE, node)
    site.lbless.start(DATAPLANE, node)


def cut(site: Site, node: Host) -> None:
    """Pull the cable out of the switch."""
    site.lan.cut(node)


def join(site: Site, node: Host) -> None:
    """Plug it in again."""
    site.lan.join(node)


def power_off(site: Site, node: Host) -> None:
    """Take a node from the wire and end everything on it, as a power cut would."""
    site.lan.cut(node)
    for program in _programs(site):
        _signal_all(site, node, program, signal.SIGKILL)
    servers.stop(site.servers[node.name])
    site.lan.host("management").run(["ip", "link", "set", node.name, "down"])


def power_on(site: Site, node: Host) -> None:
    """Bring it back with its disk and nothing in its kernel."""
    for program in _programs(site):
        site.lbless.stop(program, node)
    node.run(["nft", "flush", "ruleset"])
    node.run(["ip", "-4", "address", "flush", "dev", node.interface, "deprecated"])
    site.lan.enable_conntrack(node)
    site.lan.host("management").run(["ip", "link", "set", node.name, "up"])
    site.lan.join(node)
    node.run(["ip", "route", "replace", "default", "via", GATEWAY])
    site.start_servers(node)
    for program in _programs(site):
        site.lbless.start(program, node)


def lose_sent(site: Site, node: Host) -> None:
    """Let nothing that a node sends on the segment arrive; it hears everybody."""
    site.lan.switch.run(["nft", "-f", "-"], stdin=LOSS.format(node=node.name, direction="iifname"))


def lose_received(site: Site, node: Host) -> None:
    """Let nothing that is sent on the segment arrive at a node; everybody hears it."""
    site.lan.switch.run(["nft", "-f", "-"], stdin=LOSS.format(node=node.name, direction="oifname"))


def lose_nothing(site: Site, node: Host) -> None:
    """End such a loss."""
    site.lan.switch.run(["nft", "delete", "table", "bridge", f"lab_loss_{node.name}"])


def nothing(_site: Site, _node: Host) -> None:
    """For what has ended by itself."""


def pause(seconds: float) -> Fault[Site]:
    """Dataplane stands still for some seconds."""
    return Fault(
        f"SIGSTOP of dataplane for {seconds:g} s, then SIGCONT",
        (Act(0, "SIGSTOP", pause_dataplane), Act(seconds, "SIGCONT", resume_dataplane)),
        nothing,
    )


def unplugged(seconds: float) -> Fault[Site]:
    """A node's cable is out for some seconds."""
    return Fault(
        f"cable out, back after {seconds:g} s",
        (Act(0, "cable out", cut), Act(seconds, "cable back", join)),
        nothing,
    )


KILL = Fault("kill -9 of dataplane", (Act(0, "kill -9", kill_dataplane),), restart_dataplane)
KILL_PROGRAMMING = Fault(
    "kill -9 of dataplane's programming process",
    (Act(0, "kill -9", kill_programming),),
    restart_dataplane,
)
STOP = Fault(
    "dataplane stopped, and not started again", (Act(0, "SIGTERM", stop_dataplane),), start_dataplane
)
CUT = Fault("node cut off the bridge", (Act(0, "cable out", cut),), join)
POWER = Fault("node powered off", (Act(0, "power off", power_off),), power_on)
TWO = Fault("two of three nodes powered off", POWER.acts, power_on, victims=2)
SENT_LOST = Fault("what a node sends is lost", (Act(0, "loss begins", lose_sent),), lose_nothing)
RECEIVED_LOST = Fault(
    "what a node should hear is lost", (Act(0, "loss begins", lose_received),), lose_nothing
)
FLAPPING = Fault(
    f"link down and up every {FLAP_SECONDS * 1000:g} ms for {FLAP_SECONDS * 2 * FLAPS:g} s",
    tuple(
        Act(number * FLAP_SECONDS, "link up" if number % 2 else "link down", join if number % 2 else cut)
        for number in range(2 * FLAPS)
    ),
    nothing,
    from_last_act=True,
)


def _programs(site: Site) -> tuple[str, ...]:
    """What runs on a node. Without an API server no sync: the token that it would be started with cannot be had."""
    return (DATAPLANE,) if site.by_hand else (DATAPLANE, SYNC)


def _signal_all(site: Site, node: Host, program: str, number: signal.Signals) -> None:
    """Signal a program and all that it started, itself first: so that none of them acts on another's end."""
    process = site.lbless.process(program, node).pid
    for one in (process, *descendants(process)):
        try:
            os.kill(one, number)
        except ProcessLookupError:
            continue  # gone with the first
