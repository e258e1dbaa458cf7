"""Watches by kopf: its low-level event handlers put what they see into the mailbox, and do nothing else.

Owns kopf's settings, credentials, thread and restarts. kopf loses deletions when it lists anew, and drops
exceptions of handlers, so nothing may depend on an event: the lister makes right what is missed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from random import SystemRandom
from typing import Any

import kopf
from kubernetes import client

from lbless_api.fields import Invalid
from lbless_edge.backoff import Backoff
from lbless_operator.facts import Kind, parse
from lbless_operator.forgetful import NoDifferences, NoProgress
from lbless_operator.lister import Lister
from lbless_operator.mailbox import Mailbox
from lbless_operator.restraint import Restraint
from lbless_operator.said import Said
from lbless_operator.sources import SOURCES

PAGE = 100
SILENCE_SECONDS = 70.0
"""Bookmarks come every 60 s: a watch silent for longer hangs on a connection that is half open."""
RETRY_SECONDS = (1, 2, 4, 4, 4)
"""The longest waits before a request is repeated; each wait is a random part of it."""
LOOK_SECONDS = 1.0
WELL_SECONDS = 60.0
"""kopf that ran so long was well: what ends it then is another failure than the last."""

_log = logging.getLogger("lbless.operator")
_random = SystemRandom()


class Watches:
    """Watches of some kinds, in all namespaces or in one: kopf knows no mixture, so there are two of these."""

    def __init__(
        self,
        kinds: Collection[Kind],
        namespace: str,
        mailbox: Mailbox,
        lister: Lister,
        restraint: Restraint,
        credentials: Callable[[], client.Configuration],
        stop: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        """`namespace` empty: all. `credentials` are read anew when the API server accepts them no longer."""
        self._namespace = namespace
        self._mailbox = mailbox
        self._lister = lister
        self._restraint = restraint
        self._credentials = credentials
        self._stop = stop
        self._clock = clock
        self._settings = _settings(kinds)
        self._registry = self._register(kinds)
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Watch until the stop event is set; `cut` makes it see that at once."""
        backoff, said = Backoff(base_seconds=1.0), Said(_log)
        since = 0.0
        while True:
            # kopf looks only once which resources there are, so all of them must be there when it starts.
            self._lister.await_round(since)
            if self._stop.is_set():
                return
            began = self._clock()
            try:
                asyncio.run(self._watch())
            # Whatever ends kopf, LISTs go on and it is started again. A cancellation is no Exception, and would end
            # this thread without a word.
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                said.warn(f"Watches failed and begin anew: {_describe(error)}")
            since = self._clock()
            if since - began > WELL_SECONDS:
                backoff.succeeded()
            self._stop.wait(backoff.failed())
            self._lister.request_round()

    def cut(self) -> None:
        """End kopf, from another thread, after setting the stop event."""
        with self._lock:
            if self._running:
                loop, flag = self._running
                loop.call_soon_threadsafe(flag.set)

    async def _watch(self) -> None:
        flag = asyncio.Event()
        with self._lock:
            self._running = (asyncio.get_running_loop(), flag)
        try:
            if not self._stop.is_set():
                operator = kopf.operator(
                    registry=self._registry,
                    settings=self._settings,
                    standalone=True,
                    clusterwide=not self._namespace,
                    namespaces=[self._namespace] if self._namespace else [],
                    stop_flag=flag,
                )
                await _until_ended(asyncio.create_task(operator))
        finally:
            with self._lock:
                self._running = None

    def _register(self, kinds: Collection[Kind]) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, id="credentials")(self._login)
        for kind in kinds:
            kopf.on.event(*SOURCES[kind].resource, registry=registry, id=kind.lower(), param=kind)(self._tell)
        return registry

    async def _tell(self, *, event: kopf.RawEvent, param: Any = None, **_: Any) -> None:
        kind, obj = Kind(param), event["object"]
        if event["type"] is None:
            # kopf lists anew: what was deleted meanwhile it does not tell.
            self._lister.request_round()
        try:
            self._mailbox.put(parse(kind, obj, deleted=event["type"] == "DELETED"))
        except Invalid as error:
            self._restraint.log(logging.WARNING, "event", f"An event of kind {kind} is ignored: {error}")

    async def _login(self, **_: Any) -> kopf.ConnectionInfo:
        configuration = self._credentials()
        token = configuration.get_api_key_with_prefix("BearerToken") or ""
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme="Bearer" if token else None,
            token=token.removeprefix("Bearer ") or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )


def _settings(kinds: Collection[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # else it lists and watches CRDs and namespaces
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.inactivity_timeout = SILENCE_SECONDS
    settings.watching.chunk_size = PAGE
    settings.queueing.idle_timeout = 0.01  # a worker keeps its object in memory until it ends
    settings.persistence.diffbase_storage = NoDifferences()
    settings.persistence.progress_storage = NoProgress()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    # The default grows to minutes after an outage.
    settings.networking.error_backoffs = _Jittered(RETRY_SECONDS)
    settings.process.ultimate_exiting_timeout = None  # it would kill this whole process
    for kind in kinds:
        source = SOURCES[kind]
        if source.field_selector:
            settings.watching.field_selectors[source.resource] = source.field_selector
        if source.label_selector:
            settings.watching.label_selectors[source.resource] = source.label_selector
    return settings


async def _until_ended(operator: asyncio.Task[None]) -> None:
    """Return when kopf has ended, and see to it that all its watchers end once one of them has.

    kopf cancels a watcher together with the waiter for pauses that it has; one that is repeating a request then
    swallows that and watches on, and kopf waits for it without end (1.45, api.stream): nothing else is watched.
    """
    most = 0
    while not operator.done():
        await asyncio.wait({operator}, timeout=LOOK_SECONDS)
        watchers = [task for task in asyncio.all_tasks() if task.get_name().startswith("watcher for ")]
        most = max(most, len(watchers))
        if len(watchers) < most:
            for task in watchers:
                task.cancel()
    await operator


class _Jittered(Sized, Iterable[float]):
    """Other random waits for each request that has to be repeated; kopf itself knows fixed ones only."""

    def __init__(self, bounds_seconds: Collection[float]) -> None:
        self._bounds_seconds = bounds_seconds

    def __len__(self) -> int:
        return len(self._bounds_seconds)

    def __iter__(self) -> Iterator[float]:
        return (_random.uniform(0.0, bound) for bound in self._bounds_seconds)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0][:300] if lines else ''}"
