"""A shared address made of a few plain rules that a test writes: what probers are proven against.

No lbless: three nodes, each with a set of the buckets that it keeps, which a test changes as it likes.
"""

from collections.abc import Iterable, Mapping

from lab.host import Host
from lab.lan import Lan
from lab.prober import Sources
from lab.servers import TCP_PORT
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode

BUCKETS = 16
PARAMETERS = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, BUCKETS, 32)
RULES = """
table ip plain {{
 set owned {{ typeof numgen inc mod {buckets}; }}
 chain pre {{ type filter hook prerouting priority -350; policy accept; ip daddr {address} jump sort; }}
 chain sort {{
  jhash ip saddr . th sport mod {buckets} seed 0x0 @owned meta pkttype set host accept
  drop
 }}
}}
"""


class PlainSharing:
    """Each node of a LAN keeps the buckets it was last given of one address. Trials can be made on it."""

    def __init__(self, lan: Lan, address: str) -> None:
        self.lan = lan
        self.address = address
        self.sources = Sources(PARAMETERS, TCP_PORT, lan.client.addresses)
        self.operated = False
        self._kept: dict[str, list[int]] = {}
        mac = "03:bf:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        for node in lan.nodes:
            node.run(["nft", "-f", "-"], stdin=RULES.format(address=address, buckets=BUCKETS))
            node.run(["ip", "address", "add", f"{address}/32", "dev", "eth0"])
            node.run(["ip", "maddress", "add", mac, "dev", "eth0"])
        for client in (lan.client, lan.router):
            client.run(["ip", "neighbour", "add", address, "lladdr", mac, "dev", "eth0"])

    def share(self) -> dict[int, str]:
        """Give the buckets to the nodes in turn; return who has which."""
        owners = {b: self.lan.nodes[b % len(self.lan.nodes)].name for b in range(BUCKETS)}
        self.assign(owners)
        return owners

    def assign(self, owners: Mapping[int, str]) -> None:
        """Give each bucket to exactly that node: first every node loses what it is not to have."""
        wanted = {n.name: [b for b, name in owners.items() if name == n.name] for n in self.lan.nodes}
        for node in self.lan.nodes:
            kept = self._kept.get(node.name, [])
            self.keep(node, [b for b in kept if b in wanted[node.name]])
        for node in self.lan.nodes:
            self.keep(node, wanted[node.name])

    def keepers(self) -> dict[int, list[str]]:
        """Which nodes keep each bucket."""
        return {b: [name for name, kept in self._kept.items() if b in kept] for b in range(BUCKETS)}

    def await_healthy(self) -> None:
        """It always is, as soon as the buckets are shared out."""
        self.share()

    def keep(self, node: Host, buckets: Iterable[int]) -> None:
        """Let a node keep exactly these buckets."""
        self._kept[node.name] = list(buckets)
        elements = ", ".join(map(str, self._kept[node.name]))
        add = f"add element ip plain owned {{ {elements} }}" if elements else ""
        node.run(["nft", "-f", "-"], stdin=f"flush set ip plain owned\n{add}\n")
