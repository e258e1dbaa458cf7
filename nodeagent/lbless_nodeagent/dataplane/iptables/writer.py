"""The engine's end of the child that writes: one process an order, the next one started ahead and waiting.

Owns the processes and what their ends mean. python-iptables takes 0.2 s to load, which a repair has not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lbless_nodeagent.dataplane.engine import EngineBusyError, EngineError

SECONDS = 20.0
"""How long a child may take: the lock's 4 s, and then more than hundreds of addresses need on a slow machine."""
REFUSED, BUSY = 1, 3
"""A child's exit statuses with a sentence on standard output; 3: nothing was tried, whatever is wanted."""

_COMMAND = [sys.executable, "-P", "-m", f"{__package__}.child"]  # -P: nothing from the working directory
_ENVIRONMENT = {"SETUPTOOLS_USE_DISTUTILS": "stdlib"}
"""python-iptables wants one function of distutils: without setuptools in place of it it loads twice as fast."""


class Writer:
    """Has orders done, each by a child of its own. Opens nothing before it is used."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._command = command or _COMMAND
        self._waiting: subprocess.Popen[bytes] | None = None

    def do(self, order: Mapping[str, object]) -> dict[str, Any]:
        """Have it done and return the answer; raises EngineError."""
        child = self._take()
        try:
            answer, said = child.communicate(json.dumps(order).encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            _end(child)
            raise EngineBusyError(
                f"Writing the iptables rules took longer than {SECONDS:.0f} s: the kernel has the old rules or the "
                f"new ones; see what keeps this node busy."
            ) from None
        if child.returncode in {REFUSED, BUSY} and answer:
            kind = EngineBusyError if child.returncode == BUSY else EngineError
            raise kind(answer.decode(errors="replace").strip())
        with suppress(ValueError):
            value = json.loads(answer) if child.returncode == 0 else None
            if isinstance(value, dict):
                return value
        last = (said.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:200]
        raise EngineError(
            f"Writing the iptables rules ended with {_status(child.returncode)} ({last}): "
            f"the kernel has the old rules or the new ones."
        )

    def prepare(self) -> None:
        """Have the next order's child wait for it."""
        if self._waiting is None or self._waiting.poll() is not None:
            self.close()
            with suppress(EngineError):  # then the order itself says so
                self._waiting = self._start()

    def close(self) -> None:
        """Send the waiting child home."""
        if self._waiting:
            _end(self._waiting)
            self._waiting = None

    def _take(self) -> subprocess.Popen[bytes]:
        taken, self._waiting = self._waiting, None
        if taken and taken.poll() is None:
            return taken
        if taken:
            _end(taken)
        return self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [*self._command, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT},
            )
        except OSError as error:
            raise EngineError(
                f"The program that writes iptables rules cannot be started: {error.strerror}."
            ) from error


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            with suppress(OSError):
                pipe.close()
    child.wait()


def _status(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
