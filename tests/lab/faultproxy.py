"""A fault proxy: what stands before the API server for one client or several, and misbehaves as a test says.

Owns its start, its orders and its end; the proxy itself is `inside/faultproxy.py`.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lab.controlplane import API_PORT, ControlPlane
from lab.errors import LabError
from lab.host import Host
from lab.inside.faultproxy import bound

STOP_SECONDS = 10
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Asked:
    """A request that came: when (CLOCK_MONOTONIC), its verb (LIST and WATCH apart from GET), and its path with query.

    `outcome` is the HTTP status, or "open" (no answer yet), "dropped", "hung".
    """

    at: float
    verb: str
    path: str
    outcome: int | str

    @property
    def plural(self) -> str:
        """What a LIST or WATCH was of."""
        return self.path.partition("?")[0].rpartition("/")[2]


class FaultProxy:
    """`with FaultProxy(control_plane, host) as proxy:` has it running on a host until the block ends.

    Without a fault it is transparent. `url` is for clients on the lab's hosts, `outside_url` for those on this
    machine. Verbs are LIST, WATCH, GET, POST, PUT, PATCH, DELETE, none means any; `path` is a part of the path
    with its query. Faults add up until `heal`.
    """

    def __init__(self, control_plane: ControlPlane, host: Host) -> None:
        self._control_plane = control_plane
        self._host = host
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.healed_at = float("-inf")
        """When faults ended last, in the time of `Asked.at`."""

    def __enter__(self) -> FaultProxy:
        identity = self._control_plane.certificate(self._host)
        with bound("127.0.0.1") as outside:
            descriptor = outside.fileno()
            arguments = [
                identity.certificate,
                identity.key,
                self._control_plane.authority,
                self._host.address,
            ]
            arguments += [self._control_plane.address, API_PORT, descriptor]
            self._process = self._host.popen(
                self._host.inside("faultproxy", *map(str, arguments)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[descriptor],
                log="faultproxy",
            )
            self.outside_url = f"https://127.0.0.1:{outside.getsockname()[1]}"
        self.url = f"https://{self._host.address}:{self._answer()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cut(self) -> None:
        """Reset every connection now, and refuse new ones."""
        self._order("cut")

    def stall(self, *, new_too: bool = False) -> None:
        """Leave the present connections open and silent for ever (half-open); new ones work, or hang as well.

        `heal` lets new ones work again; what is half-open stays so.
        """
        self._order("stall", new_too=new_too)

    def cut_watches(self, path: str = "", *, within_event: bool = False) -> int:
        """End open watches in the middle of their streams, also of a line; return how many."""
        return int(self._order("cut_watches", path=path, within_event=within_event))

    def expire_watches(self, path: str = "") -> int:
        """End open watches with an ERROR event of code 410; return how many."""
        return int(self._order("expire_watches", path=path))

    def delay(self, seconds: float, *, verbs: Sequence[str] = (), path: str = "") -> None:
        """Pass requests on so much later."""
        self._fault("delay", verbs, path, seconds=seconds)

    def answer(
        self, status: int, *, verbs: Sequence[str] = (), path: str = "", retry_after_seconds: int = 0
    ) -> None:
        """Answer requests with this status instead of passing them on."""
        self._fault("answer", verbs, path, status=status, retry_after=retry_after_seconds)

    def drop(self, *, every: int = 1, verbs: Sequence[str] = (), path: str = "") -> None:
        """Close the connection of every so-manieth request without an answer."""
        self._fault("drop", verbs, path, every=every)

    def hang(self, *, verbs: Sequence[str] = (), path: str = "") -> None:
        """Never answer requests, and leave their connections open."""
        self._fault("hang", verbs, path)

    def heal(self) -> None:
        """End all faults; what is half-open stays so."""
        self._order("heal")
        self.healed_at = time.monotonic()

    def requests(self) -> list[Asked]:
        """Every request so far, in the order in which they came."""
        return [Asked(**record) for record in self._order("requests")]

    def writes(self) -> list[Asked]:
        """Those among them that would change something."""
        return [asked for asked in self.requests() if asked.verb in WRITES]

    @property
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise LabError("the fault proxy is not running: use it in a with block")
        return self._process

    def _fault(self, kind: str, verbs: Sequence[str], path: str, **options: Any) -> None:
        self._order("fault", kind=kind, verbs=list(verbs), path=path, **options)

    def _order(self, what: str, **options: Any) -> Any:
        with self._lock:
            stdin = self._running.stdin
            assert stdin is not None
            stdin.write(json.dumps({"what": what, **options}) + "\n")
            stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        stdout = self._running.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise LabError(f"the fault proxy has ended: {self._host.last_words('faultproxy')}")
        return json.loads(line)["answer"]
