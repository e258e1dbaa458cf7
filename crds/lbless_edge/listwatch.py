"""One collection of the API followed for as long as the program runs: LIST, then WATCH, then LIST again.

Owns the connection's troubles: broken, silent and refused requests, old resource versions, deletions that
happened unseen. Its memory is one resource version an object; what objects mean is the listener's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Set
from contextlib import AbstractContextManager, nullcontext
from random import SystemRandom
from typing import Protocol

from lbless_edge.backoff import Backoff
from lbless_edge.explain import explain
from lbless_edge.kube import PAGE, WATCH_SILENCE_SECONDS, Api, ApiError, Object, Watch
from lbless_edge.patience import Patience

WATCH_SECONDS = 300
SHORT_WATCH_SECONDS = 1.0
"""A server that ends each watch at once, without an event, is to be asked more and more rarely."""
WELL_SECONDS = 30.0
"""A watch that was open for so long was well, also without an event: what ends it is another failure than the last."""

_log = logging.getLogger("lbless.watch")
_random = SystemRandom()


class Listener(Protocol):
    """What a ListWatch tells, in its own thread. An exception ends the ListWatch."""

    def changed(self, obj: Object) -> None:
        """An object is new to this ListWatch, or its resource version differs from the one told last."""

    def removed(self, uid: str) -> None:
        """An object that was told is no more."""

    def listed(self, present: Set[str]) -> None:
        """A LIST was completed and every difference to what was known before told; `present` has its UIDs."""


class ListWatch:
    """Tells a listener all of a collection, level by level: the newest state, not every step to it."""

    def __init__(
        self,
        api: Api,
        path: str,
        listener: Listener,
        stop: threading.Event,
        *,
        field_selector: str = "",
        label_selector: str = "",
        page: int = PAGE,
        silence_seconds: float = WATCH_SILENCE_SECONDS,
        backoff: Backoff | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        """`turn` is held during each LIST, so that of many ListWatches only a few do that at once."""
        self._api = api
        self._path = path
        self._listener = listener
        self._stop = stop
        self._page = page
        self._silence_seconds = silence_seconds
        self._backoff = backoff or Backoff()
        self._turn = turn or nullcontext()
        self._lists_since: float | None = None
        self._list_patience = Patience()
        self._watch_patience = Patience()
        self._selectors = {}
        if field_selector:
            self._selectors["fieldSelector"] = field_selector
        if label_selector:
            self._selectors["labelSelector"] = label_selector
        self._known: dict[str, str] = {}  # UID → resource version
        self._version = ""  # where to watch from; empty: LIST first
        self.telling = ""
        """The resource version of what the listener is told just now: of the event, or of the LIST as a whole."""
        self._waits_for = ""
        self._again = threading.Event()
        self._lock = threading.Lock()
        self._watch: Watch | None = None

    @property
    def waits_for(self) -> str:
        """One sentence that says why nothing arrives, empty while all is well."""
        return self._waits_for

    @property
    def lists_for_seconds(self) -> float:
        """How long a LIST has been under way, including the wait for its turn; 0 while there is none."""
        since = self._lists_since
        return 0.0 if since is None else time.monotonic() - since

    def run(self) -> None:
        """Follow the collection until the stop event is set; `cut` makes it see that at once."""
        while not self._stop.is_set():
            if self._again.is_set():
                self._again.clear()
                self._version = ""
                # Of what was told only that it was: what is gone by now is a deletion all the same.
                self._known = dict.fromkeys(self._known, "")
            try:
                if not self._version:
                    self._list_in_turn()
                if not self._is_interrupted():
                    self._follow()
            except ApiError as error:
                if not self._stop.is_set():
                    self._stop.wait(self._backoff.failed(error.retry_after_seconds))

    def again(self) -> None:
        """LIST and tell everything anew, as the listener has lost what it was told; from any thread."""
        self._again.set()
        self.cut()

    def cut(self) -> None:
        """End a wait for the next event, from another thread, after setting the stop event."""
        with self._lock:
            if self._watch is not None:
                self._watch.cut()

    def _list_in_turn(self) -> None:
        self._lists_since = time.monotonic()
        try:
            with self._turn:
                if not self._stop.is_set():  # the wait may have been long
                    self._list()
        finally:
            self._lists_since = None

    def _list(self) -> None:
        present: set[str] = set()
        version = ""
        pages = self._api.list_pages(
            self._path, limit=self._page, read_timeout_seconds=self._list_patience.seconds, **self._selectors
        )
        try:
            for objects, of_all_pages in self._list_patience.timed(pages):
                version = self.telling = of_all_pages
                for obj in objects:
                    if self._stop.is_set():
                        return
                    present.add(self._tell(obj))
        except ApiError as error:
            if error.timed_out:
                self._list_patience.ran_out(self._list_patience.seconds)
            self._wait_for(error)
            raise
        # Only now may absence mean deletion: every page has arrived.
        for uid in self._known.keys() - present:
            self._forget(uid)
        self._version = version
        self._listener.listed(present)

    def _follow(self) -> None:
        """Watch until the server ends it; an ApiError says that something was wrong."""
        asked_at = time.monotonic()
        try:
            watch = self._api.watch(
                self._path,
                self._version,
                # Not all clients at the same time again.
                timeout_seconds=int(WATCH_SECONDS * _random.uniform(0.9, 1.1)),
                silence_seconds=self._silence_seconds,
                read_timeout_seconds=self._watch_patience.seconds,
                **self._selectors,
            )
        except ApiError as error:
            if error.timed_out:
                self._watch_patience.ran_out(self._watch_patience.seconds)
            self._wait_for(error)
            if error.status not in {0, 429}:
                self._version = ""  # whatever it dislikes, a LIST starts from its own state
            raise
        opened_at = time.monotonic()
        self._watch_patience.answered(opened_at - asked_at)
        self._wait_for(None)
        with self._lock:
            self._watch = watch
        try:
            self._receive(watch)
        except ApiError as error:
            if error.status:
                self._version = ""  # 410 Gone: events between this version and now are lost
            if self._again.is_set():
                return
            if not self._stop.is_set():
                _log.info("%s", error)
            raise
        finally:
            with self._lock:
                self._watch = None
            watch.close()
            if time.monotonic() - opened_at >= WELL_SECONDS:
                self._backoff.succeeded()

    def _receive(self, watch: Watch) -> None:
        began, heard = time.monotonic(), False
        if self._is_interrupted():  # cut() came before there was anything to cut
            return
        for event in watch:
            if self._is_interrupted():
                return
            heard = True
            self._backoff.succeeded()
            self.telling = _version(event.object)
            if event.kind in {"ADDED", "MODIFIED"}:
                self._tell(event.object)
            elif event.kind == "DELETED":
                self._forget(_uid(event.object))
            self._version = self.telling
        if not heard and time.monotonic() - began < SHORT_WATCH_SECONDS and not self._is_interrupted():
            raise ApiError(0, f"The watch of {self._path} on {self._api.server} ended at once.")

    def _tell(self, obj: Object) -> str:
        uid, version = _uid(obj), _version(obj)
        if self._known.get(uid) != version:
            self._listener.changed(obj)
            self._known[uid] = version
        return uid

    def _forget(self, uid: str) -> None:
        if uid in self._known:
            self._listener.removed(uid)
            del self._known[uid]

    def _is_interrupted(self) -> bool:
        return self._stop.is_set() or self._again.is_set()

    def _wait_for(self, error: ApiError | None) -> None:
        """Keep, and log where it changed, what is being waited for."""
        sentence = explain(error, self._path, self._api.server) if error else ""
        if sentence != self._waits_for:
            if sentence:
                _log.warning("%s", sentence)
            else:
                _log.info("%s answers for %s again.", self._api.server, self._path)
            self._waits_for = sentence


def _uid(obj: Object) -> str:
    return _metadata(obj, "uid")


def _version(obj: Object) -> str:
    return _metadata(obj, "resourceVersion")


def _metadata(obj: Object, field: str) -> str:
    metadata = obj.get("metadata")
    value = metadata.get(field) if isinstance(metadata, dict) else None
    if not isinstance(value, str) or not value:
        raise ApiError(0, f"The API server sent an object without metadata.{field}.")
    return value
