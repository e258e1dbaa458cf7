"""Runs in a node's namespace: the memberships of many nodes in one process, which speak by one interface.

Started by `bench.segment`, never imported: `peers_inside.py INTERFACE KEY_FILE FIRST LAST` is the nodes pFIRST to
pLAST, whose incarnations are their numbers. They have no kernel: each says at once that it follows what its
membership has decided. Commands, one a line, are answered by a line:

    learn DIRECTORY   hold the epochs of what is new there    how many there are, once each has them in use
    silence NODE      say nothing more in its name            when its last frame went (CLOCK_MONOTONIC)
    heard NODE        what came by the wire since last time   seconds, frames of that node, bytes of the largest of all
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path

from lbless_api.clusterip import parse_clusterip
from lbless_api.heartbeat import Heartbeat, node_id
from lbless_api.heartbeat_frame import encode, parse, stamp
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.keyfile import load_keys
from lbless_nodeagent.dataplane.membership import Epoch, Kept, Membership, Times, epoch_of
from lbless_nodeagent.dataplane.tick.wire import Wire

TICK_SECONDS = 0.1
LEARNT_AT_ONCE = 16
"""Epochs between two looks at the wire: to learn a thousand takes each node 0.1 s, and here are all of them."""
REST_SECONDS = 0.002


def now() -> float:
    """The clock of membership."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Node:
    """One of them."""

    def __init__(self, name: str, incarnation: int, begins: float) -> None:
        self.membership = Membership(name, incarnation, Times.of_tick(TICK_SECONDS), begins)
        self.wake = begins
        self.sent_at = 0.0
        self._version = 0

    def turn(self) -> tuple[Heartbeat, ...]:
        """What it says now."""
        membership = self.membership
        turn = membership.tick(now())
        if turn.view.version != self._version:
            self._version = turn.view.version
            for uid, use in turn.view.use.items():
                membership.applied(uid, Kept(use.epoch, owns=use.epoch > 0, ready=use.epoch))
            membership.followed_view(self._version)
        self.wake = turn.wake
        return turn.heartbeats

    def uses(self, epochs: int) -> bool:
        """Whether so many ClusterIPs have an epoch in use."""
        return sum(s.kernel_epoch > 0 for s in self.membership.standings.values()) == epochs


class Segment:
    """All of them, and the wire to the others."""

    def __init__(self, interface: str, keys: tuple[bytes, ...], numbers: range) -> None:
        self._wire = Wire(interface, socket.if_nametoindex(interface))
        self._keys = keys
        begins, step = now(), TICK_SECONDS / len(numbers)
        self._nodes = {f"p{i}": Node(f"p{i}", i, begins + step * k) for k, i in enumerate(numbers)}
        self._unlearnt: deque[Epoch] = deque()
        self._known: set[Path] = set()
        self._learning = 0
        self._heard_since = time.monotonic()
        self._heard: list[tuple[bytes, int]] = []
        """Whose each frame was, and its bytes."""

    def run(self) -> None:
        """Go on until stdin ends."""
        poll = select.poll()
        poll.register(self._wire.fileno(), select.POLLIN)
        poll.register(0, select.POLLIN)
        os.set_blocking(0, False)
        while True:
            wake = min(node.wake for node in self._nodes.values()) if not self._unlearnt else 0
            ready = dict(poll.poll(max(0.0, wake - now()) * 1000 + 0.5))
            if 0 in ready:
                written = os.read(0, 65536)
                if not written:
                    return
                for line in written.decode().splitlines():
                    self._obey(*line.split(maxsplit=1))
            self._hear()
            self._learn()
            for node in self._nodes.values():
                if node.membership.stirred or now() >= node.wake:
                    self._speak(node)
            time.sleep(REST_SECONDS)

    def _obey(self, command: str, argument: str = "") -> None:
        if command == "learn":
            for path in set(Path(argument).glob("*.json")) - self._known:
                self._known.add(path)
                self._unlearnt.append(epoch_of(parse_clusterip(files.read_json(path))))
            self._learning = len(self._known)
        elif command == "silence":
            print(self._nodes.pop(argument).sent_at, flush=True)
        elif command == "heard":
            at, node = time.monotonic(), node_id(argument)
            frames = sum(sender == node for sender, _ in self._heard)
            print(
                at - self._heard_since, frames, max((size for _, size in self._heard), default=0), flush=True
            )
            self._heard_since, self._heard = at, []

    def _hear(self) -> None:
        drained = self._wire.drain()
        ahead = now() - time.monotonic()
        for frame in drained.frames:
            self._heard.append((stamp(frame.payload, self._keys).node, len(frame.payload)))
            message = parse(frame.payload)
            if isinstance(message, Heartbeat):
                for node in self._nodes.values():
                    node.membership.heard(message, frame.at_ns / 1e9 + ahead)

    def _speak(self, speaker: Node) -> None:
        for heartbeat in speaker.turn():
            self._wire.send(encode(heartbeat, self._keys[0]))
            speaker.sent_at = time.monotonic()
            for node in self._nodes.values():
                if node is not speaker:
                    node.membership.heard(heartbeat, now())

    def _learn(self) -> None:
        for _ in range(min(LEARNT_AT_ONCE, len(self._unlearnt))):
            epoch = self._unlearnt.popleft()
            for node in self._nodes.values():
                node.membership.learn(epoch, now())
        awaited = self._learning if not self._unlearnt else 0
        if awaited and all(node.uses(awaited) for node in self._nodes.values()):
            print(awaited, flush=True)
            self._learning = 0


if __name__ == "__main__":
    # What 15 nodes know of a thousand ClusterIPs takes a second to look through, in which all of them would be silent.
    gc.disable()
    Segment(sys.argv[1], load_keys(Path(sys.argv[2])), range(int(sys.argv[3]), int(sys.argv[4]) + 1)).run()
