"""membership.json gives back what was written, and whatever else is in it makes a new incarnation and one sentence."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.fields import Invalid
from lbless_nodeagent.dataplane.membership import Kept, Memory
from lbless_nodeagent.dataplane.memoryfile import NAME, MemoryFile, parse_memories, render_memories

BOOT = "a-boot"
MEMORY = Memory(
    incarnation=5,
    peers=((b"n2345678", 7), (b"n3345678", 8)),
    verdicts=((b"n3345678", 8),),
    holding=((b"n2345678", 12.345),),
    kernel=(
        ("3f1c1d6e-0000-4000-8000-000000000001", 4, Kept(3, owns=True, ready=4, sends=True), False),
        ("uid-b", 0, Kept(0, owns=True, gained=False, drains=True), True),
    ),
    held=True,
)
numbers = st.integers(0, 2**48 - 1)
keyed = st.lists(st.tuples(st.binary(min_size=8, max_size=8), numbers), max_size=4).map(tuple)
kept = st.builds(
    Kept, numbers, st.booleans(), numbers, gained=st.booleans(), sends=st.booleans(), drains=st.booleans()
)
memories = st.builds(
    Memory,
    incarnation=st.integers(1, 2**48 - 1),
    peers=keyed,
    verdicts=keyed,
    holding=st.lists(
        st.tuples(st.binary(min_size=8, max_size=8), st.integers(0, 10**12).map(lambda ms: ms / 1000))
    ).map(tuple),
    kernel=st.lists(st.tuples(st.uuids().map(str), numbers, kept, st.booleans()), max_size=4).map(tuple),
    held=st.booleans(),
)


@given(st.dictionaries(st.sampled_from(["eth0", "br0", "lan-ü"]), memories))
def test_what_is_written_is_read(found: dict[str, Memory]):
    assert parse_memories(json.loads(json.dumps(render_memories(found, BOOT)))) == (BOOT, found)


def test_a_process_finds_what_its_predecessor_kept(tmp_path: Path):
    first = MemoryFile(tmp_path, BOOT)
    first.keep("eth0", MEMORY)
    first.keep("eth1", Memory(9))
    assert MemoryFile(tmp_path, BOOT).former == {"eth0": MEMORY, "eth1": Memory(9)}
    first.drop("eth1")
    assert MemoryFile(tmp_path, BOOT).former == {"eth0": MEMORY}


def test_nothing_of_another_boot_counts_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    MemoryFile(tmp_path, BOOT).keep("eth0", MEMORY)
    assert MemoryFile(tmp_path, "another-boot").former == {}
    assert caplog.records == []


def spoiled() -> list[tuple[str, Any]]:
    """Each field in turn absent, and as something that it must not be."""
    good = render_memories({"eth0": MEMORY}, BOOT)
    found: list[tuple[str, Any]] = []
    assert isinstance(good, dict)
    for field in good["interfaces"]["eth0"]:
        for wrong in (None, "x", -1, 2**48, True, [1], [["zz", 1]], [["00" * 8, -1]], [[1, 2, 3, 4]], {}):
            value = json.loads(json.dumps(good))
            value["interfaces"]["eth0"][field] = wrong
            if (field, wrong) != ("held", True):
                found.append((f"{field}={wrong}", value))
    for name, value in (("list", []), ("interfaces", {"bootID": BOOT, "interfaces": []})):
        found.append((name, value))
    found.append(("interface", {"bootID": BOOT, "interfaces": {"eth0": 3}}))
    return found


@pytest.mark.parametrize(
    ("name", "value"), spoiled(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_damaged_file_is_one_sentence_and_a_fresh_start(
    name: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / NAME).write_text(json.dumps(value))
    caplog.set_level(logging.WARNING)
    memory = MemoryFile(tmp_path, BOOT)
    assert memory.former == {}, name
    assert len(caplog.records) == 1
    assert "begins as a new incarnation" in caplog.text
    memory.keep("eth0", MEMORY)
    assert MemoryFile(tmp_path, BOOT).former == {"eth0": MEMORY}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"1" * 10_000])
def test_a_file_that_is_no_json_is_one_too(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / NAME).write_bytes(content)
    assert MemoryFile(tmp_path, BOOT).former == {}
    assert len(caplog.records) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["incarnation", "peers", "verdicts", "holding", "kernel", "held", "eth0"]),
                inner,
            )
        ),
    )
)
def test_any_json_is_read_or_refused(value: object):
    for whole in (
        value,
        {"bootID": BOOT, "interfaces": value},
        {"bootID": BOOT, "interfaces": {"eth0": value}},
    ):
        try:
            boot, read = parse_memories(whole)
        except Invalid as fault:
            assert str(fault).endswith(".")
        else:
            assert parse_memories(json.loads(json.dumps(render_memories(read, boot)))) == (boot, read)


def test_a_disk_that_cannot_be_written_is_a_problem_until_it_can(tmp_path: Path):
    directory = tmp_path / "state"
    memory = MemoryFile(directory, BOOT)
    memory.keep("eth0", MEMORY)
    assert memory.problem is not None
    directory.mkdir()
    memory.keep("eth0", MEMORY)
    assert memory.problem is None
    assert MemoryFile(directory, BOOT).former == {"eth0": MEMORY}
