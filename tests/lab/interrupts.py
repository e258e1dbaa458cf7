"""Signals that end a run (Ctrl-C, SIGTERM, SIGHUP): each unwinds the program, and none cuts a clean-up short."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived: handled as Ctrl-C is, so that what unwinds on one unwinds on all."""


def unwind_on_termination() -> None:
    """Let SIGTERM and SIGHUP raise `Terminated` for the rest of this process.

    Handlers that someone else has set stay; outside the main thread nothing is done (signals cannot be set there).
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise_terminated)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold ending signals back until the block is done, then deliver the first of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not a signal mask: a process-directed signal would reach any thread that does not block it.
    arrived: list[int] = []
    former = {
        number: signal.signal(number, lambda signum, _frame: arrived.append(signum)) for number in ENDING
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _raise_terminated(number: int, _frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)
