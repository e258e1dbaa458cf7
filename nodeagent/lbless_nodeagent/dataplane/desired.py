"""The directory that sync writes: reading it, one fault a file, and hearing of its changes.

Owns `Desired`, the parsed view of it. What a node then serves is decided in `decide`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from inotify_simple import INotify, flags, masks

from lbless_api.clusterip import ClusterIP, is_uid, parse_clusterip, parse_identity
from lbless_api.fields import Invalid, integer, mapping
from lbless_api.heartbeat import MAX_NUMBER
from lbless_api.node import Outstanding
from lbless_api.state import COMPLETE, INTENT, NODE, DesiredNode, Intent, parse_complete, parse_desired_node
from lbless_nodeagent import files

_SUFFIX = ".json"
_LOST = "StateLost"
_HIDDEN = frozenset({COMPLETE, NODE})
"""Of the names that begin with a dot those that are read; the others are sync's temporary files."""


@dataclass(frozen=True, slots=True)
class Document:
    """A ClusterIP with the JSON text that it was read from."""

    clusterip: ClusterIP
    content: bytes


@dataclass(frozen=True, slots=True)
class Desired:
    """What desired/ holds. `complete`: what is absent was deleted; else it may only be unknown yet.

    `faults` has an entry for each file that is there but cannot be used, or that was lost. `node` is None
    where its file is there but cannot be used.
    """

    complete: bool = False
    documents: Mapping[str, Document] = field(default_factory=dict)
    faults: Mapping[str, Outstanding] = field(default_factory=dict)
    node: DesiredNode | None = None
    problems: tuple[str, ...] = ()


