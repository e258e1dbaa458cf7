"""Which engines there are, which of them this node uses, and the end of what another one left.

Owns the choice at the start and the removal of leftovers. When those may go is the reconciler's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.engine import Engine, EngineError

AUTO = "auto"

_LOG = logging.getLogger(__name__)

Constructors = Mapping[str, Callable[[], Engine]]


def _nftables(*, lease: bool, redirect: bool) -> Engine:
    from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine  # noqa: PLC0415 - loads libnftables

    return NftablesEngine(lease=lease, redirect=redirect)


def _iptables(*, lease: bool) -> Engine:
    from lbless_nodeagent.dataplane.iptables.engine import IptablesEngine  # noqa: PLC0415 - memory few need

    return IptablesEngine(lease=lease)


def engines(*, lease: bool, redirect: bool = True) -> Constructors:
    """All there are by name, the preferred one first. `lease`: they keep no packet on an interface without one;
    `redirect`: what can send on packets of buckets that move does.

    A constructor opens nothing and never fails: what is missing is said by the engine's `probe`.
    """
    return {
        "nftables": partial(_nftables, lease=lease, redirect=redirect),
        "iptables": partial(_iptables, lease=lease),
    }


ENGINES: Constructors = engines(lease=False)


class Leftovers:
    """The engines that are not used here: an earlier run, with another one, may have left rules of theirs."""

    def __init__(self, engines: Constructors) -> None:
        self._engines = dict(engines)

    def __bool__(self) -> bool:
        """Whether there may be something to remove."""
        return bool(self._engines)

    def remove(self) -> tuple[str, ...]:
        """Remove it, and return a sentence for each engine whose rules stayed; the others are done with.

        As long as both engines' rules are there, what is kept is what both keep: call it when the one that
        is used holds every address that is on a link.
        """
        problems = []
        for name, construct in list(self._engines.items()):
            engine = construct()
            try:
                engine.remove()
            except EngineError as error:
                if engine.probe().available:
                    problems.append(f"The rules that the {name} engine left here cannot be removed: {error}")
                    continue
                _LOG.debug("The %s engine does not work here and left nothing: %s", name, error)
            finally:
                engine.close()
            del self._engines[name]
        return tuple(problems)


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine to use with its report, the reports of those that were tried before it, and the others."""

    engine: Engine
    report: EngineReport
    passed_over: tuple[EngineReport, ...]
    leftovers: Leftovers


def choose(wanted: str, engines: Constructors = ENGINES) -> Choice:
    """Return the engine named `wanted`, whether it works or not; for `auto` the first one that works.

    Where none works it is the first one, so that its report says why, and it is tried again as time goes by.
    """
    candidates = [wanted] if wanted != AUTO else list(engines)
    tried: dict[str, tuple[Engine, EngineReport]] = {}
    for name in candidates:
        engine = engines[name]()
        tried[name] = (engine, engine.probe())
        if tried[name][1].available:
            break
    chosen = next((name for name, (_, report) in tried.items() if report.available), candidates[0])
    for name, (engine, _) in tried.items():
        if name != chosen:
            engine.close()
    engine, report = tried[chosen]
    return Choice(
        engine=engine,
        report=replace(report, active=True),
        passed_over=tuple(replace(r, active=False) for name, (_, r) in tried.items() if name != chosen),
        leftovers=Leftovers({name: construct for name, construct in engines.items() if name != chosen}),
    )
