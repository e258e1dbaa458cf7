"""What sync keeps in desired/ while the disk refuses some of it: nothing wrong stays, and nothing untrue is said."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbless_nodeagent import files
from lbless_nodeagent.dataplane.desired import DesiredDirectory
from lbless_nodeagent.sync.desired import DesiredFiles
from lbless_nodeagent.sync.ownnode import OwnNode
from lbless_nodeagent.sync.storage import Storage
from lbless_nodeagent.sync.upkeep import Upkeep
from unit.syncobjects import UID, clusterip, listed_as_complete, names


def refuse(state: Path, name: str) -> None:
    """Let no file of desired/ be written: what stands in its way is refused by every file system, also to root."""
    (state / "desired" / f".{name}.tmp").mkdir()


def accept(state: Path, name: str) -> None:
    (state / "desired" / f".{name}.tmp").rmdir()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "desired")


@pytest.fixture
def desired(storage: Storage) -> DesiredFiles:
    return DesiredFiles(storage, lambda: None)


def unlistable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let no directory be listed, as when a disk fails to read, until the returned is called."""

    def fail(path: object) -> None:
        raise OSError(5, "Input/output error")

    real = os.scandir
    monkeypatch.setattr(os, "scandir", fail)
    return lambda: monkeypatch.setattr(os, "scandir", real)


def test_a_deletion_that_waits_for_the_disk_is_done_with_the_next_change_that_it_takes(
    tmp_path: Path, storage: Storage, desired: DesiredFiles
) -> None:
    desired.changed(clusterip("goes"))
    desired.listed({"goes"})
    refuse(tmp_path, ".complete")
    desired.removed("goes")
    assert listed_as_complete(tmp_path) == {"goes"}
    assert storage.faults, "that it waits is said, and tried again"
    accept(tmp_path, ".complete")
    desired.changed(clusterip("comes"))
    assert names(tmp_path) == [".complete", "comes.json"]
    assert listed_as_complete(tmp_path) == {"comes"}
    assert storage.faults == {}


def test_a_removal_that_failed_is_a_fault_until_it_is_done_and_then_no_more(
    tmp_path: Path, storage: Storage, desired: DesiredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    desired.changed(clusterip())
    desired.listed({UID})
    with monkeypatch.context() as failing:
        failing.setattr(files, "sync_directory", fail)
        desired.removed(UID)
    assert storage.faults == {
        f"{UID}.json": f"{tmp_path}/desired/{UID}.json cannot be removed (Input/output error): "
        f"check that its file system is writable."
    }
    desired.listed(set())
    assert storage.faults == {}
    assert names(tmp_path) == [".complete"]


def test_a_fault_that_is_tried_again_stays_the_oldest_meanwhile(tmp_path: Path, storage: Storage) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / "desired" / name).mkdir()
        assert not storage.remove(name)
    before = list(storage.faults)
    assert not storage.remove("a.json")
    assert list(storage.faults) == before


def test_what_is_wanted_again_is_not_removed(tmp_path: Path, desired: DesiredFiles) -> None:
    """A LIST may be answered from an older state than the event before it."""
    desired.changed(clusterip())
    desired.listed({UID})
    refuse(tmp_path, ".complete")
    desired.removed(UID)
    desired.changed(clusterip())
    accept(tmp_path, ".complete")
    desired.listed({UID})
    assert names(tmp_path) == [".complete", f"{UID}.json"]
    assert listed_as_complete(tmp_path) == {UID}


