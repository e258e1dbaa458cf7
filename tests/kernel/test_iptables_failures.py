"""Whatever happens to the iptables engine while it writes, the rules are the old ones or the new ones."""

import fcntl
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from kernel.dataplane import wait_for
from kernel.segment import Wire, link, run
from lbless_api.buckets import BucketSet
from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode
from lbless_nodeagent.dataplane.engine import EngineBusyError, EngineError, Wanted
from lbless_nodeagent.dataplane.iptables import engine as engine_module
from lbless_nodeagent.dataplane.iptables.engine import IptablesEngine
from lbless_nodeagent.dataplane.iptables.writer import Writer
from unit.engine_contract import HTTP, vip, wanted

pytestmark = pytest.mark.root

DYING = [sys.executable, "-P", str(Path(__file__).parent / "inside" / "dying_child.py")]
CLUSTER = HashParameters(HashFunction.JHASH, HashMode.SOURCE_IP, 7, 32, 32)
LEGACY = HashParameters(HashFunction.LEGACY_CLUSTERIP, HashMode.SOURCE_IP, 7, 16, 32)
BEFORE = wanted(vip(1, CLUSTER), vip(2, CLUSTER))
AFTER = wanted(
    vip(1, replace(CLUSTER, seed=8), BucketSet([31])), replace(vip(3, CLUSTER, interface="eth1"), ports=HTTP)
)
LINES = 16  # at which the child is killed besides


@pytest.fixture
def engine(wire: Wire) -> Iterator[IptablesEngine]:
    link("eth1", "wire1")
    made = IptablesEngine()
    report = made.probe()
    if not report.available:
        pytest.skip(f"The iptables engine does not work here: {report.message}")
    yield made
    made.close()


def mangle() -> list[str]:
    """The rules, without counts."""
    return [
        line for line in run("iptables-legacy-save", "-t", "mangle").splitlines() if line[:2] in {"-A", ":L"}
    ]


def arp_lines() -> list[str]:
    return [line for line in run("arptables-legacy-save").splitlines() if line.startswith("-A")]


def dying_at(step: str) -> IptablesEngine:
    """An engine whose next child is killed there."""
    made = IptablesEngine()
    made._writer = Writer([*DYING, step])
    return made


def outcome_of(step: str, goal: Wanted | None) -> bool:
    """Apply `goal`, or remove all, and die there; return whether it came to its end before."""
    dying = dying_at(step)
    try:
        dying.apply(goal) if goal else dying.remove()
    except EngineError as error:
        assert "SIGKILL" in str(error), error
        return False
    finally:
        dying.close()
    return True


@pytest.mark.parametrize(
    ("former", "goal"),
    [
        pytest.param(None, AFTER, marks=pytest.mark.soak),
        (BEFORE, AFTER),
        pytest.param(BEFORE, None, marks=pytest.mark.soak),
    ],
)
def test_a_child_that_is_killed_at_any_step_leaves_the_old_rules_or_the_new(
    engine: IptablesEngine, former: Wanted | None, goal: Wanted | None
) -> None:
    def at(state: Wanted | None) -> list[str]:
        engine.apply(state) if state else engine.remove()
        return [line.split(" [")[0] for line in mangle()]

    new, arp_new = at(goal), arp_lines()
    rng, seen, ended, step = random.Random(1), set[str](), False, 0
    lines = [f"line:{rng.randrange(2500)}" for _ in range(LINES)]
    while not ended or lines:
        old = at(former)
        where = lines.pop() if ended else str(step)
        ended = outcome_of(where, goal) or ended
        found = [line.split(" [")[0] for line in mangle()]
        assert found in (old, new), where
        assert engine.installed() in (former, goal), where
        seen.add("new" if found == new else "old")
        engine.apply(goal) if goal else engine.remove()
        assert [line.split(" [")[0] for line in mangle()] == new, where
        assert sorted(arp_lines()) == sorted(arp_new), where
        step += 1
    assert seen == {"old", "new"}
    assert step > LINES + 8


@pytest.mark.soak
def test_a_probe_that_is_killed_at_any_step_leaves_nothing_that_the_next_minds(
    engine: IptablesEngine,
) -> None:
    before, step, able = mangle(), 0, engine.capabilities()
    report = dying_at("0").probe()
    while not report.available:
        assert "SIGKILL" in report.message
        engine.apply(BEFORE)
        assert engine.audit()
        step += 1
        dying_at(str(step - 1)).probe()
        assert engine.probe().available
        assert engine.capabilities() == able
        dying_at(str(step - 1)).probe()
        engine.remove()
        assert (mangle(), arp_lines()) == (before, []), step
        report = dying_at(str(step)).probe()
    assert step > 10


