"""The frame of a program: its log format, its stop signals, and ending with one sentence.

Owns what is the same in all three programs. What they do is theirs.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from pythonjsonlogger.json import JsonFormatter

EXIT_USAGE = 2


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
        help="serve Prometheus metrics there; 0: not at all",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    return parser


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


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; call in the main thread before starting others."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run(program: Callable[[], None]) -> int:
    """Run a program's body and return its exit status: a Fatal becomes one line and status 1."""
    try:
        program()
    except Fatal as error:
        logging.getLogger("lbless").critical("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _port(value: str) -> int:
    port = int(value)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is no port: use 1 to 65535, or 0 for none")
    return port


def _version() -> str:
    try:
        return version("lbless")
    except PackageNotFoundError:
        return "unknown (not installed)"
