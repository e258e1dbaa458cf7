"""The control plane's programs: where each is found, which is good enough, and the cache; gobuild builds.

`python -m lab.programs` finds or builds all of them and prints where they are.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from lab import gobuild
from lab.errors import LabError, exit_code
from lab.progress import Progress

# Directories that the user names; $KUBEBUILDER_ASSETS is where controller-runtime's tools keep theirs.
EXPLICIT_DIRECTORIES = ("KUBEBUILDER_ASSETS", "LBLESS_PROGRAMS")
OLDEST_KUBERNETES = (1, 32)
OLDEST_ETCD = (3, 4)

KUBERNETES = gobuild.Source(
    name="kubernetes",
    version="1.36.3",
    # Without it the programs call themselves v0.0.0-master and clients refuse to talk to them.
    linker_flags="-X k8s.io/component-base/version.gitVersion=v1.36.3",
)
ETCD = gobuild.Source(name="etcd", version="3.6.5", linker_flags="")


@dataclass(frozen=True)
class Program:
    """One program: the Go package that it is built from and how it says its version."""

    name: str
    source: gobuild.Source
    package: str
    version_arguments: tuple[str, ...]
    oldest: tuple[int, int]


PROGRAMS = (
    Program("etcd", ETCD, "go.etcd.io/etcd/server/v3", ("--version",), OLDEST_ETCD),
    *(
        Program(name, KUBERNETES, f"k8s.io/kubernetes/cmd/{name}", ("--version",), OLDEST_KUBERNETES)
        for name in ("kube-apiserver", "kube-controller-manager", "kube-proxy")
    ),
    Program(
        "kubectl", KUBERNETES, "k8s.io/kubernetes/cmd/kubectl", ("version", "--client"), OLDEST_KUBERNETES
    ),
)


@dataclass(frozen=True)
class Programs:
    """Paths of programs that were seen to run."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_proxy: Path
    kubectl: Path


def cache_directory() -> Path:
    """Return lbless's cache: $LBLESS_CACHE, else $XDG_CACHE_HOME/lbless, else ~/.cache/lbless."""
    if chosen := os.environ.get("LBLESS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lbless"


def find(progress: Progress | None = None) -> Programs:
    """Return all programs, building what is nowhere found.

    Raises LabError for an explicit directory that is none, and where building fails.
    """
    progress = progress or Progress()
    found = {program.name: path for program in PROGRAMS if (path := locate(program, progress))}
    if missing := [program for program in PROGRAMS if program.name not in found]:
        found |= _build(missing, progress)
    return Programs(
        etcd=found["etcd"],
        kube_apiserver=found["kube-apiserver"],
        kube_controller_manager=found["kube-controller-manager"],
        kube_proxy=found["kube-proxy"],
        kubectl=found["kubectl"],
    )


def locate(program: Program, progress: Progress) -> Path | None:
    """Return where `program` is: a directory the user names, the cache, for kubectl also $PATH; else None.

    One that does not run, or is older than lbless supports, is left out, and `progress` says so.
    """
    for path in _candidates(program):
        if not path.is_file():
            continue
        if reason := _unfit(program, path):
            progress.say(f"{path} is not used: {reason}")
            continue
        return path
    return None


def _candidates(program: Program) -> Iterator[Path]:
    for variable in EXPLICIT_DIRECTORIES:
        if directory := os.environ.get(variable):
            if not Path(directory).is_dir():
                raise LabError(
                    f"${variable} names {directory}, which is not a directory: unset it, "
                    f"or let it name the directory that holds {program.name}"
                )
            yield Path(directory) / program.name
    yield _cached(program)
    if program.name == "kubectl" and (on_path := shutil.which("kubectl")):
        yield Path(on_path)


def _cached(program: Program) -> Path:
    return cache_directory() / "programs" / program.source.label / program.name


def _unfit(program: Program, path: Path) -> str | None:
    """Return why the program at `path` cannot be used, None if it can."""
    try:
        answer = subprocess.run(
            [path, *program.version_arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not run ({error})"
    if answer.returncode != 0:
        return f"it cannot say its version (exit code {answer.returncode})"
    version = re.search(r"(\d+)\.(\d+)\.\d+", answer.stdout)
    if version is None:
        return "it says no version"
    if (int(version[1]), int(version[2])) < program.oldest:
        return f"it is version {version[0]}, at least {program.oldest[0]}.{program.oldest[1]} is needed"
    return None


def _build(missing: Sequence[Program], progress: Progress) -> dict[str, Path]:
    """Build `missing` into the cache and return the paths; what another process built meanwhile is taken."""
    root = cache_directory() / "programs"
    root.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    with only_builder(root, progress):
        still_missing = []
        for program in missing:
            if path := locate(program, progress):
                found[program.name] = path
            else:
                still_missing.append(program)
        go = gobuild.toolchain(root, progress) if still_missing else None
        for source in (ETCD, KUBERNETES):
            wanted = [program for program in still_missing if program.source == source]
            if go is None or not wanted:
                continue
            with tempfile.TemporaryDirectory(dir=root, prefix=".building-") as directory:
                built = {program.name: Path(directory) / program.name for program in wanted}
                packages = {program.package: built[program.name] for program in wanted}
                gobuild.build(go, source, packages, log=root / f"{source.label}.log", progress=progress)
                for program in wanted:
                    if reason := _unfit(program, built[program.name]):
                        raise LabError(f"{program.name} was built from {source.label}, but {reason}")
                    target = _cached(program)
                    target.parent.mkdir(exist_ok=True)
                    built[program.name].rename(target)
                    found[program.name] = target
    return found


@contextmanager
def only_builder(root: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock, so that two builds do not collide and the second finds what the first made."""
    with (root / ".lock").open("w") as lock:

        def locked() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        progress.until(
            f"another build that holds {root}/.lock", locked, timeout_seconds=1800, interval_seconds=0.2
        )
        yield


def main() -> int:
    """Find or build everything; the exit code of `python -m lab.programs`."""
    return exit_code(lambda: print(*astuple(find()), sep="\n"), "what was built so far stays in the cache")


if __name__ == "__main__":
    sys.exit(main())
