"""applied/: the last good state of each ClusterIP that is served here, for when its file is bad or gone.

Owns those files. One is written before the kernel is touched and removed when nothing is left in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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

    def __init__(self, directory: Path) -> None:
        """Read them; one that cannot be read is left out and named in `problems`."""
        self._directory = directory
        self._kept: dict[str, tuple[ClusterIP, str]] = {}
        self.problems: tuple[str, ...] = ()
        problems = []
        for path in sorted(directory.glob("*.json")):
            if not is_uid(path.stem):
                continue
            try:
                self._kept[path.stem] = _parse(files.read_json(path), path.stem)
            except Invalid as fault:
                problems.append(f"{path} is left aside: {fault}")
        self.problems = tuple(problems)

    def clusterips(self) -> Mapping[str, ClusterIP]:
        """The last good states by UID."""
        return {uid: clusterip for uid, (clusterip, _) in self._kept.items()}

    def is_kept(self, document: Document, interface: str) -> bool:
        """Whether `document` is the last good state already."""
        return self._kept.get(document.clusterip.identity.uid) == (document.clusterip, interface)

    def keep(self, document: Document, interface: str) -> None:
        """Make `document` the last good state of its ClusterIP; raises UnwritableError.

        It counts for this process even if it could not be written.
        """
        uid = document.clusterip.identity.uid
        self._kept[uid] = (document.clusterip, interface)
        value: JSON = {"interface": interface, "clusterIP": json.loads(document.content)}
        files.write_json(self._directory / f"{uid}.json", value, durable=False)

    def drop(self, uid: str) -> None:
        """Forget a ClusterIP of which nothing is left in the kernel; raises UnwritableError."""
        files.remove(self._directory / f"{uid}.json", durable=False)
        self._kept.pop(uid, None)


def _parse(value: object, uid: str) -> tuple[ClusterIP, str]:
    fields = mapping(value, "the file")
    clusterip = parse_clusterip(fields.get("clusterIP"))
    if clusterip.identity.uid != uid:
        raise Invalid(f"metadata.uid {clusterip.identity.uid} is not the one in the file's name.")
    return clusterip, text(fields.get("interface"), "interface", limit=15)
