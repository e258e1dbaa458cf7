from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbless_api.clusterip import parse_clusterip
from lbless_api.state import Intent, Observed, parse_desired_node, render_observed
from lbless_nodeagent import files
from lbless_nodeagent.sync.desired import DesiredFiles
from lbless_nodeagent.sync.observation import Observation, Observer, observe, silence
from lbless_nodeagent.sync.ownnode import OwnNode
from lbless_nodeagent.sync.report import Wanted
from lbless_nodeagent.sync.storage import Storage
from lbless_nodeagent.sync.upkeep import Upkeep
from unit.syncobjects import UID, clusterip, inodes, listed_as_complete, names


@pytest.fixture
def desired(tmp_path: Path) -> DesiredFiles:
    return DesiredFiles(Storage(tmp_path / "desired"), lambda: None)


def test_a_clusterip_becomes_a_file_that_dataplane_can_read(tmp_path: Path, desired: DesiredFiles) -> None:
    desired.changed(clusterip(epoch=4, hashSeed=3))
    written = json.loads((tmp_path / "desired" / f"{UID}.json").read_text())
    parsed = parse_clusterip(written)
    assert (parsed.identity.key, parsed.epoch, parsed.spec.hash.seed) == ("default/web", 4, 3)
    assigned = parsed.assigned_to("n1")
    assert assigned is not None
    assert str(assigned.buckets) == "0-255"
    assert "managedFields" not in written["metadata"]
    assert "conditions" not in written["status"]


def test_what_does_not_change_the_file_does_not_touch_it(tmp_path: Path, desired: DesiredFiles) -> None:
    desired.write_intent(Intent.HOLD)
    desired.changed(clusterip(epoch=4))
    desired.listed({UID})
    before = inodes(tmp_path)
    changed = clusterip(epoch=4)
    changed["metadata"]["resourceVersion"] = "8"
    changed["status"]["conditions"] = []
    desired.changed(changed)
    desired.listed({UID})
    desired.write_intent(Intent.HOLD)
    again = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    again.changed(changed)
    again.listed({UID})
    assert inodes(tmp_path) == before
    desired.changed(clusterip(epoch=5))
    assert inodes(tmp_path)[f"{UID}.json"] != before[f"{UID}.json"]


def test_a_damaged_file_is_written_anew(tmp_path: Path, desired: DesiredFiles) -> None:
    desired.changed(clusterip())
    path = tmp_path / "desired" / f"{UID}.json"
    good = path.read_bytes()
    for damage in (b"", good[:40], b"\xff\xff", good + b" "):
        path.write_bytes(damage)
        desired.changed(clusterip())
        assert path.read_bytes() == good


def test_an_invalid_spec_is_written_all_the_same_for_dataplane_to_report(
    tmp_path: Path, desired: DesiredFiles
) -> None:
    bad = clusterip(epoch=2, ip="fd00::1", buckets=-5)
    desired.changed(bad)
    assert json.loads((tmp_path / "desired" / f"{UID}.json").read_text())["spec"]["ip"] == "fd00::1"
    desired.listed({UID})
    assert desired.wanted == {UID: Wanted("default/web", 2)}


