"""A program: the iptables engine's child, killed before its step of that number, from 0: `dying_child.py STEP`.

A step is whatever the kernel sees: taking the lock, a commit, a run of arptables, a write to procfs, and the
moment after each. `line:N` kills it before the N-th line that any module of the engine executes.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lbless_nodeagent.dataplane import iptables
from lbless_nodeagent.dataplane.iptables import child, procfs, write

PACKAGE = str(Path(iptables.__file__).parent)
STEPS: tuple[tuple[Any, str], ...] = (
    (fcntl, "flock"),
    (subprocess, "run"),
    (write.iptc.Table, "commit"),
    (procfs, "_write"),
)


def die_before(step: int) -> None:
    left = step

    def count() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count()
            value = original(*arguments, **named)
            count()
            return value

        return call

    for owner, name in STEPS:
        setattr(owner, name, dying(getattr(owner, name)))


def die_before_line(line: int) -> None:
    left = line

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)


if __name__ == "__main__":
    kind, _, number = sys.argv.pop(1).rpartition(":")
    die_before_line(int(number)) if kind else die_before(int(number))
    child.main()
