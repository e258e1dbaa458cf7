"""lbless's own images: a root file system for each role, and the archive that a node's containerd imports.

Owns the cache of them, and Debian's system that they are built in, so that the host may be another. What is in them is
`helm/images/rootfs`' to say, which builds those that users pull as well. `python -m lab.images` builds them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import ociarchive
from lab.buildstep import run_step
from lab.errors import LabError, exit_code
from lab.programs import cache_directory, only_builder
from lab.progress import Progress

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "helm/images"
PINNED = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
OWN = tuple(ROOT / name for name in ("crds/lbless_api", "crds/lbless_edge", "operator", "nodeagent"))
SUITE = "bookworm"
ROLES = {"operator": "65532:65532", "node": "0:0"}
"""With the user that it is run as where a chart says nothing."""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
"""As in the Dockerfile."""
KEPT = 3
"""Of what is built anew with every change: so many of a kind stay in the cache."""
_BUILD_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs")
"""Of this machine, by which packages are to be had."""


@dataclass(frozen=True)
class Image:
    """One of them: `name` is REPOSITORY:TAG, where the tag tells what it was built from; `layers` are the trees in the
    archive, the lowest first."""

    role: str
    name: str
    archive: Path
    layers: tuple[Path, Path]

    @property
    def size_bytes(self) -> int:
        """That of its files, unpacked."""
        return sum(map(_size, self.layers))


def find(progress: Progress | None = None) -> dict[str, Image]:
    """Return the images of the working tree by role, building what the cache lacks.

    Raises LabError where this machine cannot build them, and where building fails.
    """
    progress = progress or Progress()
    home = cache_directory() / "images"
    home.mkdir(parents=True, exist_ok=True)
    with only_builder(home, progress):
        for left in home.glob(".building-*"):  # by a builder that was killed: we hold the lock
            shutil.rmtree(left)
        return {role: _image(home, role, progress) for role in ROLES}


def _image(home: Path, role: str, progress: Progress) -> Image:
    packages = _digest((*_files(RECIPE), *PINNED), role)
    own = _digest((*_files(RECIPE), *PINNED, *(file for tree in OWN for file in _files(tree))), role)
    lower, upper = home / f"{role}-packages-{packages}", home / f"{role}-lbless-{own}"
    archive, name = home / f"{role}-{own}.tar", f"lbless.dev/{role}:{own}"
    if not archive.exists():
        if os.geteuid() != 0:
            raise LabError("images are built by root, for a system of their own: run it as root")
        for tree, layer in ((lower, "packages"), (upper, "lbless")):
            if not tree.is_dir():
                make_layer(home, role, layer, tree, progress)
        progress.say(f"writing the image {name}")
        unfinished = archive.with_suffix(".unfinished")
        write_archive(unfinished, role, name, (lower, upper))
        unfinished.rename(archive)
        _prune(home, role)
    return Image(role, name, archive, (lower, upper))


def write_archive(path: Path, role: str, name: str, layers: Sequence[Path]) -> str:
    """Write the image of a role; return its digest."""
    return ociarchive.write(
        path, name, layers, environment=ENVIRONMENT, user=ROLES[role], machine=platform.machine()
    )


def _builder(home: Path, progress: Progress) -> Path:
    """The system that images are built in."""
    system = home / f"builder-{SUITE}-{_digest([RECIPE / 'build-packages'])}"
    if not system.is_dir():
        progress.say(
            "installing what images are built with: half a minute, and as much an image; then cached"
        )
        for older in home.glob("builder-*"):
            shutil.rmtree(older)
        packages = ",".join((RECIPE / "build-packages").read_text().split())
        with tempfile.TemporaryDirectory(dir=home, prefix=".building-") as directory:
            work = Path(directory)
            work.chmod(0o755)  # apt fetches as a user of its own
            command = ["mmdebstrap", "--variant=apt", "--mode=root", f"--include={packages}"]
            run_step(
                [*command, SUITE, str(work / "made")], "the images' builder", home / "builder.log", progress
            )
            for name in ("lbless", "out"):
                (work / "made" / name).mkdir()
            (work / "made").rename(system)
    return system


def make_layer(home: Path, role: str, layer: str, tree: Path, progress: Progress) -> None:
    """Build one layer; the tree appears with everything in it, or not at all."""
    builder = _builder(home, progress)
    with tempfile.TemporaryDirectory(dir=home, prefix=".building-") as directory:
        made = Path(directory) / "made"
        made.mkdir()
        mounts = [f'mount --bind -o ro {shlex.quote(str(ROOT))} "$1/lbless"', 'mount --bind "$2" "$1/out"']
        for path in filter(os.path.exists, (*_NETWORK, *_wheels())):
            inside, make = f'"$1"{shlex.quote(path)}', "mkdir -p" if Path(path).is_dir() else "touch"
            mounts.append(f'mkdir -p "$(dirname {inside})" && {make} {inside}')
            mounts.append(f"mount --bind {shlex.quote(path)} {inside}")
        script = " && ".join([*mounts, f'exec chroot "$1" /lbless/helm/images/rootfs {role} {layer} /out'])
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        run_step(
            ["sh", "-c", script, "sh", str(builder), str(made)],
            f"the {role}'s image, {layer}",
            home / f"{role}.log",
            progress,
            {**pip, "PATH": _BUILD_PATH, "HOME": "/root"},
        )
        made.rename(tree)


def _wheels() -> list[str]:
    """Directories of this machine that pip is told to look into."""
    return [place for place in os.environ.get("PIP_FIND_LINKS", "").split() if place.startswith("/")]


def _prune(home: Path, role: str) -> None:
    for pattern in (f"{role}-packages-*", f"{role}-lbless-*", f"{role}-*.tar"):
        for path in sorted(home.glob(pattern), key=lambda p: p.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files(tree: Path) -> list[Path]:
    return sorted(p for p in tree.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _digest(files: Iterable[Path], *others: str) -> str:
    """Twelve digits that tell contents apart."""
    parts = [f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join([*parts, *others, platform.machine()]).encode()).hexdigest()[:12]


def _size(tree: Path) -> int:
    return sum(p.lstat().st_size for p in tree.rglob("*") if p.is_file() and not p.is_symlink())


def main() -> int:
    """Build them and print their sizes; the exit code of `python -m lab.images`."""
    return exit_code(_tell, "what was built so far stays in the cache")


def _tell() -> None:
    for image in find().values():
        print(f"{image.name}  {image.size_bytes / 1e6:.0f} MB  {image.archive}")


if __name__ == "__main__":
    sys.exit(main())
