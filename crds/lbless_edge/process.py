"""The frame of a program: its command line, its log format, its stop signals, and ending with one sentence.

Owns what is the same in all three programs. What they do is theirs.
"""

from __future__ import annotations

import _thread
import argparse
import faulthandler
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from pythonjsonlogger.json import JsonFormatter

EXIT_USAGE = 2
METRICS_ADDRESS = "127.0.0.1"
"""Programs on a node share its network: what they count is for the node alone unless a proxy serves it."""

_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


class Fatal(Exception):
    """The program cannot do its work; the message is one sentence that says what to do."""


def argument_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every program takes."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="how log lines look")
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least that is logged",
    )
    parser.add_argument(
        "--metrics-port",
        type=_port,
        default=0,
        metavar="PORT",
        help=f"serve Prometheus metrics on {METRICS_ADDRESS} there; 0: not at all",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {program_version()}")
    return parser


def object_name(value: str) -> str:
    """An option that names a Kubernetes object (``type=`` of argparse): it becomes part of URLs and paths."""
    if not _OBJECT_NAME.fullmatch(value):
        raise argparse.ArgumentTypeError(
            f"{value[:80]!r} is not a Kubernetes name: use lower case letters, digits, '-' and '.'"
        )
    return value


def configure_logging(log_format: str, level: str) -> None:
    """Log to standard error, one line a record."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def serve_metrics(port: int) -> None:
    """Serve Prometheus metrics in a thread; port 0: do nothing. Raises Fatal where the port is taken."""
    if not port:
        return
    from prometheus_client import start_http_server  # noqa: PLC0415 - 5 MiB that few programs need

    try:
        start_http_server(port, addr=METRICS_ADDRESS)
    except OSError as error:
        raise Fatal(
            f"Metrics cannot be served on {METRICS_ADDRESS}:{port} ({error.strerror}): choose another --metrics-port."
        ) from None


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; call in the main thread before starting others."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # The handler interrupts the main thread anywhere, also inside stop.wait() while that holds the
        # event's lock: set() there would wait for itself. A thread of its own takes the lock in its turn.
        signal.signal(number, lambda *_: _thread.start_new_thread(stop.set, ()))
    return stop


def run(program: Callable[[], None]) -> int:
    """Run a program's body and return its exit status: a Fatal becomes one line and status 1.

    One that crashes, or is sent SIGABRT because it hangs, says where each of its threads is.
    """
    faulthandler.enable(sys.__stderr__)  # type: ignore[arg-type] # that it may be None is for Windows
    try:
        program()
    except Fatal as error:
        logging.getLogger("lbless").critical("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def program_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("lbless")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _port(value: str) -> int:
    try:
        port = int(value)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is no port: use 1 to 65535, or 0 for none")
    return port