class Lock:
    """Another program's hold of the lock."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        os.close(self._file)


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    return tmp_path / "xtables.lock"


def test_a_lock_that_another_holds_for_3_s_is_waited_for(engine: IptablesEngine, lock_file: Path) -> None:
    engine.apply(BEFORE)
    lock = Lock(lock_file)
    timer = threading.Timer(3.0, lock.release)
    timer.start()
    try:
        engine.apply(AFTER)
    finally:
        timer.join()
    assert engine.installed() == AFTER


def test_a_lock_that_is_held_longer_is_a_sentence_and_changes_nothing(
    engine: IptablesEngine, lock_file: Path
) -> None:
    engine.apply(BEFORE)
    before = (mangle(), arp_lines())
    lock = Lock(lock_file)
    try:
        with pytest.raises(
            EngineBusyError, match=r"Another program has held .*xtables\.lock for 4 s: see which"
        ):
            engine.apply(AFTER)
        assert (mangle(), arp_lines()) == before
        assert engine.installed() == BEFORE
    finally:
        lock.release()
    engine.apply(AFTER)
    assert engine.installed() == AFTER


@pytest.mark.parametrize("kind", ["directory", "nowhere"])
def test_a_lock_that_cannot_be_opened_is_a_sentence(
    engine: IptablesEngine, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.apply(BEFORE)
    before = (mangle(), arp_lines())
    engine.close()  # the child that waits has the former environment
    monkeypatch.setenv(
        "XTABLES_LOCKFILE", str(tmp_path if kind == "directory" else tmp_path / "none" / "lock")
    )
    with pytest.raises(EngineError, match=r"The lock .* cannot be opened: .*\.$"):
        engine.apply(AFTER)
    assert (mangle(), arp_lines()) == before


def test_a_rule_that_the_kernel_rejects_leaves_the_old_ones(
    engine: IptablesEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine_module._LEGACY in engine.capabilities():
        pytest.skip("This kernel has the CLUSTERIP target and rejects no rule of the engine.")
    engine.apply(BEFORE)
    before = mangle()
    monkeypatch.setattr(engine, "_capabilities", (engine_module._LEGACY, engine_module._CLUSTER))
    with pytest.raises(
        EngineError, match=r"^The kernel does not take the iptables rules: No chain/target/match"
    ):
        engine.apply(wanted(vip(1, LEGACY), vip(3, CLUSTER)))
    assert mangle() == before
    assert engine.installed() == BEFORE
    assert not engine.verify()
    engine.apply(AFTER)
    assert engine.installed() == AFTER


def test_a_python_iptables_that_does_not_work_is_a_sentence(
    engine: IptablesEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.apply(BEFORE)
    before = mangle()
    engine.close()
    (tmp_path / "iptc.py").write_text("raise OSError('libiptc is gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"python-iptables does not work here \(libiptc is gone\): install"):
        engine.apply(AFTER)
    assert mangle() == before
    assert "libiptc is gone" in engine.probe().message


WITHOUT_LOCK = """
import os, signal, subprocess, sys, time
added, stop = 0, []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
print("begun", flush=True)
while not stop:
    rule = ["-A", "other", "-s", f"10.{added >> 8}.{added & 255}.1", "-j", "RETURN"]
    done = subprocess.run(["iptables-legacy", "-t", "mangle", *rule], capture_output=True)
    added += done.returncode == 0
    time.sleep(0.02)
