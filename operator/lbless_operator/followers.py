"""The watches of workloads: one ListWatch for each collection of pods or EndpointSlices that ClusterIPs ask for.

Owns starting and ending them, and passing on what they tell. They are told in each one's order and miss
nothing for long; that a collection is known as a whole is the lister's to say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from lbless_api.fields import Invalid
from lbless_edge.kube import Api, Object, in_namespace
from lbless_edge.listwatch import ListWatch
from lbless_operator.facts import Kind, Scope, Seen, parse
from lbless_operator.interest import Interest
from lbless_operator.mailbox import Mailbox
from lbless_operator.phrases import name
from lbless_operator.restraint import Restraint
from lbless_operator.sources import SOURCES
from lbless_operator.workloads import FOLLOWED

PAGE = 100
"""A page of pods is about half a MiB of JSON, and ten times that for a moment while it is read."""
LISTS_AT_ONCE = 2
"""All may want to LIST at the same time, and each keeps a page meanwhile."""
JOIN_SECONDS = 2.0
LOOK_SECONDS = 1.0
SAY_SECONDS = 3.0
"""A LIST that is waited for longer is worth a line in the log."""
MAX_NAMES = 8
RELIST_SECONDS = 60.0
"""What cannot be watched is listed so often."""

_log = logging.getLogger("lbless.operator")


class Follower:
    """Follows one collection in a thread of its own. `interest` may be changed from another thread."""

    def __init__(
        self,
        api: Api,
        scope: Scope,
        mailbox: Mailbox,
        restraint: Restraint,
        listed: Callable[[Kind, str], None],
        turn: AbstractContextManager[object],
    ) -> None:
        """`listed` is called when deletions are told from now on: what was deleted before, nobody tells.

        `turn` is held during each LIST.
        """
        self.interest: Interest = scope.interest
        self.failure: BaseException | None = None
        self._kind = scope.kind
        self._mailbox = mailbox
        self._restraint = restraint
        self._listed: Callable[[], None] | None = partial(listed, scope.kind, scope.namespace)
        self._stop = threading.Event()
        # A ListWatch tells of deletions by UID. A recreated object has its predecessor's name.
        self._names: dict[str, tuple[str, str]] = {}
        self._uids: dict[tuple[str, str], str] = {}
        source = SOURCES[scope.kind]
        self._list_watch = ListWatch(
            api,
            in_namespace(source.path, scope.namespace) if scope.namespace else source.path,
            self,
            self._stop,
            field_selector=source.field_selector,
            label_selector=source.label_selector,
            page=PAGE,
            turn=turn,
        )
        name = f"follower-{scope.kind.lower()}-{scope.namespace or 'all'}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def waits_for(self) -> str:
        """One sentence that says why nothing is told, empty while all is well."""
        return self._list_watch.waits_for

    @property
    def is_late(self) -> bool:
        """Whether a LIST of it is waited for, without an error, for so long that it should be said."""
        return not self.waits_for and self._list_watch.lists_for_seconds > SAY_SECONDS

    def start(self) -> None:
        """Begin, unless it has."""
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> None:
        """Let it end soon; it tells nothing more."""
        self._stop.set()
        self._list_watch.cut()

    def join(self, timeout_seconds: float) -> None:
        """Wait for its thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def changed(self, obj: Object) -> None:
        """For the ListWatch."""
        try:
            seen = parse(self._kind, obj)
        except Invalid as error:
            self._restraint.log(
                logging.WARNING, "event", f"An event of kind {self._kind} is ignored: {error}"
            )
            return
        name, uid = (seen.namespace, seen.name), str(obj["metadata"]["uid"])
        self._names[uid] = name
        self._uids[name] = uid
        self._tell(seen)

    def removed(self, uid: str) -> None:
        """For the ListWatch."""
        name = self._names.pop(uid, None)
        if name and self._uids.get(name) == uid:
            del self._uids[name]
            self._tell(Seen(self._kind, *name, int(self._list_watch.telling), None))

    def listed(self, present: Set[str]) -> None:  # noqa: ARG002 - the lister says what is there
        """For the ListWatch."""
        if self._listed:
            self._listed()
            self._listed = None

    def _tell(self, seen: Seen) -> None:
        interest = self.interest
        if self._stop.is_set() or seen.namespace not in interest.namespaces:
            return
        ours = Scope(self._kind, "", interest).admits(seen)
        # Also what is none of ours, as it may have been until now.
        self._mailbox.put(seen if ours else replace(seen, fact=None))

    def _run(self) -> None:
        try:
            self._list_watch.run()
        except BaseException as error:  # noqa: BLE001 - `Followers.run` raises it, which ends the program
            self.failure = error


