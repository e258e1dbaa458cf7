"""The threads of a program: one that fails ends the program, never silently itself alone.

Owns starting, stopping and joining them. What they do is theirs; they end soon after the stop event.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lbless_edge.process import Fatal

JOIN_SECONDS = 2.0

_log = logging.getLogger("lbless")


class Workers:
    """Daemon threads that share a stop event."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread. What it raises stops the program."""
        thread = threading.Thread(target=self._run, args=(name, work), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Return when the stop event is set; raise Fatal if a worker's failure set it."""
        self._stop.wait()
        if self._failure is not None:
            raise self._failure

    def join(self, timeout_seconds: float = JOIN_SECONDS) -> None:
        """Give the workers time to end after the stop event; one that hangs in a request is left behind."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Fatal as failure:
            self._failure = self._failure or failure
        except Exception as error:  # noqa: BLE001 - a bug in a thread must end the program, with its traceback
            if not self._stop.is_set():
                _log.critical("Worker %s failed.", name, exc_info=error)
                self._failure = self._failure or Fatal(
                    f"Worker {name} failed ({type(error).__name__}): see above."
                )
        else:
            if self._stop.is_set():
                return
            self._failure = self._failure or Fatal(
                f"Worker {name} ended by itself: this is a defect of lbless."
            )
        self._stop.set()
