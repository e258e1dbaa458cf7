"""Files on a disk that may be full, read-only or hold garbage, and the clock that they are dated by.

Owns writing so that a reader sees the old or the new content and nothing between, reading so that every
fault is one sentence, the lock that keeps a second process away, and the boot's id and clock. What the
files mean is `lbless_api.state`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from pathlib import Path

from lbless_api.fields import Invalid

MAX_BYTES = 16 * 1024 * 1024
"""More than the largest ClusterIP can take (64 nodes with every second of 4096 buckets: 1 MB)."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class UnwritableError(Exception):
    """A file could not be written, removed or locked; the message is one sentence."""


class LockedError(Exception):
    """Another process holds the lock; the message is one sentence."""


def boot_id() -> str:
    """The kernel's random id of this boot, equal in every container of the machine."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def boottime_seconds() -> float:
    """CLOCK_BOOTTIME: seconds since boot, also those spent suspended. Every process reads the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_bytes(path: Path) -> bytes:
    """Return a regular file's content; raises FileNotFoundError, and Invalid for every other fault."""
    try:
        # O_NONBLOCK: a fifo put there by mistake must not hang the reader.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Invalid(f"{path} is not a regular file: remove it.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise Invalid(f"{path} is larger than {MAX_BYTES} bytes: remove it.")
    return content


def read_json(path: Path) -> object:
    """Return what a JSON file holds; raises FileNotFoundError, and Invalid for every other fault."""
    return parse_json(path, read_bytes(path))


def parse_json(path: Path, content: bytes) -> object:
    """Return what the content of a JSON file says; raises Invalid, naming the file."""
    if not content:
        raise Invalid(f"{path} is empty: its writer was interrupted, or it was truncated.")
    try:
        value: object = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # ValueError covers malformed JSON, malformed UTF-8 and integers of thousands of digits.
        fault = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid(f"{path} is not valid JSON ({fault}): it was truncated or edited by hand.") from None
    return value


def read_text(path: Path) -> str:
    """Return a file's ASCII text (a boot id, an intent) without white space around it.

    Raises FileNotFoundError, and Invalid for every other fault.
    """
    content = read_bytes(path)
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError:
        raise Invalid(f"{path} is not ASCII text: it was truncated or edited by hand.") from None


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file's content at once: a reader, also after a crash, sees the old or the new one.

    `durable` waits until the disk has it, so that it survives a power cut. Without, it still survives the
    end of this process, and a slow disk delays nobody. Raises UnwritableError; the old content then stays,
    unless it was only the directory that could not be synced.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_temporary(temporary, content, durable=durable)
        os.replace(temporary, path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(
            OSError
        ):  # the fault that counts is being reported; the next write replaces it
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def check_room(path: Path, size: int) -> None:
    """Try whether a file could be replaced by another of `size` bytes, and leave it as it is.

    Raises UnwritableError, as writing it would.
    """
    temporary = path.with_name(f".{path.name}.probe")
    try:
        try:
            _write_temporary(temporary, bytes(size), durable=False)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Replace a file by a JSON value, as `write_bytes` does."""
    content = json.dumps(value, separators=(",", ":")) + "\n"
    write_bytes(path, content.encode("ascii"), durable=durable)


def remove(path: Path, *, durable: bool = True) -> None:
    """Remove a file if it is there; raises UnwritableError."""
    try:
        path.unlink(missing_ok=True)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise UnwritableError(
            f"{path} cannot be removed ({error.strerror}): check that its file system is writable."
        ) from None


def make_directory(path: Path) -> None:
    """Make a directory and its parents if absent, and check its permissions; raises UnwritableError."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(0, "permission denied or read-only file system")
    except OSError as error:
        raise UnwritableError(
            f"Directory {path} cannot be used ({error.strerror}): name a writable one with --state-dir."
        ) from None


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory survive a power cut; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, program: str) -> int:
    """Take an exclusive lock on a file and return its descriptor; the lock lasts until that is closed.

    Raises LockedError if another process has it, UnwritableError if the file cannot be made. The kernel
    releases the lock however the process ends.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600)
    except OSError as error:
        raise UnwritableError(
            f"Lock file {path} cannot be opened ({error.strerror}): check the directory."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LockedError(
            f"Another {program} uses {path.parent}: stop it first, or name another --state-dir."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise UnwritableError(
            f"Lock file {path} cannot be locked ({error.strerror}): use a local file system."
        ) from None
    return descriptor


def _write_temporary(path: Path, content: bytes, *, durable: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, mode=0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(descriptor)


def _unwritable(path: Path, error: OSError) -> UnwritableError:
    return UnwritableError(
        f"{path} cannot be written ({error.strerror}): its file system needs space and write access."
    )


def _unreadable(path: Path, error: OSError) -> Invalid:
    return Invalid(f"{path} cannot be read ({error.strerror}): check its permissions and the disk.")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
