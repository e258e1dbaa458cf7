"""Takeover at the size that is promised: 16 nodes, a thousand ClusterIPs of 16 buckets, heartbeats ten times a second.

Two processors carry no 16 dataplanes with a thousand addresses each. So one is real, and measured; the other 15
nodes are their memberships in two processes (`peers_inside`), which say to it what 15 dataplanes would. In one process
each would wait with its heartbeats until all others have decided what follows a death, and be taken for dead itself.
Then three real ones, one of which is killed.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

from bench.changes import Changes
from bench.measure import Row
from kernel.dataplane import Dataplane
from kernel.membersegment import KEY
from lab import claim, usage
from lab.errors import LabError
from lab.host import Host
from lab.kernelstate import leases, shares
from lab.lan import Lan
from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import node_id
from lbless_api.state import render_complete
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.membership import Use, View, epoch_of, owned
from unit.stateobjects import clusterip, desired_json

ADDRESSES, NODES, BUCKETS = 1000, 16, 16
AT_ONCE = 20
ROUNDS = 5
IDLE_SECONDS = 90.0
"""At rest a node makes a thorough pass, and one that audits, at most once in 30 s: several are in the average."""
FIRST = IPv4Address("10.80.16.0")
SETTLE_SECONDS = 180.0
FRAME_BYTES, IDLE_PERCENT, TAKEOVER_MS = 1400, 3, 1200
Shares = Mapping[str, str]


def rows() -> Iterator[Row]:
    """Measure what all 16 say and cost at rest, then takeovers among them, then among three real ones."""
    if os.geteuid() != 0:
        raise LabError("dataplanes need root and network namespaces: run make bench as root")
    yield from _one_among_peers()
    yield from _three()


def _one_among_peers() -> Iterator[Row]:
    size = f"segment: {NODES} nodes, {ADDRESSES} ClusterIPs"
    with Lan(claim.unique("lbseg"), nodes=3) as lan, ExitStack() as stack:
        measured, peers = _Measured(lan.nodes[0], lan.directory / "n1"), _Peers(lan.nodes[1:], NODES - 1)
        stack.callback(measured.end)
        stack.callback(peers.end)
        lives = {measured.name: measured.incarnation, **peers.incarnations}
        names = list(lives)
        given = [
            {name: str((number + i) % BUCKETS) for i, name in enumerate(names)} for number in range(ADDRESSES)
        ]
        # An epoch that not all have within 0.45 s has those act who have it; the peers learn slower than nodes do.
        for count in range(AT_ONCE, ADDRESSES + 1, AT_ONCE):
            peers.learn(measured.fill(given[:count], lives, since=count - AT_ONCE))
        measured.await_owned(given, lives)
        time.sleep(2)  # a span: what the start has left to do is not rest
        peers.heard(measured.name)
        spent = measured.cpu_seconds()
        began = time.monotonic()
        time.sleep(IDLE_SECONDS)  # the span that is measured
        took = time.monotonic() - began
        shares_of_core = [
            (after - before) / took * 100 for before, after in zip(spent, measured.cpu_seconds(), strict=True)
        ]
        seconds, frames = peers.heard(measured.name)
        yield Row(f"{size}, idle: frames of a node", "1/s", 11, (frames / seconds,))
        for what, percent in zip(("programming process", "tick process"), shares_of_core, strict=True):
            yield Row(f"{size}, idle: {what}", "% of a core", IDLE_PERCENT, (percent,))
        yield Row(f"{size}, idle: both processes", "% of a core", IDLE_PERCENT, (sum(shares_of_core),))
        samples = []
        for name in list(peers.incarnations)[:ROUNDS]:
            del lives[name]
            began = peers.silence(name)
            samples.append((measured.await_owned(given, lives) - began) * 1000)
            time.sleep(2)  # a span: the next one finds it at rest
        yield Row(f"{size} x {BUCKETS} buckets: takeover from one", "ms", TAKEOVER_MS, tuple(samples))
        yield Row(f"{size}: largest frame", "B", FRAME_BYTES, (peers.largest,))


def _three() -> Iterator[Row]:
    samples: list[float] = []
    with Lan(claim.unique("lbseg"), nodes=3) as lan, ExitStack() as stack:
        nodes = [_Measured(host, lan.directory / host.name) for host in lan.nodes]
        for node in nodes:
            stack.callback(node.end)
        for number in range(3):
            lives = {node.name: node.incarnation for node in nodes}
            given = [{"n1": "0-4", "n2": "5-9", "n3": "10-15"} for _ in range(ADDRESSES)]
            # As if each node's sync wrote at the same time: who lacks for long what the others hold counts as dead.
            for count in range(AT_ONCE, ADDRESSES + 1, AT_ONCE):
                for node in nodes:
                    node.fill(given[:count], lives, epoch=number + 1, since=count - AT_ONCE)
            for node in nodes:
                node.await_owned(given, lives)
            time.sleep(3)  # a span: the takeover finds them at rest
            victim, survivors = nodes[number], [node for node in nodes if node is not nodes[number]]
            del lives[victim.name]
            began = time.monotonic()
            victim.plane.kill()
            samples.append((max(node.await_owned(given, lives) for node in survivors) - began) * 1000)
            victim.plane.start()
    yield Row(
        f"segment: 3 dataplanes, {ADDRESSES} ClusterIPs x {BUCKETS} buckets: kill -9 of one",
        "ms",
        TAKEOVER_MS,
        tuple(samples),
    )


class _Measured:
    """A dataplane with heartbeats, its state directory filled as sync fills it, and what its kernel does."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self.name = host, host.name
        directory.mkdir()
        key_file = directory / "key"
        key_file.write_text(f"{KEY}\n")
        self.plane = Dataplane(host, directory, host.name, ("--key-file", str(key_file)))
        self.plane.complete()
        self.plane.start()
        self._changes = Changes(host)

    @property
    def incarnation(self) -> int:
        """Its present one."""
        return self.plane.observed().interfaces[0].incarnation

    def end(self) -> None:
        """Stop what runs."""
        self._changes.close()
        if self.plane.process and self.plane.process.poll() is None:
            self.plane.kill()

    def fill(
        self, given: Sequence[Shares], lives: Mapping[str, int], *, epoch: int = 1, since: int = 0
    ) -> Path:
        """Write an epoch of every ClusterIP, but not of the first ones before `since`; return where."""
        for number, shares_of_one in enumerate(given[since:], since):
            value = desired_json(
                *_names(number), shares_of_one, epoch=epoch, incarnations=lives, buckets=BUCKETS
            )
            files.write_json(self.plane.desired / f"{_names(number)[0]}.json", value, durable=False)
        complete = render_complete(files.boot_id(), (_names(number)[0] for number in range(len(given))))
        files.write_bytes(self.plane.desired / ".complete", complete.encode(), durable=False)
        return self.plane.desired

    def await_owned(self, given: Sequence[Shares], lives: Mapping[str, int]) -> float:
        """Wait until its kernel keeps its share where just these live; return when that was, at the latest
        change of its rules."""
        wanted = {
            ip: buckets
            for number, one in enumerate(given)
            for _, ip in [_names(number)]
            if (buckets := _share(number, one, lives, self.name))
        }
        deadline = time.monotonic() + SETTLE_SECONDS
        changed = 0.0
        while time.monotonic() < deadline:
            changed = self._changes.quiet_since() or changed
            running = leases(self.host)
            if (
                running
                and changed
                and wanted == {ip: s.buckets for ip, s in shares(self.host).items() if s.buckets}
            ):
                return changed
        raise LabError(f"{self.name} did not come to keep its share: {self.host.last_words('dataplane')}")

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far of the programming process and of the tick process."""
        assert self.plane.process is not None
        pid = self.plane.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return usage.cpu_seconds(pid), usage.cpu_seconds(int(child))


class _Peers:
    """The other nodes, a part of them on each of some hosts."""

    def __init__(self, hosts: Sequence[Host], count: int) -> None:
        self.incarnations = {f"p{number}": number for number in range(1, count + 1)}
        self.largest = 0.0
        self._processes: dict[range, subprocess.Popen[str]] = {}
        for number, host in enumerate(hosts):
            part = range(number * count // len(hosts) + 1, (number + 1) * count // len(hosts) + 1)
            self._processes[part] = self._start(host, part)

    def _start(self, host: Host, part: range) -> subprocess.Popen[str]:
        key_file = host.directory / f"peers-key-{host.name}"
        key_file.write_text(f"{KEY}\n")
        program = Path(__file__).parent / "peers_inside.py"
        return host.popen(
            [sys.executable, program, host.interface, key_file, str(part[0]), str(part[-1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            log="peers",
        )

    def end(self) -> None:
        """Stop them all."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def learn(self, directory: Path) -> None:
        """Have them hold the epochs in a directory, until all of them are in use."""
        self._ask(f"learn {directory}", list(self._processes.values()))

    def silence(self, name: str) -> float:
        """Power one of them off; returns when its last frame went, by time.monotonic."""
        number = self.incarnations[name]
        (process,) = (one for part, one in self._processes.items() if number in part)
        return float(self._ask(f"silence {name}", [process])[0])

    def heard(self, name: str) -> tuple[float, int]:
        """Since when, and how many frames came of a node from elsewhere."""
        said = [line.split() for line in self._ask(f"heard {name}", list(self._processes.values()))]
        self.largest = max(self.largest, *(float(largest) for *_, largest in said))
        seconds, frames, _ = said[0]
        return float(seconds), int(frames)

    def _ask(self, command: str, processes: Sequence[subprocess.Popen[str]]) -> list[str]:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{command}\n")
            process.stdin.flush()
        answers = []
        for process in processes:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], SETTLE_SECONDS)[0]:
                raise LabError(f"the peers do not come to an end with `{command}`")
            answers.append(process.stdout.readline())
        return answers


def _names(number: int) -> tuple[str, str]:
    """The UID and the address of a ClusterIP."""
    return f"00000000-0000-4000-8000-{number:012x}", str(FIRST + number)


def _share(number: int, given: Shares, lives: Mapping[str, int], name: str) -> BucketSet:
    """What a node owns of a ClusterIP where just these live."""
    incarnations = {node: lives.get(node, 1) for node in given}
    uid, ip = _names(number)
    epoch = epoch_of(clusterip(uid, ip, given, incarnations=incarnations, buckets=BUCKETS))
    living = frozenset((node_id(node), incarnation) for node, incarnation in lives.items())
    return owned(epoch, View(living=living, use={uid: Use(1, 1, gain=True)}), name)
