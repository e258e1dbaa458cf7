"""ARP of shared addresses under the iptables engine: answers say the cluster's MAC, and on one interface only.

Two rules an address, in chains of our own in arptables' table filter. The CLUSTERIP target does the first by
itself, but not while an address owns nothing, nor between the two commits that give it other parameters.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from lbless_nodeagent.dataplane.engine import EngineError, Vip
from lbless_nodeagent.dataplane.iptables import entries, rules
from lbless_nodeagent.dataplane.iptables.entries import Chains, Entry

TABLE = "filter"
IN, OUT, PROBE = "LBLESS-in", "LBLESS-out", "LBLESS-probe"
_HOOKS = {IN: "INPUT", OUT: "OUTPUT"}
_SECONDS = 10
_ETHERNET = (6, 0xFF)
_EVERY_BIT = 0xFFFFFFFF
_INVERTED_INTERFACE = 0x01  # ARPT_INV_VIA_IN
_MANGLE_SOURCE_MAC = 0x01  # ARPT_MANGLE_SDEV


@dataclass(frozen=True, slots=True)
class ArpRule:
    """What leaves `interface` from `ip` says `mac`; without one: what asks for `ip` elsewhere is dropped."""

    ip: IPv4Address
    interface: str
    mac: str = ""

    @property
    def chain(self) -> str:
        """The chain that it stands in."""
        return OUT if self.mac else IN

    @property
    def words(self) -> list[str]:
        """The rule as arptables takes it."""
        if self.mac:
            mangle = ["-j", "mangle", "--mangle-mac-s", self.mac]
            return ["-s", str(self.ip), "-o", self.interface, "--h-length", "6", *mangle]
        return ["-d", str(self.ip), "!", "-i", self.interface, "-j", "DROP"]


@dataclass(frozen=True, slots=True)
class Held:
    """What the kernel has: our rules in order, None for one that is not of ours' form, and which chains are entered.

    Chains of ours are all whose names begin so: a probe or another version may have left some.
    """

    chains: dict[str, list[ArpRule | None]]
    entered: dict[str, int]


def wanted(vips: Iterable[Vip]) -> set[ArpRule]:
    """The rules that addresses need."""
    return {
        rule
        for vip in vips
        for rule in (ArpRule(vip.ip, vip.interface, vip.mac), ArpRule(vip.ip, vip.interface))
    }


def decode(found: Chains) -> Held:
    """Our part of the table."""
    chains = {name: [*map(_decode, chain)] for name, chain in found.items() if rules.is_ours(name)}
    entered = {name: sum(entry.verdict == name for entry in found[""]) for name in chains}
    return Held(chains, entered)


def is_held(vips: Iterable[Vip], table: bytes | None) -> bool:
    """Whether the kernel has just what these addresses need."""
    need = wanted(vips)
    held = decode(entries.parse(entries.ARP, table)) if table else Held({}, {})
    found = [rule for chain in held.chains.values() for rule in chain]
    complete = {*found} == need and len(found) == len(need)
    return complete and held.entered == (dict.fromkeys(_HOOKS, 1) if need else {})


def read() -> bytes | None:
    """The table as the kernel has it; None where there is none. Raises EngineError."""
    return entries.read(entries.ARP, TABLE)


def problem() -> str:
    """Why it does not work here, "" where it does. Leaves nothing behind."""
    if not _program():
        return "the program arptables-legacy is missing: install the package arptables"
    probe = ArpRule(IPv4Address("192.0.2.1"), "lo", "01:00:5e:7f:00:01")
    try:
        if PROBE in _held().chains:  # of one that was killed
            _remove(PROBE)
        _run("-N", PROBE)
        try:
            _run("-A", PROBE, *probe.words)
        finally:
            _remove(PROBE)
    except EngineError as error:
        return str(error)
    return ""


def add(vips: Iterable[Vip]) -> None:
    """Add what is missing; raises EngineError."""
    need = wanted(vips)
    held = _held()
    for name, hook in _HOOKS.items() if need else ():
        if name not in held.chains:
            _run("-N", name)
        if not held.entered.get(name):
            _run("-I", hook, "-j", name)
    for rule in sorted(need - {r for chain in held.chains.values() for r in chain}, key=str):
        _run("-A", rule.chain, *rule.words)


def remove_others(vips: Iterable[Vip]) -> None:
    """Remove what is not needed, the chains too where nothing is; raises EngineError."""
    need = wanted(vips)
    held = _held()
    for name, chain in held.chains.items():
        if name not in _HOOKS:
            _remove(name)
            continue
        keep: set[ArpRule] = set()
        doomed = []
        for number, rule in enumerate(chain, 1):
            if rule is None or rule not in need or rule in keep:
                doomed.append(number)
            else:
                keep.add(rule)
        for number in reversed(doomed):
            _run("-D", name, str(number))
        for _ in range(held.entered[name] - bool(need)):
            _run("-D", _HOOKS[name], "-j", name)
        if not need:
            _run("-X", name)


def _remove(chain: str) -> None:
    _run("-F", chain)
    _run("-X", chain)


def _held() -> Held:
    table = read()
    return decode(entries.parse(entries.ARP, table)) if table else Held({}, {})


def _program() -> str | None:
    """arptables that writes the kernel's own tables: the other kind writes nftables'."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for name in ("arptables-legacy", "arptables"):
        found = shutil.which(name, path=path)
        if found and "nft" not in os.path.basename(os.path.realpath(found)):
            return found
    return None


def _run(*words: str) -> None:
    program = _program()
    if not program:
        raise EngineError("The program arptables-legacy is missing: install the package arptables.")
    try:
        done = subprocess.run(
            [program, *words], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"`arptables {' '.join(words)}` did not run: {error}.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1][:200]
        raise EngineError(f"`arptables {' '.join(words)}` failed: {said}.")


def _decode(entry: Entry) -> ArpRule | None:
    """struct arpt_arp and struct arpt_mangle, for the two forms above."""
    source, target, source_mask, target_mask = struct.unpack_from(">IIII", entry.selector)
    length = struct.unpack_from("BB", entry.selector, 16)
    hardware = entry.selector[18:94]  # both hardware addresses, operation, types, each with its mask
    interface, out, in_mask, out_mask = (entry.selector[at : at + 16] for at in range(94, 158, 16))
    (inverted,) = struct.unpack_from("<H", entry.selector, 160)
    if any(hardware[:64]) or any(hardware[64:]) or entry.matches:
        return None
    try:
        if (
            entry.verdict == "DROP"
            and (source_mask, target_mask) == (0, _EVERY_BIT)
            and inverted == _INVERTED_INTERFACE
            and not any(out_mask)
        ):
            return ArpRule(IPv4Address(target), _name(interface, in_mask))
        mac = entry.target.data[:6].hex(":")
        if (
            entry.target.name == "mangle"
            and (source_mask, target_mask) == (_EVERY_BIT, 0)
            and (inverted, length) == (0, _ETHERNET)
            and not any(in_mask)
            and entry.target.data[40] == _MANGLE_SOURCE_MAC
        ):
            return ArpRule(IPv4Address(source), _name(out, out_mask), mac)
    except (ValueError, IndexError):
        pass
    return None


def _name(interface: bytes, mask: bytes) -> str:
    name = interface.split(b"\0")[0]
    if mask != (b"\xff" * (len(name) + 1)).ljust(16, b"\0"):
        raise ValueError("not one whole name")
    return name.decode("ascii")
