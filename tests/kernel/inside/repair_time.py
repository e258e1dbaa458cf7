"""A program: damages what dataplane keeps, again and again, and measures how long each repair takes.

Runs in a node's network: `repair_time.py ADDRESS TIMES`. Prints the worst repair of the address and of the
rules, and the longest time that this program itself was kept from looking, all in ms.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from pyroute2 import IPRoute

from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

LIMIT_SECONDS = 10.0


def main(ip: str, times: int) -> None:
    route, engine = IPRoute(), NftablesEngine()
    (index,) = route.link_lookup(ifname="eth0")
    late = 0.0

    def address_is_there() -> bool:
        return any(a.get("local") == ip for a in route.get_addr(family=2, index=index))

    def rules_are_there() -> bool:
        found = engine.installed()
        return found is not None and IPv4Address(ip) in found.vips

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

    def flush_rules() -> None:
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    address, rules = 0.0, 0.0
    for _ in range(times):
        address = max(address, repaired_after(delete_address, address_is_there))
        time.sleep(0.02)
        rules = max(rules, repaired_after(flush_rules, rules_are_there))
        time.sleep(0.02)
    print(*(round(seconds * 1000) for seconds in (address, rules, late)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
