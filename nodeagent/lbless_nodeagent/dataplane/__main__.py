"""The program lbless-dataplane: its command line, what it needs before it starts, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lbless_api.fields import Invalid
from lbless_api.node import EngineReport
from lbless_api.state import APPLIED, DEFAULT_DIRECTORY, DESIRED, Intent
from lbless_edge.process import (
    Fatal,
    argument_parser,
    configure_logging,
    object_name,
    run,
    serve_metrics,
)
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.engines import AUTO, ENGINES, Choice, choose
from lbless_nodeagent.dataplane.loop import Loop, StopSignal
from lbless_nodeagent.dataplane.reconcile import Outcome, Reconciler
from lbless_nodeagent.dataplane.report import Reporter
from lbless_nodeagent.dataplane.rtnetlink import LinkError

PROGRAM = "lbless-dataplane"
LOCK_POLL_SECONDS = 0.005
_CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}

_LOG = logging.getLogger("lbless.dataplane")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status: 0 after a clean stop, 1 with one sentence, 2 for usage."""
    options = _parser().parse_args(arguments)
    configure_logging(options.log_format, options.log_level)
    return run(lambda: _cleanup(options) if options.cleanup else _serve(options))


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(PROGRAM, "Brings the state directory's ClusterIPs into this node's kernel.")
    parser.add_argument("--node", required=True, type=object_name, metavar="NAME", help="this node's name")
    parser.add_argument(
        "--state-dir", default=DEFAULT_DIRECTORY, type=Path, metavar="DIR", help="shared with lbless-sync"
    )
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="key of the heartbeats between nodes")
    parser.add_argument(
        "--engine",
        choices=(AUTO, *ENGINES),
        default=AUTO,
        help=f"how packets are filtered; {AUTO} is the first of {', '.join(ENGINES)} that works here",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="where another one serves the state directory, wait for its end and take over from it",
    )
    parser.add_argument(
        "--cleanup", action="store_true", help="take all of lbless out of this node's kernel, then end"
    )
    return parser


def _serve(options: argparse.Namespace) -> None:
    stop = StopSignal()
    if options.key_file and not os.access(options.key_file, os.R_OK):
        raise Fatal(f"Key file {options.key_file} cannot be read: check its name and permissions.")
    with _reconciler(options, stop) as (reconciler, choice):
        reporter = Reporter(options.state_dir, files.boot_id(), choice.passed_over)
        serve_metrics(options.metrics_port)
        if options.metrics_port:
            from lbless_nodeagent.dataplane import metrics  # noqa: PLC0415 - memory that few need

            metrics.register(lambda: reporter.last)
        name = choice.engine.name
        _LOG.info("Serving node %s from %s with the %s engine.", options.node, options.state_dir, name)
        for report in choice.passed_over:
            _LOG.info("The %s engine is not used: %s", report.name, report.message)
        Loop(reconciler, choice.engine, reporter, stop).run()
        if _intent(reconciler) is Intent.REMOVE:
            _remove(reconciler)
            reporter.report(Outcome(), reconciler.programming.report, {})
            _LOG.info("Stopped; nothing of lbless is left in the kernel.")
        else:
            _LOG.info("Stopped; rules and addresses stay, so that a restart disturbs nobody.")


def _cleanup(options: argparse.Namespace) -> None:
    with _reconciler(options, None) as (reconciler, _):
        _remove(reconciler)
        _LOG.info("Nothing of lbless is left in the kernel.")


@contextmanager
def _reconciler(options: argparse.Namespace, stop: StopSignal | None) -> Iterator[tuple[Reconciler, Choice]]:
    """What both modes need, with everything that can be missing said in one sentence.

    `stop` ends the waiting for another process, where that is asked for.
    """
    _check_capabilities()
    directory: Path = options.state_dir
    try:
        for needed in (directory, directory / DESIRED, directory / APPLIED):
            files.make_directory(needed)
        # What takes long and touches nothing comes first: a node that is taken over from answers nobody.
        choice = choose(options.engine)
        lock = _lock(directory / ".dataplane.lock", stop if options.wait else None)
    except (files.UnwritableError, files.LockedError) as error:
        raise Fatal(str(error)) from None
    try:
        try:
            reconciler = _reconciler_of(options, choice)
            yield reconciler, choice
            reconciler.close()
        finally:
            choice.engine.close()
    except (EngineError, LinkError) as error:
        raise Fatal(str(error)) from None
    finally:
        os.close(lock)


def _lock(path: Path, stop: StopSignal | None) -> int:
    """Take the lock, waiting for it until `stop`; raises UnwritableError, LockedError, SystemExit."""
    said = False
    while True:
        try:
            return files.lock(path, PROGRAM)
        except files.LockedError:
            if stop is None:
                raise
            if stop.is_requested():
                _LOG.info("Stopped; the other one goes on.")
                raise SystemExit(0) from None
        if not said:
            _LOG.info("Another %s serves %s: waiting for its end to take over.", PROGRAM, path.parent)
            said = True
        time.sleep(LOCK_POLL_SECONDS)


def _reconciler_of(options: argparse.Namespace, choice: Choice) -> Reconciler:
    """Also tell sync why, where the engine cannot work at all: it outlives this process."""
    engine, boot_id = choice.engine, files.boot_id()
    try:
        return Reconciler(
            options.node,
            options.state_dir,
            engine,
            boot_id,
            report=choice.report,
            leftovers=choice.leftovers,
        )
    except EngineError as error:
        useless = EngineReport(engine.name, False, str(error))
        Reporter(options.state_dir, boot_id, choice.passed_over).report(Outcome(), useless, {})
        raise


def _remove(reconciler: Reconciler) -> None:
    problems = reconciler.remove()
    if problems:
        raise Fatal(f"Not all of lbless could be removed: {' '.join(problems)}")


def _intent(reconciler: Reconciler) -> Intent:
    try:
        return reconciler.desired.intent()
    except Invalid as fault:
        _LOG.warning("%s Everything stays.", fault)
        return Intent.HOLD


def _check_capabilities() -> None:
    """The kernel refuses each change without them, one by one and in other words."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    missing = [name for bit, name in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise Fatal(
            f"{PROGRAM} lacks {' and '.join(missing)}, without which no rule or address can be set: "
            f"run it as root, or give its container these capabilities."
        )


if __name__ == "__main__":
    sys.exit(main())
