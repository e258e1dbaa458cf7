"""What a process asks of the scheduler."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lbless_nodeagent.dataplane import scheduling

ASK = "from lbless_nodeagent.dataplane.scheduling import ask_for_short_turns as ask; "
TELL = "import os; print(ask(), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)); "
SLICE = "print([line for line in open('/proc/self/sched') if line.startswith('se.slice')])"


@pytest.mark.skipif(
    not Path("/proc/self/sched").exists(), reason="the kernel does not tell (CONFIG_SCHED_DEBUG)"
)
def test_it_gets_short_turns_at_the_niceness_and_of_the_policy_that_it_has():
    command = ["nice", "-n", "5", sys.executable, "-c", ASK + TELL + SLICE]
    asked, turns = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + 5
    assert asked == f"True {min(niceness, 19)} {os.SCHED_OTHER}"
    version = tuple(map(int, platform.release().split(".")[:2]))
    if version >= (6, 12):
        assert str(scheduling.SLICE_NS) in turns


def test_on_a_machine_whose_call_is_not_known_nothing_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert not scheduling.ask_for_short_turns()
