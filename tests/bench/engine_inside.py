"""Runs in a namespace of its own: the nftables engine with many addresses; prints its figures as JSON.

Started by `bench.dataplane`, never imported.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import default_mac
from lbless_nodeagent.dataplane.engine import Vip, Wanted
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine

HASH = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP_SOURCE_PORT, 0, 256, 32)
FIRST = IPv4Address("10.80.16.0")


def wanted(count: int, owned: BucketSet, first_owned: BucketSet) -> Wanted:
    """`count` addresses, each with `owned`, the first with `first_owned`."""
    vips = {}
    for number in range(count):
        ip = FIRST + number
        own = owned if number else first_owned
        vips[ip] = Vip(ip, "eth0", default_mac(ip), HASH, None, own)
    return Wanted(vips, frozenset())


def rules() -> int:
    """How many rules the kernel holds."""
    listing = subprocess.run(
        ["nft", "-j", "-t", "list", "ruleset"], capture_output=True, text=True, check=True
    )
    return sum("rule" in entry for entry in json.loads(listing.stdout)["nftables"])


def timed_ms(action: Callable[[], object]) -> float:
    """Milliseconds that an action took."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000


def main(count: int, rounds: int) -> None:
    """Print {load_ms: […], flip_ms: […], rules_few, rules_many, peak_mib}."""
    engine = NftablesEngine()
    share = BucketSet(range(85))
    few = wanted(5, share, share)
    engine.apply(few)
    rules_few = rules()
    many, other = wanted(count, share, share), wanted(count, share, BucketSet(range(86)))
    load, flip = [], []
    for _ in range(rounds):
        engine.remove()
        load.append(timed_ms(lambda: engine.apply(many)))
    rules_many = rules()
    for number in range(rounds * 4):
        flip.append(timed_ms(lambda to=(other, many)[number % 2]: engine.apply(to)))  # type: ignore[misc]  # a lambda's default
    engine.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    json.dump(
        {
            "load_ms": load,
            "flip_ms": flip,
            "rules_few": rules_few,
            "rules_many": rules_many,
            "peak_mib": peak,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
