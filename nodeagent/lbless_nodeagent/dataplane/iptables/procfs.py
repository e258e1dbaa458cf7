"""The CLUSTERIP target's own files: which nodes an address has at run time, read and changed one by one."""

from __future__ import annotations

import errno
import os
from ipaddress import IPv4Address
from pathlib import Path

from lbless_api.buckets import BucketSet
from lbless_nodeagent.dataplane.engine import EngineError

DIRECTORY = Path("/proc/net/ipt_CLUSTERIP")
_MAX_BYTES = 4096


def read() -> dict[IPv4Address, BucketSet]:
    """Each address's buckets, node numbers less one; nothing where the kernel has no such target."""
    found: dict[IPv4Address, BucketSet] = {}
    try:
        names = os.listdir(DIRECTORY)
    except OSError:
        return found
    for name in names:
        try:
            ip = IPv4Address(name)
            nodes = (DIRECTORY / name).read_text(encoding="ascii")
            found[ip] = BucketSet(int(node) - 1 for node in nodes.strip().split(",") if node)
        except (OSError, ValueError):
            continue  # it went just now, or is nothing that this engine could have made
    return found


def change(ip: IPv4Address, gained: BucketSet, lost: BucketSet) -> None:
    """Take `lost` from the address's buckets, then give it `gained`; raises EngineError at the first refusal.

    Each one is a write of its own, so that what another changed meanwhile is no error: it is read back later.
    """
    for sign, buckets in (("-", lost), ("+", gained)):
        for bucket in buckets:
            try:
                _write(DIRECTORY / str(ip), f"{sign}{bucket + 1}")
            except OSError as error:
                # ENOENT and ENOMEM are what the target answers for "not there" and "there already".
                if error.errno in {errno.ENOENT, errno.ENOMEM} and (DIRECTORY / str(ip)).exists():
                    continue
                raise EngineError(
                    f"{ip}: the CLUSTERIP target does not take {sign}{bucket + 1}: {error.strerror}."
                ) from error


def _write(path: Path, text: str) -> None:
    # Not through Python's buffer: that hides the answer until the file is closed.
    opened = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(opened, text.encode("ascii"))
    finally:
        os.close(opened)
