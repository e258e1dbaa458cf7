"""When dataplane does what: one thread that waits for files, links, rules, signals and the clock.

Owns the timing alone. What a pass does is `reconcile`'s, what is said of it `report`'s.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from dataclasses import replace
from types import FrameType

from lbless_api.fields import Invalid
from lbless_api.state import Intent as StopIntent
from lbless_nodeagent.alive import AliveFile
from lbless_nodeagent.dataplane.engine import Engine
from lbless_nodeagent.dataplane.keyfile import KeyFile
from lbless_nodeagent.dataplane.membership import Intent
from lbless_nodeagent.dataplane.reconcile import Outcome, Reconciler
from lbless_nodeagent.dataplane.report import Reporter

_LOG = logging.getLogger("lbless.dataplane")

REPORT_SECONDS = 1.5
"""observed.json promises 2 s; the rest is for a pass that is under way."""

THOROUGH_SECONDS, THOROUGH_AT_MOST_SECONDS = 30.0, 300.0
"""What no notification told of is found by passes that believe nothing: one of files and links, and at
another time one of the rules, so that neither keeps a repair waiting for long."""
THOROUGH_REST = 500
"""So many times as long as such a pass took is the way to the next one: none takes more than 0.2 % of a core."""

_STOPPING_SECONDS = 0.05
_STOP_AT_MOST_SECONDS = 3.0
"""Peers acknowledge a hold within 6 TICKs, or are told that the node leaves."""

_SETTLE_SECONDS = 0.001
_SETTLE_AT_MOST_SECONDS = 0.02
"""Changes come in bursts: a pass begins when none came for the one time, or after the other."""

_PAUSE_AT_MOST_SECONDS = 0.05
"""A pass that followed the last one without a rest is followed by one of its own length, at most of this:
endless changes leave half a core, and a single one is answered at once."""
_SHORT_PASS_SECONDS = 0.01
"""After one that was as short as that the rest ends with news from membership: each step of a move waits for the one
before, and new connections wait with it where nothing is sent on."""


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


class Periodic:
    """When passes of a kind that believes nothing are due."""

    def __init__(self, due_at: float) -> None:
        self.due_at = due_at

    def is_due(self, now: float) -> bool:
        """Whether to make one now."""
        return now >= self.due_at

    def made(self, now: float, took: float) -> None:
        """One was made, which took so many seconds: with a thousand ClusterIPs some 0.2 s."""
        self.due_at = now + min(max(THOROUGH_SECONDS, THOROUGH_REST * took), THOROUGH_AT_MOST_SECONDS)


class Loop:
    """Runs passes until a stop is asked for."""

    def __init__(
        self,
        reconciler: Reconciler,
        engine: Engine,
        reporter: Reporter,
        stop: StopSignal,
        keys: KeyFile | None = None,
        alive: AliveFile = AliveFile(None),  # noqa: B008 - it has no state
    ) -> None:
        """`keys` are those of the heartbeats, where there are some; `alive` is touched with each report."""
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
        self._ports = reconciler.shares.ports if reconciler.shares else None
        self._keys = keys
        self._alive = alive
        self._ends_at: float | None = None

    def run(self) -> None:
        """Pass when something changed and from time to time, report after each pass and every 1.5 s.

        With heartbeats a stop takes until the peers know of it, and passes go on meanwhile. Raises TickEndedError.
        """
        began = time.monotonic()
        doubt, audits = Periodic(began + THOROUGH_SECONDS), Periodic(began + THOROUGH_SECONDS / 2)
        outcome = self._pass()
        while not self._ends():
            idle_since = time.monotonic()
            pass_at = min(doubt.due_at, audits.due_at)
            if outcome.retry_at is not None:
                pass_at = min(pass_at, outcome.retry_at)
            changed = self._wait(min(pass_at, idle_since + self._report_seconds()))
            if self._ports:
                self._ports.check()
            if self._ends():
                break
            now = time.monotonic()
            if changed or now >= pass_at:
                thorough = doubt.is_due(now)
                audit = not thorough and audits.is_due(now)
                outcome = self._pass(thorough=thorough, audit=audit)
                took, rested = time.monotonic() - now, now - idle_since
                for periodic, this in ((doubt, thorough), (audits, audit)):
                    if this:
                        periodic.made(now, took)
                self._rest(min(_PAUSE_AT_MOST_SECONDS, took - rested), short=took <= _SHORT_PASS_SECONDS)
            else:
                self._report(outcome)

    def _rest(self, seconds: float, *, short: bool) -> None:
        if seconds <= 0:
            return
        if short and self._ports:
            news = select.poll()
            news.register(self._ports.fileno(), select.POLLIN)
            news.poll(seconds * 1000)
        else:
            time.sleep(seconds)

    def _report_seconds(self) -> float:
        return REPORT_SECONDS if self._ends_at is None else _STOPPING_SECONDS

    def _ends(self) -> bool:
        """Whether to end now: a stop was asked for, and the peers know of it."""
        if not self._stop.is_requested():
            return False
        if self._ports is None:
            return True
        if self._ends_at is None:
            self._poll.unregister(self._stop.fileno())  # readable from now on
            self._ends_at = time.monotonic() + _STOP_AT_MOST_SECONDS
            self._ports.stop(self._meaning())
        return self._ports.ended or time.monotonic() >= self._ends_at

    def _meaning(self) -> Intent:
        """What the peers are to be told: that another process follows, or none."""
        try:
            follows = self._reconciler.desired.intent() is StopIntent.HOLD
        except Invalid:
            follows = True
        return Intent.HOLD if follows else Intent.LEAVE

    def _pass(self, *, thorough: bool = False, audit: bool = False) -> Outcome:
        damaged = self._reconciler.damaged()
        if damaged:
            self._report(damaged)
        outcome = self._reconciler.run_pass(thorough=thorough, audit=audit)
        self._report(outcome)
        return outcome

    def _report(self, outcome: Outcome) -> None:
        self._alive.touch()
        if self._ports:
            self._ports.alive()
            if self._keys and self._keys.refresh():
                self._ports.rekey(self._keys.keys)
                _LOG.info(
                    "The keys have changed: there are %d, and the first one signs.", len(self._keys.keys)
                )
            if self._keys and self._keys.problem:
                problem = f"{self._keys.problem} The keys that were read last stay in use."
                outcome = replace(outcome, problems=(problem, *outcome.problems))
        reconciler = self._reconciler
        self._reporter.report(
            outcome, reconciler.report, reconciler.programming.counters(), reconciler.repairs
        )

    def _wait(self, deadline: float) -> bool:
        """Wait for a change until `deadline`, then for the end of its burst; return whether one came."""
        while not self._heard(deadline - time.monotonic()):
            if time.monotonic() >= deadline or (self._stop.is_requested() and self._ends()):
                return False
        last = time.monotonic() + _SETTLE_AT_MOST_SECONDS
        while time.monotonic() < last and self._heard(_SETTLE_SECONDS):
            pass
        return True

    def _heard(self, seconds: float) -> bool:
        """Wait for a notification that long, and return whether one came that a pass is needed for."""
        if self._ports:
            wanted = select.POLLIN | select.POLLOUT if self._ports.is_blocked else select.POLLIN
            self._poll.register(self._ports.fileno(), wanted)
        ready = [descriptor for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000)]
        matters = False
        if self._reconciler.links.fileno() in ready:
            matters |= self._reconciler.links.drain()
        if self._reconciler.desired.fileno() in ready:
            matters |= self._reconciler.desired.drain()
        if self._ports and self._ports.fileno() in ready:
            matters |= self._ports.receive()
        if self._rules in ready:
            matters |= not self._reconciler.programming.check()
        return matters
