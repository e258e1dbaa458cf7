"""Rules into the kernel through python-iptables: the objects of its API, one commit a table, never `easy`.

Owns what that library cannot do by itself: xtables' own parser caps a mask at 32 and a rule of CLUSTERIP at
one node. Such numbers are written into the structure after the library has checked the rule.
"""

from __future__ import annotations

import errno
import glob
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from typing import Any

from lbless_api.buckets import BucketSet
from lbless_api.clusterip import PortRange
from lbless_api.hashing import HashMode
from lbless_nodeagent.dataplane.engine import EngineBusyError, EngineError
from lbless_nodeagent.dataplane.iptables import rules
from lbless_nodeagent.dataplane.iptables.rules import Chains, Cluster, Clusterip, Icmp, Rule

_LIBRARIES = ("/usr/lib/*/xtables", "/usr/lib64/xtables", "/usr/lib/xtables", "/lib/*/xtables")
_HEADER_BYTES = 32  # of struct xt_entry_match and xt_entry_target
_LEGACY_MODES = {
    HashMode.SOURCE_IP: "sourceip",
    HashMode.SOURCE_IP_SOURCE_PORT: "sourceip-sourceport",
    HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT: "sourceip-sourceport-destport",
}
_SECONDS = 2.0
"""A program that takes no lock may commit in between, again and again: then the table is read anew, so long."""
_REFUSALS = 3
"""EINVAL so often means a rule that the kernel does not take. Once it may be such a program too: libiptc hands the
counters back after the new table is in force, and the kernel refuses them when a rule has come in between
(do_add_counters in net/ipv4/netfilter/ip_tables.c)."""

# Else the library runs ldconfig to find it.
if _found := [path for pattern in _LIBRARIES for path in sorted(glob.glob(pattern))]:
    os.environ.setdefault("XTABLES_LIBDIR", _found[0])
try:
    import iptc
except Exception as error:  # whatever it misses, it raises something of its own
    raise EngineError(
        f"python-iptables does not work here ({str(error)[:200]}): install iptables and its libraries."
    ) from error


def commit(held: Chains, goal: Chains) -> None:
    """Replace all chains of ours, of which `held` are known, by `goal` in one step; raises EngineError, and then
    nothing has changed."""
    _transact(lambda table: _replace(table, held, goal))


def _transact(edit: Callable[[Any], None]) -> None:
    deadline = time.monotonic() + _SECONDS
    refusals = 0
    while True:
        table = iptc.Table(iptc.Table.MANGLE, autocommit=False)
        try:
            table.refresh()
            edit(table)
            table.commit()
        except (iptc.IPTCError, iptc.XTablesError) as error:
            refusals += os.strerror(errno.EINVAL) in str(error)
            if os.strerror(errno.EAGAIN) not in str(error) and refusals in (0, _REFUSALS):
                raise EngineError(f"The kernel does not take the iptables rules: {_brief(error)}.") from error
            if time.monotonic() > deadline:
                raise EngineBusyError(
                    f"Another program has changed the mangle table again and again for {_SECONDS:.0f} s without the "
                    f"lock of iptables: see which one; the rules stay as they are."
                ) from error
        else:
            return
        finally:
            table.close()


def problems() -> dict[str, str]:
    """Why each of `cluster` and `legacy` does not work here, "" where it does; leaves nothing behind."""
    nodes = BucketSet([1])
    tried: dict[str, tuple[Rule, ...]] = {
        "cluster": (
            Rule(rules.RETURN, match=Cluster(32, BucketSet([31]), 1), comment=rules.FORMAT),
            Rule(rules.DROP, match=Icmp(8)),
        ),
        "legacy": (
            Rule(
                Clusterip("01:00:5e:7f:00:01", HashMode.SOURCE_IP, 2, 0, nodes),
                destination=_PROBED,
                interface="lo",
            ),
        ),
    }
    found = {}
    for way, chain in tried.items():
        try:
            _transact(lambda table, chain=chain: _make(table, _PROBE, chain))  # type: ignore[misc]
            _transact(lambda table: _unmake(table, [_PROBE]))
            found[way] = ""
        except EngineError as error:
            found[way] = str(error)
    return found


_PROBE = f"{rules.CHAIN}-probe"
_PROBED = IPv4Address("192.0.2.1")  # of a documentation prefix: nobody's


def _replace(table: Any, held: Chains, goal: Chains) -> None:
    present = {name for name in map(_text, _chains(table)) if rules.is_ours(name)}
    changed = {
        name: chain
        for name, chain in goal.items()
        if name not in present or not rules.is_same(held.get(name, ()), chain)
    }
    _leave(table)
    for name in (present & changed.keys()) | (present - goal.keys()):
        table.flush_entries(name)
    for name in goal.keys() - present:
        table.create_chain(name)
    for name, chain in changed.items():
        for rule in chain:
            _append(table, name, rule)
    _unmake(table, present - goal.keys())
    if rules.CHAIN in goal:
        _enter(table)


