"""When the rules of a node changed, as its kernel told a program in its namespace."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from lab.errors import LabError
from lab.host import Host

QUIET_SECONDS = 0.4
"""So long after a node's last change of rules there was no other in any run."""
CHANGE_SECONDS = 20


class Changes:
    """When a node's rules changed, as its kernel told."""

    def __init__(self, node: Host) -> None:
        program = Path(__file__).parent / "changes_inside.py"
        self._node = node
        self._process = node.popen(
            [sys.executable, program],
            stdout=subprocess.PIPE,
            log="changes",
            environment={"PYTHONPATH": "tests"},
        )
        if self._line(CHANGE_SECONDS) != "ready":
            raise LabError(f"the rules of {node.name} cannot be watched: {node.last_words('latency')}")

    def close(self) -> None:
        """End the watching."""
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Drop what was heard so far."""
        while self._line(0):
            pass

    def await_quiet(self) -> float:
        """Wait for a change and then for the last one; return when that was."""
        last = self._line(CHANGE_SECONDS)
        if not last:
            raise LabError(f"the rules of {self._node.name} did not change within {CHANGE_SECONDS} s")
        while line := self._line(QUIET_SECONDS):
            last = line
        return float(last)

    def quiet_since(self) -> float | None:
        """Wait until there was no change for a while; return when the last one was, None if there was none."""
        last = None
        while line := self._line(QUIET_SECONDS):
            last = float(line)
        return last

    def _line(self, seconds: float) -> str:
        """The next line, empty if none comes in time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while select.select([descriptor], [], [], seconds)[0]:
            written = os.read(descriptor, 65536)
            if not written:
                raise LabError(
                    f"watching the rules of {self._node.name} ended: {self._node.last_words('latency')}"
                )
            if lines := written.decode().split():
                return lines[-1]
        return ""