@pytest.mark.parametrize("uid", ["../../etc/passwd", "..", ".complete", "", "a/b", "a" * 64, "a\n", 5, None])
def test_a_uid_that_could_leave_the_directory_is_left_aside_and_logged(
    tmp_path: Path, desired: DesiredFiles, uid: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(p for p in tmp_path.rglob("*"))
    desired.changed(clusterip(uid=uid))
    desired.removed(str(uid))
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert "is left aside, its last good state stays: metadata.uid" in caplog.text


def test_a_clusterip_that_turned_unreadable_keeps_its_last_good_file(
    tmp_path: Path, desired: DesiredFiles
) -> None:
    desired.changed(clusterip(epoch=1))
    broken = clusterip(epoch=2)
    broken["metadata"]["name"] = "NOT/A/NAME"
    desired.changed(broken)
    desired.listed({UID})
    assert json.loads((tmp_path / "desired" / f"{UID}.json").read_text())["status"]["epoch"] == 1


def test_an_epoch_that_is_none_counts_as_not_assigned(
    desired: DesiredFiles, caplog: pytest.LogCaptureFixture
) -> None:
    bad = clusterip()
    bad["status"]["epoch"] = "seven"
    desired.changed(bad)
    desired.listed({UID})
    assert desired.wanted == {UID: Wanted("default/web", 0)}
    assert "ClusterIP default/web counts as not assigned: status.epoch must be an integer" in caplog.text


def test_nothing_is_removed_and_nothing_called_complete_before_a_whole_list(tmp_path: Path) -> None:
    before = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    before.changed(clusterip("gone"))
    before.changed(clusterip("stays"))
    desired = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    desired.changed(clusterip("stays"))
    desired.changed(clusterip("new"))
    assert names(tmp_path) == ["gone.json", "new.json", "stays.json"]
    assert desired.wanted is None
    assert not desired.complete
    desired.listed({"stays", "new"})
    assert names(tmp_path) == [".complete", "new.json", "stays.json"]
    assert listed_as_complete(tmp_path) == {"stays", "new"}
    assert desired.wanted is not None
    assert set(desired.wanted) == {"stays", "new"}


def test_the_mark_of_an_earlier_boot_stays_until_a_list_replaces_it(tmp_path: Path) -> None:
    desired = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    (tmp_path / "desired" / ".complete").write_text("an-earlier-boot\n")
    desired.changed(clusterip())
    assert files.read_text(tmp_path / "desired" / ".complete") == "an-earlier-boot"
    desired.listed({UID})
    assert listed_as_complete(tmp_path) == {UID}


def test_a_deletion_and_a_creation_are_never_seen_as_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dataplane sees between two steps: what .complete names has its file."""
    DesiredFiles(Storage(tmp_path / "desired"), lambda: None).changed(clusterip("stray"))
    storage = Storage(tmp_path / "desired")
    seen: list[tuple[Set[str], Set[str]]] = []

    def look(self: Storage, *_: object, **__: object) -> bool:
        there = {name.removesuffix(".json") for name in names(tmp_path) if not name.startswith(".")}
        with contextlib.suppress(FileNotFoundError):
            seen.append((listed_as_complete(tmp_path) or frozenset(), there))
        return True

    for method in ("write", "remove"):
        real = getattr(Storage, method)

        def watched(self: Storage, *arguments: Any, real: Callable[..., bool] = real, **further: Any) -> bool:
            done = real(self, *arguments, **further)
            look(self)
            return done

        monkeypatch.setattr(Storage, method, watched)
    desired = DesiredFiles(storage, lambda: None)
    desired.changed(clusterip("a"))
    desired.listed({"a"})
    desired.changed(clusterip("b", "b"))
    desired.removed("a")
    assert seen[-1] == ({"b"}, {"b"})
    assert [named - there for named, there in seen if named - there] == []
    assert len(seen) >= 4


def test_a_deletion_that_cannot_be_told_keeps_the_file_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    desired.changed(clusterip())
    desired.listed({UID})
    (tmp_path / "desired" / ".complete").unlink()
    (tmp_path / "desired" / ".complete").mkdir()
    desired.removed(UID)
    assert names(tmp_path) == [".complete", f"{UID}.json"]
    (tmp_path / "desired" / ".complete").rmdir()
    desired.listed(set())
    assert names(tmp_path) == [".complete"]


def test_what_is_deleted_is_neither_lost_nor_missing_though_the_disk_takes_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "desired")
    desired = DesiredFiles(storage, lambda: None)
    desired.changed(clusterip())
    desired.listed({UID})
    shutil.rmtree(tmp_path / "desired")
    desired.changed(clusterip("unwritten", "unwritten"))
    assert desired.unstored.keys() == {"unwritten"}
    desired.removed("unwritten")
    desired.removed(UID)
    assert desired.unstored == {}
    assert storage.lost() == {".complete"}


def test_what_could_not_be_written_is_named_and_told_again_makes_it_right(tmp_path: Path) -> None:
    desired = DesiredFiles(Storage(tmp_path / "desired"), lambda: None)
    path = tmp_path / "desired" / f"{UID}.json"
    path.mkdir()
    desired.changed(clusterip(epoch=2))
    assert desired.unstored == {
        UID: f"{path} cannot be written (Is a directory): its file system needs space and write access."
    }
    path.rmdir()
    desired.changed(clusterip(epoch=2))
    assert desired.unstored == {}
    assert path.is_file()


def test_what_others_removed_is_found_and_what_was_removed_by_right_is_not(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "desired")
    for name in ("a.json", "b.json", ".complete"):
        storage.write(name, b"x")
    storage.remove("a.json")
    assert storage.lost() == frozenset()
    (tmp_path / "desired" / "b.json").unlink()
    assert storage.lost() == storage.lost() == {"b.json"}
    storage.write("b.json", b"x")
    assert storage.lost() == frozenset()
    shutil.rmtree(tmp_path / "desired")
    assert storage.lost() == {"b.json", ".complete"}


def test_a_directory_that_did_not_change_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path / "desired")
    storage.write("a.json", b"x")
    an_hour_ago = time.time_ns() - 3600 * 10**9
    os.utime(tmp_path / "desired", ns=(an_hour_ago, an_hour_ago))
    assert storage.lost() == frozenset()
    monkeypatch.setattr(os, "scandir", lambda _: pytest.fail("it was read again"))
    assert storage.lost() == frozenset()


def upkeep_of(state: Path, storage: Storage, *, silent: bool = False) -> tuple[Upkeep, list[int]]:
    written_anew: list[int] = []
    return (
        Upkeep(
            state, storage, lambda: silent, lambda: written_anew.append(1), lambda: None, threading.Event()
        ),
        written_anew,
    )


def test_a_lost_directory_is_made_again_and_everything_asked_for(tmp_path: Path) -> None:
    state = tmp_path / "state"
    storage = Storage(state / "desired")
    storage.write("a.json", b"x")
    upkeep, written_anew = upkeep_of(state, storage)
    upkeep.look()
    assert (upkeep.trouble, written_anew) == ("", [])
    shutil.rmtree(state)
    upkeep.look()
    assert (state / "desired").is_dir()
    assert written_anew == [1]
    assert upkeep.trouble == (
        f"Somebody removed files of {state}/desired (1, such as a.json): they are written again."
    )
    storage.write("a.json", b"x")
    upkeep.look()
    assert upkeep.trouble == ""


def test_a_directory_that_could_not_be_made_at_the_start_is_made_when_it_can_be(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.symlink_to(tmp_path / "not-mounted-yet")
    storage = Storage(state / "desired")
    upkeep, written_anew = upkeep_of(state, storage, silent=True)
    upkeep.look()
    assert upkeep.trouble.startswith(f"Directory {state}/desired cannot be used")
    assert written_anew == []
    (tmp_path / "not-mounted-yet").mkdir()
    upkeep.look()
    assert (state / "desired").is_dir()
    assert storage.write("a.json", b"x")
    upkeep.look()
    assert upkeep.trouble == ""


def test_while_the_disk_refuses_nothing_is_asked_for_and_a_silent_dataplane_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real full disk is in tests/cluster; here it is refused room alone."""
    storage = Storage(tmp_path / "desired")
    upkeep, written_anew = upkeep_of(tmp_path, storage, silent=True)
    (tmp_path / ".observed.json.probe").mkdir()
    upkeep.look()
    assert upkeep.trouble.startswith(f"{tmp_path}/observed.json cannot be written (Is a directory)")
    (tmp_path / "desired" / "a.json").mkdir()
    storage.write("a.json", b"x")
    upkeep.look()
    assert upkeep.trouble.startswith(f"{tmp_path}/desired/a.json cannot be written (Is a directory)")
    assert written_anew == []
    (tmp_path / ".observed.json.probe").rmdir()
    upkeep.look()
    assert written_anew == [1]
    assert sorted(os.listdir(tmp_path)) == ["desired"], "a trial leaves nothing"


def test_a_deleted_clusterips_file_goes_and_other_files_stay(tmp_path: Path, desired: DesiredFiles) -> None:
    desired.write_intent(Intent.HOLD)
    files.write_json(tmp_path / "desired" / ".node.json", {"podCIDRs": []})
    desired.changed(clusterip())
    desired.changed(clusterip("other", "other"))
    desired.listed({UID, "other"})
    desired.removed(UID)
    assert names(tmp_path) == [".complete", ".intent", ".node.json", "other.json"]
    assert desired.wanted == {"other": Wanted("default/other", 0)}
    assert files.read_text(tmp_path / "desired" / ".intent") == "hold"


def test_only_what_matters_to_a_report_wakes_the_reporter(tmp_path: Path) -> None:
    woken: list[int] = []
    desired = DesiredFiles(Storage(tmp_path / "desired"), lambda: woken.append(1))
    desired.changed(clusterip(epoch=1))
    desired.changed(clusterip(epoch=1, drainTimeoutSeconds=5))
    assert len(woken) == 1
    desired.changed(clusterip(epoch=2))
    assert len(woken) == 2


def node(uid: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n1", "uid": uid, "resourceVersion": "1"}, "spec": spec}


@pytest.fixture
def own_node(tmp_path: Path) -> OwnNode:
    return OwnNode("n1", Storage(tmp_path / "desired"), lambda: None)


@pytest.mark.parametrize(
    ("spec", "cidrs"),
    [
        ({"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}, ["10.244.1.0/24", "fd00:1::/64"]),
        ({"podCIDR": "10.244.1.0/24"}, ["10.244.1.0/24"]),
        ({}, []),
    ],
)
def test_the_nodes_pod_ranges_go_to_a_file(
    tmp_path: Path, own_node: OwnNode, spec: dict[str, Any], cidrs: list[str]
) -> None:
    own_node.changed(node("u1", **spec))
    written = files.read_json(tmp_path / "desired" / ".node.json")
    assert written == {"podCIDRs": cidrs}
    parse_desired_node(written)
    before = inodes(tmp_path)
    own_node.changed(node("u1", **spec))
    assert inodes(tmp_path) == before


def test_pod_ranges_that_are_none_leave_the_last_good_ones(tmp_path: Path, own_node: OwnNode) -> None:
    own_node.changed(node("u1", podCIDRs=["10.244.1.0/24"]))
    own_node.changed(node("u1", podCIDRs=["everything"]))
    assert files.read_json(tmp_path / "desired" / ".node.json") == {"podCIDRs": ["10.244.1.0/24"]}


def test_a_node_that_is_not_there_is_said_once_a_list_shows_it(
    own_node: OwnNode, caplog: pytest.LogCaptureFixture
) -> None:
    own_node.listed(set())
    assert "Node n1 does not exist: waiting for kubelet" in caplog.text
    assert own_node.uid == ""


def test_a_node_made_anew_under_its_name_replaces_the_former_in_either_order(own_node: OwnNode) -> None:
    own_node.changed(node("u1"))
    own_node.changed(node("u2"))
    own_node.removed("u1")
    assert own_node.uid == "u2"
    own_node.removed("u2")
    assert own_node.uid == ""
    own_node.changed(node("u3"))
    assert own_node.uid == "u3"


def test_a_deleted_nodes_pod_ranges_stay_on_disk(tmp_path: Path, own_node: OwnNode) -> None:
    own_node.changed(node("u1", podCIDRs=["10.244.1.0/24"]))
    own_node.removed("u1")
    assert files.read_json(tmp_path / "desired" / ".node.json") == {"podCIDRs": ["10.244.1.0/24"]}


BOOT = "this-boot"


NOT_WRITTEN = "lbless-dataplane has not written observed.json"
FAULT = "observed.json cannot be used: why."


@pytest.mark.parametrize(
    ("observation", "sentence"),
    [
        (Observation(Observed(BOOT, 100.0)), ""),
        (Observation(Observed(BOOT, 94.0)), ""),
        (Observation(Observed(BOOT, 100.0), FAULT), ""),
        (Observation(Observed(BOOT, 93.9)), f"{NOT_WRITTEN} for more than 6 s."),
        (Observation(Observed(BOOT, 102.0)), f"{NOT_WRITTEN} for more than 6 s."),
        (Observation(Observed("x", 100.0)), f"{NOT_WRITTEN} since the node was started."),
        (Observation(), f"{NOT_WRITTEN} yet."),
        (Observation(Observed(BOOT, 1.0), FAULT), FAULT),
    ],
)
def test_silence_is_told_from_life_by_the_boots_clock(observation: Observation, sentence: str) -> None:
    assert silence(observation, BOOT, 100.0) == sentence


def test_what_was_applied_before_a_reboot_is_in_no_kernel_now(tmp_path: Path) -> None:
    before = Observed("former", 9.0, kernel="6.1", applied={"a": 1}, problems=("old",))
    files.write_json(tmp_path / "observed.json", render_observed(before))
    assert observe(tmp_path / "observed.json", BOOT, Observation()) == Observation(
        replace(before, applied={}, problems=())
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cut=st.integers(0, 400), garbage=st.binary(max_size=20))
def test_any_damage_to_observed_json_leaves_the_last_good_one_and_says_why(
    tmp_path: Path, cut: int, garbage: bytes
) -> None:
    path = tmp_path / "observed.json"
    good = Observed(BOOT, 9.0, kernel="6.1", applied={"a": 1})
    files.write_json(path, render_observed(good))
    last = observe(path, BOOT, Observation())
    assert last == Observation(good)
    content = path.read_bytes()
    path.write_bytes(content[:cut] + garbage)
    found = observe(path, BOOT, last)
    if found.observed != good or not found.fault:
        json.loads(path.read_bytes())  # then what was written happens to be valid
        return
    assert found.fault.startswith("observed.json cannot be used: ")


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.002)


@contextmanager
def observing(state: Path) -> Iterator[tuple[Observer, threading.Event]]:
    stop, woken = threading.Event(), threading.Event()
    observer = Observer(state, woken.set, stop)
    thread = threading.Thread(target=observer.run, daemon=True)
    thread.start()
    try:
        yield observer, woken
    finally:
        stop.set()
        began = time.monotonic()
        observer.cut()
        thread.join(5)
        assert time.monotonic() - began < 0.5, "it does not stop at once"


def test_a_new_observation_is_heard_of_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    with observing(tmp_path) as (observer, woken):
        for epoch in range(1, 6):
            woken.clear()
            began = time.monotonic()
            state = Observed(files.boot_id(), files.boottime_seconds(), applied={"a": epoch})
            files.write_json(tmp_path / "observed.json", render_observed(state))
            assert woken.wait(5)
            assert time.monotonic() - began < 0.1
            assert observer.latest.observed is not None
            assert observer.latest.observed.applied == {"a": epoch}
            assert observer.silence == ""


def test_what_changes_nothing_wakes_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    state = Observed(files.boot_id(), files.boottime_seconds())
    files.write_json(tmp_path / "observed.json", render_observed(state))
    with observing(tmp_path) as (_, woken):
        for _ in range(5):
            files.write_json(tmp_path / "observed.json", render_observed(state))
            (tmp_path / "identity.json").write_text("{}")
        assert not woken.wait(0.3)