def _make(table: Any, name: str, chain: Iterable[Rule]) -> None:
    _unmake(table, [name] if table.is_chain(name) else [])
    table.create_chain(name)
    for rule in chain:
        _append(table, name, rule)


def _unmake(table: Any, names: Iterable[str]) -> None:
    for name in names:
        table.flush_entries(name)
        table.delete_chain(name)


def _leave(table: Any) -> None:
    """Nothing leads to chains of ours any more, from wherever somebody had it led there.

    By libiptc's calls: the library's objects load the extensions of everybody's rules, and it crashes on some.
    """
    for chain in _chains(table):
        if rules.is_ours(_text(chain)):
            continue
        targets = []
        entry = table._iptc.iptc_first_rule(chain, table._handle)
        while entry:
            targets.append(_text(table._iptc.iptc_get_target(entry, table._handle)))
            entry = table._iptc.iptc_next_rule(entry, table._handle)
        for number in reversed([n for n, target in enumerate(targets) if rules.is_ours(target)]):
            if not table._iptc.iptc_delete_num_entry(chain, number, table._handle):
                raise iptc.IPTCError(f"can't delete rule {number} of {_text(chain)}: {table.strerror()}")


def _chains(table: Any) -> list[bytes]:
    """All names, which may be any bytes."""
    found = []
    name = table._iptc.iptc_first_chain(table._handle)
    while name:
        found.append(name)
        name = table._iptc.iptc_next_chain(table._handle)
    return found


def _text(name: bytes | None) -> str:
    return (name or b"").decode(errors="surrogateescape")


def _enter(table: Any) -> None:
    """The jump to our chain comes first in the built-in one."""
    hook = iptc.Chain(table, rules.HOOK)
    jump = iptc.Rule(chain=hook)
    jump.create_target(rules.CHAIN)
    hook.insert_rule(jump)


def _append(table: Any, name: str, rule: Rule) -> None:
    made = iptc.Rule(chain=iptc.Chain(table, name))
    if rule.destination:
        made.dst = str(rule.destination)
    if rule.source:
        made.src = str(rule.source)
    if rule.interface:
        made.in_interface = rule.interface
    patches = [*_match(made, rule), *_target(made, rule)]
    made.final_check()
    for buffer, offset, data in patches:
        for at, byte in enumerate(data, _HEADER_BYTES + offset):
            buffer[at] = byte
    table.append_entry(name, made.rule)


_Patch = tuple[Any, int, bytes]
"""A structure's bytes, where in its data to write, and what."""


def _match(made: Any, rule: Rule) -> Iterator[_Patch]:
    """Give the rule its matches; yields what the library cannot express itself."""
    if rule.comment:
        made.create_match("comment").comment = rule.comment
    match rule.match:
        case Cluster(total, nodes, seed):
            match = made.create_match("cluster")
            match.cluster_total_nodes = str(total)
            match.cluster_local_nodemask = "1"
            match.cluster_hash_seed = str(seed)
            yield match.match_buf, 4, struct.pack("<I", sum(1 << node for node in nodes))
        case Icmp(kind):
            made.protocol = "icmp"
            made.create_match("icmp").icmp_type = str(kind)
        case PortRange(protocol, first, last):
            made.protocol = protocol.lower()
            made.create_match(protocol.lower()).dport = f"{first}:{last}"


def _target(made: Any, rule: Rule) -> Iterator[_Patch]:
    """Give the rule its target; yields what the library cannot express itself."""
    if isinstance(rule.target, str):
        made.create_target(rule.target, goto=rule.goto)
        return
    wanted = rule.target
    target = made.create_target("CLUSTERIP")
    target.new = ""
    target.hashmode = _LEGACY_MODES[wanted.mode]
    target.clustermac = wanted.mac
    target.total_nodes = str(wanted.total)
    target.local_node = "1"
    target.hash_init = str(wanted.seed)
    numbers = [node + 1 for node in wanted.nodes]
    padded = numbers + [0] * (rules.MAX_LEGACY_BUCKETS - len(numbers))
    # num_local_nodes and local_nodes of struct ipt_clusterip_tgt_info
    yield target._target_buf, 12, struct.pack("<17H", len(numbers), *padded)


def _brief(error: Exception) -> str:
    text = str(error).removeprefix("can't commit: ")
    return text.removeprefix("b'").removesuffix("'")
