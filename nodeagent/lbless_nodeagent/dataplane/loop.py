"""When dataplane does what: one thread that waits for files, links, rules, signals and the clock.

Owns the timing alone. What a pass does is `reconcile`'s, what is said of it `report`'s.
"""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType

from lbless_nodeagent.dataplane.engine import Engine
from lbless_nodeagent.dataplane.reconcile import Outcome, Reconciler
from lbless_nodeagent.dataplane.report import Reporter

REPORT_SECONDS = 1.5
"""observed.json promises 2 s; the rest is for a pass that is under way."""

THOROUGH_SECONDS = 30.0
"""What no notification told of is found by passes that believe nothing: one of files and links, and half
way between two of those one of the rules, so that neither keeps a repair waiting for long."""

_SETTLE_SECONDS = 0.001
_SETTLE_AT_MOST_SECONDS = 0.02
"""Changes come in bursts: a pass begins when none came for the one time, or after the other."""

_PAUSE_AT_MOST_SECONDS = 0.05
"""A pass that followed the last one without a rest is followed by one of its own length, at most of this:
endless changes leave half a core, and a single one is answered at once."""


class StopSignal:
    """SIGTERM and SIGINT as a descriptor that becomes readable, beside the others that are waited for."""

    def __init__(self) -> None:
        """Take over the signals of the process; call in the main thread."""
        self._requested = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def fileno(self) -> int:
        """For poll()."""
        return self._reader

    def is_requested(self) -> bool:
        """Whether one came."""
        return self._requested

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True


class Loop:
    """Runs passes until a stop is asked for."""

    def __init__(self, reconciler: Reconciler, engine: Engine, reporter: Reporter, stop: StopSignal) -> None:
        self._reconciler = reconciler
        self._reporter = reporter
        self._stop = stop
        self._poll = select.poll()
        rules = engine.fileno()
        # The engine reads its own descriptor empty when a pass has it verify the rules.
        for descriptor in (reconciler.desired.fileno(), reconciler.links.fileno(), stop.fileno(), rules):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)
        self._rules = rules

    def run(self) -> None:
        """Pass when something changed and every 15 s, report after each pass and every 1.5 s."""
        thorough_at = time.monotonic() + THOROUGH_SECONDS
        audit_at = thorough_at - THOROUGH_SECONDS / 2
        outcome = self._pass()
        while not self._stop.is_requested():
            idle_since = time.monotonic()
            pass_at = min(thorough_at, audit_at)
            if outcome.retry_at is not None:
                pass_at = min(pass_at, outcome.retry_at)
            changed = self._wait(min(pass_at, idle_since + REPORT_SECONDS))
            if self._stop.is_requested():
                break
            now = time.monotonic()
            if changed or now >= pass_at:
                thorough, audit = now >= thorough_at, now >= audit_at
                if thorough:
                    thorough_at = now + THOROUGH_SECONDS
                if audit:
                    audit_at = now + THOROUGH_SECONDS
                outcome = self._pass(thorough=thorough, audit=audit)
                took, rested = time.monotonic() - now, now - idle_since
                time.sleep(min(_PAUSE_AT_MOST_SECONDS, max(0.0, took - rested)))
            else:
                self._report(outcome)

    def _pass(self, *, thorough: bool = False, audit: bool = False) -> Outcome:
        damaged = self._reconciler.damaged()
        if damaged:
            self._report(damaged)
        outcome = self._reconciler.run_pass(thorough=thorough, audit=audit)
        self._report(outcome)
        return outcome

    def _report(self, outcome: Outcome) -> None:
        programming = self._reconciler.programming
        self._reporter.report(outcome, programming.report, programming.counters(), self._reconciler.repairs)

    def _wait(self, deadline: float) -> bool:
        """Wait for a change until `deadline`, then for the end of its burst; return whether one came."""
        while not self._heard(deadline - time.monotonic()):
            if time.monotonic() >= deadline or self._stop.is_requested():
                return False
        last = time.monotonic() + _SETTLE_AT_MOST_SECONDS
        while time.monotonic() < last and self._heard(_SETTLE_SECONDS):
            pass
        return True

    def _heard(self, seconds: float) -> bool:
        """Wait for a notification that long, and return whether one came that a pass is needed for."""
        ready = [descriptor for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000)]
        matters = False
        if self._reconciler.links.fileno() in ready:
            matters |= self._reconciler.links.drain()
        if self._reconciler.desired.fileno() in ready:
            matters |= self._reconciler.desired.drain()
        if self._rules in ready:
            matters |= not self._reconciler.programming.check()
        return matters
