"""The sign of life that a liveness probe looks at."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbless_nodeagent import alive
from lbless_nodeagent.alive import AliveFile, why_dead

MODULE = Path(alive.__file__)


def look(*arguments: object) -> tuple[int, str]:
    """What the program says, run as a probe runs it."""
    done = subprocess.run(
        [sys.executable, "-I", MODULE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.returncode, done.stderr.strip()


def test_who_touches_it_lives_and_who_stops_to_is_dead(tmp_path: Path):
    path = tmp_path / "alive"
    AliveFile(path).touch()
    assert look(path, 20) == (0, "")
    os.utime(path, (0, time.time() - 30))
    assert look(path, 20) == (1, f"{path} was touched 30 s ago: its program hangs")
    AliveFile(path).touch()
    assert look(path, 20) == (0, "")


def test_what_was_never_touched_is_dead(tmp_path: Path):
    status, sentence = look(tmp_path / "alive", 20)
    assert status == 1
    assert sentence.endswith("No such file or directory): its program has not started, or cannot write there")


def test_a_clock_that_was_set_back_kills_nobody(tmp_path: Path):
    path = tmp_path / "alive"
    AliveFile(path).touch()
    assert why_dead(str(path), 20, time.time() - 3600) == ""


@pytest.mark.parametrize("path", [None, "/proc/nowhere/alive"])
def test_where_it_cannot_be_touched_the_program_goes_on(path: str | None):
    AliveFile(path).touch()


@pytest.mark.parametrize("arguments", [(), ("x",), ("x", "soon"), ("x", "1", "2")])
def test_wrong_arguments_are_told_from_a_death(arguments: tuple[str, ...]):
    assert look(*arguments) == (2, "usage: lbless-alive FILE SECONDS")
