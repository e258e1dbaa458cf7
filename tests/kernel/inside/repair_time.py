"""A program: damages what dataplane keeps, again and again, and measures how long each repair takes.

Runs in a node's network: `repair_time.py ADDRESS TIMES ENGINE`. Prints the worst repair of the address and of the
rules, and the longest time that this program itself was kept from looking, all in ms.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from itertools import cycle

from pyroute2 import IPRoute

from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.engines import ENGINES
from lbless_nodeagent.dataplane.iptables import arp

LIMIT_SECONDS = 10.0
PAUSE_SECONDS = {"nftables": 0.02, "iptables": 0.5}
"""Between damages: the iptables engine's next child has to load what the last one had loaded."""
FLUSHES = {
    "nftables": ["nft flush ruleset"],
    "iptables": [
        "iptables-legacy -t mangle -F",
        "iptables-legacy -t mangle -D PREROUTING 1",
        "arptables-legacy -F LBLESS-out",
    ],
}


def main(ip: str, times: int, name: str) -> None:
    route, engine = IPRoute(), ENGINES[name]()
    (index,) = route.link_lookup(ifname="eth0")
    late = 0.0

    def address_is_there() -> bool:
        return any(a.get("local") == ip for a in route.get_addr(family=2, index=index))

    def rules_are_there() -> bool:
        found = engine.installed()
        vips = found.vips if found else {}
        return IPv4Address(ip) in vips and tells_the_mac(*vips.values())

    def tells_the_mac(*vips: Vip) -> bool:
        return name != "iptables" or arp.is_held(vips, arp.read())

    def repaired_after(damage: Callable[[], object], whole: Callable[[], bool]) -> float:
        nonlocal late
        assert whole(), "not whole before the damage"
        damage()
        began = last = time.monotonic()
        while not whole():
            now = time.monotonic()
            late = max(late, now - last)
            last = now
            if now - began > LIMIT_SECONDS:
                raise SystemExit("never repaired")
            time.sleep(0.002)
        return time.monotonic() - began

    def delete_address() -> None:
        route.addr("del", index=index, address=ip, prefixlen=32)

    flushes = cycle(FLUSHES[name])

    def flush_rules() -> None:
        subprocess.run(next(flushes).split(), check=True)

    address, rules = 0.0, 0.0
    for _ in range(times):
        address = max(address, repaired_after(delete_address, address_is_there))
        time.sleep(PAUSE_SECONDS[name])
        rules = max(rules, repaired_after(flush_rules, rules_are_there))
        time.sleep(PAUSE_SECONDS[name])
    print(*(round(seconds * 1000) for seconds in (address, rules, late)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
