"""applied/: the last good state of each ClusterIP that is served here, for when its file is bad or gone.

Owns those files. One is written before the kernel is touched and removed when nothing is left in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lbless_api.clusterip import ClusterIP, is_uid, parse_clusterip
from lbless_api.fields import Invalid, mapping, text
from lbless_api.node import JSON
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.desired import Document


class LastGood:
    """The files, read once: nothing else writes them while this process lives.

    They need not survive a power cut, as desired/ does and the kernel does not: no disk is waited for.
    """

    def __init__(self, directory: Path, go_on: Callable[[], None] = lambda: None) -> None:
        """Read them; one that cannot be read is left out and named in `problems`. `go_on` is called after each that
        is read or written."""
        self._directory = directory
        self._go_on = go_on
        self._kept: dict[str, tuple[ClusterIP, str]] = {}
        self._unwritten: dict[str, Document] = {}
        self.problems: tuple[str, ...] = ()
        problems = []
        for path in sorted(directory.glob("*.json")):
            if not is_uid(path.stem):
                continue
            try:
                self._kept[path.stem] = _parse(files.read_json(path), path.stem)
            except Invalid as fault:
                problems.append(f"{path} is left aside: {fault}")
            go_on()
        self.problems = tuple(problems)

    def clusterips(self) -> Mapping[str, ClusterIP]:
        """The last good states by UID."""
        return {uid: clusterip for uid, (clusterip, _) in self._kept.items()}

    def keep(self, document: Document, interface: str) -> None:
        """Make `document` the last good state of its ClusterIP for this process, and note it for `write`.

        Not for another interface alone, which nothing is decided by: when one is renamed, a thousand
        addresses wait for their rules.
        """
        uid = document.clusterip.identity.uid
        kept = self._kept.get(uid)
        if kept is None or (kept[0] is not document.clusterip and kept[0] != document.clusterip):
            self._kept[uid] = (document.clusterip, interface)
            self._unwritten[uid] = document

    def write(self) -> None:
        """Write down what is not yet; raises UnwritableError at the first that cannot be, and then the
        next call tries again."""
        for uid, document in list(self._unwritten.items()):
            value: JSON = {"interface": self._kept[uid][1], "clusterIP": json.loads(document.content)}
            files.write_json(self._directory / f"{uid}.json", value, durable=False)
            del self._unwritten[uid]
            self._go_on()

    def check(self, documents: Mapping[str, Document]) -> None:
        """Note for `write` what is no longer there, as far as a document of it is."""
        present = {path.stem for path in self._directory.glob("*.json")}
        for uid in self._kept.keys() - present:
            if uid in documents and documents[uid].clusterip == self._kept[uid][0]:
                self._unwritten[uid] = documents[uid]

    def drop(self, uid: str) -> None:
        """Forget a ClusterIP of which nothing is left in the kernel; raises UnwritableError."""
        files.remove(self._directory / f"{uid}.json", durable=False)
        self._kept.pop(uid, None)
        self._unwritten.pop(uid, None)


def _parse(value: object, uid: str) -> tuple[ClusterIP, str]:
    fields = mapping(value, "the file")
    clusterip = parse_clusterip(fields.get("clusterIP"))
    if clusterip.identity.uid != uid:
        raise Invalid(f"metadata.uid {clusterip.identity.uid} is not the one in the file's name.")
    return clusterip, text(fields.get("interface"), "interface", limit=15)
