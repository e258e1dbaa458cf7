"""One step of building something in the cache: a program in a cage, whose mounts and processes end with this process.

What is built, and where it is kept, is the callers'.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.progress import Progress

BUILD_SECONDS = 1800
_CAGE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


def run_step(
    command: Sequence[str],
    what: str,
    log: Path,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` to its end, in mount and PID namespaces of its own; what it says goes to the end of `log`.

    `environment` is all of it, by default this process' own. Raises LabError with the last line where it fails.
    """
    with log.open("a") as stream:
        process = subprocess.Popen(
            [*_CAGE, *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
        try:
            progress.until(
                f"{what} (what is done: {log})",
                lambda: process.poll() is not None,
                timeout_seconds=BUILD_SECONDS,
                interval_seconds=0.2,
            )
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode != 0:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise LabError(f"cannot build {what}, {command[0]} failed: {last}; all of it is in {log}")
