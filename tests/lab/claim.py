"""Claims: which process owns the names that begin with a prefix, and the removal of everything so named.

A claim is a locked file, so it ends with its process however that dies; the next claim of any prefix then removes
what is left. What the namespaces contain is `lan`'s.
"""

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TextIO

from lab.errors import LabError
from lab.interrupts import deferred

# Gone after a reboot, as namespaces are.
CLAIMS = Path("/run/lbless-lab")
NAMESPACES = Path("/run/netns")
# Without a dash: the dash ends it, so no prefix is the beginning of another's names.
PREFIX = re.compile(r"[a-z][a-z0-9]{0,15}")

# Another process may hold a dead lab's lock for as long as it takes to remove that.
LOCK_SECONDS = 2.0


class Claim:
    """The right to every namespace `<prefix>-…`, and a directory for files that go with them."""

    def __init__(self, prefix: str) -> None:
        """Take the prefix, removing what runs that were killed have left.

        Raises LabError if it is malformed, if this is not root, or if a running process holds it.
        """
        if not PREFIX.fullmatch(prefix):
            raise LabError(f"{prefix!r} cannot be a lab's prefix: use up to 16 lower-case letters and digits")
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces and needs root: run it with sudo")
        self.prefix = prefix
        self.directory = CLAIMS / prefix
        self._lock: TextIO | None = None
        CLAIMS.mkdir(mode=0o700, exist_ok=True)
        try:
            with deferred():
                _sweep(prefix)
                self._lock = _await_lock(prefix)
                _remove(prefix)
                self.directory.mkdir(mode=0o700)
        except BaseException:
            self.release()
            raise

    def keep(self) -> None:
        """Let what is claimed outlive this process, until the prefix is claimed again or removed."""
        (self.directory / "kept").touch()

    @property
    def kept(self) -> bool:
        """Whether `keep` was called."""
        return is_kept(self.prefix)

    def release(self) -> None:
        """Remove everything of the prefix (unless it is kept) and give the prefix back; more calls do nothing."""
        if self._lock is None:
            return
        with deferred():
            if self.kept:
                self._lock.close()
            else:
                _remove(self.prefix)
                _unlock(self.prefix, self._lock)
            self._lock = None


def unique(name: str) -> str:
    """Return a prefix that begins with `name` (up to 9 letters) and that no other running process would choose."""
    return f"{name}{os.getpid():x}"


def is_kept(prefix: str) -> bool:
    """Return whether a lab was left up on purpose."""
    return (CLAIMS / prefix / "kept").exists()


def remove(prefix: str) -> None:
    """Remove a lab that was kept or whose process was killed. Raises LabError while its process runs."""
    claim = Claim(prefix)
    claim.release()


def namespaces(prefix: str) -> list[str]:
    """Return the names of the prefix's namespaces."""
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}-*"))


def processes(prefix: str) -> list[int]:
    """Return the ids of the processes that run in the prefix's namespaces."""
    wanted = {f"net:[{inode}]" for inode in _inodes(prefix)}
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _network(int(path.name)) in wanted]


def _sweep(own: str) -> None:
    """Remove the labs of all other prefixes whose process has ended and that were not kept."""
    for path in CLAIMS.glob("*.lock"):
        prefix = path.stem
        if prefix == own or is_kept(prefix) or not _holder(prefix):
            continue
        if lock := _lock(prefix):
            _remove(prefix)
            _unlock(prefix, lock)


def _await_lock(prefix: str) -> TextIO:
    """Return the locked file of the prefix. Raises LabError if a process holds it and goes on to."""
    deadline = time.monotonic() + LOCK_SECONDS
    while (lock := _lock(prefix)) is None:
        if time.monotonic() >= deadline:
            raise LabError(
                f"a lab with the prefix {prefix} is up, owned by process {_holder(prefix) or 'unknown'}: "
                "end that process, or choose another prefix"
            )
        time.sleep(0.05)
    return lock


def _remove(prefix: str) -> None:
    """Kill what runs in the prefix's namespaces, then remove these and its directory."""
    for attempt in range(100):
        living = processes(prefix)
        if not living:
            break
        if attempt:
            time.sleep(0.02)
        for pid in living:
            _kill(pid, prefix)
    else:
        raise LabError(f"processes {living} in the namespaces {prefix}-* cannot be killed: end them by hand")
    if names := namespaces(prefix):
        commands = "".join(f"netns delete {name}\n" for name in names)
        subprocess.run(
            ["ip", "-batch", "-"],
            input=commands,
            text=True,
            check=True,
            timeout=60,
            start_new_session=True,  # out of reach of the Ctrl-C that this may be the answer to
        )
    for mount in _mounts(CLAIMS / prefix):
        subprocess.run(["umount", "--lazy", mount], check=False, timeout=10)
    shutil.rmtree(CLAIMS / prefix, ignore_errors=True)
    if (CLAIMS / prefix).exists():
        raise LabError(f"{CLAIMS / prefix} cannot be removed: remove it by hand")


def _mounts(directory: Path) -> list[str]:
    """What is mounted below a directory, the last first: a small disk of a lab that was killed, say."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in reversed(places) if place.startswith(f"{directory}/")]


def _kill(pid: int, prefix: str) -> None:
    """Kill one process of the prefix's namespaces and wait up to 5 s for its end."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The number may by now be another process's; the descriptor is not moved by that.
        if _network(pid) in {f"net:[{inode}]" for inode in _inodes(prefix)}:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 5)
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _inodes(prefix: str) -> list[int]:
    inodes = []
    for name in namespaces(prefix):
        try:
            inodes.append((NAMESPACES / name).stat().st_ino)
        except FileNotFoundError:
            continue  # its owner is removing it at this moment
    return inodes


def _network(pid: int) -> str | None:
    """Return the network namespace of a process as /proc names it; None once it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def _lock(prefix: str) -> TextIO | None:
    """Return the locked file of the prefix, None if a process holds it."""
    path = CLAIMS / f"{prefix}.lock"
    while True:
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        try:
            # Between opening and locking, its former holder may have removed the file.
            current = path.stat().st_ino == os.fstat(lock.fileno()).st_ino
        except FileNotFoundError:
            current = False
        if current:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            return lock
        lock.close()


def _unlock(prefix: str, lock: TextIO) -> None:
    (CLAIMS / f"{prefix}.lock").unlink(missing_ok=True)
    lock.close()


def _holder(prefix: str) -> str:
    """Return the id of the process that holds or held the prefix; empty where it is just being locked or given back."""
    try:
        return (CLAIMS / f"{prefix}.lock").read_text()
    except FileNotFoundError:
        return ""