def test_a_directory_that_cannot_be_listed_is_a_fault_and_what_was_deleted_goes_when_it_can(
    tmp_path: Path, storage: Storage, desired: DesiredFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    DesiredFiles(storage, lambda: None).changed(clusterip("stray"))
    relieve = unlistable(monkeypatch)
    desired.changed(clusterip())
    desired.listed({UID})
    assert list(storage.faults.values()) == [
        f"{tmp_path}/desired could not be listed (Input/output error): check its permissions and the disk."
    ]
    relieve()
    storage.make()
    assert storage.lost() == frozenset()
    assert storage.faults, "it is not forgotten before what is owed to it is done"
    desired.listed({UID})
    assert storage.faults == {}
    assert names(tmp_path) == [".complete", f"{UID}.json"]


def test_a_directory_that_cannot_be_listed_has_lost_nothing_and_is_a_fault(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a.json", b"x")
    relieve = unlistable(monkeypatch)
    assert storage.lost() == frozenset()
    assert [s for s in storage.faults.values() if "could not be listed" in s]
    relieve()
    (tmp_path / "desired" / "a.json").unlink()
    assert storage.lost() == {"a.json"}


def test_a_disk_that_cannot_even_be_asked_ends_nothing(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    refuse(tmp_path, "a.json")
    upkeep = upkeep_of(tmp_path, storage, lambda: None)
    with monkeypatch.context() as failing:
        failing.setattr(os, "stat", fail)
        assert not storage.write("a.json", b"x")
        upkeep.look()
    assert upkeep.trouble


def test_only_what_was_written_is_named_so_that_it_never_counts_as_lost(
    tmp_path: Path, desired: DesiredFiles
) -> None:
    desired.listed(set())
    refuse(tmp_path, f"{UID}.json")
    desired.changed(clusterip(epoch=1))
    desired.changed(clusterip("other", "other"))
    assert listed_as_complete(tmp_path) == {"other"}
    assert desired.unstored.keys() == {UID}
    assert DesiredDirectory(tmp_path / "desired", files.boot_id()).read().faults == {}
    desired.listed({UID, "other"})
    assert listed_as_complete(tmp_path) == {"other"}
    accept(tmp_path, f"{UID}.json")
    desired.changed(clusterip(epoch=1))
    assert listed_as_complete(tmp_path) == {UID, "other"}


def test_an_entry_that_nobody_can_write_holds_up_no_other_deletion(tmp_path: Path) -> None:
    """Also for a sync that starts on it, which cannot know that it was no file before."""
    first, second, third = (UID[:-1] + last for last in "123")
    (tmp_path / "desired" / f"{second}.json").mkdir(parents=True)
    desired = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    for uid in (first, second, third):
        desired.changed(clusterip(uid, uid))
    desired.listed({first, second, third})
    assert listed_as_complete(tmp_path) == {first, second, third}
    desired.removed(third)
    assert f"{third}.json" not in names(tmp_path)
    assert listed_as_complete(tmp_path) == {first, second}
    assert set(desired.unstored) == {second}


def test_what_was_written_once_stays_named_when_it_is_lost_and_cannot_be_written_again(
    tmp_path: Path, desired: DesiredFiles
) -> None:
    desired.changed(clusterip())
    desired.listed({UID})
    shutil.rmtree(tmp_path / "desired")
    (tmp_path / "desired").mkdir()
    refuse(tmp_path, f"{UID}.json")
    desired.changed(clusterip(epoch=1))
    desired.listed({UID})
    assert listed_as_complete(tmp_path) == {UID}


def test_what_an_earlier_process_wrote_is_named_although_its_newest_state_is_refused(
    tmp_path: Path, storage: Storage, desired: DesiredFiles
) -> None:
    DesiredFiles(Storage(tmp_path / "desired"), lambda: None).changed(clusterip())
    refuse(tmp_path, f"{UID}.json")
    desired.changed(clusterip(epoch=1))
    desired.listed({UID})
    assert listed_as_complete(tmp_path) == {UID}
    (tmp_path / "desired" / f"{UID}.json").unlink()
    assert storage.lost() == {f"{UID}.json"}


def test_a_start_calls_nothing_complete_while_a_file_may_be_lost_or_was_never_written(
    tmp_path: Path, storage: Storage, desired: DesiredFiles
) -> None:
    """Only a process that wrote it once can tell: named it might be called lost, and unnamed deleted."""
    refuse(tmp_path, f"{UID}.json")
    desired.changed(clusterip())
    desired.changed(clusterip("goes", "other"))
    desired.listed({UID, "goes"})
    desired.removed("goes")
    assert ".complete" not in names(tmp_path)
    assert "goes.json" in names(tmp_path)
    assert storage.faults.keys() == {f"{UID}.json"}
    accept(tmp_path, f"{UID}.json")
    desired.changed(clusterip())
    assert names(tmp_path) == [".complete", f"{UID}.json"]
    assert listed_as_complete(tmp_path) == {UID}


def test_what_a_crash_left_half_written_goes_with_the_next_list(
    tmp_path: Path, desired: DesiredFiles
) -> None:
    desired.changed(clusterip())
    directory = tmp_path / "desired"
    others = {".intent.tmp", "..node.json.tmp", ".complete"}
    for name in (f".{UID}.json.tmp", ".gone.json.tmp", *others):
        (directory / name).write_text("{")
    desired.listed({UID})
    assert set(names(tmp_path)) == others | {f"{UID}.json"}


def test_a_deletion_that_fails_again_and_again_is_logged_once(
    tmp_path: Path, desired: DesiredFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    DesiredFiles(Storage(tmp_path / "desired"), lambda: None).changed(clusterip("stray"))
    refuse(tmp_path, ".complete")
    for _ in range(3):
        desired.listed(set())
    assert caplog.text.count("stray") == 1


def node(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n1", "uid": "u1", "resourceVersion": "1"}, "spec": spec}


@pytest.mark.parametrize("end", ["deleted", "pod ranges that are none"])
def test_pod_ranges_that_nobody_wants_any_more_are_no_fault_and_no_loss(
    tmp_path: Path, storage: Storage, end: str
) -> None:
    own = OwnNode("n1", storage, lambda: None)
    finish = {
        "deleted": lambda: own.removed("u1"),
        "pod ranges that are none": lambda: own.changed(node(podCIDRs=["everything"])),
    }[end]
    refuse(tmp_path, ".node.json")
    own.changed(node(podCIDRs=["10.244.1.0/24"]))
    assert storage.faults.keys() == {".node.json"}
    finish()
    assert storage.faults == {}
    accept(tmp_path, ".node.json")
    own.changed(node(podCIDRs=["10.244.1.0/24"]))
    (tmp_path / "desired" / ".node.json").unlink()
    finish()
    assert storage.lost() == frozenset()


def test_what_lasts_is_said_of_the_node_once(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    own = OwnNode("n1", storage, lambda: None)
    for _ in range(3):
        own.listed(set())
    assert caplog.text.count("Node n1 does not exist") == 1
    for _ in range(3):
        own.changed(node(podCIDRs=["everything"]))
    assert caplog.text.count("are left aside") == 1
    own.removed("u1")
    own.listed(set())
    assert caplog.text.count("Node n1 does not exist") == 2


def upkeep_of(state: Path, storage: Storage, write_anew: Callable[[], None]) -> Upkeep:
    return Upkeep(state, storage, lambda: False, write_anew, lambda: None, threading.Event())


def test_ever_more_faults_of_one_disk_are_one_line_of_the_log(
    tmp_path: Path, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    upkeep = upkeep_of(tmp_path, storage, lambda: None)
    for name in ("c.json", "b.json", "a.json"):
        refuse(tmp_path, name)
        storage.write(name, b"x")
        upkeep.look()
    assert len(caplog.records) == 1
    assert upkeep.trouble.endswith(
        ": its file system needs space and write access. There are 2 more such faults."
    )


def test_a_loss_after_a_long_trouble_is_mended_at_once(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_anew: list[int] = []
    upkeep = upkeep_of(tmp_path, storage, lambda: written_anew.append(1))
    monkeypatch.setattr(upkeep._backoff, "failed", lambda: 3600.0)
    refuse(tmp_path, "a.json")
    storage.write("a.json", b"x")
    upkeep.look()
    upkeep.look()
    assert len(written_anew) == 1
    accept(tmp_path, "a.json")
    storage.write("a.json", b"x")
    upkeep.look()
    (tmp_path / "desired" / "a.json").unlink()
    upkeep.look()
    assert len(written_anew) == 2
