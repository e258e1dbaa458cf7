"""Bringing the wanted Vips into the engine, so that one it cannot take does not keep the others out.

Owns the isolation of a Vip at fault and the back-off after failures. What is wanted is decided elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.engine import Engine, EngineBusyError, EngineError, Vip, Wanted

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
MAX_TRIALS = 40
"""Transactions at most to find the Vips at fault: what is not found by then waits for the next try."""

_LOG = logging.getLogger(__name__)

Vips = Mapping[IPv4Address, Vip]


@dataclass(frozen=True, slots=True)
class _Refused:
    """Something that the engine did not take, why, and when to offer it again."""

    offered: object
    sentence: str
    delay_seconds: float
    retry_at: float


class Programming:
    """What the engine holds, and what it did not take. Times are of one monotonic clock, in seconds."""

    def __init__(self, engine: Engine, report: EngineReport | None = None) -> None:
        """Read what the engine holds of an earlier process; raises EngineError. `report` is its probe's, if
        that was made already."""
        self._engine = engine
        self.report: EngineReport = report or engine.probe()
        # Where this fails, nothing will ever work; where only the probe does, what is there stays.
        found = engine.installed()
        self.installed: Vips = dict(found.vips) if found else {}
        self.local_sources = found.local_sources if found else frozenset()
        self.repairs = 0
        self.applications = 0
        """How often the kernel was written, or may have been."""
        self._applied: Wanted | None = None
        self._intact = False
        self._busy = False  # at the last `apply`
        self._whole: _Refused | None = None
        self._single: dict[IPv4Address, _Refused] = {}

    @property
    def is_intact(self) -> bool:
        """Whether the kernel held what was applied when it was last checked, or nothing was applied yet."""
        return self._intact or self._applied is None

    @property
    def retry_at(self) -> float | None:
        """When what was refused is to be offered again, or None."""
        times = [r.retry_at for r in (self._whole, *self._single.values()) if r]
        return min(times, default=None)

    def refusal(self, vip: Vip) -> str | None:
        """Return one sentence why the engine cannot do `vip`, or None."""
        return self._engine.refusal(vip)

    def counters(self) -> Mapping[str, int]:
        """How many packets met each end, by name; nothing where the engine cannot say."""
        try:
            return self._engine.counters() if self.installed else {}
        except EngineError as error:
            _LOG.debug("The counters could not be read: %s", error)
            return {}

    def remove(self) -> None:
        """Take all of the engine's rules out of the kernel; raises EngineError."""
        self._engine.remove()
        self.installed, self._applied = {}, None

    def check(self, *, audit: bool = False) -> bool:
        """Return whether the kernel still holds what was applied; `audit` reads all of it back, and tries
        again whether the engine works here if it did not."""
        if audit and not self.report.available:
            self.report = self._engine.probe()
        was_intact = self._intact
        try:
            self._intact = self._engine.audit() if audit else self._engine.verify()
        except EngineError as error:
            _LOG.debug("The rules could not be checked, so they are applied again: %s", error)
            self._intact = False
        if was_intact and not self._intact:
            self.repairs += 1
            if (
                self.repairs.bit_count() == 1
            ):  # the 1st, 2nd, 4th, 8th …: who flushes each second fills no disk
                _LOG.warning(
                    "Somebody changed the rules, %d times by now: they are applied again.", self.repairs
                )
        return self._intact

    def program(
        self, wanted: Vips, local_sources: frozenset[IPv4Network], now: float
    ) -> dict[IPv4Address, str]:
        """Bring the engine to `wanted`, as far as it takes it, and return why not for each other address.

        One that it does not take keeps what it had (`installed` says what), or nothing.
        """
        if not self.report.available:
            self._read_back()
            return dict.fromkeys(
                wanted, f"The {self.report.name} engine does not work here: {self.report.message}"
            )
        waiting = {
            ip: r for ip, r in self._single.items() if wanted.get(ip) == r.offered and now < r.retry_at
        }
        if waiting:
            offered = {ip: self.installed.get(ip) if ip in waiting else vip for ip, vip in wanted.items()}
            wanted_now: Vips = {ip: vip for ip, vip in offered.items() if vip}
        else:
            wanted_now = wanted
        target = Wanted(wanted_now, local_sources)
        if self._applied != target or not self._intact:
            self._bring(target, now)
        if self._whole:
            return dict.fromkeys(wanted, self._whole.sentence)
        self._single = {ip: r for ip, r in self._single.items() if wanted.get(ip) == r.offered}
        return {ip: r.sentence for ip, r in self._single.items()}

    def _bring(self, target: Wanted, now: float) -> None:
        if self._whole and self._whole.offered == target and now < self._whole.retry_at:
            self._read_back()
            return
        error = self._apply(target)
        if not error:
            self._whole = None
            for ip in [ip for ip, r in self._single.items() if target.vips.get(ip) == r.offered]:
                del self._single[ip]
            return
        changed = [ip for ip, vip in target.vips.items() if self.installed.get(ip) != vip]
        unchanged = {ip: vip for ip, vip in target.vips.items() if self.installed.get(ip) == vip}
        former = {ip: self.installed[ip] for ip in changed if ip in self.installed}
        for base in ({**unchanged, **former}, unchanged):
            # Nothing changed, or nothing was tried: then no single Vip is at fault.
            if changed and not self._busy and not self._apply(Wanted(base, target.local_sources)):
                self._whole = None
                self._isolate(base, changed, target, now)
                return
        self._refuse_whole(target, error, now)

    def _isolate(self, base: Vips, changed: list[IPv4Address], target: Wanted, now: float) -> None:
        """Add the changed Vips to what works, in halves, until those at fault are alone."""
        working, groups, error = dict(base), [changed], None
        for _ in range(MAX_TRIALS):
            if not groups:
                break
            group = groups.pop()
            trial = {**working, **{ip: target.vips[ip] for ip in group}}
            error = self._apply(Wanted(trial, target.local_sources))
            if not error:
                working = trial
            elif self._busy:
                self._refuse_whole(target, error, now)
                return
            elif len(group) == 1:
                self._refuse(group, error, target, now)
            else:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        for group in groups:
            self._refuse(group, "The engine refuses too many addresses at once: this one waits.", target, now)
        # If the last trial failed, it may have left less than what works.
        if error and (error := self._apply(Wanted(working, target.local_sources))):
            self._refuse_whole(target, error, now)

    def _refuse(self, group: list[IPv4Address], sentence: str, target: Wanted, now: float) -> None:
        for ip in group:
            self._single[ip] = _refused(target.vips[ip], sentence, self._single.get(ip), now)

    def _refuse_whole(self, target: Wanted, sentence: str, now: float) -> None:
        self._whole = _refused(target, sentence, self._whole, now)
        self._read_back()

    def _read_back(self) -> None:
        """Where the rules may not be what was applied, and are not applied again now, learn what they hold.

        An address whose rules are gone must go too: unfiltered, it would answer everything.
        """
        if self._intact:
            return
        try:
            found = self._engine.installed()
        except EngineError as error:
            _LOG.debug("What the rules hold cannot be read either, so it is taken to be unchanged: %s", error)
            return
        self.installed = dict(found.vips) if found else {}

    def _apply(self, wanted: Wanted) -> str | None:
        self.applications += 1
        wanted = self._closed(wanted)
        try:
            self._engine.apply(wanted)
        except EngineError as error:
            self._applied, self._intact = None, False
            self._busy = isinstance(error, EngineBusyError)
            return str(error)
        self._busy = False
        self.installed, self.local_sources = wanted.vips, wanted.local_sources
        self._applied, self._intact = wanted, True
        return None

    def _closed(self, wanted: Wanted) -> Wanted:
        """The same with given up what a token was to close that may have left: rules that somebody changed, or that an
        earlier process wrote, may not know that it has."""
        if not any(vip.moving.openings for vip in wanted.vips.values()):
            return wanted
        vips = {}
        for ip, vip in wanted.vips.items():
            doubtful = not self._intact or self.installed.get(ip) == vip
            vips[ip] = replace(vip, moving=vip.moving.closed) if doubtful and vip.moving.openings else vip
        return replace(wanted, vips=vips)


def _refused(offered: object, sentence: str, last: _Refused | None, now: float) -> _Refused:
    again = last is not None and last.offered == offered
    delay = min(last.delay_seconds * 2, LAST_RETRY_SECONDS) if last and again else FIRST_RETRY_SECONDS
    return _Refused(offered, sentence, delay, now + delay)
