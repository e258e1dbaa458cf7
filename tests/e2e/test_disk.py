"""The state directory of every node on a disk that is full, read-only or lost: traffic goes on, and it heals."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab import verdict
from lab.disk import Disk
from lab.errors import LabError
from lab.host import Host
from lab.installation import DATAPLANE, SYNC, Installation
from lab.kernelstate import traces
from lab.progress import Silence
from lbless_api.clusterip import ClusterIP

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

_numbers = count(1)

FAULTS: dict[str, tuple[Callable[[Disk], None], Callable[[Disk], None], str]] = {
    "full": (Disk.fill, Disk.free, "No space left on device"),
    "read-only": (Disk.make_read_only, Disk.make_writable, "Read-only file system"),
}


@pytest.fixture(scope="module")
def disks(lbless: Installation) -> Iterator[list[Disk]]:
    """A small disk of its own for each node's state directory."""
    with ExitStack() as stack:
        disks = []
        for node in lbless.lan.nodes:
            _stop(lbless, node)
            stack.callback(_start, lbless, node)
            disks.append(stack.enter_context(Disk(lbless.state_directory(node))))
            _start(lbless, node)
            stack.callback(_stop, lbless, node)
        wait_for_all(lbless, "Applied")
        lbless.await_joined()
        yield disks
    wait_for_all(lbless, "Applied")
    lbless.await_joined()


def _start(lbless: Installation, node: Host) -> None:
    for program in (DATAPLANE, SYNC):
        lbless.start(program, node)


def _stop(lbless: Installation, node: Host) -> None:
    for program in (SYNC, DATAPLANE):
        lbless.stop(program, node)


@pytest.fixture
def clusterips(lbless: Installation, disks: list[Disk]) -> Iterator[Callable[[str], ClusterIP]]:
    """Makes a ClusterIP of a name with an address that no other test has; deletes all at the end."""
    made = ["comes"]  # which a test makes itself

    def make(name: str) -> ClusterIP:
        lbless.create(name, {"ip": f"10.80.9.{next(_numbers)}"})
        made.append(name)
        return lbless.wait_ready(name)

    yield make
    present = {item["metadata"]["name"] for item in lbless.control_plane.api("GET", PATH)["items"]}
    for name in present.intersection(made):
        lbless.delete(name)


PATH = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips"


def until(what: str, condition: Callable[[], object], timeout_seconds: float = 30) -> None:
    Silence().until(what, condition, timeout_seconds=timeout_seconds)


def ready_of(lbless: Installation, node: Host) -> dict[str, Any]:
    report = lbless.control_plane.api("GET", f"/apis/lbless.dev/v1alpha1/clusteripnodes/{node.name}")
    return next(c for c in report["status"]["conditions"] if c["type"] == "Ready")


def wait_for_all(lbless: Installation, reason: str, words: str = "") -> None:
    """Until the Ready of every node's report is of this reason and holds these words."""
    said: dict[str, str] = {}

    def all_say_it() -> bool:
        for node in lbless.lan.nodes:
            ready = ready_of(lbless, node)
            said[node.name] = f"{ready['reason']}: {ready['message']}"
        return all(what.startswith(f"{reason}:") and words in what for what in said.values())

    try:
        until(f"{reason} {words}", all_say_it)
    except LabError as error:
        raise LabError(f"{error}; they say {said}") from None


def left(lbless: Installation, clusterip: ClusterIP) -> list[str]:
    """The nodes that still have something of it in their kernels."""
    ip, mac = str(clusterip.spec.ip), clusterip.spec.mac
    return [node.name for node in lbless.lan.nodes if traces(node, ip, mac)]


def serves(lbless: Installation, clusterip: ClusterIP) -> None:
    found = verdict.tcp(lbless.lan, clusterip, 200)
    assert found.faults == (), f"{found}: {found.faults[:3]}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_takes_nothing_disturbs_no_traffic_and_what_was_missed_follows(
    lbless: Installation, disks: list[Disk], clusterips: Callable[[str], ClusterIP], fault: str
) -> None:
    break_it, repair, cause = FAULTS[fault]
    stays, goes, changes = (clusterips(name) for name in ("stays", "goes", "changes"))
    for disk in disks:
        break_it(disk)
    try:
        lbless.delete("goes")
        ports = {"spec": {"ports": [{"port": 80}]}}
        lbless.control_plane.api("PATCH", f"{PATH}/changes", ports)
        lbless.create("comes", {"ip": f"10.80.9.{next(_numbers)}"})
        serves(lbless, stays)
        wait_for_all(lbless, "NodeProblem", f"cannot be written ({cause}): its file system needs space")
        wait_for_all(lbless, "NodeProblem", "The node's Lease is not renewed meanwhile.")
        serves(lbless, stays)
        serves(lbless, changes)
        assert left(lbless, goes) == ["n1", "n2", "n3"]
    finally:
        for disk in disks:
            repair(disk)
    began = time.monotonic()
    until("the deleted one to go", lambda: not left(lbless, goes))
    comes = lbless.wait_ready("comes")
    wait_for_all(lbless, "Applied")
    print(f"{fault}: all made up for {time.monotonic() - began:.2f} s after the disks")
    serves(lbless, comes)
    serves(lbless, stays)
    changed = lbless.wait_ready("changes")
    assert "tcp . 80" in rules_of(lbless, changed), "the change of ports was lost"
    lbless.delete("comes")


def rules_of(lbless: Installation, clusterip: ClusterIP) -> str:
    """All lines of the first node's rules that name its address."""
    lines = lbless.lan.nodes[0].run(["nft", "list", "ruleset"]).stdout.splitlines()
    return "\n".join(line for line in lines if str(clusterip.spec.ip) in line)


@pytest.mark.parametrize("what", ["its file", "desired", "everything"])
def test_a_loss_in_the_state_directory_takes_no_address_away_and_is_made_up_for(
    lbless: Installation, disks: list[Disk], clusterips: Callable[[str], ClusterIP], what: str
) -> None:
    stays, goes = clusterips("stays"), clusterips("goes")
    before = {d.directory: names(d.directory) for d in disks}
    for disk in disks:
        if what == "its file":
            (disk.directory / "desired" / f"{stays.identity.uid}.json").unlink()
        for path in disk.directory.iterdir():
            if what in {"everything", path.name}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    began = time.monotonic()
    lbless.delete("goes")
    while time.monotonic() - began < 3:  # a span: what is lost must be taken for a deletion at no time
        assert left(lbless, stays) == ["n1", "n2", "n3"]
    serves(lbless, stays)
    until("the deleted one to go", lambda: not left(lbless, goes))
    wait_for_all(lbless, "Applied")
    for disk in disks:
        present = names(disk.directory)
        assert before[disk.directory] - present <= {f"{goes.identity.uid}.json"}, "a file did not come back"
    comes = clusterips("comes")
    serves(lbless, comes)
    serves(lbless, stays)
    assert lbless.wait_ready("stays").epoch == stays.epoch


def names(state: Path) -> set[str]:
    """What sync and dataplane tell each other in a state directory."""
    told = [state / "observed.json", *(state / "desired").iterdir()]
    return {path.name for path in told if path.exists() and not path.name.endswith(".tmp")}
