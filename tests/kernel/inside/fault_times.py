"""A program: does one kind of harm, again and again, and measures how long until it is repaired or reported.

Runs in a node's network: `fault_times.py STATE-DIRECTORY ADDRESS TIMES FAULT`; the address is one of those
served on eth0, and all of them are waited for. Prints, as JSON, what each time was at most, in ms: {"times":
[…], "late": […]}, where `late` is how long this program itself was kept from looking just before it saw it.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lbless_nodeagent.dataplane.nftables.netlink import AF_IPV4, Reader
from lbless_nodeagent.dataplane.rtdump import Dumps

LIMIT_SECONDS = 20.0
OWN = "10.80.1.1/16"
TABLE = "lbless"


class Node:
    """The kernel that this program runs on, and what dataplane says of it."""

    def __init__(self, state: Path, ip: str) -> None:
        self.ip = ip
        self.state = state
        self._reader, self._dumps = Reader(), Dumps()
        self._stamp, self._said = 0, {}
        self.count = len(self.said()["applied"])

    def said(self) -> dict[str, Any]:
        """observed.json, parsed when it is another."""
        path = self.state / "observed.json"
        stamp = os.stat(path).st_mtime_ns
        if stamp != self._stamp:
            self._stamp, self._said = stamp, json.loads(path.read_bytes())
        return self._said

    def has_address(self) -> bool:
        """Whether it is on any link. Cheap, so that to look often costs dataplane nothing."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((self.ip, 0))
            except OSError:
                return False
        return True

    def addresses_on(self, name: str) -> int:
        """How many shared addresses a link has."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return 0
        return sum(a.index == index and a.deprecated for a in self._dumps.addresses())

    def groups_on(self, name: str) -> int:
        """How many groups of shared addresses a link has joined."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return 0
        return sum(i == index and mac.startswith("03:bf") for i, mac in self._dumps.groups())

    def is_sealed(self) -> bool:
        """Whether the rules are complete: the seal is what is written last."""
        return any(True for _ in self._reader.elements(AF_IPV4, TABLE, "seal"))

    def rules_on(self, name: str) -> int:
        """How many addresses the rules know on that interface."""
        wanted = name.encode().ljust(16, b"\0")
        return sum(e.key[:16] == wanted for e in self._reader.elements(AF_IPV4, TABLE, "vips"))

    def is_served_on(self, name: str) -> bool:
        """All of it."""
        return (
            self.addresses_on(name) == self.count
            and self.groups_on(name) == self.count
            and self.rules_on(name) == self.count
            and self.is_sealed()
        )

    def carrier(self, name: str) -> bool | None:
        """What is said of an interface."""
        return next((i.get("carrier", True) for i in self.said()["interfaces"] if i["name"] == name), None)

    def reason(self) -> str | None:
        """Why the address is said not to be served."""
        uids = {f["uid"]: f["reason"] for f in self.said()["failures"]}
        return uids.get(self.uid())

    def uid(self) -> str:
        """That of the ClusterIP."""
        for path in (self.state / "desired").glob("[!.]*.json"):
            if json.loads(path.read_bytes())["spec"]["ip"] == self.ip:
                return path.stem
        raise SystemExit(f"{self.ip} is not desired")


def run(*commands: str) -> None:
    """Run them in one process, so that nothing comes between."""
    for command in commands:
        tool, _, rest = command.partition(" ")
        subprocess.run([tool, *rest.split()], check=True)


Harm = tuple[Callable[[], object], Callable[[], bool]]
"""What is done, and what is to be true afterwards."""


def harms(node: Node, fault: str, master: str) -> list[Harm]:
    """What belongs to a fault: the harm, and where it needs one the undoing, each with what follows."""
    ip = node.ip
    uid = node.uid()

    def refused() -> bool:
        return any(f["uid"] == uid and f["reason"] == "AddressInUse" for f in node.said()["failures"])

    def gone(name: str) -> bool:
        return name not in [i["name"] for i in node.said()["interfaces"]]

    whole = lambda: node.is_served_on("eth0")  # noqa: E731 - as the others below
    new = ("ip link add eth0 type veth peer name far0", "ip link set far0 up", "ip link set eth0 up")
    return {
        "flush": [(lambda: run("nft flush ruleset"), node.is_sealed)],
        "flush-said": [
            (lambda: run("nft flush ruleset"), lambda: node.said()["applied"] == {} or node.is_sealed()),
            (lambda: None, whole),
        ],
        "address": [(lambda: run(f"ip address delete {ip}/32 dev eth0"), node.has_address)],
        "link": [
            (lambda: run("ip link set eth0 down"), lambda: node.carrier("eth0") is False),
            (lambda: run("ip link set eth0 up"), lambda: node.carrier("eth0") is True and whole()),
        ],
        "rename": [
            (lambda: rename("eth0", "lan0"), lambda: node.is_served_on("lan0")),
            (lambda: rename("lan0", "eth0"), whole),
        ],
        "veth": [
            (lambda: run("ip link delete eth0"), lambda: gone("eth0")),
            (lambda: run(*new, f"ip address add {OWN} dev eth0"), whole),
        ],
        "master": [
            (
                lambda: run(
                    f"ip link add over0 type {master}",
                    "ip link set eth0 down",
                    "ip address delete " + OWN + " dev eth0",
                    "ip link set eth0 master over0",
                    "ip link set eth0 up",
                    "ip link set over0 up",
                    f"ip address add {OWN} dev over0",
                ),
                lambda: node.is_served_on("over0") and node.addresses_on("eth0") == 0,
            ),
            (lambda: run("ip link delete over0", f"ip address add {OWN} dev eth0"), whole),
        ],
        "by-hand": [
            (lambda: run(f"ip address add {ip}/16 dev eth1"), refused),
            (
                lambda: run(f"ip address delete {ip}/16 dev eth1"),
                lambda: not refused() and whole() and node.has_address(),
            ),
        ],
    }[fault]


def rename(former: str, name: str) -> None:
    """In one call each; the kernel lets a link be renamed only while it is down."""
    run(f"ip link set {former} down", f"ip link set {former} name {name}", f"ip link set {name} up")


def elapsed(harm: Harm) -> tuple[float, float]:
    """Do it; return how long until what follows was seen, and how long nobody looked before."""
    do, follows = harm
    do()
    began = last = time.monotonic()
    while not follows():
        last = time.monotonic()
        if last - began > LIMIT_SECONDS:
            raise SystemExit("neither repaired nor reported")
        time.sleep(0.002)
    now = time.monotonic()
    return (now - began) * 1000, (now - last) * 1000


def main(state: Path, ip: str, times: int, fault: str, master: str) -> None:
    node = Node(state, ip)
    took: dict[str, list[float]] = {"times": [], "late": []}
    for _ in range(times):
        for harm in harms(node, fault, master):
            time_, late = elapsed(harm)
            took["times"].append(round(time_, 1))
            took["late"].append(round(late, 1))
            time.sleep(0.1)
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
