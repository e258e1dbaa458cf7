"""The directory that sync writes: reading it, one fault a file, and hearing of its changes.

Owns `Desired`, the parsed view of it. What a node then serves is decided in `decide`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify, flags, masks

from lbless_api.clusterip import ClusterIP, is_uid, parse_clusterip, parse_identity
from lbless_api.fields import Invalid, integer, mapping
from lbless_api.node import JSON, Outstanding
from lbless_api.state import COMPLETE, INTENT, NODE, DesiredNode, Intent, parse_complete, parse_desired_node
from lbless_nodeagent import files


@dataclass(frozen=True, slots=True)
class Document:
    """A ClusterIP with the JSON that it was read from."""

    clusterip: ClusterIP
    json: JSON


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
    """Reads desired/. A file that did not change since the last reading is not parsed again."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._directory = directory
        self._boot_id = boot_id
        self._parsed: dict[str, tuple[_Signature, Document | Outstanding]] = {}
        self._inotify = INotify(nonblocking=True)
        self._watched = -1
        self._watch()

    def fileno(self) -> int:
        """For poll(): readable when a file changed."""
        descriptor: int = self._inotify.fileno()
        return descriptor

    def drain(self) -> None:
        """Forget what was announced, and what was parsed of the files named by it."""
        for event in self._inotify.read(timeout=0):
            # A file may be rewritten in place twice within one tick of the file system's clock.
            self._parsed.pop(event.name, None)
            if event.mask & flags.Q_OVERFLOW:
                self.forget()
            if event.mask & flags.IGNORED and event.wd == self._watched:
                self._watched = -1

    def forget(self) -> None:
        """Parse every file again at the next reading."""
        self._parsed.clear()

    def read(self) -> Desired:
        """Read the directory as it is now. Never raises for what is in it."""
        if self._watched < 0:
            self._watch()
        problems: list[str] = []
        # Before the names: sync writes it after the last file, so that no file is missed and taken for deleted.
        listed = self._read_complete(problems)
        node = self._read_node(problems)
        try:
            with os.scandir(self._directory) as entries:
                names = sorted(
                    e.name for e in entries if e.name.endswith(".json") and not e.name.startswith(".")
                )
        except OSError as error:
            problems.append(
                f"{self._directory} cannot be listed ({error.strerror}): everything stays as it is."
            )
            return Desired(node=node, problems=tuple(problems))
        documents: dict[str, Document] = {}
        faults: dict[str, Outstanding] = {}
        for name in names:
            uid = name.removesuffix(".json")
            if not is_uid(uid):
                problems.append(f"{self._directory / ascii(name)} is not named after a UID: remove it.")
                continue
            try:
                read = self._read_document(name, uid)
            except FileNotFoundError:
                continue  # removed since it was listed
            if isinstance(read, Document):
                documents[uid] = read
            else:
                faults[uid] = read
        for uid in (listed or frozenset()) - documents.keys() - faults.keys():
            path = self._directory / f"{uid}.json"
            sentence = f"{path} was removed, and not by lbless-sync, which writes it again while it runs."
            faults[uid] = Outstanding(uid, "", 0, "StateLost", sentence)
        for name in self._parsed.keys() - set(names):
            del self._parsed[name]
        return Desired(listed is not None, documents, faults, node, tuple(problems))

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
            return parse_complete(files.read_text(self._directory / COMPLETE), self._boot_id)
        except FileNotFoundError:
            return None
        except Invalid as fault:
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

    def _read_document(self, name: str, uid: str) -> Document | Outstanding:
        path = self._directory / name
        signature = _signature(path)
        known = self._parsed.get(name)
        if known and known[0] == signature:
            return known[1]
        read = read_document(path, uid)
        self._parsed[name] = (signature, read)
        return read


def read_document(path: Path, uid: str) -> Document | Outstanding:
    """Read one ClusterIP's file, or say why it cannot be used. Raises FileNotFoundError."""
    try:
        value = files.read_json(path)
    except Invalid as fault:
        return Outstanding(uid, "", 0, "StateUnreadable", str(fault))
    try:
        document = Document(parse_clusterip(value), dict(mapping(value, path.name)))
        if document.clusterip.identity.uid != uid:
            raise Invalid(
                f"metadata.uid {document.clusterip.identity.uid} is not the one in the file's name."
            )
    except Invalid as fault:
        return Outstanding(uid, _key(value), _epoch(value), fault.reason, f"{path}: {fault}")
    return document


def _key(value: object) -> str:
    """Its namespace/name where at least that can be read."""
    try:
        return parse_identity(value).key
    except Invalid:
        return ""


def _epoch(value: object) -> int:
    try:
        status = mapping(mapping(value, "object").get("status"), "status")
        return integer(status.get("epoch"), "status.epoch", 0, 2**63 - 1)
    except Invalid:
        return 0


_Signature = tuple[int, int, int, int]


def _signature(path: Path) -> _Signature:
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
