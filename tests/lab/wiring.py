"""Wiring: namespaces, bridges, cables, addresses and routes, collected as a plan and then made in one go.

Which of them a LAN consists of, and every address, is `lan`'s to say; removal is `claim`'s.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from itertools import count

from lab.claim import NAMESPACES
from lab.errors import LabError
from lab.host import INSIDE, Port, complaint

# No neighbour discovery, no router solicitations: nothing on the wire but what a test sends. The others are what
# the kernel starts with, written because a new namespace inherits them from a machine that may have other defaults.
QUIET = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    **{
        f"net/ipv4/conf/{scope}/{name}": "0"
        for scope in ("all", "default")
        for name in ("rp_filter", "arp_ignore", "arp_announce", "send_redirects", "accept_redirects")
    },
}


class Wiring:
    """A plan of a LAN; nothing exists before `build`."""

    def __init__(self) -> None:
        self._settings: dict[str, dict[str, str]] = {}
        self._links: list[str] = []
        self._inside: dict[str, list[str]] = defaultdict(list)
        # Numbers that no other end of a cable has. The kernel takes the carrier of an interface whose number equals
        # its peer's for that of a physical one, and then lets up to a second pass before it believes it.
        self._numbers = count(1001)

    def namespace(self, name: str, settings: Mapping[str, str] | None = None) -> None:
        """Plan a namespace with its kernel settings ("net/ipv4/ip_forward": "1")."""
        self._settings[name] = {**QUIET, **(settings or {})}
        self._inside[name].append("link set lo up")

    def bridge(self, namespace: str, name: str, address: str | None = None) -> None:
        """Plan a bridge that floods multicast to every port, as a switch without snooping does."""
        self._inside[namespace] += [
            f"link add {name} type bridge forward_delay 0 mcast_snooping 0",
            f"link set {name} up",
        ]
        if address:
            self._inside[namespace].append(f"address add {address} dev {name}")

    def plug(self, namespace: str, port: Port, bridge_namespace: str, bridge: str, socket: str) -> None:
        """Plan a cable from an interface of a host to `socket`, a port of a bridge."""
        self._links.append(
            f"link add name {port.interface} index {next(self._numbers)} address {port.mac} netns {namespace}"
            f" type veth peer name {socket} index {next(self._numbers)} netns {bridge_namespace}"
        )
        self._inside[bridge_namespace].append(f"link set {socket} master {bridge} up")
        self._address(namespace, port)

    def cross(self, namespace: str, port: Port, other_namespace: str, other_port: Port) -> None:
        """Plan a cable between two hosts."""
        self._links.append(
            f"link add name {port.interface} index {next(self._numbers)} address {port.mac} netns {namespace}"
            f" type veth peer name {other_port.interface} index {next(self._numbers)} address {other_port.mac}"
            f" netns {other_namespace}"
        )
        self._address(namespace, port)
        self._address(other_namespace, other_port)

    def route(self, namespace: str, route: str) -> None:
        """Plan a route, in the words of `ip route add`."""
        self._inside[namespace].append(f"route add {route}")

    def build(self) -> None:
        """Make everything. Raises LabError with the first complaint; what was made until then stays."""
        _ip([], [f"netns add {name}" for name in self._settings])
        written = subprocess.run(
            [sys.executable, "-S", "-E", str(INSIDE / "kernel_settings.py")],
            input=json.dumps({str(NAMESPACES / name): values for name, values in self._settings.items()}),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if written.returncode != 0:
            raise LabError(f"cannot write kernel settings of the lab: {complaint(written.stderr)}")
        _ip([], self._links)
        for name, lines in self._inside.items():
            _ip(["-netns", name], lines)

    def _address(self, namespace: str, port: Port) -> None:
        self._inside[namespace] += [
            f"address add {port.address}/{port.prefix_length} dev {port.interface}",
            *(f"address add {address}/32 dev {port.interface}" for address in port.addresses),
            f"link set {port.interface} up",
        ]


def _ip(options: list[str], lines: list[str]) -> None:
    done = subprocess.run(
        ["ip", *options, "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise LabError(f"cannot wire the lab ({' '.join(['ip', *options])}): {complaint(done.stderr)}")