class Followers:
    """All of them. `follow` says which there are to be, `run` in a thread of its own sees to it."""

    def __init__(
        self,
        api: Api,
        mailbox: Mailbox,
        restraint: Restraint,
        listed: Callable[[Kind, str], None],
        stop: threading.Event,
    ) -> None:
        """`api` should keep as many connections as there may be followers; `listed` as for `Follower`."""
        self._api = api
        self._mailbox = mailbox
        self._restraint = restraint
        self._listed = listed
        self._stop = stop
        self._turns = threading.BoundedSemaphore(LISTS_AT_ONCE)
        self._followers: dict[tuple[Kind, str], Follower] = {}
        self._changed = threading.Event()
        self._lock = threading.Lock()

    def follow(self, scopes: Collection[Scope]) -> frozenset[tuple[Kind, str]]:
        """Follow the collections of workloads among these and no others; return those that are new.

        When it returns, the others are told by their interests now: a LIST that begins later misses nothing. The
        new ones begin with `start`, for who is to hear that they have listed must know of them first.
        """
        wanted = {(scope.kind, scope.namespace): scope for scope in scopes if scope.kind in FOLLOWED}
        with self._lock:
            if self._stop.is_set():
                return frozenset()
            new = wanted.keys() - self._followers.keys()
            for place in self._followers.keys() - wanted.keys():
                self._followers.pop(place).end()
            for place, scope in wanted.items():
                follower = self._followers.get(place)
                if follower:
                    follower.interest = scope.interest
                else:
                    follower = Follower(
                        self._api, scope, self._mailbox, self._restraint, self._listed, self._turns
                    )
                    self._followers[place] = follower
        return frozenset(new)

    def start(self) -> None:
        """Let those begin that are new."""
        with self._lock:
            for follower in self._followers.values():
                follower.start()

    def run(self) -> None:
        """Watch over the followers until the stop event is set; raises what one of them failed with."""
        said: set[str] = set()
        list_at = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            with self._lock:
                followers = dict(self._followers)
            for follower in followers.values():
                if follower.failure is not None:
                    raise follower.failure
            waiting = {place: one.waits_for for place, one in followers.items() if one.waits_for}
            said = self._say({place for place, one in followers.items() if one.is_late}, waiting, said)
            # Whatever keeps them from watching, a LIST may work.
            if waiting and time.monotonic() >= list_at:
                list_at = time.monotonic() + RELIST_SECONDS
                for place in waiting:
                    self._listed(*place)

    def _say(
        self, late: Set[tuple[Kind, str]], waiting: Mapping[tuple[Kind, str], str], said: Set[str]
    ) -> set[str]:
        """Log what keeps some from following, unless it was `said` already; return what has been said by now."""
        causes = {sentence: sentence for sentence in waiting.values()}
        if late:
            # One cause, however many are left.
            causes["late"] = (
                f"LISTs of {_names(late)} have taken {SAY_SECONDS:.0f} s or more on {self._api.server}, "
                "or wait for one that does."
            )
        for cause in causes.keys() - said:
            self._restraint.log(
                logging.WARNING, "watch", f"Pods or endpoints are not followed: {causes[cause]}"
            )
        if said and not causes:
            _log.info("Pods and endpoints are followed again.")
        return set(causes)

    def close(self) -> None:
        """End all of them, after setting the stop event."""
        with self._lock:
            followers = list(self._followers.values())
            self._followers.clear()
        for follower in followers:
            follower.end()
        for follower in followers:
            follower.join(JOIN_SECONDS / len(followers))


def _names(places: Set[tuple[Kind, str]]) -> str:
    plurals = {kind: SOURCES[kind].resource[2] for kind in FOLLOWED}
    return name(
        (plurals[kind] + (f" in {namespace}" if namespace else "") for kind, namespace in sorted(places)),
        MAX_NAMES,
    )
