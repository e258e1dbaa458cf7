"""A small file system of its own over a directory: to be filled, made read-only, and put right again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from lab.errors import LabError

_FILLER = ".filler"


class Disk:
    """`with Disk(directory) as disk:` mounts it with what the directory holds; the end puts that back."""

    def __init__(self, directory: Path, *, kib: int = 1024) -> None:
        self.directory = directory
        self._kib = kib
        self._filler = directory / _FILLER
        self._mounts = 0

    def __enter__(self) -> Disk:
        before = self.directory.with_name(f"{self.directory.name}.before")
        self.directory.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.directory, before)
        _run("mount", "-t", "tmpfs", "-o", f"size={self._kib}k", "lbless-lab", str(self.directory))
        self._mounts += 1
        try:
            shutil.copytree(before, self.directory, dirs_exist_ok=True)
        except BaseException:
            self._unmount()
            raise
        shutil.rmtree(before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        after = self.directory.with_name(f"{self.directory.name}.after")
        shutil.copytree(self.directory, after, ignore=shutil.ignore_patterns(_FILLER))
        for _ in range(self._mounts):
            self._unmount()
        shutil.rmtree(self.directory)
        after.rename(self.directory)

    def fill(self) -> None:
        """Leave no room for a single byte more."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink()

    def make_read_only(self) -> None:
        """Refuse every write by name, also where a program keeps a file open for writing."""
        # A remount would wait for such a file; the same directory mounted over itself has none.
        _run("mount", "--bind", str(self.directory), str(self.directory))
        self._mounts += 1
        _run("mount", "-o", "remount,bind,ro", str(self.directory))

    def make_writable(self) -> None:
        """Take writes again."""
        self._unmount()

    def _unmount(self) -> None:
        # Lazily, since a program that still runs there must not keep it.
        _run("umount", "--lazy", str(self.directory))
        self._mounts -= 1


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
