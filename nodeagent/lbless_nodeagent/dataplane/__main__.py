"""The program lbless-dataplane: its command line, what it needs before it starts, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
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
from lbless_nodeagent.alive import AliveFile
from lbless_nodeagent.dataplane.draining import Drains
from lbless_nodeagent.dataplane.engine import EngineError
from lbless_nodeagent.dataplane.engines import AUTO, ENGINES, Choice, choose, engines
from lbless_nodeagent.dataplane.flows import Flows
from lbless_nodeagent.dataplane.keyfile import KeyFile
from lbless_nodeagent.dataplane.loop import Loop, StopSignal
from lbless_nodeagent.dataplane.membership import Times
from lbless_nodeagent.dataplane.memoryfile import MemoryFile
from lbless_nodeagent.dataplane.ports import Ports
from lbless_nodeagent.dataplane.reconcile import Outcome, Reconciler
from lbless_nodeagent.dataplane.report import Reporter
from lbless_nodeagent.dataplane.rtnetlink import LinkError
from lbless_nodeagent.dataplane.scheduling import ask_for_short_turns
from lbless_nodeagent.dataplane.shares import Shares
from lbless_nodeagent.dataplane.statefiles import IdentityFile
from lbless_nodeagent.dataplane.tick.messages import Begin
from lbless_nodeagent.dataplane.tickprocess import TickEndedError, TickProcess

PROGRAM = "lbless-dataplane"
LOCK_POLL_SECONDS = 0.005
DEFAULT_TICK_MS = 100
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
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="keys of the heartbeats between nodes; without it there are none, and no node takes over from another",
    )
    _add_times(parser)
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run heartbeats before everything else, in locked memory; needs CAP_SYS_NICE and CAP_IPC_LOCK",
    )
    parser.add_argument(
        "--engine",
        choices=(AUTO, *ENGINES),
        default=AUTO,
        help=f"how packets are filtered; {AUTO} is the first of {', '.join(ENGINES)} that works here",
    )
    parser.add_argument(
        "--no-redirect",
        action="store_true",
        help="send no packet of a moving bucket on to its new owner: for switches that refuse a client's source "
        "address from a node's port; a move then has a gap of some milliseconds, which a new connection may meet",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="where another one serves the state directory, wait for its end and take over from it",
    )
    parser.add_argument(
        "--alive-file",
        type=Path,
        metavar="FILE",
        help="touched every few seconds while this program does its work; lbless-alive looks at it",
    )
    parser.add_argument(
        "--cleanup", action="store_true", help="take all of lbless out of this node's kernel, then end"
    )
    return parser


def _add_times(parser: argparse.ArgumentParser) -> None:
    usual = Times.of_tick(DEFAULT_TICK_MS / 1000)
    parser.add_argument(
        "--tick-ms",
        type=int,
        default=DEFAULT_TICK_MS,
        metavar="MS",
        help="time between two heartbeats, the same on all nodes; the other times follow from it",
    )
    for name, seconds, what in (
        ("lease", usual.lease, "for so long a node serves that no peer acknowledges, 7 ticks"),
        ("dead", usual.dead, "after so long a silent peer counts as dead, 50 more than the lease"),
        ("hold", usual.hold, "for so long a node may be restarted without losing its share, at most 5000"),
        (
            "unheard",
            usual.unheard,
            "for so long a node that has heard no other waits for the others",
        ),
    ):
        parser.add_argument(
            f"--{name}-ms", type=int, metavar="MS", help=f"{what}: {seconds * 1000:.0f} with the usual tick"
        )


def _times(options: argparse.Namespace) -> Times:
    given = {name: getattr(options, f"{name}_ms") for name in ("lease", "dead", "hold", "unheard")}
    try:
        times = Times.of_tick(options.tick_ms / 1000)
        return replace(times, **{name: ms / 1000 for name, ms in given.items() if ms is not None})
    except (ValueError, OverflowError) as error:
        raise Fatal(f"The times of the heartbeats do not work together: {error}") from None


def _serve(options: argparse.Namespace) -> None:
    stop = StopSignal()
    ask_for_short_turns()
    keys = _keys(options.key_file) if options.key_file else None
    alive = AliveFile(options.alive_file)
    with _reconciler(options, stop, keys, alive) as (reconciler, choice):
        ports = reconciler.shares.ports if reconciler.shares else None
        reporter = Reporter(options.state_dir, files.boot_id(), choice.passed_over)
        serve_metrics(options.metrics_port)
        if options.metrics_port:
            from lbless_nodeagent.dataplane import metrics  # noqa: PLC0415 - memory that few need

            metrics.register(lambda: reporter.last, ports)
        name = choice.engine.name
        _LOG.info("Serving node %s from %s with the %s engine.", options.node, options.state_dir, name)
        for report in choice.passed_over:
            _LOG.info("The %s engine is not used: %s", report.name, report.message)
        Loop(reconciler, choice.engine, reporter, stop, keys, alive).run()
        if _intent(reconciler) is Intent.REMOVE:
            _remove(reconciler)
            reporter.report(Outcome(), reconciler.programming.report, {})
            _LOG.info("Stopped; nothing of lbless is left in the kernel.")
        else:
            _LOG.info("Stopped; rules and addresses stay, so that a restart disturbs nobody.")


def _cleanup(options: argparse.Namespace) -> None:
    with _reconciler(options, None, None, AliveFile(None)) as (reconciler, _):
        _remove(reconciler)
        _LOG.info("Nothing of lbless is left in the kernel.")


@contextmanager
def _reconciler(
    options: argparse.Namespace, stop: StopSignal | None, keys: KeyFile | None, alive: AliveFile
) -> Iterator[tuple[Reconciler, Choice]]:
    """What both modes need, with everything that can be missing said in one sentence.

    `stop` ends the waiting for another process, where that is asked for, and `alive` is touched meanwhile; with `keys`
    there are heartbeats.
    """
    times = _times(options)
    _check_capabilities()
    directory: Path = options.state_dir
    with ExitStack() as ends:
        try:
            for needed in (directory, directory / DESIRED, directory / APPLIED):
                files.make_directory(needed)
            # What takes long and touches nothing comes first: a node that is taken over from answers nobody, and
            # its lease may have half a second left.
            tick = TickProcess(Begin(options.node, times, keys.keys, options.realtime)) if keys else None
            if tick:
                ends.callback(tick.close)
            choice = choose(options.engine, engines(lease=keys is not None, redirect=not options.no_redirect))
            ends.callback(choice.engine.close)
            ends.callback(
                os.close, _lock(directory / ".dataplane.lock", stop if options.wait else None, alive)
            )
            if tick:  # before the lock is let go of
                ends.callback(tick.close)
        except (files.UnwritableError, files.LockedError) as error:
            raise Fatal(str(error)) from None
        try:
            identity, shares = _membership(options, choice, tick, keys)
            reconciler = _reconciler_of(options, choice, identity, shares)
            yield reconciler, choice
            reconciler.close()
        except (EngineError, LinkError, TickEndedError) as error:
            raise Fatal(str(error)) from None


def _lock(path: Path, stop: StopSignal | None, alive: AliveFile) -> int:
    """Take the lock, waiting for it until `stop`; raises UnwritableError, LockedError, SystemExit."""
    said = False
    while True:
        alive.touch()
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


def _membership(
    options: argparse.Namespace, choice: Choice, tick: TickProcess | None, keys: KeyFile | None
) -> tuple[IdentityFile, Shares | None]:
    """The incarnations, and with heartbeats the shares."""
    identity = IdentityFile(options.state_dir)
    if tick is None:
        return identity, None
    boot_id = files.boot_id()
    ports = Ports(
        tick,
        identity,
        MemoryFile(options.state_dir, boot_id),
        boot_id,
        fenced=not choice.report.unfenced,
        lease_left=choice.engine.lease_left,
    )
    return identity, Shares(options.node, ports, Drains(Flows().count), keys)


def _keys(path: Path) -> KeyFile:
    keys = KeyFile(path)
    keys.refresh()
    if not keys.keys:
        raise Fatal(keys.problem)
    return keys


def _reconciler_of(
    options: argparse.Namespace, choice: Choice, identity: IdentityFile, shares: Shares | None
) -> Reconciler:
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
            identity=identity,
            shares=shares,
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
