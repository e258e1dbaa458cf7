"""The tick process as the programming process has it: started, spoken to, and its end noticed.

Owns the child and the channel. What is said is `tick.messages`', what follows from it `shares`'.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

from lbless_nodeagent.dataplane.channel import Channel, Closed
from lbless_nodeagent.dataplane.tick.messages import Begin, ToTick

_MODULE = "lbless_nodeagent.dataplane.tick"
MESSAGES_AT_ONCE = 256
_END_SECONDS = 5.0


class TickEndedError(Exception):
    """The tick process ended by itself; the message is one sentence."""


class TickProcess:
    """The child. When this process ends, however it does, the child sees that and ends too."""

    def __init__(self, begin: Begin) -> None:
        """Start it."""
        ours, theirs = Channel.pair()
        with theirs:
            # In a group of its own: Ctrl-C is for this process, which ends the child when the peers know of it.
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
            self._child = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0
            )
        self._channel = Channel(ours)
        self.send(begin)

    def fileno(self) -> int:
        """For poll()."""
        return self._channel.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether something waits until the descriptor is writable: call `receive` then, too."""
        return self._channel.is_blocked

    def send(self, message: ToTick) -> None:
        """Send it. If the process has ended, `receive` says so."""
        with suppress(Closed):
            self._channel.send(message)

    def receive(self) -> list[object]:
        """Return what it has sent; raises TickEndedError where no more comes."""
        with suppress(Closed):
            self._channel.flush()
        messages: list[object] = []
        try:
            messages = self._channel.receive(MESSAGES_AT_ONCE)
            while self._channel.has_more:
                messages += self._channel.receive(MESSAGES_AT_ONCE)
        except Closed:
            if not messages:
                raise TickEndedError(self._how()) from None
        return messages

    def close(self) -> None:
        """End it, by closing its channel."""
        self._channel.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _how(self) -> str:
        try:
            status = self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "The tick process closed its channel: this node no longer serves."
        return f"The tick process ended with status {status}: this node no longer serves."
