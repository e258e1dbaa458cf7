"""The guests' system: Debian's packages with an older kernel as a disk image, built once into the cache.

Nothing of lbless is in it: a guest sees the working tree itself (see `guest`). `python -m lab.guestimage` installs
what is needed to build and run it, builds it, and says so where a machine cannot have it.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.buildstep import run_step
from lab.errors import LabError, exit_code
from lab.host import INSIDE
from lab.programs import cache_directory, only_builder
from lab.progress import Progress

SUITE = "bookworm"  # Linux 6.1, the last of Debian's with the CLUSTERIP target
PACKAGES = (
    *("linux-image-cloud-amd64", "busybox-static", "kmod", "mount", "procps", "util-linux"),
    *("python3", "iproute2", "iptables", "arptables", "nftables", "libnftables1", "ethtool", "tcpdump"),
)
# In this order: what is needed to find the root disk. ext4 is built in, the rest loads from that disk.
EARLY_MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"),
)
UNREAD = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
SIZE = "900M"  # of the file system, most of which is a hole in the file

# The first program of the first file system: it finds the disk and goes there.
EARLY = f"""#!/bin/busybox sh
for m in {" ".join(EARLY_MODULES)}; do /bin/busybox insmod /modules/$m.ko; done
/bin/busybox mount -t devtmpfs dev /dev
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /init
"""
# The first program of the disk: it mounts the lab's own programs and leaves the rest to them (inside/guest_start.sh).
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe virtiofs
mkdir -p /tests
mount -t virtiofs -o ro tests /tests
exec /bin/sh /tests/lab/inside/guest_start.sh
"""
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "cpio", "mke2fs")
# Where distributions put it: not on PATH.
FILE_SERVERS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")


@dataclass(frozen=True)
class Image:
    """What boots. Many guests use one image at the same time: none of them writes to it."""

    kernel: Path
    early: Path
    disk: Path


def unavailable() -> str:
    """Return why this machine can have no guests, as a sentence; empty where it can."""
    if platform.machine() != "x86_64":
        return f"guests need an x86-64 machine, and this is {platform.machine()}"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not any(map(os.path.exists, FILE_SERVERS)):
        missing.append("virtiofsd")
    if missing:
        return f"guests need {', '.join(missing)}: `make guest` installs what can be installed"
    return ""


def file_server() -> str:
    """Return the path of virtiofsd. Raises LabError where there is none."""
    for path in FILE_SERVERS:
        if os.path.exists(path):
            return path
    raise LabError("there is no virtiofsd: `make guest` installs it")


def find(progress: Progress | None = None) -> Image:
    """Return the image, building it where the cache has none of this recipe.

    Raises LabError where this machine cannot have guests, and where building fails.
    """
    if reason := unavailable():
        raise LabError(reason)
    progress = progress or Progress()
    root = cache_directory() / "guest"
    home = root / _digest()
    if not home.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with only_builder(root, progress):
            for left in root.glob(".building-*"):  # by a builder that was killed: we hold the lock
                shutil.rmtree(left)
            if not home.is_dir():
                _build(home, progress)
    return Image(home / "kernel", home / "early.cpio", home / "disk.img")


def _digest() -> str:
    """Name what the image is built from; another recipe is another image."""
    recipe = repr((SUITE, PACKAGES, EARLY_MODULES, UNREAD, SIZE, EARLY, INIT))
    return f"{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def _build(home: Path, progress: Progress) -> None:
    progress.say(
        f"building the guests' system ({SUITE}, Linux 6.1): half a minute the first time, then cached"
    )
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".building-") as directory:
        work, made = Path(directory), Path(directory) / "made"
        made.mkdir()
        work.chmod(0o755)  # apt fetches as a user of its own
        disk = work / "disk"
        log = home.parent / f"{SUITE}.log"
        log.write_text("")
        run_step(
            [
                *("mmdebstrap", "--variant=apt", "--mode=root", "--arch=amd64"),
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNREAD),
                *(f"--include={','.join(PACKAGES)}", SUITE, str(disk)),
            ],
            "Debian's packages",
            log,
            progress,
        )
        _write(disk / "init", INIT)
        (kernel,) = (disk / "boot").glob("vmlinuz-*")
        early = work / "early"
        _lay_out_early(early, disk, kernel.name.removeprefix("vmlinuz-"))
        shutil.copyfile(kernel, made / "kernel")
        archive = f"cd {early} && find . | cpio --quiet -o -H newc"
        run_step(["sh", "-c", f"{archive} >{made}/early.cpio"], "the first file system", log, progress)
        for path in (disk / "boot").iterdir():
            path.unlink()
        command = ["mke2fs", "-q", "-t", "ext4", "-d", str(disk), str(made / "disk.img"), SIZE]
        run_step(command, "the disk", log, progress)
        # The name appears with everything in it, or not at all.
        made.rename(home)
    progress.say(f"the guests' system is in {home}")


def _lay_out_early(early: Path, disk: Path, version: str) -> None:
    """Fill the directory of the first file system: busybox and the modules to find the disk with."""
    for name in ("bin", "modules", "dev", "root"):
        (early / name).mkdir(parents=True)
    shutil.copy(disk / "bin/busybox", early / "bin/busybox")
    for name in EARLY_MODULES:
        found = list((disk / "lib/modules" / version).rglob(f"{name}.ko"))
        if len(found) != 1:
            raise LabError(f"Debian's kernel {version} has {len(found)} modules {name}, not one")
        shutil.copy(found[0], early / "modules")
    _write(early / "init", EARLY)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def main() -> int:
    """Install, build, and return the exit code of `python -m lab.guestimage`: a machine without guests is no error."""
    if os.geteuid() != 0:
        print(
            "guests need root, as their tests do: none is built, tests/guest will be skipped", file=sys.stderr
        )
        return 0
    if unavailable() and platform.machine() == "x86_64":
        subprocess.run([str(INSIDE.parent / "system-packages"), "guest"], check=False)
    if reason := unavailable():
        print(f"tests/guest will be skipped: {reason}", file=sys.stderr)
        return 0
    return exit_code(lambda: print(find().disk), "nothing is left")


if __name__ == "__main__":
    sys.exit(main())
