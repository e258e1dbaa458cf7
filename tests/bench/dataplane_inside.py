"""Runs in a node's network: lbless-dataplane with many ClusterIPs; prints its figures as JSON.

Started by `bench.dataplane`: `dataplane_inside.py DIRECTORY COUNT ROUNDS IDLE_SECONDS`; never imported.
It listens to the kernel's own notifications, so that what it measures ends when the kernel has changed.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute

from lbless_api.state import OBSERVED, render_complete
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.nftables.netlink import MESSAGE, messages, open_socket
from lbless_nodeagent.dataplane.reconcile import Reconciler
from unit.stateobjects import desired_json

FIRST = IPv4Address("10.80.16.0")
NODE, INTERFACE = "n1", "eth0"
FEW = 5
SHARE, OTHER_SHARE = "0-84", "0-85"
LIMIT_SECONDS = 30.0
_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES = 270, 1, 7
_NEWSETELEM, _DELSETELEM = 12, 14
_RTM_NEWADDR, _RTMGRP_IPV4_IFADDR = 20, 0x10
_SEAL = b"seal\0"


class State:
    """The state directory, written as sync writes it."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.count = count
        (directory / "desired").mkdir(parents=True, exist_ok=True)
        self._epoch = 1

    def fill(self, count: int) -> None:
        """Write so many of them."""
        for number in range(count):
            self._write(number, SHARE)
        complete = render_complete(files.boot_id(), map(uid, range(count)))
        files.write_bytes(self.directory / "desired" / ".complete", complete.encode())

    def change(self, number: int) -> None:
        """Give one of them another share, in another epoch."""
        self._epoch += 1
        self._write(number, OTHER_SHARE)

    def applied(self) -> dict[str, int]:
        """The epochs that are said to be in the kernel."""
        try:
            value = json.loads((self.directory / OBSERVED).read_bytes())
        except FileNotFoundError:
            return {}
        found: dict[str, int] = value["applied"]
        return found

    def repairs(self) -> int:
        """How many repairs of the rules are said to have been."""
        found: int = json.loads((self.directory / OBSERVED).read_bytes())["repairs"]["rules"]
        return found

    def wait_applied(self, number: int) -> None:
        """Wait until the newest epoch of one is said to be there."""
        wait_for(lambda: self.applied().get(uid(number)) == self._epoch)

    def _write(self, number: int, share: str) -> None:
        shares = {NODE: share, "n2": "86-170", "n3": "171-255"}
        value = desired_json(uid(number), str(FIRST + number), shares, epoch=self._epoch)
        files.write_json(self.directory / "desired" / f"{uid(number)}.json", value, durable=False)


def uid(number: int) -> str:
    """As Kubernetes makes them."""
    return f"00000000-0000-4000-8000-{number:012x}"


def wait_for(wanted: Callable[[], bool], pause: float = 0.02) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not wanted():
        if time.monotonic() > deadline:
            raise SystemExit("what was waited for did not happen")
        time.sleep(pause)


class Listener:
    """Notifications of the kernel, and the time at which a certain one came."""

    def __init__(self, made: socket.socket, is_it: Callable[[int, memoryview], bool]) -> None:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self._socket = made
        self._is_it = is_it
        self._poll = select.poll()
        self._poll.register(made, select.POLLIN)

    def empty(self) -> None:
        """Forget what came until now."""
        while self._received() is not None:
            pass

    def wait(self) -> float:
        """Return when it came."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            self._poll.poll(1000)
            now = time.monotonic()
            received = self._received()
            for _, kind, _, whole in messages(memoryview(received)) if received else ():
                if self._is_it(kind, whole):
                    return now
        raise SystemExit("a change that was waited for did not happen")

    def _received(self) -> bytes | None:
        try:
            return self._socket.recv(1 << 18)
        except BlockingIOError:
            return None


def rule_listener(is_it: Callable[[int, memoryview], bool]) -> Listener:
    """Hears of nf_tables."""
    made = open_socket()
    made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES)
    return Listener(made, lambda kind, whole: kind >> 8 == 10 and is_it(kind & 0xFF, whole[MESSAGE.size :]))


def address_listener() -> Listener:
    """Hears of an IPv4 address that came to a link."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.bind((0, _RTMGRP_IPV4_IFADDR))
    return Listener(made, lambda kind, _: kind == _RTM_NEWADDR)


class Process:
    """The dataplane."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "lbless_nodeagent.dataplane", "--node", NODE]
        self._child = subprocess.Popen(
            [*command, "--state-dir", directory], stderr=(directory / "log").open("ab")
        )

    def memory_mib(self, field: str) -> float:
        """VmRSS or VmHWM."""
        status = Path(f"/proc/{self._child.pid}/status").read_text(encoding="ascii")
        (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
        return int(line.split()[1]) / 1024

    def cpu_seconds(self) -> float:
        """User and system time."""
        stat = Path(f"/proc/{self._child.pid}/stat").read_text(encoding="ascii")
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Stop it politely."""
        self._child.send_signal(signal.SIGTERM)
        status = self._child.wait(LIMIT_SECONDS)
        if status:
            raise SystemExit(f"dataplane ended with status {status}")


