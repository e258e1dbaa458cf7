"""Guests: machines with an older kernel, and programs in them that behave as if they ran here."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import claim, servers, traffic
from lab.errors import LabError
from lab.guest import Guest
from lab.lan import Lan
from lab.progress import Silence

pytestmark = pytest.mark.guest

TRAP = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.write(1, b"ready\\n")
signal.sigwait([signal.SIGTERM])
os.write(1, b"asked to end\\n")
os._exit(7)
"""


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", text]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie, which only its parent can bury, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def living(guest: Guest, mark: str) -> str:
    """The programs in the guest whose command line has the mark."""
    return guest.run(["pgrep", "-f", f"[{mark[0]}]{mark[1:]}"], check=False).stdout


def test_a_guest_has_the_kernel_that_lost_nothing_yet_and_the_programs_of_its_time(guest: Guest):
    release = guest.run(["uname", "-r"]).stdout
    assert release.startswith("6.1.")
    assert release.strip() != platform.release()
    assert guest.run(["python3", "--version"]).stdout.startswith("Python 3.11.")
    assert "legacy" in guest.run(["iptables-legacy", "--version"]).stdout
    assert guest.run(["nft", "--version"]).stdout.startswith("nftables v1.0.6")


def test_a_guest_is_a_node_of_the_segment_and_of_management(lan: Lan, guest: Guest):
    assert guest.name == "n3"
    assert lan.nodes[-1] is guest
    for other, address in ((lan.client, guest.address), (lan.control, guest.ports["mgmt0"].address)):
        assert all(echo.replies == 1 for echo in traffic.ping(other, address, requests=20))
    heard = lan.client.run(["ip", "neighbour", "show", guest.address]).stdout
    assert guest.mac in heard
    assert all(echo.replies == 1 for echo in traffic.ping(guest, "10.82.0.2", requests=20))
    assert [link.split()[1] for link in guest.run(["ip", "-o", "link"]).stdout.splitlines()] == [
        "lo:",
        "eth0:",
        "mgmt0:",
    ]


def test_a_cut_cable_lets_nothing_through(lan: Lan, guest: Guest):
    lan.cut(guest)
    try:
        (echo,) = traffic.ping(lan.client, guest.address, requests=1, timeout_seconds=0.5)
        assert echo.replies == 0
    finally:
        lan.join(guest)
    (echo,) = traffic.ping(lan.client, guest.address, requests=1)
    assert echo.replies == 1


def test_input_output_errors_environment_and_exit_code_are_the_programs(guest: Guest):
    text = "import os,sys; sys.stderr.write(os.environ['WORD']); print(sys.stdin.read()[::-1]); sys.exit(5)"
    done = guest.run(python(text), check=False, stdin="abc", environment={"WORD": "here"})
    assert (done.stdout, done.stderr, done.returncode) == ("cba\n", "here", 5)


def test_much_input_and_output_passes_unchanged(guest: Guest):
    much = "".join(f"{number:07}\n" for number in range(250_000))
    assert guest.run(["cat"], stdin=much).stdout == much


def test_a_program_that_there_is_not_is_an_error_that_names_it(guest: Guest):
    with pytest.raises(LabError, match="no-such-program: No such file or directory"):
        guest.run(["no-such-program"])


def test_a_program_that_takes_too_long_is_ended(guest: Guest):
    with pytest.raises(LabError, match="took over 1 s"):
        guest.run(["sleep", "7351"], timeout=1)
    Silence().until("its end", lambda: not living(guest, "7351"), timeout_seconds=10)


def test_a_signal_reaches_the_program_and_its_end_is_told(guest: Guest):
    process = guest.popen(python(TRAP), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "asked to end\n"
    assert process.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_program_that_a_signal_ends_ends_by_it_here_and_there(guest: Guest, number: signal.Signals):
    mark = f"73{number:02}"
    process = guest.popen(["sleep", mark])
    Silence().until("its start", lambda: living(guest, mark), timeout_seconds=10)
    process.send_signal(number)
    assert process.wait(20) == -number
    Silence().until("its end", lambda: not living(guest, mark), timeout_seconds=10)


def test_a_program_that_does_not_read_its_input_can_be_signalled(guest: Guest):
    process = guest.popen(["sleep", "7399"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("x" * 65000)
    process.stdin.flush()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    process.stdin.close()


def test_orphans_leave_no_zombies(guest: Guest):
    guest.run(["sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &)"])
    states = ["ps", "-eo", "stat=,comm="]
    Silence().until(
        "the orphans' end",
        lambda: not [line for line in guest.run(states).stdout.splitlines() if line.startswith("Z")],
        timeout_seconds=20,
    )


def test_the_working_tree_is_inside_and_cannot_be_written_there(guest: Guest):
    own = Path(__file__).resolve()
    assert guest.run(["cat", own]).stdout == own.read_text()
    assert guest.run(["touch", own.with_name("written")], check=False).returncode != 0
    assert not own.with_name("written").exists()


def test_the_labs_directory_is_shared_both_ways(lan: Lan, guest: Guest):
    here = lan.directory / "shared.txt"
    here.write_text("from here")
    assert guest.run(["cat", here]).stdout == "from here"
    guest.run(["sh", "-c", f"echo from there >{here}.new && mv {here}.new {here}"])
    assert here.read_text() == "from there\n"


def test_servers_in_a_guest_answer_as_those_of_a_namespace_do(lan: Lan, guest: Guest):
    with servers.serving([guest]):
        answers = traffic.tcp(lan.client, guest.address, servers.TCP_PORT, connections=200)
        answers += traffic.udp(lan.routed_client, guest.address, servers.UDP_PORT, datagrams=200)
    assert {(answer.node, answer.error) for answer in answers} == {("n3", None)}


@pytest.mark.soak
def test_the_machine_ends_with_its_lan_and_what_a_killed_run_left_is_removed():
    prefix = claim.unique("lbgone")
    program = (
        "import sys, time\nfrom lab.lan import Lan\n"
        f"with Lan({prefix!r}, nodes=0, guests=1) as lan:\n"
        "    print(lan.guests[0].run(['uname', '-s']).stdout.strip(), flush=True)\n    time.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "Linux\n"
        machines = claim.processes(prefix)
        assert machines
    finally:
        owner.kill()
        owner.communicate()
    claim.remove(prefix)
    assert claim.processes(prefix) == []
    Silence().until("their end", lambda: not any(map(is_alive, machines)), timeout_seconds=5)


@pytest.mark.soak
def test_a_machine_that_ends_by_itself_is_told_with_what_it_said_last():
    with Lan(claim.unique("lbdead"), nodes=0, guests=1) as lan:
        (guest,) = lan.guests
        sleeper = guest.popen(["sleep", "600"])
        guest.power_off()
        assert sleeper.wait(10) == 255
        with pytest.raises(LabError, match="has ended"):
            guest.await_boot()
