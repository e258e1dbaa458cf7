"""Whether nftables works here: each thing the engine needs, tried without being done.

A program: ends with status 0 if all is there, and says REDIRECTS on standard output if what can be done without is
there too; else with MISSING and one sentence there. `fence` as its argument: all that the lease beside another engine
needs. What is tried is checked by libnftables and by
the kernel, in a transaction that is never committed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.nftables import fence, rules
from lbless_nodeagent.dataplane.nftables.layout import Layout
from lbless_nodeagent.dataplane.nftables.library import LIBRARY, Library, brief
from lbless_nodeagent.dataplane.nftables.names import TABLE, Family
from lbless_nodeagent.dataplane.nftables.netlink import Reader

MISSING = 3
FENCE, REDIRECTS = "fence", "redirects"
_SECONDS = 60
NEEDED_KERNEL = "Linux 5.16"
NEEDED_LIBRARY = "1.0.2"
_TABLE = "lbless_probe"
_UNKNOWN_TO_THE_LIBRARY = ("syntax error", "unknown", "Could not parse")


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that rules need: its name, the kernel options that it takes, and a text that uses it."""

    name: str
    options: str
    text: str


def _feature(name: str, options: str, family: Family, body: str) -> Feature:
    return Feature(name, options, f"table {family} {_TABLE} {{\n{body}\n}}\n")


FEATURES = (
    _feature(
        "tables of family ip", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4", Family.IP, 'comment "probe";'
    ),
    _feature("tables of family arp", "CONFIG_NF_TABLES_ARP", Family.ARP, 'comment "probe";'),
    _feature("tables of family netdev", "CONFIG_NF_TABLES_NETDEV", Family.NETDEV, 'comment "probe";'),
    _feature(
        "sets of two fields",
        "CONFIG_NF_TABLES and CONFIG_NFT_NUMGEN",
        Family.IP,
        "set s { typeof ip daddr . numgen inc mod 2; elements = { 192.0.2.1 . 1 } }",
    ),
    _feature(
        "sets of ranges",
        "CONFIG_NF_TABLES",
        Family.IP,
        "set s { type ipv4_addr . inet_service; flags interval; elements = { 192.0.2.1 . 1-2 } }",
    ),
    _feature(
        "hashing",
        "CONFIG_NFT_HASH",
        Family.IP,
        "chain c { jhash ip saddr . th sport mod 2 seed 0 1 drop\n }",
    ),
    _feature(
        "bit shifts",
        "CONFIG_NF_TABLES",
        Family.IP,
        "chain c { jhash ((ip saddr << 1) >> 1) mod 2 seed 0 1 drop\n }",
    ),
    _feature(
        "connection tracking",
        "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK",
        Family.IP,
        "chain c { ct state new drop\n }",
    ),
    _feature(
        "named counters", "CONFIG_NF_TABLES", Family.IP, "counter n { }\n chain c { counter name n drop\n }"
    ),
    _feature(
        "changing a packet's type",
        "CONFIG_NF_TABLES",
        Family.IP,
        "chain c { type filter hook prerouting priority -350; meta pkttype set host accept\n }",
    ),
    _feature(
        "the egress hook",
        "CONFIG_NETFILTER_EGRESS",
        Family.NETDEV,
        'chain c { type filter hook egress device "lo" priority 0; }',
    ),
    _feature(
        "rewriting ARP",
        "CONFIG_NF_TABLES_NETDEV",
        Family.NETDEV,
        "map m { type ipv4_addr : ether_addr; }\n chain c { ether type arp arp saddr ether set arp saddr ip map @m\n }",
    ),
)


def _elsewhere(text: str) -> str:
    """The same for a table that nobody has."""
    return text.replace(f" {TABLE}", f" {_TABLE}")


# Last, the real thing, for what is not among the features.
_WHOLE_LAYOUT = Layout(redirect=False, lease=True)
_WHOLE = (
    *(rules.table(family, _WHOLE_LAYOUT) for family in Family),
    *(
        rules.add_group(HashParameters(function, mode, 1, 7, prefix_length), _WHOLE_LAYOUT)
        for function in HashFunction
        for mode in HashMode
        for prefix_length in (24, 32)
    ),
    rules.add_egress("lo"),
)
WHOLE = Feature("lbless's rules", "CONFIG_NF_TABLES and CONFIG_NFT_HASH", "".join(map(_elsewhere, _WHOLE)))

REDIRECT = _feature(
    "sending packets on",
    "CONFIG_NFT_DUP_IPV4",
    Family.IP,
    "map m { typeof ip daddr . numgen inc mod 2 : ip daddr; }\n"
    " chain c { dup to ip daddr . jhash ip saddr mod 2 seed 0 map @m drop\n }",
)
"""What can be done without: a move has a gap of some milliseconds then."""


def layout(library: Library) -> Layout:
    """The layout for all that this kernel can do."""
    return Layout(redirect=library.refused(REDIRECT.text) is None)


LEASE = Feature("the rules of a lease", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4", _elsewhere(fence.TEXT))


def missing(library: Library, features: Iterable[Feature] = (*FEATURES, WHOLE)) -> str | None:
    """Return one sentence for the first feature that is missing, or None."""
    for feature in features:
        error = library.refused(feature.text)
        if error is None:
            continue
        cause = brief(error)
        if any(word in error for word in _UNKNOWN_TO_THE_LIBRARY):
            return (
                f"{LIBRARY} does not know {feature.name} ({cause}): "
                f"nftables {NEEDED_LIBRARY} or newer is needed."
            )
        return (
            f"This kernel cannot do {feature.name} ({cause}): "
            f"{NEEDED_KERNEL} or newer with {feature.options} is needed."
        )
    return None


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it: one sentence about what is `missing`, if anything is, and whether packets can be sent on."""

    missing: str | None
    redirect: bool = False


def trial(*what: str) -> Trial:
    """Run this as a program, as some versions of libnftables answer with a crash.

    `what` is nothing for all that the nftables engine needs, or `FENCE`.
    """
    command = [sys.executable, "-P", "-m", __name__, *what]  # -P: nothing from the working directory
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Trial(f"nftables could not be tried: {error}.")
    said = done.stdout.strip()
    if done.returncode == 0:
        return Trial(None, redirect=said == REDIRECTS)
    if done.returncode == MISSING:
        return Trial(said)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    how = f"Trying nftables ended with status {done.returncode} ({last[:200]})"
    return Trial(f"{how}: use another version of libnftables.")


def main() -> int:
    """Try what the command line says; return the status to end with."""
    try:
        Reader().close()
        library = Library()
        sentence = missing(library, (LEASE,) if sys.argv[1:] == [FENCE] else (*FEATURES, WHOLE))
        redirects = sentence is None and layout(library).redirect
    except EngineError as error:
        sentence = str(error)
    if sentence is None:
        sys.stdout.write(f"{REDIRECTS}\n" if redirects else "")
        return 0
    sys.stdout.write(sentence + "\n")
    return MISSING


if __name__ == "__main__":
    sys.exit(main())
