"""However the child that writes iptables rules ends, its order ends with one answer or one sentence."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbless_nodeagent.dataplane.engine import EngineBusyError, EngineError
from lbless_nodeagent.dataplane.iptables import writer
from lbless_nodeagent.dataplane.iptables.writer import Writer

ORDER = {"do": "apply"}
READ = "import sys, os, signal; said = sys.stdin.read()\n"


@pytest.fixture
def made() -> Iterator[list[Writer]]:
    all_made: list[Writer] = []
    yield all_made
    for one in all_made:
        one.close()


def child(made: list[Writer], program: str) -> Writer:
    made.append(Writer([sys.executable, "-c", READ + program]))
    return made[-1]


def test_an_answer_is_what_the_child_says(made: list[Writer]) -> None:
    assert child(made, "print(said)").do(ORDER) == ORDER


@pytest.mark.parametrize(
    ("program", "sentence"),
    {
        "it refuses": ("print('The rule is bad.'); sys.exit(1)", r"^The rule is bad\.$"),
        "it says no reason": ("sys.exit(1)", r"ended with status 1 \(no message\): the kernel has the old"),
        "an error of its own": ("raise OSError('broken')", r"ended with status 1 \(OSError: broken\)"),
        "it crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", r"ended with SIGSEGV"),
        "it is killed": ("os.kill(os.getpid(), signal.SIGKILL)", r"ended with SIGKILL"),
        "it answers nothing": ("", r"ended with status 0"),
        "it answers no object": ("print('[]')", r"ended with status 0"),
        "it answers garbage": (r"os.write(1, b'{\xff\xfe')", r"ended with status 0"),
        "it refuses in garbage": (r"os.write(1, b'no \xff'); sys.exit(1)", "^no \N{REPLACEMENT CHARACTER}$"),
        "it says garbage": (r"os.write(2, b'\xff' * 9999); sys.exit(2)", r"status 2 \(\ufffd{200}\)"),
    }.values(),
)
def test_any_other_end_is_one_sentence(made: list[Writer], program: str, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence) as raised:
        child(made, program).do(ORDER)
    assert not isinstance(raised.value, EngineBusyError)


def test_one_that_could_not_even_try_says_so_in_a_way_of_its_own(made: list[Writer]) -> None:
    with pytest.raises(EngineBusyError, match=r"^Locked\.$"):
        child(made, "print('Locked.'); sys.exit(3)").do(ORDER)


def test_one_that_hangs_is_ended(made: list[Writer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer, "SECONDS", 0.5)
    program = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); signal.pause()"
    hanging = child(made, program)
    with pytest.raises(EngineBusyError, match="took longer than"):
        hanging.do(ORDER)
    text = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""  # perhaps not come so far
    assert not text or not Path(f"/proc/{text}").exists()


def test_one_that_cannot_be_started_is_a_sentence(made: list[Writer]) -> None:
    made.append(Writer(["/nowhere/python"]))
    with pytest.raises(EngineError, match=r"cannot be started: No such file"):
        made[-1].do(ORDER)
    made[-1].prepare()


def test_the_next_one_waits_for_its_order_and_does_only_that(made: list[Writer]) -> None:
    writing = child(made, "print('{\"pid\": %d}' % os.getpid())")
    writing.prepare()
    waiting = writing._waiting
    assert waiting
    writing.prepare()
    assert writing._waiting is waiting
    assert writing.do(ORDER) == {"pid": waiting.pid}
    assert writing.do(ORDER) != {"pid": waiting.pid}


def test_one_that_ended_while_it_waited_is_replaced(made: list[Writer]) -> None:
    writing = child(made, "print(said)")
    for prepare_again in (False, True):
        writing.prepare()
        waiting = writing._waiting
        assert waiting
        waiting.kill()
        waiting.wait()
        if prepare_again:
            writing.prepare()
        assert writing.do(ORDER) == ORDER


def test_closing_sends_home_what_waits(made: list[Writer]) -> None:
    writing = child(made, "print(said)")
    writing.prepare()
    waiting = writing._waiting
    assert waiting
    writing.close()
    assert waiting.poll() is not None
    writing.close()