@contextmanager
def running(directory: Path) -> Iterator[Process]:
    """A dataplane that ends with the block."""
    process = Process(directory)
    try:
        yield process
    finally:
        process.end()


def empty(directory: Path) -> None:
    """Take all of it out of the kernel."""
    command = [sys.executable, "-m", "lbless_nodeagent.dataplane", "--node", NODE, "--cleanup"]
    subprocess.run([*command, "--state-dir", directory], check=True, stderr=subprocess.DEVNULL)
    (directory / OBSERVED).unlink()


def rules() -> int:
    """How many rules the kernel holds."""
    command = ["nft", "-j", "-t", "list", "ruleset"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    return sum("rule" in entry for entry in json.loads(listing.stdout)["nftables"])


def main(directory: Path, count: int, rounds: int, idle_seconds: float) -> None:
    """Print the figures; times are in ms."""
    state = State(directory, count)
    state.fill(FEW)
    figures: dict[str, list[float]] = {
        name: []
        for name in ("start", "start_cpu", "rss", "peak", "change", "change_cpu", "address", "said", "rules")
    }
    with running(directory):
        wait_for(lambda: len(state.applied()) == FEW)
        figures["few"] = [rules()]
    state.fill(count)
    for number in range(rounds):
        empty(directory)
        began = time.monotonic()
        with running(directory) as process:
            wait_for(lambda: len(state.applied()) == count, 0.01)
            figures["start"].append((time.monotonic() - began) * 1000)
            figures["start_cpu"].append(process.cpu_seconds() * 1000)
            if number < rounds - 1:
                continue
            measure(state, process, figures, rounds)
            wait_for(lambda: is_idle(process), 0.5)
            before, at = process.cpu_seconds(), time.monotonic()
            time.sleep(idle_seconds)  # the span that is measured
            share = (process.cpu_seconds() - before) / (time.monotonic() - at)
            figures["idle"] = [share * 100]
            figures["rss"].append(process.memory_mib("VmRSS"))
            figures["peak"].append(process.memory_mib("VmHWM"))
            figures["rule_count"] = [rules()]
    figures["thorough"] = pass_ms(directory, rounds, thorough=True)
    figures["audit"] = pass_ms(directory, rounds, audit=True)
    json.dump(figures, sys.stdout)


def measure(state: State, process: Process, figures: dict[str, list[float]], rounds: int) -> None:
    """Change and damage a running one."""
    wait_for(lambda: is_idle(process), 0.5)
    changes = rule_listener(lambda kind, _: kind in (_NEWSETELEM, _DELSETELEM))
    for number in range(rounds * 4):
        changes.empty()
        cpu, began = process.cpu_seconds(), time.monotonic()
        state.change(number)
        figures["change"].append((changes.wait() - began) * 1000)
        state.wait_applied(number)
        time.sleep(0.2)  # a span: what it does after that counts
        figures["change_cpu"].append((process.cpu_seconds() - cpu) * 1000)
    route, addresses = IPRoute(), address_listener()
    (index,) = route.link_lookup(ifname=INTERFACE)
    for number in range(rounds * 4):
        addresses.empty()
        began = time.monotonic()
        route.addr("del", index=index, address=str(FIRST + number), prefixlen=32)
        figures["address"].append((addresses.wait() - began) * 1000)
        time.sleep(0.3)  # a span: each by itself, beyond what bursts are held to
    sealed = rule_listener(
        lambda kind, whole: kind == _NEWSETELEM and bytes(whole[12:]).find(_SEAL, 0, 16) >= 0
    )
    for _ in range(rounds):
        sealed.empty()
        counted = state.repairs() + 1
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        began = time.monotonic()
        wait_for(lambda counted=counted: state.repairs() == counted, 0.002)  # type: ignore[misc]  # a lambda's default
        figures["said"].append((time.monotonic() - began) * 1000)
        figures["rules"].append((sealed.wait() - began) * 1000)
        engine = NftablesEngine()
        found = engine.installed()
        engine.close()
        if found is None or len(found.vips) != state.count:
            raise SystemExit("the rules are not whole")
        time.sleep(1)  # a span: each by itself


def is_idle(process: Process) -> bool:
    before = process.cpu_seconds()
    time.sleep(0.4)
    return process.cpu_seconds() - before < 0.02


def pass_ms(directory: Path, rounds: int, *, thorough: bool = False, audit: bool = False) -> list[float]:
    """How long a pass takes that believes nothing."""
    engine = NftablesEngine()
    reconciler = Reconciler(NODE, directory, engine, files.boot_id())
    reconciler.run_pass()
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        reconciler.run_pass(thorough=thorough, audit=audit)
        samples.append((time.perf_counter() - began) * 1000)
    reconciler.close()
    engine.close()
    return samples


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
