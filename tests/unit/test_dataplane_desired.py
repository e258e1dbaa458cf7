"""Reading desired/ and applied/: a bad file costs its own ClusterIP, says why, and touches no other."""

import json
from pathlib import Path
from typing import Any

import pytest

from lbless_api.fields import Invalid
from lbless_api.state import Intent, render_complete
from lbless_nodeagent.dataplane.desired import DesiredDirectory, Document
from lbless_nodeagent.dataplane.lastgood import LastGood
from lbless_nodeagent.files import UnwritableError
from unit.stateobjects import desired_json

BOOT = "6b0e1a4c-0000-4000-8000-000000000000"


def written(directory: Path, uid: str, **further: Any) -> Path:
    path = directory / f"{uid}.json"
    path.write_text(json.dumps(desired_json(uid, "10.8.0.100", {"n1": "0-255"}, **further)))
    return path


def test_every_good_file_is_read(tmp_path: Path) -> None:
    written(tmp_path, "a", epoch=3)
    written(tmp_path, "b")
    read = DesiredDirectory(tmp_path, BOOT).read()
    assert {uid: d.clusterip.epoch for uid, d in read.documents.items()} == {"a": 3, "b": 1}
    assert (read.faults, read.problems, read.complete) == ({}, (), False)


def test_a_file_cut_anywhere_is_a_fault_of_its_own_clusterip_alone(tmp_path: Path) -> None:
    written(tmp_path, "b")
    path = written(tmp_path, "a")
    whole = path.read_bytes()
    directory = DesiredDirectory(tmp_path, BOOT)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        directory.drain()
        read = directory.read()
        assert read.documents.keys() == {"b"}, length
        assert read.faults["a"].reason == "StateUnreadable"
        assert str(path) in read.faults["a"].message
    path.write_bytes(whole)
    directory.drain()
    assert directory.read().documents.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        ({"ip": "fd00::1"}, "NotSupported", "IPv6 is not supported yet"),
        ({"buckets": 0}, "Invalid", "spec.buckets is 0"),
        ({"mac": "02:00:00:00:00:01"}, "Invalid", "is a unicast one"),
        ({"sourceMAC": "Switch"}, "Invalid", "use Node or Cluster"),
    ],
)
def test_an_object_that_breaks_the_contract_says_who_it_is_and_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], reason: str, says: str
) -> None:
    value = desired_json("a", "10.8.0.100", {"n1": "0-255"}, epoch=5)
    value["spec"] |= change
    (tmp_path / "a.json").write_text(json.dumps(value))
    fault = DesiredDirectory(tmp_path, BOOT).read().faults["a"]
    assert (fault.reason, fault.clusterip, fault.epoch) == (reason, "default/vip-a", 5)
    assert says in fault.message


def test_a_file_that_holds_another_object_than_its_name_says_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(desired_json("a", "10.8.0.100", {})))
    assert "not the one in the file's name" in DesiredDirectory(tmp_path, BOOT).read().faults["b"].message


def test_names_that_are_no_uid_are_a_problem_and_temporary_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "no uid.json").write_text("{}")
    (tmp_path / ".a.json.tmp").write_text("{}")
    (tmp_path / ".b.json").write_text("{}")
    (tmp_path / "readme").write_text("")
    read = DesiredDirectory(tmp_path, BOOT).read()
    assert (read.documents, read.faults) == ({}, {})
    assert len(read.problems) == 1
    assert "not named after a UID" in read.problems[0]


@pytest.mark.parametrize(
    ("content", "complete"),
    [(f"{BOOT}\n", True), (BOOT, True), ("another\n", False), ("", False), ("\xff", False)],
)
def test_absence_means_deletion_only_once_sync_listed_since_this_boot(
    tmp_path: Path, content: str, complete: bool
) -> None:
    (tmp_path / ".complete").write_text(content, encoding="latin-1")
    assert DesiredDirectory(tmp_path, BOOT).read().complete is complete


