"""What dataplane says: observed.json for sync, and log lines for people, each fault once.

Owns both, and what they are made of. What is in them was found out elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from lbless_api.node import EngineReport
from lbless_api.state import OBSERVED, Observed, render_observed
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.reconcile import Outcome

_LOG = logging.getLogger(__name__)


class Reporter:
    """Writes observed.json and logs what changed since the last time. `last` is what was written last."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._path = directory / OBSERVED
        self._boot_id = boot_id
        self._kernel = os.uname().release
        self._said: dict[str, str] = {}
        self._unwritable = ""
        self.last = Observed(boot_id, 0.0)

    def report(self, outcome: Outcome, engine: EngineReport, counters: Mapping[str, int]) -> None:
        """Say it. A disk that cannot be written is a problem and no reason to stop."""
        self._log(outcome)
        problems = outcome.problems
        if self._unwritable and self._unwritable not in problems:
            problems = (*problems, self._unwritable)
        self.last = Observed(
            boot_id=self._boot_id,
            boottime_seconds=files.boottime_seconds(),
            kernel=self._kernel,
            engines=(engine,),
            interfaces=outcome.interfaces,
            applied=outcome.applied,
            failures=tuple(outcome.failures.values()),
            problems=problems,
            counters=counters,
        )
        try:
            # It is stale after a power cut anyway, and a slow disk must not delay the next pass.
            files.write_json(self._path, render_observed(self.last), durable=False)
            self._unwritable = ""
        except files.UnwritableError as error:
            if str(error) != self._unwritable:
                _LOG.error("%s", error)
            self._unwritable = str(error)

    def _log(self, outcome: Outcome) -> None:
        now = {f"ClusterIP {f.clusterip or uid}": f.message for uid, f in outcome.failures.items()}
        now |= dict.fromkeys(outcome.problems, "")
        for subject, sentence in now.items():
            if self._said.get(subject) != sentence:
                _LOG.warning("%s", f"{subject}: {sentence}" if sentence else subject)
        for subject, sentence in self._said.items():
            if subject not in now:
                _LOG.info("No longer: %s", f"{subject}: {sentence}" if sentence else subject)
        self._said = now
        if outcome.applied != self.last.applied:
            _LOG.info(
                "%d ClusterIPs are as desired, %d are not.", len(outcome.applied), len(outcome.failures)
            )
