"""The LAN: which hosts and networks it has, their addresses, and what can be done to a cable or a node.

Networks: the *segment* 10.80.0.0/16 that the nodes share; *management* 10.81.0.0/24, where the control plane lives,
so that its traffic never mixes with the segment's; *back*, behind the router. Nothing here knows Kubernetes.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from lab import guestimage
from lab.claim import Claim
from lab.errors import LabError
from lab.guest import Cable, Guest
from lab.host import Host, Port
from lab.interrupts import deferred, unwind_on_termination
from lab.wiring import Wiring

SEGMENT = "10.80.0.0/16"
GATEWAY = "10.80.0.1"
MANAGEMENT = "10.81.0.0/24"
BACK = "10.82.0.0/16"
# Behind the router too. Their first bit is set, and hash functions that shift addresses care.
FAR = ("192.0.2", "198.51.100", "203.0.113")
MAXIMUM_NODES = 64
# Any rule that asks for a connection's state makes the kernel track connections; this one changes nothing else.
TRACKING = """
table ip lab {
  chain track {
    type filter hook prerouting priority 0
    ct state new counter
  }
}
"""


class Lan:
    """`with Lan("t1", nodes=3) as lan:` is a LAN; it is gone afterwards, also after exceptions and signals."""

    def __init__(
        self,
        prefix: str,
        nodes: int = 3,
        *,
        sources: int = 64,
        pods: bool = False,
        guests: int = 0,
        extra_interfaces: Sequence[str] = (),
    ) -> None:
        """Plan it: `sources` client addresses on either side of the router, `pods` one pod network a node.

        Each of `extra_interfaces` ("eth1") is one more segment, 10.83.0.0/16 and up, with all nodes and the client.
        `guests` further nodes are virtual machines with an older kernel, without pods.
        """
        if not 0 <= nodes + guests <= MAXIMUM_NODES:
            raise LabError(f"a lab has at most {MAXIMUM_NODES} nodes, not {nodes + guests}")
        self.prefix = prefix
        self._node_count = nodes
        self._guest_count = guests
        self._sources = sources
        self._with_pods = pods
        self._extra_interfaces = tuple(extra_interfaces)
        self._claim: Claim | None = None
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> "Lan":
        unwind_on_termination()
        try:
            image = guestimage.find() if self._guest_count else None
            self._claim = Claim(self.prefix)
            self._plan().build()
            if image is not None:
                self._boot(image)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the LAN, unless `keep` was called."""
        if self._claim is None:
            return
        with deferred():
            if not self.kept:
                for host in self._hosts.values():
                    host.close()
            self._claim.release()
            self._claim = None

    def keep(self) -> None:
        """Leave everything up at the end; `claim.remove(prefix)` or the next LAN of this prefix removes it."""
        self._held.keep()

    @property
    def kept(self) -> bool:
        """Whether `keep` was called."""
        return self._held.kept

    @property
    def directory(self) -> Path:
        """A directory, readable by root alone, that goes with the LAN: logs, keys, state."""
        return self._held.directory

    @property
    def nodes(self) -> list[Host]:
        """The nodes n1, n2, …, the guests last: eth0 on the segment, mgmt0 on management."""
        count = self._node_count + self._guest_count
        return [self._hosts[f"n{number}"] for number in range(1, count + 1)]

    @property
    def guests(self) -> list[Guest]:
        """Those of the nodes that are virtual machines."""
        return [node for node in self.nodes if isinstance(node, Guest)]

    @property
    def client(self) -> Host:
        """The client on the segment."""
        return self.host("client")

    @property
    def routed_client(self) -> Host:
        """The client behind the router."""
        return self.host("routed")

    @property
    def router(self) -> Host:
        """The router: eth0 on the segment, eth1 towards the routed client; everybody's default gateway."""
        return self.host("router")

    @property
    def control(self) -> Host:
        """Where the control plane and the operator run; management only."""
        return self.host("control")

    @property
    def switch(self) -> Host:
        """The segment's bridge `br0`, with one port a host, named as the host."""
        return self.host("switch")

    @property
    def pods(self) -> list[Host]:
        """One pod a node, in the nodes' order."""
        return [self._hosts[f"n{number}-pod"] for number in range(1, self._node_count + 1)]

    def host(self, name: str) -> Host:
        """Return a host by its name ("n2", "client", …). Raises LabError for a name that there is not."""
        if name not in self._hosts:
            raise LabError(f"the lab has no host {name}: there are {', '.join(self._hosts) or 'none yet'}")
        return self._hosts[name]

    def owner_of(self, mac: str) -> str:
        """Return the name of the host that has the hardware address. Raises LabError if none has."""
        for host in self._hosts.values():
            if any(port.mac == mac for port in host.ports.values()):
                return host.name
        raise LabError(f"no host of the lab has the hardware address {mac}")

    @staticmethod
    def vip(number: int = 1) -> str:
        """Return an address of the segment that no host has; 1 <= number <= 254."""
        return f"10.80.2.{number}"

    def cut(self, node: Host) -> None:
        """Take a node's cable out of the segment: both ends lose their carrier, but a guest does not notice."""
        self.switch.run(["ip", "link", "set", node.name, "down"])

    def join(self, node: Host) -> None:
        """Plug a cut cable in again."""
        self.switch.run(["ip", "link", "set", node.name, "up"])

    def enable_conntrack(self, host: Host) -> None:
        """Make the kernel track connections on a host: it does so only where some rule asks for their state."""
        host.run(["nft", "-f", "-"], stdin=TRACKING)

    def conntrack(self, host: Host, address: str) -> list[str]:
        """Return the host's conntrack entries that mention an address, as the kernel prints them."""
        entries = host.run(["cat", "/proc/net/nf_conntrack"]).stdout.splitlines()
        return [entry for entry in entries if f"={address} " in entry]

    @property
    def _held(self) -> Claim:
        if self._claim is None:
            raise LabError(f"the lab {self.prefix} is not up")
        return self._claim

    def _plan(self) -> Wiring:
        wiring = Wiring()
        self._switches(wiring)
        self._outside(wiring)
        self._management(wiring)
        for number in range(1, self._node_count + 1):
            self._node(wiring, number)
        for number in range(self._node_count + 1, self._node_count + self._guest_count + 1):
            self._guest(wiring, number)
        return wiring

    def _boot(self, image: guestimage.Image) -> None:
        """Boot all guests at the same time."""
        for guest in self.guests:
            guest.boot(image)
        for guest in self.guests:
            guest.await_boot()

    def _switches(self, wiring: Wiring) -> None:
        switch = self._host(wiring, "switch", [])
        wiring.bridge(switch.namespace, "br0")
        for index, _ in enumerate(self._extra_interfaces):
            wiring.bridge(switch.namespace, f"br{index + 1}")

    def _outside(self, wiring: Wiring) -> None:
        """Plan the router and both clients."""
        towards_segment = Port("eth0", _mac(0, 1), GATEWAY, 16)
        towards_back = Port("eth1", _mac(2, 1), "10.82.0.1", 16)
        near = Port("eth0", _mac(0, 2), "10.80.0.2", 16, _near_sources(self._sources))
        far = Port("eth0", _mac(2, 2), "10.82.0.2", 16, _far_sources(self._sources))
        router = self._host(wiring, "router", [towards_segment, towards_back], {"net/ipv4/ip_forward": "1"})
        client = self._host(wiring, "client", [near, *self._extra_ports(2)])
        routed = self._host(wiring, "routed", [far])
        self._plug_into_segments(wiring, client)
        wiring.plug(router.namespace, towards_segment, self.switch.namespace, "br0", "router")
        wiring.cross(router.namespace, towards_back, routed.namespace, far)
        wiring.route(client.namespace, f"default via {GATEWAY}")
        wiring.route(routed.namespace, "default via 10.82.0.1")
        for network in FAR:
            wiring.route(router.namespace, f"{network}.0/24 dev eth1")

    def _management(self, wiring: Wiring) -> None:
        port = Port("eth0", _mac(1, 10), "10.81.0.10", 24)
        control = self._host(wiring, "control", [port])
        management = self._host(wiring, "management", [])
        wiring.bridge(management.namespace, "br0")
        wiring.plug(control.namespace, port, management.namespace, "br0", "control")

    def _node(self, wiring: Wiring, number: int) -> None:
        name, ports = f"n{number}", _node_ports(number)
        node = self._host(
            wiring,
            name,
            [*ports, *self._extra_ports(0x100 + number)],
            {"net/ipv4/ip_forward": "1"} if self._with_pods else {},
        )
        self._plug_into_segments(wiring, node)
        wiring.plug(node.namespace, ports[1], self.host("management").namespace, "br0", name)
        wiring.route(node.namespace, f"default via {GATEWAY}")
        if self._with_pods:
            self._pod(wiring, node, number)

    def _guest(self, wiring: Wiring, number: int) -> None:
        name, ports = f"n{number}", _node_ports(number)
        places = [(self.switch.namespace, "br0", name), (self.host("management").namespace, "br0", name)]
        for index, port in enumerate(self._extra_ports(0x100 + number)):
            ports.append(port)
            places.append((self.switch.namespace, f"br{index + 1}", f"{name}-{port.interface}"))
        cables = [Cable(port, *place) for port, place in zip(ports, places, strict=True)]
        guest = Guest(name, f"{self.prefix}-{name}", cables, self.directory, [f"default via {GATEWAY}"])
        self._hosts[name] = guest
        wiring.namespace(guest.namespace)

    def _pod(self, wiring: Wiring, node: Host, number: int) -> None:
        port = Port("eth0", _mac(9, 0x100 + number), f"10.244.{number}.2", 24)
        pod = self._host(wiring, f"{node.name}-pod", [port])
        wiring.bridge(node.namespace, "cni0", f"10.244.{number}.1/24")
        wiring.plug(pod.namespace, port, node.namespace, "cni0", "pod0")
        wiring.route(pod.namespace, f"default via 10.244.{number}.1")
        for other in range(1, self._node_count + 1):
            if other != number:
                wiring.route(node.namespace, f"10.244.{other}.0/24 via 10.80.1.{other}")

    def _extra_ports(self, host_number: int) -> list[Port]:
        high, low = divmod(host_number, 0x100)
        return [
            Port(interface, _mac(3 + index, host_number), f"10.{83 + index}.{high}.{low}", 16)
            for index, interface in enumerate(self._extra_interfaces)
        ]

    def _plug_into_segments(self, wiring: Wiring, host: Host) -> None:
        """Plug eth0 and the extra interfaces into their bridges; the ports are called n1, n1-eth1, …"""
        wiring.plug(host.namespace, host.port, self.switch.namespace, "br0", host.name)
        for index, interface in enumerate(self._extra_interfaces):
            socket = f"{host.name}-{interface}"
            wiring.plug(
                host.namespace, host.ports[interface], self.switch.namespace, f"br{index + 1}", socket
            )

    def _host(
        self, wiring: Wiring, name: str, ports: Sequence[Port], settings: dict[str, str] | None = None
    ) -> Host:
        host = Host(name, f"{self.prefix}-{name}", ports, self.directory)
        self._hosts[name] = host
        wiring.namespace(host.namespace, settings)
        return host


def _node_ports(number: int) -> list[Port]:
    return [
        Port("eth0", _mac(0, 0x100 + number), f"10.80.1.{number}", 16),
        Port("mgmt0", _mac(1, 0x100 + number), f"10.81.0.{100 + number}", 24),
    ]


def _mac(network: int, host: int) -> str:
    """Return a locally administered unicast address that says which network and host it is of."""
    return f"02:4c:42:{network:02x}:{host >> 8:02x}:{host & 0xFF:02x}"


def _near_sources(count: int) -> tuple[str, ...]:
    """Return addresses of the segment, spread over sixteen /24s so that hashing a prefix still spreads them."""
    return tuple(f"10.80.{16 + index % 16}.{1 + index // 16}" for index in range(count))


def _far_sources(count: int) -> tuple[str, ...]:
    """Return addresses behind the router, half of them from networks whose first bit is set."""
    return tuple(
        f"{FAR[index // 2 % 3]}.{1 + index // 6}"
        if index % 2
        else f"10.82.{16 + index // 2 % 16}.{1 + index // 32}"
        for index in range(count)
    )
