"""The program lbless-operator: its options, its threads, and how they hang together."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from functools import partial

from lbless_edge.credentials import read_credentials
from lbless_edge.kube import connect
from lbless_edge.process import (
    argument_parser,
    configure_logging,
    object_name,
    program_version,
    run,
    serve_metrics,
    stop_event,
)
from lbless_edge.workers import Workers
from lbless_operator import liveness
from lbless_operator.events import Events
from lbless_operator.facts import Kind
from lbless_operator.followers import Followers
from lbless_operator.leader import LEASE_SECONDS, Leader
from lbless_operator.lister import Lister
from lbless_operator.mailbox import Mailbox
from lbless_operator.reconciler import Reconciler
from lbless_operator.restraint import Restraint
from lbless_operator.state import State
from lbless_operator.watches import Watches
from lbless_operator.workloads import MAX_NAMESPACES
from lbless_operator.writers import COUNT, Writers

READ_TIMEOUT_SECONDS = 15
RENEW_TIMEOUT_SECONDS = 4
STUCK_SECONDS = 90.0
"""A reconciler that did not come round for so long hangs; a single request takes 20 s at most."""
END_SECONDS = 12.0
"""To end takes 2 s of waiting for threads and two requests about the Lease, each of them 4 s at most."""
CLUSTER_KINDS = (Kind.CLUSTERIP, Kind.AGENT, Kind.NODE)

_log = logging.getLogger("lbless.operator")


def clock() -> float:
    """Seconds that count also while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Operator:
    """All of the program between its start and its stop event."""

    def __init__(self, options: argparse.Namespace, stop: threading.Event) -> None:
        kubeconfig = os.environ.get("KUBECONFIG")
        self._stop = stop
        self.api = connect(kubeconfig, read_timeout_seconds=READ_TIMEOUT_SECONDS)
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:12]}"
        self.leader = Leader(
            connect(kubeconfig, read_timeout_seconds=RENEW_TIMEOUT_SECONDS),
            options.namespace,
            identity,
            stop,
            clock,
            options.lease_seconds,
        )
        state = State(self.api.server, options.namespace, clock())
        self._mailbox = Mailbox()
        self._lister = Lister(self.api, self._mailbox, state.base_scopes, stop, clock)
        restraint = Restraint(_log)
        self._events = Events(self.api, identity, restraint, stop, self.leader.is_valid)
        credentials = partial(read_credentials, kubeconfig)
        # A connection for each collection of workloads: none is closed when its watch begins anew.
        following_api = connect(
            kubeconfig, read_timeout_seconds=READ_TIMEOUT_SECONDS, connections=2 * MAX_NAMESPACES + 2
        )
        self._followers = Followers(following_api, self._mailbox, restraint, self._lister.list_again, stop)
        self._writers = Writers(self.api, self.leader, self._mailbox)
        self.reconciler = Reconciler(
            state,
            self._mailbox,
            self._lister,
            self._followers,
            self.leader,
            self._writers,
            self._events,
            restraint,
            stop,
            clock,
        )
        self._watches = [
            Watches(kinds, namespace, self._mailbox, self._lister, restraint, credentials, stop, clock)
            for kinds, namespace in ((CLUSTER_KINDS, ""), ((Kind.LEASE,), options.namespace))
        ]
        self._leads = False

    def run(self) -> None:
        """Lead, and work until the stop event is set; raises Fatal if a part fails."""
        if not self.leader.acquire():
            return
        self.reconciler.beat = clock()
        self._leads = True
        workers = Workers(self._stop)
        workers.start("leader", self.leader.run)
        workers.start("lister", self._lister.run)
        workers.start("reconciler", self.reconciler.run)
        workers.start("events", self._events.run)
        workers.start("followers", self._followers.run)
        for number in range(COUNT):
            workers.start(f"writer-{number}", self._writers.run)
        for number, watches in enumerate(self._watches):
            workers.start(f"watches-{number}", watches.run)
        try:
            workers.wait()
        finally:
            # Whatever keeps it from ending is said, and then it ends all the same: its Lease runs out.
            faulthandler.dump_traceback_later(END_SECONDS, exit=True)
            self._lister.wake()
            self._mailbox.close()
            self._writers.close()
            self._events.close()
            self._followers.close()
            for watches in self._watches:
                watches.cut()
            workers.join()
            self.leader.release()
            faulthandler.cancel_dump_traceback_later()

    def sickness(self) -> str:
        """Why the process should be restarted, empty if it is well; one that waits to lead is well."""
        age = clock() - self.reconciler.beat
        if self._leads and age > STUCK_SECONDS:
            return f"the reconciler has not come round for {age:.0f} s"
        return ""

    def metrics(self) -> Mapping[str, float]:
        """The numbers of `metrics.HELP`, as they are now."""
        return {
            "lbless_operator_leading": self._leads and self.leader.is_valid(),
            "lbless_operator_clusterips": self.reconciler.clusterips,
            "lbless_operator_waiting": self.reconciler.waiting,
            "lbless_operator_reconciles": self.reconciler.reconciles,
            "lbless_operator_writes": self.reconciler.writes,
            "lbless_operator_awaited_lists": len(self._lister.awaited),
            "lbless_operator_view_age_seconds": self._lister.view_age_seconds,
            "lbless_operator_beat_age_seconds": clock() - self.reconciler.beat,
        }


def main() -> int:
    """Run lbless-operator and return its exit status."""
    options = _options()
    configure_logging(options.log_format, options.log_level)
    # What goes wrong in its watches the LISTs find too, and say in one sentence; handlers that fail do not.
    logging.getLogger("kopf").setLevel(logging.CRITICAL)
    logging.getLogger("kopf.objects").setLevel(logging.ERROR)
    # There may be a hundred of them with one trouble: the followers say it once.
    logging.getLogger("lbless.watch").setLevel(logging.ERROR)
    return run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    stop = stop_event()
    operator = Operator(options, stop)
    if options.liveness_port:
        liveness.serve(options.liveness_port, operator.sickness)
    if options.metrics_port:
        from lbless_operator import metrics  # noqa: PLC0415 - 5 MiB that only who scrapes needs

        metrics.register(operator.metrics)
        serve_metrics(options.metrics_port)
    _log.info("lbless-operator %s works for %s.", program_version(), operator.api.server)
    operator.run()


def _options() -> argparse.Namespace:
    parser = argument_parser("lbless-operator", "Decide which node owns which buckets of each ClusterIP.")
    parser.add_argument(
        "--namespace",
        type=object_name,
        # The downward API gives it in a pod; argparse checks a default that is a string as well.
        default=os.environ.get("POD_NAMESPACE") or "lbless-system",
        help="lbless's own, where the Leases are",
    )
    parser.add_argument(
        "--liveness-port",
        type=_port,
        default=0,
        metavar="PORT",
        help="serve GET /healthz there; 0: not at all",
    )
    parser.add_argument(
        "--lease-seconds",
        type=_lease_seconds,
        default=LEASE_SECONDS,
        metavar="SECONDS",
        help="another replica leads after so long without a sign of this one",
    )
    return parser.parse_args()


def _port(value: str) -> int:
    port = int(value) if value.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is no port: use 1 to 65535, or 0 for none")
    return port


def _lease_seconds(value: str) -> int:
    seconds = int(value) if value.isdecimal() else 0
    if not 3 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{value} is no length of a Lease: use 3 to 3600 seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
