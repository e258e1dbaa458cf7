"""Guests: virtual machines with an older kernel, plugged into the LAN as any other host, and used as one.

A guest sees the working tree, the Python environment and the lab's directory under the very paths that they have
here, the first two read-only; a file that one side writes is the other's at once, but nobody is notified of the
other's changes (inotify). The system that boots is `guestimage`'s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab import guestimage
from lab.claim import NAMESPACES
from lab.errors import LabError
from lab.host import Host, Port
from lab.progress import Progress, Silence
from lab.wiring import QUIET

ROOT = Path(__file__).parents[2]
MEMORY = "640M"
AGENT_PORT = 7000
LAB_MAC = "02:4c:42:ff:ff:ff"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# An emulated processor boots in five seconds, and one of two cores that others use as well in many more.
BOOT_SECONDS = 120


@dataclass(frozen=True)
class Cable:
    """What a port of a guest is plugged into: a port called `socket` of a bridge in a namespace."""

    port: Port
    namespace: str
    bridge: str
    socket: str


class Guest(Host):
    """A host that is a machine of its own. `boot`, `await_boot`; then `run` and `popen` are as a namespace's.

    Its network namespace here holds the machine alone. What `popen` returns stands for the program inside: its
    output, exit status and signals are that one's, but SIGKILL reaches that one a moment later and SIGSTOP never,
    and output that the program's children write after its end is lost.
    """

    RUN_SECONDS = 240
    """Its processor is emulated: Python begins in ten seconds, beside other tests in many more."""

    def __init__(
        self, name: str, namespace: str, cables: Sequence[Cable], directory: Path, routes: Sequence[str]
    ) -> None:
        super().__init__(name, namespace, [cable.port for cable in cables], directory)
        self._cables = tuple(cables)
        self._routes = tuple(routes)
        self._machine: subprocess.Popen[str] | None = None

    @property
    def enter(self) -> list[str]:
        """The beginning of a command line that runs something in this guest, without a terminal."""
        source = ":".join(str(ROOT / part) for part in ("crds", "nodeagent", "operator", "tests"))
        environment = [f"PATH={PATH}", "TMPDIR=/tmp", f"PYTHONPATH={source}:{_packages()}"]
        return [*super().enter, *self.inside("guest_exec", str(AGENT_PORT), *environment), "--"]

    def popen(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        log: str | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program in this guest. Raises LabError for descriptors to pass on: they cannot get there."""
        if pass_fds:
            raise LabError(f"descriptors cannot be passed into the guest {self.name}")
        return super().popen(
            arguments, stdin=stdin, stdout=stdout, stderr=stderr, environment=environment, log=log
        )

    def boot(self, image: guestimage.Image) -> None:
        """Switch the machine on and return at once."""
        plan = {
            "name": self.name,
            "directory": str(self.directory),
            "file_server": guestimage.file_server(),
            "shares": [
                {"tag": tag, "directory": str(directory)} for tag, directory in self._shares().items()
            ],
            "cables": [
                {
                    "namespace": str(NAMESPACES / cable.namespace),
                    "bridge": cable.bridge,
                    "socket": cable.socket,
                    "mac": cable.port.mac,
                }
                for cable in self._cables
            ],
            "qemu": self._qemu(image),
        }
        outside = Host(self.name, self.namespace, (), self.directory)
        self._machine = outside.popen(outside.inside("guest_machine", json.dumps(plan)), log="machine")
        self._started.append(self._machine)

    def await_boot(self, progress: Progress | None = None) -> None:
        """Return once programs can run and the network is set up. Raises LabError with the console's last line."""
        (progress or Silence()).until(
            f"guest {self.name} to boot", self._answers, timeout_seconds=BOOT_SECONDS, interval_seconds=0.1
        )
        self._mount()
        self._set_up_network()

    def power_off(self) -> None:
        """Take the power away: nothing inside is told."""
        if self._machine is not None:
            self._machine.kill()
            self._machine.wait()

    def _shares(self) -> dict[str, Path]:
        """What the guest sees of this machine, by tag: all but `lab` read-only."""
        shares = {"tests": ROOT / "tests", "root": ROOT, "lab": self.directory}
        if not Path(sys.prefix).is_relative_to(ROOT):
            shares["venv"] = Path(sys.prefix)
        return shares

    def _qemu(self, image: guestimage.Image) -> list[str]:
        # Never KVM: where this machine is itself virtual, guests may hang in it, and tests are to run anywhere.
        return [
            *("qemu-system-x86_64", "-machine", "q35,accel=tcg,memory-backend=memory", "-cpu", "max"),
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-m", MEMORY),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self.log('console')}"),
            *("-kernel", str(image.kernel), "-initrd", str(image.early)),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"),
            *("-drive", f"file={image.disk},format=raw,if=none,id=disk,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *(
                "-netdev",
                f"user,id=lab,restrict=on,hostfwd=tcp:127.0.0.1:{AGENT_PORT}-10.0.2.15:{AGENT_PORT}",
            ),
            *("-device", f"virtio-net-pci,netdev=lab,mac={LAB_MAC},romfile="),
        ]

    def _answers(self) -> bool:
        if self._machine is None or self._machine.poll() is not None:
            raise LabError(f"the machine of guest {self.name} has ended: {self._why()}")
        try:
            return self.run(["true"], check=False, timeout=5).returncode == 0
        except LabError:
            return False  # qemu takes connections from the start, whether or not the agent listens yet

    def _why(self) -> str:
        said = [
            line
            for program in ("console", "machine")
            if self.log(program).exists()
            for line in self.log(program).read_text(errors="replace").strip().splitlines()
        ]
        return said[-1].strip() if said else "it said nothing"

    def _mount(self) -> None:
        """Put what is shared where it is here, and Python where this environment's programs look for it."""
        lines = []
        for tag, directory in self._shares().items():
            if tag == "tests":
                continue  # what it has started from; the tree has it too
            options = "rw" if tag == "lab" else "ro"
            lines.append(f"[ -d '{directory}' ] || mkdir -p '{directory}'")
            lines.append(f"mount -t virtiofs -o {options} {tag} '{directory}'")
        python = Path(sys.executable)
        while python.is_relative_to(sys.prefix) and python.is_symlink():
            python = python.parent / python.readlink()
        lines.append(
            f"[ -e '{python}' ] || {{ mkdir -p '{python.parent}'; ln -s /usr/bin/python3 '{python}'; }}"
        )
        self.run(["sh", "-e"], stdin="\n".join(lines) + "\n")

    def _set_up_network(self) -> None:
        """Name the interfaces and give them what the plan says, as `wiring` does with a namespace's."""
        links = json.loads(self.run(["ip", "-json", "link"]).stdout)
        names = {link["address"]: link["ifname"] for link in links}
        ports = self.ports.values()
        settings = [f"{name.replace('/', '.')}={value}" for name, value in QUIET.items()]
        self.run(["sysctl", "-q", "-w", *settings])
        batch = [
            # In two steps: a name may be another's until that is renamed.
            *(f"link set {names[port.mac]} name lab{number}" for number, port in enumerate(ports)),
            *(f"link set lab{number} name {port.interface}" for number, port in enumerate(ports)),
            *(f"address add {port.address}/{port.prefix_length} dev {port.interface}" for port in ports),
            *(f"link set {port.interface} up" for port in ports),
            *(f"route add {route}" for route in self._routes),
        ]
        self.run(["ip", "-batch", "-"], stdin="\n".join(batch) + "\n")


def _packages() -> str:
    """Where this environment's packages are, for a guest whose Python is of another version."""
    return next(path for path in sys.path if path.endswith("site-packages"))