def test_the_loss_of_a_file_is_told_from_a_deletion(tmp_path: Path) -> None:
    for uid in ("stays", "lost", "deleted"):
        written(tmp_path, uid)
    directory = DesiredDirectory(tmp_path, BOOT)
    (tmp_path / ".complete").write_text(render_complete(BOOT, ["stays", "lost"]))
    for uid in ("lost", "deleted"):
        (tmp_path / f"{uid}.json").unlink()
    read = directory.read()
    assert (read.complete, read.documents.keys(), read.faults.keys()) == (True, {"stays"}, {"lost"})
    assert read.faults["lost"].reason == "StateLost"
    assert f"{tmp_path}/lost.json was removed, and not by lbless-sync" in read.faults["lost"].message
    written(tmp_path, "lost")
    assert directory.read().faults == {}


def test_a_file_that_came_since_the_last_announcement_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".complete").write_text(render_complete(BOOT, []))
    directory = DesiredDirectory(tmp_path, BOOT)
    directory.read()
    (tmp_path / ".complete").write_text(render_complete(BOOT, []))
    drain = directory.drain

    def drain_and_go_on() -> bool:
        """Between this and the reading of .complete sync writes one more."""
        drained = drain()
        written(tmp_path, "a")
        (tmp_path / ".complete").write_text(render_complete(BOOT, ["a"]))
        return drained

    monkeypatch.setattr(directory, "drain", drain_and_go_on)
    read = directory.read()
    assert (read.documents.keys(), read.faults) == ({"a"}, {})


@pytest.mark.parametrize("word", ["../a", "a/b", "a\0b", ".complete"])
def test_a_word_that_is_no_uid_names_no_file_that_was_lost(tmp_path: Path, word: str) -> None:
    (tmp_path / ".complete").write_text(render_complete(BOOT, [word]))
    read = DesiredDirectory(tmp_path, BOOT).read()
    assert (read.complete, read.faults) == (True, {})


def test_a_list_of_another_boot_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".complete").write_text(render_complete("an-earlier-boot", ["lost"]))
    read = DesiredDirectory(tmp_path, BOOT).read()
    assert (read.complete, read.faults) == (False, {})


def test_a_directory_that_is_gone_deletes_nothing_and_is_watched_again_once_it_is_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desired"
    path.mkdir()
    (path / ".complete").write_text(BOOT)
    directory = DesiredDirectory(path, BOOT)
    (path / ".complete").unlink()
    path.rmdir()
    directory.drain()
    read = directory.read()
    assert not read.complete
    assert "cannot be listed" in read.problems[0]
    path.mkdir()
    directory.read()
    directory.drain()
    written(path, "a")
    assert directory.read().documents.keys() == {"a"}


def test_a_file_rewritten_in_place_with_the_same_length_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, "a", epoch=1)
    directory = DesiredDirectory(tmp_path, BOOT)
    for epoch in range(2, 9):
        assert directory.read().documents["a"].clusterip.epoch == epoch - 1
        path.write_text(json.dumps(desired_json("a", "10.8.0.100", {"n1": "0-255"}, epoch=epoch)))
        directory.drain()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, ()), ('{"podCIDRs": ["10.244.1.0/24", "fd00::/64"]}', ("10.244.1.0/24",))],
)
def test_the_nodes_pod_ranges_are_read_and_none_are_assumed_without_them(
    tmp_path: Path, content: str | None, expected: tuple[str, ...]
) -> None:
    if content:
        (tmp_path / ".node.json").write_text(content)
    node = DesiredDirectory(tmp_path, BOOT).read().node
    assert node is not None
    assert tuple(map(str, node.pod_cidrs)) == expected


def test_pod_ranges_that_cannot_be_read_are_unknown_and_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".node.json").write_text('{"podCIDRs": ["10.244')
    read = DesiredDirectory(tmp_path, BOOT).read()
    assert read.node is None
    assert ".node.json is left aside" in read.problems[0]


def test_the_intent_is_hold_unless_another_is_written(tmp_path: Path) -> None:
    directory = DesiredDirectory(tmp_path, BOOT)
    assert directory.intent() is Intent.HOLD
    (tmp_path / ".intent").write_text("remove\n")
    assert directory.intent() is Intent.REMOVE
    (tmp_path / ".intent").write_text("destroy\n")
    with pytest.raises(Invalid, match="'destroy': write hold, handover, remove"):
        directory.intent()


