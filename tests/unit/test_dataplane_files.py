"""Files of the state directory: whole or not at all, and every fault said in one sentence."""

import contextlib
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.fields import Invalid
from lbless_nodeagent import files


def test_a_written_value_is_read_back_and_no_temporary_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"address": "10.8.0.100", "name": "ü\ud800"})
    assert files.read_json(path) == {"address": "10.8.0.100", "name": "ü\ud800"}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_word_is_read_back_without_its_newline(tmp_path: Path) -> None:
    path = tmp_path / ".complete"
    files.write_bytes(path, b"6b0e1a4c-0000-4000-8000-000000000000\n")
    assert files.read_text(path) == "6b0e1a4c-0000-4000-8000-000000000000"


def test_an_absent_file_is_told_from_an_unreadable_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError):
        files.read_text(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b'{"spec":{"ip":"10.8', "not valid JSON"),
        (b"\xff\xfe\x00\xd8", "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 10_000, "not valid JSON"),
        (b'{"epoch": NaN}', "NaN is not JSON"),
    ],
)
def test_content_that_is_no_json_is_one_sentence_naming_the_file(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(Invalid, match=re.escape(why)) as fault:
        files.read_json(path)
    assert str(path) in str(fault.value)


@given(content=st.binary(max_size=200))
def test_no_content_raises_anything_but_invalid(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "value.json"
    path.write_bytes(content)
    for read in (files.read_json, files.read_text):
        with contextlib.suppress(Invalid):
            read(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "directory.json").mkdir()
    for name, why in (("fifo.json", "not a regular file"), ("directory.json", "not a regular file")):
        with pytest.raises(Invalid, match=why):
            files.read_json(tmp_path / name)


def test_a_file_beyond_the_limit_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    with pytest.raises(Invalid, match="larger than"):
        files.read_json(path)


def test_a_failed_write_leaves_the_old_content_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, 1)
    (tmp_path / ".value.json.tmp").mkdir()  # stands in for a full disk: the temporary file cannot be opened
    with pytest.raises(files.UnwritableError, match="cannot be written"):
        files.write_json(path, 2)
    assert files.read_json(path) == 1


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".value.json.tmp").symlink_to(victim)
    with pytest.raises(files.UnwritableError):
        files.write_json(tmp_path / "value.json", 1)
    assert victim.read_text() == "untouched"


def test_a_leftover_of_an_interrupted_write_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".value.json.tmp").write_text('{"half')
    files.write_json(tmp_path / "value.json", 1)
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_removed_file_is_gone_and_removing_it_again_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, 1)
    files.remove(path)
    files.remove(path)
    assert not path.exists()


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(files.UnwritableError, match="cannot be used"):
        files.make_directory(tmp_path / "file" / "state")
    files.make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_the_second_to_lock_is_told_and_the_lock_ends_with_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    held = files.lock(path, "lbless-dataplane")
    with pytest.raises(files.LockedError, match="Another lbless-dataplane uses"):
        files.lock(path, "lbless-dataplane")
    os.close(held)
    os.close(files.lock(path, "lbless-dataplane"))


def test_state_files_are_written_by_their_owner_alone(tmp_path: Path) -> None:
    files.write_json(tmp_path / "value.json", 1)
    assert stat.S_IMODE((tmp_path / "value.json").stat().st_mode) & 0o022 == 0


def test_the_boot_has_an_id_and_a_clock_that_only_grows() -> None:
    assert re.fullmatch(r"[0-9a-f-]{36}", files.boot_id())
    first = files.boottime_seconds()
    assert 0 < first <= files.boottime_seconds()
