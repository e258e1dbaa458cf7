"""lbless-dataplane as a process on a host of the lab, and what that host's kernel holds outside its tables.

Knows nothing of what should be there: that is each test's to say.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kernel import synced
from lab.host import Host
from lab.kernelstate import owned_buckets
from lbless_api.node import Outstanding
from lbless_api.state import Observed, parse_observed
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.identity import parse_identity
from unit.stateobjects import desired_json

T = TypeVar("T")

DATAPLANE = [sys.executable, "-m", "lbless_nodeagent.dataplane"]
SECONDS = 10.0
"""How long a test waits for what it wants before it fails; not how long anything should take."""


def wait_for(wanted: Callable[[], T], seconds: float = SECONDS) -> T:
    """Ask until the answer is true, and return it; fail with the last answer after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = wanted()
        if answer or time.monotonic() > deadline:
            assert answer, f"not within {seconds:g} s"
            return answer
        time.sleep(0.005)


@dataclass(frozen=True)
class Interface:
    """What an interface holds: addresses with their flags, static link-layer groups, arp_announce."""

    addresses: Mapping[str, frozenset[str]]
    groups: frozenset[str]
    arp_announce: int


def interface(host: Host, name: str) -> Interface:
    """Read it with the system's own tools."""
    shown = json.loads(host.run(["ip", "-json", "-4", "address", "show", "dev", name]).stdout)
    groups = json.loads(host.run(["ip", "-json", "maddress", "show", "dev", name]).stdout)
    announce = host.run(["cat", f"/proc/sys/net/ipv4/conf/{name}/arp_announce"]).stdout
    return Interface(
        addresses={
            f"{a['local']}/{a['prefixlen']}": frozenset(k for k in ("deprecated", "secondary") if a.get(k))
            for link in shown
            for a in link.get("addr_info", [])
        },
        groups=frozenset(
            group["link"] for link in groups for group in link["maddr"] if group.get("features") == "static"
        ),
        arp_announce=int(announce),
    )


def tables(host: Host) -> set[str]:
    """The tables of nftables, as "family name"."""
    listed = host.run(["nft", "list", "tables"]).stdout
    return {line.removeprefix("table ") for line in listed.splitlines()}


class Dataplane:
    """The process and its state directory. `start` and `stop` as often as a test likes."""

    def __init__(self, host: Host, directory: Path, node: str = "n1", arguments: Sequence[str] = ()) -> None:
        self.host = host
        self.arguments = tuple(arguments)
        self.boot: Path | None = None
        self.directory = directory
        self.node = node
        self.desired = directory / "desired"
        self.desired.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> str:
        """All that its processes have said."""
        path = self.host.log("dataplane")
        return path.read_text() if path.exists() else ""

    def launch(self) -> None:
        """Start it and wait for nothing."""
        command = self._command()
        self.process = self.host.popen([*self._in_boot(), *command], log="dataplane")

    def _command(self) -> list[str]:
        return [*DATAPLANE, "--node", self.node, "--state-dir", str(self.directory), *self.arguments]

    def _in_boot(self) -> list[str]:
        """The beginning of a command line for which the boot's id is what the file `boot` says, if it is set."""
        if self.boot is None:
            return []
        script = f'mount --bind {self.boot} /proc/sys/kernel/random/boot_id && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh"]

    def start(self) -> None:
        """Start it and wait for its first report."""
        since = files.boottime_seconds()
        self.launch()
        wait_for(lambda: self.running() and self.observed().boottime_seconds > since)

    def incarnations(self) -> dict[str, int]:
        """Each interface's, as it is written down: without heartbeats none is told."""
        identity = parse_identity(files.read_json(self.directory / "identity.json"))
        return identity.numbers()

    def running(self) -> bool:
        """Whether it lives; fails the test if it ended by itself."""
        assert self.process is not None
        assert self.process.poll() is None, self.log
        return True

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status; negative: the signal that ended it."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        self.process = None
        return status

    def stop(self) -> int:
        """End it politely."""
        return self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        assert self.signal(signal.SIGKILL) == -signal.SIGKILL

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return self.host.run([*self._command(), *arguments], check=False)

    def desire(self, uid: str, ip: str, buckets: str | None = "0-255", **further: Any) -> None:
        """Write a ClusterIP that gives this node `buckets`, or with None does not name it."""
        shares = {"elsewhere": ""} if buckets is None else {self.node: buckets}
        synced.put(self.desired, uid, desired_json(uid, ip, shares, **further))

    def withdraw(self, uid: str) -> None:
        """Delete a ClusterIP."""
        synced.delete(self.desired, uid)

    def complete(self, boot_id: str | None = None) -> None:
        """Say that sync has listed everything in that boot, by default this one."""
        synced.complete(self.desired, boot_id)

    def intend(self, intent: str) -> None:
        """Say what ending dataplane is to mean."""
        files.write_bytes(self.desired / ".intent", f"{intent}\n".encode())

    def observed(self) -> Observed:
        """The last report."""
        try:
            return parse_observed(files.read_json(self.directory / "observed.json"))
        except FileNotFoundError:
            return Observed(boot_id="", boottime_seconds=0.0)

    def applied(self, uid: str, epoch: int = 1) -> bool:
        """Whether the last report says so."""
        return self.observed().applied.get(uid) == epoch

    def failure(self, uid: str) -> Outstanding | None:
        """The failure of a ClusterIP in the last report."""
        return next((f for f in self.observed().failures if f.uid == uid), None)

    def wait_applied(self, uid: str, epoch: int = 1) -> None:
        """Wait until the report says so."""
        wait_for(lambda: self.running() and self.applied(uid, epoch))

    def wait_failure(self, uid: str, reason: str) -> str:
        """Wait for a failure of a ClusterIP with that reason, and return its message."""
        found = wait_for(lambda: self.running() and (f := self.failure(uid)) and f.reason == reason and f)
        assert isinstance(found, Outstanding)
        return found.message

    def serves(self, ip: str, interface_name: str = "eth0", buckets: str = "0-255") -> bool:
        """Whether address and buckets are there."""
        held = interface(self.host, interface_name).addresses.get(f"{ip}/32")
        return held == frozenset({"deprecated"}) and str(owned_buckets(self.host, ip)) == buckets
