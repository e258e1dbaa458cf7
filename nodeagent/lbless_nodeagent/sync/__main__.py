"""The program lbless-sync: its options, its threads, and how they hang together. Each does one thing alone."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from lbless_api.state import DEFAULT_DIRECTORY, DESIRED
from lbless_edge.kube import CLUSTERIPS, NODES, Api, connect
from lbless_edge.listwatch import ListWatch
from lbless_edge.process import (
    Fatal,
    argument_parser,
    configure_logging,
    object_name,
    program_version,
    run,
    serve_metrics,
    stop_event,
)
from lbless_edge.workers import Workers
from lbless_nodeagent.sync.desired import DesiredFiles
from lbless_nodeagent.sync.heartbeat import Heartbeat
from lbless_nodeagent.sync.intent import IntentFile
from lbless_nodeagent.sync.observation import Observer, essence
from lbless_nodeagent.sync.ownnode import OwnNode
from lbless_nodeagent.sync.report import Report, Situation, report
from lbless_nodeagent.sync.reporter import Reporter
from lbless_nodeagent.sync.storage import Storage
from lbless_nodeagent.sync.upkeep import Upkeep

READ_TIMEOUT_SECONDS = 8
"""A request lost on a dead connection must not cost the Lease: 10 s pass between renewals, 40 s make it stale."""

PAGE = 50
"""A ClusterIP on fifty nodes is some 20 kB of text and several times that as objects: what a page of a LIST
takes is the peak of sync's memory (make bench)."""

_log = logging.getLogger("lbless.sync")


class Sync:
    """All of the program between its start and its stop event."""

    def __init__(
        self, api: Api, node: str, state_directory: Path, namespace: str, stop: threading.Event
    ) -> None:
        self._stop = stop
        self._changed = threading.Event()
        self._storage = Storage(state_directory / DESIRED)
        self._desired = DesiredFiles(self._storage, self._learnt)
        self._observer = Observer(state_directory, self._changed.set, stop)
        self._node = OwnNode(node, self._storage, self._learnt)
        self._intent = IntentFile(lambda: self._node.goes, self._count, self._desired.write_intent)
        self._clusterips = ListWatch(api, CLUSTERIPS, self._desired, stop, page=PAGE)
        self._nodes = ListWatch(api, NODES, self._node, stop, field_selector=f"metadata.name={node}")
        self._upkeep = Upkeep(
            state_directory, self._storage, self._is_silent, self._write_anew, self._changed.set, stop
        )
        self._reporter = Reporter(api, self._node, self._report, self._changed, stop)
        self._heartbeat = Heartbeat(api, namespace, self._node, self._alive, stop)
        self._said: tuple[Situation, Report] | None = None
        self._intent.update()

    def run(self) -> None:
        """Work until the stop event is set; raises Fatal if a part fails."""
        workers = Workers(self._stop)
        for name, work in {
            "clusterips": self._clusterips.run,
            "node": self._nodes.run,
            "observer": self._observer.run,
            "upkeep": self._upkeep.run,
            "reporter": self._reporter.run,
            "heartbeat": self._heartbeat.run,
        }.items():
            workers.start(name, work)
        try:
            workers.wait()
        finally:
            self._clusterips.cut()
            self._nodes.cut()
            self._observer.cut()
            self._changed.set()
            workers.join()

    def metrics(self) -> Mapping[str, float]:
        """The numbers of `metrics.HELP`, as they are now."""
        current = self._report()
        return {
            "lbless_sync_clusterips": len(self._desired.wanted or ()),
            "lbless_sync_pending": len(current.status.pending) if current else 0,
            "lbless_sync_failures": len(current.status.failures) if current else 0,
            "lbless_sync_dataplane_silent": self._is_silent(),
            "lbless_sync_disk_troubled": bool(self._upkeep.trouble),
            "lbless_sync_waiting": sum(bool(w.waits_for) for w in (self._clusterips, self._nodes)),
            "lbless_sync_status_writes": self._reporter.writes,
            "lbless_sync_lease_renewals": self._heartbeat.renewals,
        }

    def _report(self) -> Report | None:
        """None before it is known what the API wants: half a view must not be reported as the whole."""
        wanted = self._desired.wanted
        if wanted is None:
            return None
        situation = Situation(
            wanted,
            essence(self._observer.latest.observed),
            self._observer.silence,
            self._upkeep.trouble,
            self._desired.unstored,
        )
        said = self._said
        if said is None or said[0] != situation:
            said = self._said = situation, report(situation)
        return said[1]

    def _learnt(self) -> None:
        self._intent.update()
        self._changed.set()

    def _count(self) -> int | None:
        wanted = self._desired.wanted
        return None if wanted is None else len(wanted)

    def _write_anew(self) -> None:
        self._intent.update(anew=True)
        self._clusterips.again()
        self._nodes.again()

    def _is_silent(self) -> bool:
        return bool(self._observer.silence)

    def _alive(self) -> bool:
        return self._desired.complete and not self._is_silent()


def main() -> int:
    """Run lbless-sync and return its exit status."""
    options = _options()
    configure_logging(options.log_format, options.log_level)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    stop = stop_event()
    api = connect(os.environ.get("KUBECONFIG"), read_timeout_seconds=READ_TIMEOUT_SECONDS)
    _check_state_directory(options.state_dir)
    sync = Sync(api, options.node, options.state_dir, options.namespace, stop)
    if options.metrics_port:
        from lbless_nodeagent.sync import metrics  # noqa: PLC0415 - 5 MiB that only who scrapes needs

        metrics.register(sync.metrics)
        serve_metrics(options.metrics_port)
    _log.info("lbless-sync %s serves node %s from %s.", program_version(), options.node, api.server)
    sync.run()


def _check_state_directory(path: Path) -> None:
    """A wrong option ends the program; a disk that cannot be used for now is waited for."""
    nearest = next(place for place in (path / DESIRED, path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise Fatal(f"{nearest} is not a directory: name another --state-dir.")


def _options() -> argparse.Namespace:
    parser = argument_parser("lbless-sync", "Keep a node's state directory and the Kubernetes API in step.")
    parser.add_argument(
        "--node", type=object_name, required=True, metavar="NAME", help="the name of this Node"
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(DEFAULT_DIRECTORY),
        metavar="DIR",
        help="shared with lbless-dataplane",
    )
    parser.add_argument(
        "--namespace",
        type=object_name,
        # The downward API gives it in a pod; argparse checks a default that is a string as well.
        default=os.environ.get("POD_NAMESPACE") or "lbless-system",
        help="lbless's own, where the node's Lease is",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
