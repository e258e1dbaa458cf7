"""lbless-sync on a disk that is full, read-only or lost, with a real API server: it stays, says so, and recovers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.syncing import RBAC, SyncedNode, assign, create, delete, speaking, synced_node, wait_for
from lab.controlplane import ControlPlane
from lab.disk import Disk
from lbless_api.digest import applied_digest

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

NOTICED_SECONDS = 2.0
"""Promised: so long after a file was lost it is noticed and written again."""

FAULTS: dict[str, tuple[Callable[[Disk], None], Callable[[Disk], None], str]] = {
    "full": (Disk.fill, Disk.free, "No space left on device"),
    "read-only": (Disk.make_read_only, Disk.make_writable, "Read-only file system"),
}


@pytest.fixture
def node(control_plane: ControlPlane, tmp_path: Path) -> Iterator[SyncedNode]:
    """A Node whose sync is not started yet; at its end no ClusterIP is left."""
    control_plane.apply(RBAC)
    with synced_node(control_plane, tmp_path) as node:
        yield node


def start_with(node: SyncedNode, *names: str) -> None:
    """Start it with ClusterIPs that are all applied in epoch 1."""
    node.observe({})
    node.start()
    wait_for("the first LIST", lambda: node.complete)
    applied = {}
    for number, name in enumerate(names, 1):
        applied[create(node.control_plane, name, number)["metadata"]["uid"]] = 1
        assign(node.control_plane, name, 1)
    word = applied_digest(applied)
    wait_for("all of them to be applied", lambda: node.report["status"]["appliedDigest"] == word)
    wait_for("that all is well", lambda: node.ready["reason"] == "Applied")


def change_everything(plane: ControlPlane) -> None:
    """A change, a creation and a deletion."""
    assign(plane, "changes", 2)
    create(plane, "comes", 9)
    assign(plane, "comes", 1)
    delete(plane, "goes")


def is_right_again(node: SyncedNode) -> bool:
    epochs = {name: document["status"].get("epoch") for name, document in node.desired.items()}
    return epochs == {"stays": 1, "changes": 2, "comes": 1} and node.ready["reason"] == "Applied"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_written_is_said_the_lease_goes_on_and_it_is_made_right_without_a_restart(
    control_plane: ControlPlane, node: SyncedNode, fault: str
) -> None:
    break_it, repair, cause = FAULTS[fault]
    with Disk(node.state / "desired", kib=256) as disk, speaking(node):
        start_with(node, "stays", "changes", "goes")
        before = dict(node.desired)
        break_it(disk)
        change_everything(control_plane)
        ready = wait_for("the condition", lambda: node.ready["reason"] == "NodeProblem" and node.ready)
        assert cause in ready["message"]
        wait_for("the two and the deletion", lambda: len(node.report["status"]["failures"]) == 3)
        failures = {f["clusterIP"]: f for f in node.report["status"]["failures"]}
        assert failures.keys() == {"default/changes", "default/comes", ""}, "a deleted one has no name"
        assert failures[""]["uid"] == before["goes"]["metadata"]["uid"]
        for name in ("default/changes", "default/comes"):
            assert failures[name]["reason"] == "StateUnwritable"
            assert failures[name]["message"] == (
                f"{node.state}/desired/{failures[name]['uid']}.json cannot be written ({cause}): "
                f"its file system needs space and write access."
            )
        renewed = node.lease["spec"]["renewTime"]
        wait_for("a renewal", lambda: node.lease["spec"]["renewTime"] != renewed)
        assert node.desired == before
        assert node.log.count("cannot be written") <= 3, "the log is flooded"
        repair(disk)
        began = time.monotonic()
        wait_for("that all is right again", lambda: is_right_again(node))
        print(f"{fault}: right again {time.monotonic() - began:.2f} s after the disk")
        assert node.stop() == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_the_disk_is_named_where_it_is_why_dataplane_is_silent_and_a_start_on_it_waits(
    control_plane: ControlPlane, node: SyncedNode, fault: str
) -> None:
    break_it, repair, cause = FAULTS[fault]
    with Disk(node.state, kib=256) as disk, speaking(node):
        start_with(node, "stays", "changes", "goes")
        break_it(disk)
        silent = f"{node.state}/observed.json cannot be written ({cause})"
        ready = wait_for("the cause", lambda: node.ready["message"].startswith(silent) and node.ready)
        assert ready["reason"] == "NodeProblem"
        assert "for more than 6 s. The node's Lease is not renewed meanwhile." in ready["message"]
        change_everything(control_plane)
        assert node.stop() == 0
        node.start()
        wait_for("what it finds", lambda: node.log.count("serves node") == 2 and node.ready)
        stuck = {"default/changes", "default/comes", ""}
        wait_for("all", lambda: {f["clusterIP"] for f in node.report["status"]["failures"]} == stuck)
        repair(disk)
        began = time.monotonic()
        wait_for("that all is right again", lambda: is_right_again(node))
        print(f"{fault}: right again {time.monotonic() - began:.2f} s after the disk")
        assert node.stop() == 0


LOSSES: dict[str, Callable[[Path], None]] = {
    "a file": lambda state: next((state / "desired").glob("[!.]*.json")).unlink(),
    "the mark of completeness": lambda state: (state / "desired" / ".complete").unlink(),
    "all files": lambda state: [p.unlink() for p in (state / "desired").iterdir()],  # type: ignore[arg-type,return-value]
    "desired": lambda state: shutil.rmtree(state / "desired"),
    "the state directory": shutil.rmtree,
}


def contents(node: SyncedNode) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (node.state / "desired").iterdir()}


def test_what_somebody_removed_is_written_again_within_two_seconds(
    control_plane: ControlPlane, node: SyncedNode
) -> None:
    with speaking(node):
        start_with(node, *(f"c{n}" for n in range(5)))
        wait_for("all of its marks", lambda: {".complete", ".intent", ".node.json"} <= contents(node).keys())
        before = contents(node)
        for what, lose in LOSSES.items():
            lose(node.state)
            assert contents(node) != before if (node.state / "desired").is_dir() else True
            began = time.monotonic()
            wait_for(f"the return of {what}", lambda: contents(node) == before)
            seconds = time.monotonic() - began
            print(f"{what}: back after {seconds:.2f} s")
            assert seconds < NOTICED_SECONDS
            wait_for("that all is well", lambda: node.ready["reason"] == "Applied")
        assert node.log.count("Somebody removed files of") == len(LOSSES)
        assign(control_plane, "c0", 2)
        wait_for("a change", lambda: node.desired["c0"]["status"]["epoch"] == 2)
        wait_for("that it is observed in the new directory", lambda: node.ready["reason"] == "Applied")


def test_what_is_deleted_while_the_directory_is_lost_stays_away(
    control_plane: ControlPlane, node: SyncedNode
) -> None:
    with speaking(node):
        start_with(node, "stays", "goes")
        for path in (node.state / "desired").glob("[!.]*.json"):
            path.unlink()
        delete(control_plane, "goes")
        wait_for("what stays", lambda: set(node.desired) == {"stays"})
        wait_for("that all is well", lambda: node.ready["reason"] == "Applied")
        assert set(node.desired) == {"stays"}
