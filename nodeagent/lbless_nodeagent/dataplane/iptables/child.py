"""The program that writes: brings the kernel's tables to what it is told on standard input, and ends.

A process of its own because python-iptables redirects standard output, keeps global jump buffers and can
crash; single-threaded, and alone with the tables by the lock that iptables itself takes. Every change is
one commit of a whole table, so that a packet sees the old rules or the new ones wherever this is killed.

The argument is the starter's process id. Input and output are one JSON object each; `writer` is the other end
and has the exit statuses. May be started long before its input comes: it loads what it needs first.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from lbless_nodeagent.dataplane.engine import EngineBusyError, EngineError, Wanted
from lbless_nodeagent.dataplane.iptables import arp, entries, procfs, rules, wire
from lbless_nodeagent.dataplane.iptables.rules import Chains, Clusterip
from lbless_nodeagent.dataplane.iptables.writer import BUSY, REFUSED

LOCK = "/run/xtables.lock"
LOCK_SECONDS = 4.0
"""As dataplane's report, which tells that it lives, may be 6 s old, and it waits meanwhile."""
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Do what standard input says."""
    answers = os.fdopen(os.dup(1), "w")  # python-iptables redirects the descriptor itself
    _end_with(int(sys.argv[1]))
    with suppress(EngineError):  # raised again where it is needed
        _load()
    said = sys.stdin.read()
    if not said:
        return  # nothing is to be done any more
    try:
        order = json.loads(said)
        with _lock():
            reply = _probe() if order["do"] == "probe" else _apply(order)
    except EngineError as error:
        print(error, file=answers)
        answers.flush()
        sys.exit(BUSY if isinstance(error, EngineBusyError) else REFUSED)
    json.dump(reply, answers)
    answers.flush()


def _end_with(parent: int) -> None:
    """An order must not outlive who gave it: the next one may have had all rules removed by then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(REFUSED)


@contextmanager
def _lock() -> Iterator[None]:
    path = os.environ.get("XTABLES_LOCKFILE", LOCK)
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EngineError(f"The lock {path} cannot be opened: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise EngineBusyError(
                        f"Another program has held {path} for {LOCK_SECONDS:.0f} s: "
                        f"see which one with `fuser {path}`; the rules stay as they are."
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(opened)


def _apply(order: Mapping[str, Any]) -> dict[str, object]:
    """Bring everything to what is wanted; an order without it removes all that is this engine's."""
    wanted = wire.parse(order["wanted"]) if "wanted" in order else None
    vips = [*wanted.vips.values()] if wanted else []
    arp.add(vips)
    _bring(rules.chains(wanted) if wanted else {}, wanted)
    arp.remove_others(vips)
    return {}


def _bring(goal: Chains, wanted: Wanted | None) -> None:
    table = entries.read(entries.IP, rules.TABLE)
    if table is None and not goal:
        return
    found = entries.parse(entries.IP, table) if table else {"": ()}
    held = rules.decode(found)
    _refuse_foreign(held, wanted)
    closed = _closed_first(held, goal)
    if closed:
        _commit(held, {**held, **closed})
        held = {**held, **closed}
    if _differs(held, goal) or (goal and not rules.is_entered(found)):
        _commit(held, goal)
    if wanted:
        _hand_out(wanted)


def _refuse_foreign(held: Chains, wanted: Wanted | None) -> None:
    """The target keeps one list of nodes an address: not with somebody else's rule."""
    ours = {r.destination for chain in held.values() for r in chain if isinstance(r.target, Clusterip)}
    for ip in procfs.read():
        if wanted and ip in wanted.vips and rules.uses_target(wanted.vips[ip]) and ip not in ours:
            raise EngineError(
                f"{ip}: a rule that is not of lbless's has it with -j CLUSTERIP already: remove that rule first."
            )


def _closed_first(held: Chains, goal: Chains) -> dict[str, tuple[rules.Rule, ...]]:
    """Chains whose target has other parameters from now on: a second rule would only join the first one's list."""
    closed: dict[str, tuple[rules.Rule, ...]] = {}
    for name, chain in goal.items():
        before = [r for r in held.get(name, ()) if isinstance(r.target, Clusterip)]
        after = [r for r in chain if isinstance(r.target, Clusterip)]
        if before and after and rules.without_nodes(before[0]) != rules.without_nodes(after[0]):
            closed[name] = (rules.Rule(rules.DROP),)
    return closed


def _differs(held: Chains, goal: Chains) -> bool:
    same = [name in held and rules.is_same(held[name], chain) for name, chain in goal.items()]
    return held.keys() != goal.keys() or not all(same)


def _hand_out(wanted: Wanted) -> None:
    """Give each address of the target its buckets. First all that is lost: no bucket is ever both nodes'."""
    now = procfs.read()
    changes = {
        ip: (vip.owned - now[ip], now[ip] - vip.owned)
        for ip, vip in wanted.vips.items()
        if rules.uses_target(vip) and ip in now
    }
    for ip, (_, lost) in changes.items():
        procfs.change(ip, gained=rules.NO_BUCKETS, lost=lost)
    for ip, (gained, _) in changes.items():
        procfs.change(ip, gained=gained, lost=rules.NO_BUCKETS)


def _commit(held: Chains, goal: Chains) -> None:
    _load().commit(held, goal)


def _probe() -> dict[str, str]:
    """Why each of `cluster` and `legacy`, which are tried in a chain that no packet comes to, and `arp` does not
    work here; "" where it does."""
    return {**_load().problems(), "arp": arp.problem()}


def _load() -> ModuleType:
    """The module that loads libxtables, which may be missing; raises EngineError."""
    from lbless_nodeagent.dataplane.iptables import write  # noqa: PLC0415 - see above

    return write


if __name__ == "__main__":
    main()