print(added, flush=True)
"""
CHANGES = 40


def test_a_writer_without_the_lock_loses_nothing_and_ours_are_right_in_the_end(
    engine: IptablesEngine, tmp_path: Path
) -> None:
    """It may undo a change of ours, which is seen and made again: the kernel tells tables only by their size."""
    run("iptables-legacy", "-t", "mangle", "-N", "other")
    environment = {**os.environ, "XTABLES_LOCKFILE": str(tmp_path / "another.lock")}
    other = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_LOCK], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert other.stdout
    assert other.stdout.readline() == "begun\n"
    undone = 0
    try:
        for number in range(CHANGES):
            goal = AFTER if number % 3 == 0 else wanted(vip(1, CLUSTER, BucketSet([number % 32])))
            while True:
                try:
                    engine.apply(goal)
                    break
                except EngineError as error:
                    kept_out = isinstance(error, EngineBusyError)
                    assert (
                        "again and again for 2 s" if kept_out else "see which program changes them"
                    ) in str(error)
                    undone += 1
        other.send_signal(signal.SIGTERM)
        added = int(other.stdout.read())
    finally:
        other.kill()
        other.wait()
    print(f"{added} rules of the other, {undone} of {CHANGES} changes undone by it")
    engine.apply(goal)
    assert engine.installed() == goal
    # One of theirs may be there twice, or at the end one more: it was added, and then the counters' writing, which the
    # program does behind it, failed because the table had changed, so that it counted as not added.
    theirs = dict.fromkeys(line for line in mangle() if line.startswith("-A other"))
    assert list(theirs)[:added] == [f"-A other -s 10.{n >> 8}.{n & 255}.1/32 -j RETURN" for n in range(added)]
    assert len(theirs) <= added + 1
    assert added > CHANGES


def test_foreign_rules_of_any_kind_stay_as_they_are(engine: IptablesEngine) -> None:
    table = ("iptables-legacy", "-t", "mangle")
    run(*table, "-N", "other")
    run(*table, "-N", "m\u00e9")
    for words in (
        ["-A", "other", "-m", "u32", "--u32", "0x0=0x0", "-j", "RETURN"],
        ["-A", "other", "-p", "tcp", "-m", "multiport", "--dports", "1,2", "-g", "m\u00e9"],
        ["-A", "m\u00e9", "-m", "comment", "--comment", "LBLESS", "-j", "MARK", "--set-mark", "7"],
        ["-A", "PREROUTING", "-d", "10.8.0.1", "-j", "other"],
        ["-A", "PREROUTING", "-m", "comment", "--comment", "no target"],
        ["-A", "POSTROUTING", "-j", "m\u00e9"],
    ):
        run(*table, *words)
    before = mangle()
    engine.apply(BEFORE)
    engine.apply(AFTER)
    ours = (":LBLESS", "-A LBLESS", "-A PREROUTING -j LBLESS")
    assert [line for line in mangle() if not line.startswith(ours)] == before
    engine.remove()
    assert mangle() == before


def test_somebodys_rules_that_lead_to_ours_go_with_ours(engine: IptablesEngine) -> None:
    table = ("iptables-legacy", "-t", "mangle")
    run(*table, "-N", "other")
    before = mangle()
    engine.apply(BEFORE)
    (name,) = [word for word in mangle()[-1].split() if word.startswith("LBLESS-")][:1]
    run(*table, "-A", "other", "-d", "10.8.0.9", "-g", name)
    run(*table, "-A", "other", "-j", "LBLESS")
    run(*table, "-A", "POSTROUTING", "-j", "LBLESS")
    assert not engine.verify()
    engine.remove()
    assert mangle() == before


@pytest.mark.parametrize("words", [["-D", "PREROUTING", "1"], ["-I", "PREROUTING", "-j", "ACCEPT"]])
def test_rules_that_packets_do_not_come_to_hold_nothing(engine: IptablesEngine, words: list[str]) -> None:
    """Unfiltered, an address would answer what is others': dataplane takes off what is not held."""
    engine.apply(BEFORE)
    run("iptables-legacy", "-t", "mangle", *words)
    found = engine.installed()
    assert found
    assert not found.vips
    assert not engine.verify()
    engine.apply(BEFORE)
    assert engine.installed() == BEFORE
    assert mangle()[mangle().index("-A PREROUTING -j LBLESS") - 1].startswith(":")


def test_a_rule_before_ours_is_passed_and_ours_is_first_again(engine: IptablesEngine) -> None:
    engine.apply(BEFORE)
    run("iptables-legacy", "-t", "mangle", "-I", "PREROUTING", "-i", "eth9", "-j", "ACCEPT")
    assert engine.installed() == BEFORE
    assert not engine.verify()
    engine.apply(BEFORE)
    rules = [line for line in mangle() if line.startswith("-A PREROUTING")]
    assert rules == ["-A PREROUTING -j LBLESS", "-A PREROUTING -i eth9 -j ACCEPT"]


@pytest.mark.parametrize("when", ["at once", "as it waits for the lock"])
def test_an_order_ends_with_who_gave_it(engine: IptablesEngine, lock_file: Path, when: str) -> None:
    """Else it might be done when the next process has already removed all rules."""
    lock = Lock(lock_file)
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            dying = IptablesEngine()
            dying._writer.prepare()
            assert dying._writer._waiting
            os.write(writer, b"%d\n" % dying._writer._waiting.pid)
            dying.apply(BEFORE)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        child = int(pipe.readline())
    ended = os.pidfd_open(child)
    if when != "at once":
        wait_for(lambda: any(open_file(fd) == str(lock_file) for fd in Path(f"/proc/{child}/fd").iterdir()))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert select.select([ended], [], [], 2.0)[0], "the child lives on"  # the lock is waited for longer
    os.close(ended)
    lock.release()
    assert engine.installed() is None


def open_file(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


def test_a_source_of_everything_is_held_as_that(engine: IptablesEngine) -> None:
    goal = Wanted({IPv4Address("10.8.0.1"): vip(1, CLUSTER)}, frozenset({IPv4Network("0.0.0.0/0")}))
    engine.apply(goal)
    assert engine.installed() == goal
    assert engine.verify()
