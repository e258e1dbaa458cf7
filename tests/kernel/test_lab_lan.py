"""The lab's LAN: what it connects, and that whatever ends a run leaves nothing of it behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from lab import claim, servers, traffic
from lab.capture import Capture
from lab.errors import LabError
from lab.frames import ICMP, ArpOperation
from lab.lan import Lan
from lab.progress import Silence

pytestmark = pytest.mark.root

TESTS = Path(__file__).parents[1]
# With this process's number: several may test on one machine. A prefix whose process was killed is swept anyway.
PREFIX = f"{claim.unique('t')}x"
_numbers = count(1)


@pytest.fixture
def prefix() -> str:
    return f"{PREFIX}{next(_numbers)}"


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan(f"{PREFIX}lan", nodes=2, pods=True, extra_interfaces=["eth1"]) as up, servers.serving(up.nodes):
        yield up


def await_that(what: str, condition: Callable[[], object], timeout_seconds: float = 10) -> None:
    Silence().until(what, condition, timeout_seconds=timeout_seconds)


def assert_nothing_is_left(prefix: str) -> None:
    assert claim.namespaces(prefix) == []
    assert claim.processes(prefix) == []
    assert not list(claim.CLAIMS.glob(f"{prefix}*"))


def own_program(prefix: str, body: str) -> subprocess.Popen[str]:
    """A process that has a LAN up, with a program running on a node, and then does `body`.

    It takes signals as a program of a terminal does, also where the tests run in the background or under nohup.
    """
    program = f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        from lab.lan import Lan
        with Lan({prefix!r}, nodes=1) as lan:
            sleeper = lan.nodes[0].popen(["sleep", "600"])
            print(sleeper.pid, flush=True)
            {body}
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        start_new_session=True,
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_after_the_block_nothing_of_the_lan_is_left(prefix: str) -> None:
    with Lan(prefix) as lan:
        process = lan.nodes[0].popen(["sleep", "600"])
        assert len(claim.namespaces(prefix)) > len(lan.nodes)
        await_that("the process to enter", lambda: claim.processes(prefix) == [process.pid])
    assert not is_alive(process.pid)
    assert_nothing_is_left(prefix)


def test_an_exception_in_the_block_leaves_nothing_and_is_not_swallowed(prefix: str) -> None:
    with pytest.raises(ZeroDivisionError), Lan(prefix, nodes=1):
        print(1 // 0)
    assert_nothing_is_left(prefix)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("early", [False, True], ids=["when it is up", "while it is made"])
def test_a_signal_leaves_nothing(prefix: str, number: signal.Signals, early: bool) -> None:
    owner = own_program(prefix, "import time; time.sleep(60)")
    assert owner.stdout is not None
    try:
        if early:
            await_that("the first namespace", lambda: claim.namespaces(prefix))
        else:
            owner.stdout.readline()
        # As a terminal does it: to the whole process group, and impatient people press twice.
        for _ in range(2 if number == signal.SIGINT else 1):
            os.killpg(owner.pid, number)
        _, errors = owner.communicate(timeout=20)
    finally:
        owner.kill()
    assert owner.returncode != 0
    assert "KeyboardInterrupt" in errors or "Terminated" in errors
    assert_nothing_is_left(prefix)


def test_what_a_killed_run_left_is_removed_by_the_next_lan_of_any_prefix(prefix: str) -> None:
    owner = own_program(prefix, "import time; time.sleep(60)")
    assert owner.stdout is not None
    sleeper = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    assert is_alive(sleeper)
    assert claim.namespaces(prefix)

    with Lan(f"{prefix}b", nodes=0):
        assert not is_alive(sleeper)
        assert_nothing_is_left(prefix + "-")
    assert_nothing_is_left(prefix)


def test_a_prefix_in_use_is_refused_and_its_lan_stays_whole(prefix: str) -> None:
    with Lan(prefix, nodes=1) as lan:
        with pytest.raises(LabError, match=f"prefix {prefix} is up, owned by process {os.getpid()}"):
            Lan(prefix).__enter__()
        assert lan.nodes[0].run(["true"]).returncode == 0


def test_a_kept_lan_outlives_its_block_until_it_is_removed(prefix: str) -> None:
    with Lan(prefix, nodes=1) as lan:
        process = lan.nodes[0].popen(["sleep", "600"])
        lan.keep()
    try:
        await_that("the process to enter", lambda: claim.processes(prefix))
        with Lan(f"{prefix}b", nodes=0):
            assert claim.processes(prefix) == [process.pid]
    finally:
        claim.remove(prefix)
        process.wait()
    assert_nothing_is_left(prefix)


@pytest.mark.parametrize("wrong", ["", "Lab", "a-b", "../etc", "x" * 17])
def test_a_malformed_prefix_is_refused(wrong: str) -> None:
    with pytest.raises(LabError, match="cannot be a lab's prefix"):
        Lan(wrong).__enter__()


def test_a_host_that_is_not_there_is_named_in_the_error(lan: Lan) -> None:
    with pytest.raises(LabError, match="no host n9: there are switch, router"):
        lan.host("n9")


def test_a_failing_command_says_what_failed_where_and_why(lan: Lan) -> None:
    with pytest.raises(LabError, match=r"`ip link show nowhere` on \S+-n1 failed.*does not exist"):
        lan.nodes[0].run(["ip", "link", "show", "nowhere"])


def test_every_network_is_joined_as_drawn(lan: Lan) -> None:
    n1, n2 = lan.nodes
    asked = [
        (lan.client, n1.address),
        (lan.client, n1.ports["eth1"].address),
        (lan.routed_client, n2.address),
        (lan.control, n1.ports["mgmt0"].address),
        (lan.pods[0], n2.address),
        (lan.pods[0], n1.address),
    ]
    for host, address in asked:
        sources = [host.address]
        answers = traffic.tcp(host, address, servers.TCP_PORT, connections=1, sources=sources)
        assert [answer.error for answer in answers] == [None], f"{host} to {address}"
    unreachable = traffic.ping(lan.client, n1.ports["mgmt0"].address, requests=1, timeout_seconds=0.3)
    assert unreachable[0].replies == 0, "management is a network of its own"


@pytest.mark.parametrize("count", [64, 100])
def test_sources_are_distinct_and_spread_over_networks(prefix: str, count: int) -> None:
    with Lan(prefix, nodes=0, sources=count) as lan:
        for host in (lan.client, lan.routed_client):
            assert len(set(host.addresses)) == count
            assert len({address.rpartition(".")[0] for address in host.addresses}) >= 16
        # Hash functions differ for addresses whose first bit is set.
        high = [address for address in lan.routed_client.addresses if int(address.split(".")[0]) >= 128]
        assert len(high) == count // 2


def test_captures_see_each_answer_once_and_say_whose_it_is(lan: Lan) -> None:
    node = lan.nodes[0]
    clients = (lan.client, lan.routed_client)
    with Capture(lan.client, vip=node.address) as near, Capture(lan.router, vip=node.address) as far:
        connections = [a for c in clients for a in traffic.tcp(c, node.address, 8080, connections=300)]
        datagrams = [a for c in clients for a in traffic.udp(c, node.address, 5353, datagrams=300)]
        echoes = [a for c in clients for a in traffic.ping(c, node.address, requests=300)]
    frames = near + far

    assert {answer.node for answer in connections + datagrams} == {"n1"}
    for answers, answered in ((connections, frames.syn_acks()), (datagrams, frames.udp_answers())):
        assert {(flow.client, flow.client_port): senders for flow, senders in answered.items()} == {
            (answer.source, answer.source_port): [node.mac] for answer in answers
        }
    assert frames.echo_replies() == {
        (echo.source, echo.identifier, echo.sequence): [node.mac] for echo in echoes
    }
    assert frames.resets() == []
    assert frames.icmp_errors() == []


def test_a_refused_connection_is_an_error_and_a_reset_on_the_wire(lan: Lan) -> None:
    node = lan.nodes[0]
    with Capture(lan.client, vip=node.address) as frames:
        answers = traffic.tcp(lan.client, node.address, 81, connections=10)
    assert [(answer.node, answer.error) for answer in answers] == [(None, "Connection refused")] * 10
    assert len(frames.resets()) == 10


def test_silence_is_a_timeout_for_every_protocol(lan: Lan) -> None:
    nobody = lan.vip(200)
    with Capture(lan.client, vip=nobody) as frames:
        for protocol in ("tcp", "udp"):
            running = traffic.begin(protocol, lan.client, nobody, 80, 5, timeout_seconds=0.3)
            assert {answer.error for answer in running.answers()} == {"timeout"}
        echoes = traffic.ping(lan.client, nobody, requests=5, timeout_seconds=0.3)
    assert {(echo.replies, echo.error) for echo in echoes} == {(0, "timeout")}
    assert {arp.operation for _, arp in frames.arp()} == {ArpOperation.REQUEST}
    assert {arp.target for _, arp in frames.arp()} == {nobody}


def test_chosen_source_ports_are_used(lan: Lan) -> None:
    ports = list(range(20001, 20011))
    address = lan.nodes[0].address
    for send in (traffic.tcp(lan.client, address, 8080, connections=10, source_ports=ports),):
        assert sorted(answer.source_port for answer in send) == ports
        assert {answer.error for answer in send} == {None}


def test_datagrams_are_answered_from_the_address_that_was_asked(lan: Lan) -> None:
    node, shared = lan.nodes[0], lan.vip(201)
    node.run(["ip", "address", "add", f"{shared}/32", "dev", "eth0"])
    try:
        # The sockets are connected, so an answer from another address would not reach them.
        answers = traffic.udp(lan.routed_client, shared, servers.UDP_PORT, datagrams=64)
    finally:
        node.run(["ip", "address", "del", f"{shared}/32", "dev", "eth0"])
    assert {(answer.node, answer.error) for answer in answers} == {("n1", None)}


def test_a_capture_shows_a_nodes_own_frames_and_waits_for_more(lan: Lan) -> None:
    node = lan.nodes[1]
    with Capture(node) as frames:
        traffic.ping(lan.client, node.address, requests=1)
        frames.await_that("the echo and its reply", lambda seen: len(list(seen.packets(ICMP))) == 2)
    request, reply = frames.packets(ICMP)
    assert (request[0].arrival.name, reply[0].arrival.name) == ("HOST", "OUTGOING")
    assert (request[0].source, reply[0].source) == (lan.client.mac, node.mac)


def test_a_capture_of_nothing_is_an_error(lan: Lan) -> None:
    with pytest.raises(LabError, match=r"cannot capture on eth7 of \S+-client: .*No such device"):
        Capture(lan.client, "eth7").__enter__()


def test_conntrack_runs_only_where_it_was_asked_for(lan: Lan) -> None:
    tracking, other = lan.nodes
    lan.enable_conntrack(tracking)
    source = lan.client.addresses[0]
    for node in lan.nodes:
        answers = traffic.tcp(lan.client, node.address, servers.TCP_PORT, connections=1, sources=[source])
        assert answers[0].error is None
    assert lan.conntrack(tracking, source)
    assert lan.conntrack(other, source) == []


def test_a_cut_cable_takes_the_carrier_and_joining_gives_it_back(lan: Lan) -> None:
    node = lan.nodes[1]

    def has_carrier() -> bool:
        link = json.loads(node.run(["ip", "-json", "link", "show", "eth0"]).stdout)[0]
        return "LOWER_UP" in link["flags"]

    lan.cut(node)
    await_that("the carrier to be gone", lambda: not has_carrier())
    lan.join(node)
    await_that("the carrier to be back", has_carrier)
    await_that(
        "an answer",
        lambda: traffic.ping(lan.client, node.address, requests=1, timeout_seconds=0.5)[0].replies,
    )


def test_a_port_in_use_keeps_the_servers_from_starting_and_says_so(lan: Lan) -> None:
    with pytest.raises(LabError, match=r"servers of \S+-n1 do not start: .*address already in use"):  # noqa: SIM117
        with servers.serving(lan.nodes[:1], tcp=[servers.TCP_PORT]):
            pytest.fail("a second server on one port")
