"""Did every client get exactly one answer, from the node that the assignment and the hash name?

Drives both clients at once, watches the wire where every answer passes once, and compares. Owns no traffic
and no capture of its own: these are `traffic`'s and `capture`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from lab import traffic
from lab.capture import Capture
from lab.frames import Flow, Frames
from lab.host import Host
from lab.installation import owner
from lab.lan import Lan
from lab.servers import TCP_PORT, UDP_PORT
from lab.traffic import Answer, Echo
from lbless_api.clusterip import ClusterIP
from lbless_api.hashing import ICMP, TCP, UDP

Owner = Callable[[str, int], str]


@dataclass(frozen=True)
class Pace:
    """How many attempts at a time each of the two clients makes, and how long it waits for each answer."""

    parallel: int = traffic.PARALLEL
    timeout_seconds: float = traffic.TIMEOUT_SECONDS


PACE = Pace()
GENTLE = Pace(parallel=16, timeout_seconds=15.0)
"""For nodes of emulated processors, each of which a busy machine slows down many times more than itself."""


@dataclass(frozen=True)
class Verdict:
    """What became of some attempts. `faults` has a sentence for each that was not right; none is perfect.

    `retransmitted` counts SYNs that were sent again, which a busy machine may cause.
    """

    attempts: int
    sources: int
    by_node: Mapping[str, int]
    retransmitted: int
    resets: int
    faults: tuple[str, ...]

    def __str__(self) -> str:
        shares = ", ".join(f"{node} {count}" for node, count in sorted(self.by_node.items()))
        return (
            f"{self.attempts} attempts from {self.sources} addresses ({shares}), {len(self.faults)} wrong, "
            f"{self.resets} RST, {self.retransmitted} SYNs sent again"
        )


def tcp(
    lan: Lan, clusterip: ClusterIP, connections: int, *, port: int = TCP_PORT, pace: Pace = PACE
) -> Verdict:
    """Make connections, half of them through the router, and judge each by its SYN-ACKs and its answer."""
    near, far, near_frames, far_frames = _drive(lan, clusterip, "tcp", port, connections, pace)
    frames = near_frames + far_frames
    expected = _owner(clusterip, port, TCP)
    answered = frames.syn_acks()
    # What is sent to the address is flooded, so each SYN is seen at both places: count it at its sender's.
    asked = _of(near, near_frames.syns()) | _of(far, far_frames.syns())
    faults = _wrong_answers([*near, *far], expected)
    faults += _wrong_senders(lan, clusterip, [*near, *far], port, answered, expected, asked)
    by_node = Counter(a.node for a in (*near, *far) if a.node)
    again = sum(len(sent) - 1 for sent in asked.values())
    sources = len({a.source for a in (*near, *far)})
    return Verdict(len(near) + len(far), sources, by_node, again, len(frames.resets()), tuple(faults))


def udp(
    lan: Lan, clusterip: ClusterIP, datagrams: int, *, port: int = UDP_PORT, pace: Pace = PACE
) -> Verdict:
    """Send datagrams, half of them through the router, and judge each by its answers on the wire."""
    near, far, near_frames, far_frames = _drive(lan, clusterip, "udp", port, datagrams, pace)
    frames = near_frames + far_frames
    expected = _owner(clusterip, port, UDP)
    faults = _wrong_answers([*near, *far], expected)
    faults += _wrong_senders(lan, clusterip, [*near, *far], port, frames.udp_answers(), expected)
    by_node = Counter(a.node for a in (*near, *far) if a.node)
    sources = len({a.source for a in (*near, *far)})
    return Verdict(len(near) + len(far), sources, by_node, 0, 0, tuple(faults))


def echo(lan: Lan, clusterip: ClusterIP, requests: int, *, pace: Pace = PACE) -> Verdict:
    """Send ICMP echo requests, half of them through the router, and judge each by its replies on the wire."""
    ip = str(clusterip.spec.ip)
    with ExitStack() as stack:
        seen = [
            stack.enter_context(Capture(lan.client, vip=ip)),
            stack.enter_context(Capture(lan.router, "eth0", vip=ip)),
        ]
        running = [
            _begin("icmp", host, ip, 0, requests // 2, pace) for host in (lan.client, lan.routed_client)
        ]
        echoes: list[Echo] = [e for r in running for e in r.echoes()]
    replies = (seen[0] + seen[1]).echo_replies()
    faults, by_node = [], Counter[str]()
    for one in echoes:
        node = owner(clusterip, one.source, 0, 0, ICMP)
        senders = replies.get((one.source, one.identifier, one.sequence), [])
        who = [lan.owner_of(mac) for mac in senders]
        by_node.update(who)
        if who != [node]:
            faults.append(
                f"echo {one.identifier} from {one.source} was answered by {who}, not once by {node}"
            )
    return Verdict(len(echoes), len({e.source for e in echoes}), by_node, 0, 0, tuple(faults))


def _drive(
    lan: Lan, clusterip: ClusterIP, protocol: str, port: int, count: int, pace: Pace
) -> tuple[list[Answer], list[Answer], Frames, Frames]:
    ip = str(clusterip.spec.ip)
    with (
        Capture(lan.client, vip=ip) as near_frames,
        Capture(lan.router, "eth0", vip=ip) as far_frames,
    ):
        near_running = _begin(protocol, lan.client, ip, port, count // 2, pace)
        far_running = _begin(protocol, lan.routed_client, ip, port, count - count // 2, pace)
        near, far = near_running.answers(), far_running.answers()
    # Only now, after the captures' ends, is every frame there.
    return near, far, near_frames, far_frames


def _begin(protocol: str, host: Host, ip: str, port: int, count: int, pace: Pace) -> traffic.Running:
    return traffic.begin(
        protocol, host, ip, port, count, parallel=pace.parallel, timeout_seconds=pace.timeout_seconds
    )


def _of(answers: Sequence[Answer], sent: Mapping[Flow, list[str]]) -> dict[Flow, list[str]]:
    """The part of `sent` that these attempts sent."""
    own = {(a.source, a.source_port) for a in answers}
    return {flow: senders for flow, senders in sent.items() if (flow.client, flow.client_port) in own}


def _owner(clusterip: ClusterIP, port: int, protocol: int) -> Owner:
    return lambda source, source_port: owner(clusterip, source, source_port, port, protocol)


def _wrong_answers(answers: Sequence[Answer], expected: Owner) -> list[str]:
    """Sentences about attempts that failed or that another node than the expected one answered."""
    faults = []
    for a in answers:
        node = expected(a.source, a.source_port)
        if a.node != node:
            faults.append(f"{a.source}:{a.source_port} should reach {node}: it got {a.node or a.error}")
    return faults


def _wrong_senders(
    lan: Lan,
    clusterip: ClusterIP,
    answers: Sequence[Answer],
    port: int,
    answered: Mapping[Flow, Sequence[str]],
    expected: Owner,
    asked: Mapping[Flow, Sequence[str]] | None = None,
) -> list[str]:
    """Sentences about flows that were not answered once by the expected node, as the wire has it.

    Once for each SYN where `asked` has them: a SYN that was sent again may be answered again.
    """
    faults = []
    for a in answers:
        flow = Flow(a.source, a.source_port, str(clusterip.spec.ip), port)
        who = [lan.owner_of(mac) for mac in answered.get(flow, [])]
        times = len(asked.get(flow, [])) if asked is not None else 1
        node = expected(a.source, a.source_port)
        if set(who) != {node} or len(who) > max(times, 1):
            faults.append(f"{a.source}:{a.source_port} was answered by {who} on the wire, not once by {node}")
    return faults
