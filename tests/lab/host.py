"""Hosts: one network namespace with its interfaces, and the processes that run in it; cabling is `lan`'s."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from lab.claim import NAMESPACES
from lab.errors import LabError

# The programs that run inside a namespace: the standard library only, started by path.
INSIDE = Path(__file__).parent / "inside"


@dataclass(frozen=True)
class Port:
    """An interface of a host: its hardware address, its main address with prefix length, further addresses."""

    interface: str
    mac: str
    address: str
    prefix_length: int
    addresses: tuple[str, ...] = ()


class Host:
    """A machine of the lab, as far as the network can tell. Its processes end with the lab at the latest."""

    RUN_SECONDS: ClassVar[float] = 30
    """What is enough for a program that does little."""

    def __init__(self, name: str, namespace: str, ports: Sequence[Port], directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.ports = {port.interface: port for port in ports}
        self.directory = directory
        self._first = next(iter(self.ports.values()), None)
        self._started: list[subprocess.Popen[str]] = []

    def __repr__(self) -> str:
        return f"Host({self.namespace})"

    @property
    def port(self) -> Port:
        """The first interface: the segment's on nodes and clients."""
        if self._first is None:
            raise LabError(f"{self.namespace} has no interface of its own")
        return self._first

    @property
    def interface(self) -> str:
        """Name of the first interface."""
        return self.port.interface

    @property
    def mac(self) -> str:
        """Hardware address of the first interface."""
        return self.port.mac

    @property
    def address(self) -> str:
        """Main address of the first interface."""
        return self.port.address

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses that a client's traffic comes from."""
        return self.port.addresses

    @property
    def enter(self) -> list[str]:
        """The beginning of a command line that runs something in this host's network.

        Not `ip netns exec`: that remounts /sys and hides the cgroups.
        """
        return ["nsenter", f"--net={NAMESPACES / self.namespace}", "--"]

    def run(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout: float | None = None,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end in this host's network; `timeout` is in seconds, by default `RUN_SECONDS`.

        Raises LabError with the last line that it said if it does not end, or (with `check`) fails.
        """
        command = [os.fspath(argument) for argument in arguments]
        timeout = self.RUN_SECONDS if timeout is None else timeout
        try:
            done = subprocess.run(
                [*self.enter, *command],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env={**os.environ, **(environment or {})},
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"`{' '.join(command)}` on {self.namespace} took over {timeout:g} s") from None
        if check and done.returncode != 0:
            raise LabError(
                f"`{' '.join(command)}` on {self.namespace} failed with exit code {done.returncode}: "
                f"{complaint(done.stderr or done.stdout)}"
            )
        return done

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
        """Start a program in this host's network.

        Output that has no other place is appended to `self.log(log)`, by default to that of the program's name.
        The process id is the program's own. Ctrl-C in the terminal does not reach it.
        """
        command = [os.fspath(argument) for argument in arguments]
        with self.log(log or command[0]).open("a") as stream:
            process = subprocess.Popen(
                [*self.enter, *command],
                stdin=stdin,
                stdout=stream if stdout is None else stdout,
                stderr=stream if stderr is None else stderr,
                text=True,
                env={**os.environ, **(environment or {})},
                pass_fds=pass_fds,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def log(self, program: str | os.PathLike[str]) -> Path:
        """Return the file that takes the output of a program."""
        return self.directory / f"{self.name}-{Path(program).name}.log"

    def last_words(self, program: str | os.PathLike[str]) -> str:
        """Return the last line of a program's output."""
        return (self.log(program).read_text().strip().splitlines() or ["nothing said"])[-1]

    def close(self) -> None:
        """Kill what `popen` has started and still runs, with its process group; more calls do nothing."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._started.clear()

    def inside(self, program: str, *arguments: str) -> list[str]:
        """Return the command line of one of the lab's own programs in `inside/`."""
        return [sys.executable, "-S", "-E", str(INSIDE / f"{program}.py"), *arguments]


def complaint(output: str) -> str:
    """Return the line of a failed program's output that a person wants: the first with "error:", else the last.

    Some programs show the place of the error after it (nft), some the way to it before (Python).
    """
    lines = output.strip().splitlines() or ["nothing said"]
    return next((line for line in lines if "error:" in line.lower()), lines[-1]).strip()
