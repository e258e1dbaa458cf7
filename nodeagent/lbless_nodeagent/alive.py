"""A file that a program touches while it does its work, and the program that looks at it: for liveness probes.

Owns both ends. A probe starts `lbless-alive` every few seconds, so nothing is imported here that takes time.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress


class AliveFile:
    """Touched by whoever lives. On a file system in memory: a full disk is no reason to restart anything."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        """`path` None: there is no probe."""
        self._path = path

    def touch(self) -> None:
        """This program does its work at this moment. Never raises: the probe says that it finds nothing."""
        if self._path is None:
            return
        with suppress(OSError):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def why_dead(path: str, seconds: float, now: float) -> str:
    """One sentence why who touches `path` counts as dead at `now` (Unix time), empty if it lives."""
    try:
        age = now - os.stat(path).st_mtime
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror}): its program has not started, or cannot write there"
    return f"{path} was touched {age:.0f} s ago: its program hangs" if age > seconds else ""


def main() -> int:
    """`lbless-alive FILE SECONDS`: exit status 0 if FILE was touched within SECONDS, else 1 and a sentence."""
    arguments = sys.argv[1:]
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print("usage: lbless-alive FILE SECONDS", file=sys.stderr)
        return 2
    reason = why_dead(arguments[0], float(arguments[1]), time.time())
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
