"""journal.json and identity.json on disk: read once at the start, written when they change.

Owns where they are and what a fault in them means. Their content is `journal`'s and `identity`'s.
"""

from __future__ import annotations

from pathlib import Path

from lbless_api.fields import Invalid
from lbless_api.state import IDENTITY
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.identity import Identity, parse_identity, render_identity
from lbless_nodeagent.dataplane.journal import Journal, parse_journal, render_journal

JOURNAL = "journal.json"


class JournalFile:
    """The journal. It need not survive a power cut, as the kernel does not: no disk is waited for.

    `problem` is why the disk does not have `journal`, or None. Without a disk the journal lives in this
    process; one that loses it too learns from the engine's tables what was ours.
    """

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._path = directory / JOURNAL
        self._boot_id = boot_id
        self.journal = Journal()
        self.problem: str | None = None
        self.fault: str | None = None
        try:
            self.journal = parse_journal(files.read_json(self._path), boot_id)
        except FileNotFoundError:
            pass
        except Invalid as fault:
            self.fault = f"{self._path} is left aside, the rules say what was ours: {fault}"

    def write(self, journal: Journal) -> None:
        """Make `journal` the present one."""
        if (journal is self.journal or journal == self.journal) and not self.problem:
            return
        self.journal = journal
        try:
            files.write_json(self._path, render_journal(journal, self._boot_id), durable=False)
            self.problem = None
        except files.UnwritableError as error:
            self.problem = str(error)

    def check(self) -> None:
        """Have the journal written again if its file is gone."""
        if self.journal != Journal() and not self._path.exists():
            self.problem = f"{self._path} was removed by somebody: it is being written again."

    def remove(self) -> None:
        """Remove the file; raises UnwritableError."""
        self.journal = Journal()
        files.remove(self._path, durable=False)


class IdentityFile:
    """The incarnations. They must survive a power cut: a number must not come twice."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / IDENTITY
        self.identity = Identity()
        self.problem: str | None = None
        self.fault: str | None = None
        try:
            self.identity = parse_identity(files.read_json(self._path))
        except FileNotFoundError:
            pass
        except Invalid as fault:
            self.fault = f"{self._path} is left aside, incarnations begin anew from the clock: {fault}"

    def write(self, identity: Identity) -> None:
        """Make `identity` the present one."""
        if identity == self.identity and not self.problem:
            return
        self.identity = identity
        try:
            files.write_json(self._path, render_identity(identity))
            self.problem = None
        except files.UnwritableError as error:
            self.problem = str(error)

    def check(self) -> None:
        """Have the incarnations written again if their file is gone."""
        if self.identity.interfaces and not self._path.exists():
            self.problem = f"{self._path} was removed by somebody: it is being written again."
