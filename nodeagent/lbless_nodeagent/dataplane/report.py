"""What dataplane says: observed.json for sync, and log lines for people.

Owns both, and what they are made of. What is in them was found out elsewhere; which faults are worth a
line is `faultlog`'s.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from lbless_api.node import EngineReport, Outstanding
from lbless_api.state import OBSERVED, Observed, render_observed
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.faultlog import FaultLog
from lbless_nodeagent.dataplane.reconcile import Outcome

MAX_MESSAGE = 400
MAX_FAILURES_BYTES = 800 * 1024
NUMBERS_SECONDS = 10.0
"""How many ClusterIPs are as desired is logged at most so often: a thousand may come one by one."""

_LOG = logging.getLogger(__name__)


class Reporter:
    """Writes observed.json and logs what changed since the last time. `last` is what was written last."""

    def __init__(self, directory: Path, boot_id: str, passed_over: tuple[EngineReport, ...] = ()) -> None:
        """`passed_over` are the engines that were tried and are not used."""
        self._path = directory / OBSERVED
        self._boot_id = boot_id
        self._passed_over = passed_over
        self._kernel = os.uname().release
        self._faults = FaultLog()
        self._numbers_at = 0.0
        self._numbers = (0, 0)
        self._unwritable = ""
        self.last = Observed(boot_id, 0.0)
        self._applied: tuple[Mapping[str, int], str] = {}, "{}"

    def report(
        self,
        outcome: Outcome,
        engine: EngineReport,
        counters: Mapping[str, int],
        repairs: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Say it. A disk that cannot be written is a problem and no reason to stop."""
        self._log(outcome)
        failures, left_out = listed(outcome.failures.values())
        problems = outcome.problems
        if left_out:
            problems = (*problems, f"{left_out} more ClusterIPs have failures than this file lists.")
        if self._unwritable and self._unwritable not in problems:
            problems = (*problems, self._unwritable)
        self.last = Observed(
            boot_id=self._boot_id,
            boottime_seconds=files.boottime_seconds(),
            kernel=self._kernel,
            engines=(engine, *self._passed_over),
            interfaces=outcome.interfaces,
            applied=outcome.applied,
            failures=failures,
            problems=problems,
            counters=counters,
            repairs=repairs,
            drains=outcome.drains,
        )
        try:
            # It is stale after a power cut anyway, and a slow disk must not delay the next pass.
            files.write_bytes(self._path, self._rendered(), durable=False)
            self._unwritable = ""
        except files.UnwritableError as error:
            if str(error) != self._unwritable:
                _LOG.error("%s", error)
            self._unwritable = str(error)

    def _rendered(self) -> bytes:
        """observed.json's content. The epochs of a thousand ClusterIPs are written out again only when a pass
        has made them anew: it is done every 1.5 s."""
        if self._applied[0] is not self.last.applied:
            self._applied = self.last.applied, json.dumps(dict(self.last.applied))
        rest = json.dumps(render_observed(replace(self.last, applied={})))  # which ends with {}}
        return f"{rest.removesuffix('{}}')}{self._applied[1]}}}\n".encode()

    def _log(self, outcome: Outcome) -> None:
        faults = {f"ClusterIP {f.clusterip or uid}": f.message for uid, f in outcome.failures.items()}
        faults |= dict.fromkeys(outcome.problems, "")
        now = time.monotonic()
        for level, line in self._faults.lines(faults, now):
            _LOG.log(level, "%s", line)
        numbers = len(outcome.applied), len(outcome.failures)
        if numbers != self._numbers and now >= self._numbers_at:
            self._numbers, self._numbers_at = numbers, now + NUMBERS_SECONDS
            _LOG.info("%d ClusterIPs are as desired, %d are not.", *numbers)


def listed(failures: Iterable[Outstanding]) -> tuple[tuple[Outstanding, ...], int]:
    """Return those that observed.json lists, with messages cut to what a reader needs, and how many it
    does not: it is read and written all the time, so it stays below a mebibyte."""
    kept: list[Outstanding] = []
    size = left_out = 0
    for failure in failures:
        cut = failure
        if len(failure.message) > MAX_MESSAGE:
            cut = replace(failure, message=f"{failure.message[: MAX_MESSAGE - 3]}...")
        # In JSON a character that is not ASCII takes six bytes, and the names of the fields some seventy.
        size += 80 + sum(len(t) * (1 if t.isascii() else 6) for t in (cut.uid, cut.clusterip, cut.message))
        if size > MAX_FAILURES_BYTES:
            left_out += 1
        else:
            kept.append(cut)
    return tuple(kept), left_out