def document(tmp_path: Path, uid: str) -> Document:
    written(tmp_path, uid)
    return DesiredDirectory(tmp_path, BOOT).read().documents[uid]


def test_the_last_good_state_is_there_again_after_a_restart(tmp_path: Path) -> None:
    applied = tmp_path / "applied"
    applied.mkdir()
    kept = document(tmp_path, "a")
    last_good = LastGood(applied)
    last_good.keep(kept, "eth0")
    last_good.write()
    again = LastGood(applied)
    assert again.clusterips() == {"a": kept.clusterip}
    again.drop("a")
    assert LastGood(applied).clusterips() == {}


def test_a_last_good_state_that_was_damaged_is_left_aside_and_said(tmp_path: Path) -> None:
    applied = tmp_path / "applied"
    applied.mkdir()
    last_good = LastGood(applied)
    last_good.keep(document(tmp_path, "a"), "eth0")
    last_good.keep(document(tmp_path, "b"), "eth0")
    last_good.write()
    whole = (applied / "a.json").read_bytes()
    for length in range(len(whole) - 1):
        (applied / "a.json").write_bytes(whole[:length])
        again = LastGood(applied)
        assert again.clusterips().keys() == {"b"}, length
        assert "a.json is left aside" in again.problems[0]


def test_a_last_good_state_that_cannot_be_written_counts_and_is_written_once_it_can_be(
    tmp_path: Path,
) -> None:
    applied = tmp_path / "applied"
    kept = document(tmp_path, "a")
    last_good = LastGood(applied)
    last_good.keep(kept, "eth0")
    for _ in range(2):
        with pytest.raises(UnwritableError, match="cannot be written"):
            last_good.write()
    assert last_good.clusterips() == {"a": kept.clusterip}
    applied.mkdir()
    last_good.write()
    assert LastGood(applied).clusterips() == {"a": kept.clusterip}


def test_a_last_good_state_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    applied = tmp_path / "applied"
    applied.mkdir()
    kept = document(tmp_path, "a")
    last_good = LastGood(applied)
    last_good.keep(kept, "eth0")
    last_good.write()
    (applied / "a.json").unlink()
    last_good.check({})
    last_good.write()
    assert LastGood(applied).clusterips() == {}
    last_good.check({"a": kept})
    last_good.write()
    assert LastGood(applied).clusterips() == {"a": kept.clusterip}


def test_what_did_not_change_is_the_very_same_object(tmp_path: Path) -> None:
    written(tmp_path, "a")
    written(tmp_path, "b")
    directory = DesiredDirectory(tmp_path, BOOT)
    first = directory.read()
    assert directory.read() is first
    written(tmp_path, "b", epoch=2)
    second = directory.read()
    assert second.documents["a"] is first.documents["a"]
    assert second.documents["b"].clusterip.epoch == 2
    directory.forget()
    third = directory.read()
    assert third.documents is second.documents


def test_sync_writing_its_temporary_files_is_no_reason_for_a_pass(tmp_path: Path) -> None:
    directory = DesiredDirectory(tmp_path, BOOT)
    (tmp_path / ".a.json.tmp").write_text("{}")
    (tmp_path / ".intent").write_text("hold")
    assert not directory.drain()
    (tmp_path / ".a.json.tmp").rename(tmp_path / "a.json")
    assert directory.drain()
    (tmp_path / ".complete").write_text(BOOT)
    assert directory.drain()
    assert directory.read().complete


def test_a_sign_of_life_comes_with_every_file_that_is_read_or_written(tmp_path: Path) -> None:
    """On a busy machine a thousand take longer than the tick process waits for one."""
    desired, applied = tmp_path / "desired", tmp_path / "applied"
    desired.mkdir()
    applied.mkdir()
    for number in range(20):
        written(desired, f"uid-{number}")
    (desired / "uid-3.json").write_text("{")
    signs: list[str] = []
    documents = DesiredDirectory(desired, BOOT, lambda: signs.append("read")).read().documents
    last_good = LastGood(applied, lambda: signs.append("written"))
    for document in documents.values():
        last_good.keep(document, "eth0")
    last_good.write()
    LastGood(applied, lambda: signs.append("read again"))
    assert signs == ["read"] * 20 + ["written"] * 19 + ["read again"] * 19
