"""The images as they are shipped: small, with all that they need and no more, and the same each time."""

from __future__ import annotations

import json
import os
import platform
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import images
from lab.images import Image
from lab.programs import cache_directory
from lab.progress import Silence
from lbless_edge.process import program_version

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="there are no images for it"),
]

MOST_MB = {"operator": 120, "node": 140}
PROGRAMS = {"operator": ["lbless-operator"], "node": ["lbless-sync", "lbless-dataplane"]}
FOREIGN = {
    "operator": {"pyroute2", "iptc", "nftables", "inotify_simple", "lbless_nodeagent"},
    "node": {"kopf", "lbless_operator"},
}
"""What the role's own extra does not name, and the other's does."""
IMPORTS = """
import importlib, pkgutil, sys
def import_all(package):
    module = importlib.import_module(package)
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{package}."):
        import_all(found.name) if found.ispkg else importlib.import_module(found.name)
for package in sys.argv[1:]:
    import_all(package)
"""
PROBE = """
from lbless_nodeagent.dataplane.engines import engines
for name, construct in engines(lease=True).items():
    engine = construct()
    print(name, engine.probe())
    engine.close()
"""
# The root file system as containerd would mount it, read-only, with what a container finds in it.
ENTER = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/root"
mount -t overlay overlay -o ro,lowerdir="$2:$3" "$1/root"
mount --bind /dev "$1/root/dev" && mount -t proc proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/tmp" && mount -t tmpfs tmpfs "$1/root/run"
mounted=$1
shift 3
exec chroot "$mounted/root" "$@"
"""


@pytest.fixture(scope="module")
def built() -> dict[str, Image]:
    """Those of the working tree."""
    return images.find(Silence())


@pytest.fixture(scope="module", params=list(images.ROLES))
def image(request: pytest.FixtureRequest, built: dict[str, Image]) -> Image:
    """The image of each role."""
    return built[request.param]


def run(image: Image, directory: Path, *command: str, network: bool = False) -> str:
    """Run a program in an image, with a network of its own if there is to be one, and return what it printed."""
    lower, upper = image.layers
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *(["--net"] if network else [])]
    done = subprocess.run(
        [*spaces, "sh", "-ec", ENTER, "sh", directory, upper, lower, *command],
        env={**images.ENVIRONMENT, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(image: Image) -> Iterator[tuple[str, os.stat_result]]:
    """What is in it: each path in the image, with what the file system says of it."""
    for layer in image.layers:
        for path in layer.rglob("*"):
            yield f"/{path.relative_to(layer)}", path.lstat()


def test_it_is_no_larger_than_documented(image: Image):
    megabytes = image.size_bytes / 1e6
    print(f"{image.role}: {megabytes:.0f} MB, its archive {image.archive.stat().st_size / 1e6:.0f} MB")
    assert megabytes <= MOST_MB[image.role]


def test_its_programs_start_in_it(image: Image, tmp_path: Path):
    for program in PROGRAMS[image.role]:
        assert run(image, tmp_path, program, "--version") == f"{program} {program_version()}\n"


def test_all_that_its_modules_import_is_in_it(image: Image, tmp_path: Path):
    own = {"operator": ["lbless_operator"], "node": ["lbless_nodeagent", "iptc", "nftables"]}[image.role]
    run(image, tmp_path, "python3.11", "-c", IMPORTS, "lbless_api", "lbless_edge", *own)


def test_the_others_packages_are_not_in_it_nor_anything_to_build_or_break_in_with(image: Image):
    found = {Path(path).name for path, _ in files(image)}
    assert found & FOREIGN[image.role] == set()
    assert (
        found & {"sh", "bash", "dash", "busybox", "pip", "setuptools", "apt-get", "dpkg-deb", "gcc"} == set()
    )
    assert [path for path, status in files(image) if status.st_mode & (stat.S_ISUID | stat.S_ISGID)] == []
    writable = [
        path
        for path, status in files(image)
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & stat.S_IWOTH
    ]
    assert [Path(path).name for path in writable] == ["tmp"]


def test_every_engine_works_in_the_nodes_image_where_it_works_here(built: dict[str, Image], tmp_path: Path):
    said = run(built["node"], tmp_path, "python3.11", "-c", PROBE, network=True)
    print(said)
    assert "nftables EngineReport(name='nftables', available=True" in said
    assert "iptables EngineReport(name='iptables', available=True" in said


@pytest.mark.soak
def test_built_anew_it_is_the_same_to_the_last_bit(built: dict[str, Image], tmp_path: Path):
    """By its digest: that of one built from the same packages, at another time and in another directory."""
    image, home = built["node"], cache_directory() / "images"
    layers = [tmp_path / "packages", tmp_path / "lbless"]
    for layer in layers:
        made = home / f".building-again-{os.getpid()}-{layer.name}"
        images.make_layer(home, image.role, layer.name, made, Silence())
        subprocess.run(["mv", made, layer], check=True)
    again = images.write_archive(tmp_path / "again.tar", image.role, image.name, layers)
    with tarfile.open(image.archive) as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        assert [one["digest"] for one in json.load(index)["manifests"]] == [again]