class DesiredDirectory:
    """Reads desired/: what inotify names, and after `forget` all of it.

    What did not change is the very same object as before, the whole `Desired` as well as each part of it.
    """

    def __init__(self, directory: Path, boot_id: str, go_on: Callable[[], None] = lambda: None) -> None:
        """`go_on` is called after each file that was read."""
        self._directory = directory
        self._go_on = go_on
        self._boot_id = boot_id
        self._last = Desired()
        self._digests: dict[str, bytes] = {}
        self._misnamed: frozenset[str] = frozenset()
        self._complete: tuple[str, frozenset[str] | None] = ("", None)
        """What .complete held, and what that means: a thousand UIDs take a tenth of a change's time to parse."""
        self._stale: set[str] = set()
        self._all_stale = True
        self._inotify = INotify(nonblocking=True)
        self._watched = -1
        self._watch()

    @property
    def documents(self) -> Mapping[str, Document]:
        """Those of the last reading."""
        return self._last.documents

    @property
    def is_watched(self) -> bool:
        """Whether changes are heard of. Without the directory they are not."""
        return self._watched >= 0

    def fileno(self) -> int:
        """For poll(): readable when a file changed."""
        descriptor: int = self._inotify.fileno()
        return descriptor

    def drain(self) -> bool:
        """Note what was announced, to be read again, and return whether any of it matters."""
        matters = False
        for event in self._inotify.read(timeout=0):
            if event.mask & (flags.Q_OVERFLOW | flags.IGNORED):
                self._all_stale = matters = True
                if event.mask & flags.IGNORED and event.wd == self._watched:
                    self._watched = -1
            elif event.name in _HIDDEN or _is_candidate(event.name):
                self._stale.add(event.name)
                matters = True
        return matters

    def forget(self) -> None:
        """Believe nothing: read every file again at the next reading, and watch what has this name now."""
        self._all_stale = True
        self._watch()

    def read(self) -> Desired:
        """Read the directory as it is now. Never raises for what is in it."""
        if not self.is_watched:
            self._watch()
            self._all_stale = True
        self.drain()
        if not (self._all_stale or self._stale):
            return self._last
        problems: list[str] = []
        # Before the names: sync writes it after the last file, so that no file is missed and taken for deleted.
        listed = self._read_complete(problems)
        node = self._read_node(problems)
        try:
            names = self._names() if self._all_stale else self._stale - _HIDDEN
        except OSError as error:
            problems.append(
                f"{self._directory} cannot be listed ({error.strerror}): everything stays as it is."
            )
            self._digests.clear()
            self._last = Desired(node=node, problems=tuple(problems))
            return self._last
        documents, faults = dict(self._last.documents), dict(self._last.faults)
        if self._all_stale:
            for uid in (documents.keys() | faults.keys()) - {name.removesuffix(_SUFFIX) for name in names}:
                self._drop(uid, documents, faults)
        misnamed = set() if self._all_stale else set(self._misnamed)
        for name in sorted(names):
            uid = name.removesuffix(_SUFFIX)
            if is_uid(uid):
                self._read_document(uid, documents, faults)
            elif os.path.lexists(self._directory / name):
                misnamed.add(name)
            else:
                misnamed.discard(name)
            self._go_on()
        if misnamed:
            problems.append(
                f"{len(misnamed)} files in {self._directory} are not named after a UID, "
                f"such as {ascii(min(misnamed))[:80]}: remove them."
            )
        # Again: the directory may be going as a whole and this file have gone after the others, and what was
        # deleted since is no loss.
        still_listed = self._read_complete(problems)
        complete = listed is not None and still_listed is not None
        both = listed if listed is still_listed else (listed or frozenset()) & (still_listed or frozenset())
        self._look_for(both or frozenset(), documents, faults)
        self._misnamed = frozenset(misnamed)
        self._stale, self._all_stale = set(), False
        self._last = _with_former_parts(
            Desired(complete, documents, faults, node, tuple(problems)), self._last
        )
        return self._last

    def intent(self) -> Intent:
        """What ending dataplane is to mean; hold if nothing is said. Raises Invalid."""
        path = self._directory / INTENT
        try:
            word = files.read_text(path)
        except FileNotFoundError:
            return Intent.HOLD
        try:
            return Intent(word)
        except ValueError:
            raise Invalid(f"{path} holds {word[:40]!r}: write {', '.join(Intent)}.") from None

    def close(self) -> None:
        """Hear of nothing any more."""
        self._inotify.close()

    def _watch(self) -> None:
        wanted = masks.MOVE | flags.CREATE | flags.DELETE | flags.CLOSE_WRITE | flags.MODIFY | flags.ONLYDIR
        try:
            self._watched = self._inotify.add_watch(self._directory, wanted)
        except OSError:
            # The directory is absent for now. read() says so, and tries again each time.
            self._watched = -1

    def _read_complete(self, problems: list[str]) -> frozenset[str] | None:
        try:
            text = files.read_text(self._directory / COMPLETE)
            if text != self._complete[0]:
                self._complete = text, parse_complete(text, self._boot_id)
            return self._complete[1]
        except FileNotFoundError:
            return None
        except Invalid as fault:
            if str(fault) not in problems:
                problems.append(str(fault))
            return None

    def _read_node(self, problems: list[str]) -> DesiredNode | None:
        try:
            return parse_desired_node(files.read_json(self._directory / NODE))
        except FileNotFoundError:
            return DesiredNode()
        except Invalid as fault:
            problems.append(f"{self._directory / NODE} is left aside: {fault}")
            return None

    def _names(self) -> set[str]:
        with os.scandir(self._directory) as entries:
            return {entry.name for entry in entries if _is_candidate(entry.name)}

    def _read_document(
        self, uid: str, documents: dict[str, Document], faults: dict[str, Outstanding]
    ) -> None:
        """Bring both up to date with one ClusterIP's file. One with the former content is not parsed again."""
        path = self._directory / f"{uid}{_SUFFIX}"
        try:
            content = files.read_bytes(path)
            digest = blake2b(content, digest_size=16).digest()
            if self._digests.get(uid) == digest:
                return
            read = parse_document(path, content, uid)
        except FileNotFoundError:
            self._drop(uid, documents, faults)
            return
        except Invalid as fault:
            read, digest = _unreadable(uid, fault), b""
        self._digests[uid] = digest
        if isinstance(read, Document):
            documents[uid] = read
            faults.pop(uid, None)
        else:
            documents.pop(uid, None)
            faults[uid] = read

    def _look_for(
        self, listed: frozenset[str], documents: dict[str, Document], faults: dict[str, Outstanding]
    ) -> None:
        """A file that sync says is there, and is not, was lost and not deleted: a fault until it is back."""
        for uid in [uid for uid, fault in faults.items() if fault.reason == _LOST]:
            del faults[uid]
        present = documents.keys() | faults.keys() if faults else documents.keys()
        for uid in filter(is_uid, () if listed <= present else listed - present):
            # It may have come after what was announced was taken down.
            self._read_document(uid, documents, faults)
            if uid not in documents and uid not in faults:
                path = self._directory / f"{uid}{_SUFFIX}"
                sentence = f"{path} was removed, and not by lbless-sync, which writes it again while it runs."
                faults[uid] = Outstanding(uid, "", 0, _LOST, sentence)

    def _drop(self, uid: str, documents: dict[str, Document], faults: dict[str, Outstanding]) -> None:
        self._digests.pop(uid, None)
        documents.pop(uid, None)
        faults.pop(uid, None)


def parse_document(path: Path, content: bytes, uid: str) -> Document | Outstanding:
    """Parse one ClusterIP's file, or say why it cannot be used."""
    try:
        value = files.parse_json(path, content)
    except Invalid as fault:
        return _unreadable(uid, fault)
    try:
        document = Document(parse_clusterip(value), content)
        if document.clusterip.identity.uid != uid:
            raise Invalid(
                f"metadata.uid {document.clusterip.identity.uid} is not the one in the file's name."
            )
    except Invalid as fault:
        return Outstanding(uid, _key(value), _epoch(value), fault.reason, f"{path}: {fault}")
    return document


def _unreadable(uid: str, fault: Invalid) -> Outstanding:
    return Outstanding(uid, "", 0, "StateUnreadable", str(fault))


def _with_former_parts(new: Desired, former: Desired) -> Desired:
    """`new` with each part that equals the former one replaced by it, so that `is` tells what changed."""
    return Desired(
        complete=new.complete,
        documents=former.documents if new.documents == former.documents else new.documents,
        faults=former.faults if new.faults == former.faults else new.faults,
        node=former.node if new.node == former.node else new.node,
        problems=new.problems,
    )


def _is_candidate(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".")


def _key(value: object) -> str:
    """Its namespace/name where at least that can be read."""
    try:
        return parse_identity(value).key
    except Invalid:
        return ""


def _epoch(value: object) -> int:
    try:
        status = mapping(mapping(value, "object").get("status"), "status")
        return integer(status.get("epoch"), "status.epoch", 0, MAX_NUMBER)
    except Invalid:
        return 0
