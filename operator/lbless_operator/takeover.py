"""What a person should know of takeovers: who was taken over from and seems alive, and where nobody takes over.

Pure. What follows for the assignment is `assignment`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lbless_api.segment import Condition
from lbless_operator.conditions import Reason
from lbless_operator.eligibility import Cause, Verdict
from lbless_operator.phrases import name, name_nodes


def explain_takeover(
    verdicts: Iterable[Verdict], named: Collection[str], fresh: Collection[str]
) -> tuple[Reason, str] | None:
    """A reason for Degraded with its sentences, None if there is none.

    `named` are the nodes of the assignment, `fresh` those whose agent is.
    """
    verdicts = list(verdicts)
    dead = [v for v in verdicts if v.cause is Cause.DEAD_ON_SEGMENT and v.selected]
    if dead:
        verb = "is" if len(dead) == 1 else "are"
        nodes = name_nodes(v.node for v in dead)
        mute = [v.node for v in dead if v.seat is None and v.node in fresh]
        return Reason.NODE_DEAD_ON_SEGMENT, (
            f"N{nodes[1:]} {verb} counted dead on the segment, where others have taken over, but to Kubernetes {verb} "
            f"alive. If a node has just failed, Kubernetes finds that within a minute; else look after "
            f"lbless-dataplane there, and after the cable, switch port and VLAN{_interfaces(dead, 'of')}."
            f"{_without_heartbeats(mute)}"
        )
    lonely = [v for v in verdicts if v.node in named and v.node in fresh and _hears_nobody(v)]
    if lonely and len(named) > 1:
        verb = "hears" if len(lonely) == 1 else "hear"
        nodes = name_nodes(v.node for v in lonely)
        return Reason.NO_PEERS_HEARD, (
            f"N{nodes[1:]} {verb} no heartbeat of the others{_interfaces(lonely, 'on')}: nobody takes over until "
            f"Kubernetes finds a node dead. Let the switch pass multicast of Ethernet type 0x88B5, and give all "
            f"nodes the same key."
        )
    return None


def _hears_nobody(verdict: Verdict) -> bool:
    segment = verdict.seat.segment if verdict.seat else None
    return segment is not None and Condition.NO_PEERS_HEARD in segment.conditions


def _without_heartbeats(nodes: Collection[str]) -> str:
    """A sentence on nodes that send none where others do; empty where there is no such."""
    verb = "sends" if len(nodes) == 1 else "send"
    return f" N{name_nodes(nodes)[1:]} {verb} no heartbeats: give all nodes the same key." if nodes else ""


def _interfaces(verdicts: Iterable[Verdict], preposition: str) -> str:
    """Where that is, with a space before it; empty where it is not known."""
    interfaces = sorted({v.seat.name for v in verdicts if v.seat})
    return f" {preposition} {name(interfaces)}" if interfaces else ""
