"""The key file: what heartbeats are signed with.

Owns its form and noticing that it changed. It is read by the process that may wait for a disk, never by the
tick. Without a key there are no heartbeats, and so no takeover in under a second: nobody on the segment
could tell a node from someone who says to be it. The operator's slow path, through the API server, needs none.

    # one key a line: 32 to 128 hexadecimal digits, or base64 of 16 to 64 bytes
    5f8a…   the first line signs
    93c1…   all verify

To exchange keys: add the new one as the second line on all nodes, then move it to the first on all, then
remove the old one. Nothing is taken over meanwhile.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from pathlib import Path

from lbless_api.fields import Invalid
from lbless_nodeagent.files import read_bytes

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 64
"""HMAC-SHA256 hashes what is longer, and gains nothing by it."""
MAX_KEYS = 4
"""Each costs a forged frame 2 µs."""

_MAX_FILE_BYTES = 16 * 1024
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)
_Stamp = tuple[int, int, int, int]


def load_keys(path: Path) -> tuple[bytes, ...]:
    """Return the keys of a file, the first of which signs.

    Raises Invalid, one sentence that says nothing of a key; also where there is no file.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise Invalid(
            f"Key file {path} does not exist: without it there are no heartbeats and no fast takeover."
        ) from None
    return parse_keys(content, str(path))


def parse_keys(content: bytes, where: str) -> tuple[bytes, ...]:
    """Return the keys that a file's content holds, each once; raises Invalid, naming `where`."""
    if len(content) > _MAX_FILE_BYTES:
        raise Invalid(f"Key file {where} is larger than {_MAX_FILE_BYTES} bytes: it holds one key a line.")
    keys: dict[bytes, None] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        written = line.partition("#")[0].strip()
        if written:
            keys[_key(written, f"Line {number} of key file {where}")] = None
    if not keys:
        raise Invalid(f"Key file {where} holds no key: write one with `openssl rand -hex 32`.")
    if len(keys) > MAX_KEYS:
        raise Invalid(f"Key file {where} holds {len(keys)} keys: at most {MAX_KEYS} are used at a time.")
    return tuple(keys)


class KeyFile:
    """A key file that is read again when it changes, also when it is a link that is turned to another file.

    A file that becomes bad changes nothing: the last good keys stay, and `problem` says why.
    """

    def __init__(self, path: Path) -> None:
        self.keys: tuple[bytes, ...] = ()
        self.problem = ""
        self._path = path
        self._seen: _Stamp | None = None
        self._tried = False

    def refresh(self) -> bool:
        """Read the file if it is another than before, which takes 2 µs to see; return whether the keys are."""
        # Before reading: what is written while it is read shows as a change the next time.
        seen = _stamp(self._path)
        if self._tried and seen == self._seen:
            return False
        self._tried, self._seen = True, seen
        try:
            keys = load_keys(self._path)
        except Invalid as error:
            self.problem = str(error)
            return False
        self.problem = ""
        changed = keys != self.keys
        self.keys = keys
        return changed


def _key(written: str, where: str) -> bytes:
    if _HEX.fullmatch(written):
        key = bytes.fromhex(written)
    else:
        try:
            key = b64decode(written, validate=True)
        except ValueError:
            raise Invalid(
                f"{where} is neither hexadecimal digits nor base64: write one with `openssl rand -hex 32`."
            ) from None
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise Invalid(
            f"{where} has {len(key)} bytes: a key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, best 32."
        )
    return key


def _stamp(path: Path) -> _Stamp | None:
    """What tells a file from another and from itself before a change; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
