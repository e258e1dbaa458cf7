"""Dataplanes with heartbeats on one segment: restarted, killed, stopped, robbed of their rules and interfaces.

What is asserted is what the nodes' kernels would answer for. The tests share the segment, and each begins where all
three nodes serve their third.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from kernel.dataplane import Dataplane, tables, wait_for
from kernel.membersegment import BUCKETS, MemberSegment
from lab import claim
from lab.host import Host
from lab.kernelstate import leases, owned_buckets
from lab.lan import Lan
from lbless_api.state import COMPLETE
from lbless_nodeagent.dataplane.watch import HUNG_SECONDS

UID, IP = "uid-a", Lan.vip(1)
THIRDS = {"n1": "0-10", "n2": "11-21", "n3": "22-31"}
TAKEOVER_SECONDS = 0.3
"""Of the buckets of a node that says that it leaves."""
REPAIR_SECONDS = 0.2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemberSegment]:
    with Lan(claim.unique("kmp"), nodes=3, sources=1) as lan:
        segment = MemberSegment(lan, tmp_path_factory.mktemp("members"), ("--hold-ms", "5000"))
        try:
            yield segment
        finally:
            segment.stop()


@pytest.fixture
def segment(shared: MemberSegment) -> MemberSegment:
    """The segment where every node serves its third."""
    for plane in shared.planes.values():
        (plane.desired / ".intent").unlink(missing_ok=True)
        plane.complete()
        if plane.process is None or plane.process.poll() is not None:
            launch(plane)
    serve(shared)
    return shared


def launch(plane: Dataplane) -> None:
    """Start it; what the former process has reported is gone."""
    (plane.directory / "observed.json").unlink(missing_ok=True)
    plane.launch()


def serve(segment: MemberSegment, uid: str = UID, ip: str = IP) -> None:
    """Give every node its third, as the incarnation that it is, and wait until it serves that."""
    for plane in segment.planes.values():
        wait_for(lambda plane=plane: plane.running() and plane.observed().interfaces)  # type: ignore[misc]
    if uid not in segment.epochs:
        segment.assign(uid, ip, THIRDS)
    for plane in segment.planes.values():
        wait_for(lambda plane=plane: plane.running() and leased(plane.host))  # type: ignore[misc]
    segment.assign(uid, ip, THIRDS)
    wait_for(lambda: segment.owned(ip) == THIRDS)


def leased(node: Host, interface: str = "eth0") -> bool:
    return interface in (leases(node) or ())


def present(segment: MemberSegment, name: str = "n1") -> int:
    """A node's incarnation, once its process has said it."""
    wait_for(lambda: segment.planes[name].observed().interfaces)
    return segment.incarnation(name)


def together(segment: MemberSegment, *names: str) -> set[int]:
    """The buckets that some of the nodes would answer for between them."""
    return {bucket for name in names for bucket in numbers(segment.owned_by(segment.planes[name].host, IP))}


def numbers(buckets: str) -> set[int]:
    parts = [part.split("-") for part in buckets.split(",") if part]
    return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}


def wait_taken_over(segment: MemberSegment, *names: str) -> float:
    """Wait until the others serve everything, and return for how long."""
    began = time.monotonic()
    wait_for(lambda: len(together(segment, *names)) == BUCKETS)
    return time.monotonic() - began


class Watch:
    """Asks a node's kernel again and again, in a thread, for its buckets and its lease."""

    def __init__(self, node: Host) -> None:
        self._node = node
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: set[tuple[str, bool]] = set()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.seen.add((str(owned_buckets(self._node, IP)), leased(self._node)))
            self._ended.wait(0.01)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def tick_pid(plane: Dataplane) -> int:
    """Its tick process."""
    assert plane.process is not None
    pid = plane.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that waits for its parent to take its status does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def last_line(plane: Dataplane) -> str:
    return plane.log.strip().splitlines()[-1]


def test_an_epoch_that_one_node_has_comes_into_use_at_all(segment: MemberSegment):
    segment.assign(UID, IP, {"n1": "0-4", "n2": "5-9", "n3": "10-31"}, nodes=["n1"])
    wait_for(lambda: segment.owned(IP) == {"n1": "0-4", "n2": "5-9", "n3": "10-31"})


def test_also_of_a_clusterip_that_the_others_have_not_listed_yet(segment: MemberSegment):
    ip = Lan.vip(2)
    others = [segment.planes[name] for name in ("n2", "n3")]
    for plane in others:
        (plane.desired / COMPLETE).unlink()
    segment.assign("uid-b", ip, THIRDS, nodes=["n1"])
    wait_for(lambda: segment.owned(ip) == THIRDS)
    for plane in others:
        plane.complete()  # sync has listed all, and it is not among them
    wait_for(lambda: not any(segment.owned_by(plane.host, ip) for plane in others))
    segment.planes["n1"].withdraw("uid-b")
    wait_for(lambda: not segment.owned_by(segment.planes["n1"].host, ip))
    assert segment.owned(IP) == THIRDS


@pytest.mark.parametrize("how", ["one after the other", "waits", "waits for one that is killed"])
def test_a_successor_within_the_lease_goes_on_as_the_same_and_nothing_moves(segment: MemberSegment, how: str):
    plane = segment.planes["n1"]
    incarnation = present(segment)
    with Watch(plane.host) as first, Watch(segment.planes["n2"].host) as second:
        if how == "one after the other":
            assert plane.stop() == 0
            plane.start()
        else:
            former, waits = plane.process, plane.log.count("waiting for its end")
            plane.arguments = (*segment.arguments, "--wait")
            plane.launch()
            wait_for(lambda: plane.log.count("waiting for its end") > waits)
            assert former is not None
            former.send_signal(signal.SIGKILL if "killed" in how else signal.SIGTERM)
            former.wait(5)
            plane.arguments = segment.arguments
        began = time.monotonic()
        wait_for(lambda: plane.running() and f"goes on as incarnation {incarnation}" in last_lines(plane))
        # The peers have heard the successor, and would count it dead by now if they had not.
        wait_for(lambda: time.monotonic() - began > 1.5)
    assert first.seen == {(THIRDS["n1"], True)}
    assert second.seen == {(THIRDS["n2"], True)}
    assert present(segment) == incarnation


def last_lines(plane: Dataplane) -> str:
    """What its newest process that serves has said."""
    return plane.log[plane.log.rindex("Serving node") - 200 :] if "Serving node" in plane.log else ""


def test_one_that_starts_after_the_lease_is_another_and_owns_nothing_until_an_epoch_names_it(
    segment: MemberSegment,
):
    plane = segment.planes["n1"]
    incarnation = present(segment)
    plane.kill()
    wait_taken_over(segment, "n2", "n3")
    launch(plane)
    wait_for(lambda: plane.running() and leased(plane.host))
    assert present(segment) > incarnation
    with Watch(plane.host) as watch:
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 0.5)
    assert watch.seen == {("", True)}
    assert len(together(segment, "n2", "n3")) == BUCKETS
    serve(segment)


@pytest.mark.parametrize("intent", ["remove", "handover"])
def test_a_node_that_is_not_to_come_back_leaves(segment: MemberSegment, intent: str):
    plane = segment.planes["n1"]
    plane.intend(intent)
    assert plane.process is not None
    plane.process.send_signal(signal.SIGTERM)
    seconds = wait_taken_over(segment, "n2", "n3")
    print(f"{intent}: taken over after {seconds * 1000:.0f} ms")
    assert seconds < TAKEOVER_SECONDS
    assert plane.process.wait(5) == 0
    if intent == "remove":
        assert not any("lbless" in table for table in tables(plane.host))
    else:
        assert str(owned_buckets(plane.host, IP)) == THIRDS["n1"]
        assert not leased(plane.host)


def test_the_end_of_the_tick_process_ends_dataplane(segment: MemberSegment):
    plane = segment.planes["n1"]
    os.kill(tick_pid(plane), signal.SIGKILL)
    assert plane.process is not None
    assert plane.process.wait(5) == 1
    assert re.search(
        r"The tick process ended with status -9: this node no longer serves\.$", last_line(plane)
    )
    assert "Traceback" not in plane.log


def test_a_tick_process_that_hangs_is_taken_over_from_and_ends_dataplane(segment: MemberSegment):
    plane = segment.planes["n1"]
    tick = tick_pid(plane)
    os.kill(tick, signal.SIGSTOP)
    wait_taken_over(segment, "n2", "n3")
    assert not leased(plane.host)
    assert plane.process is not None
    assert plane.process.wait(HUNG_SECONDS + 15) == 1
    assert "The tick process has said nothing for 10 s: this node no longer serves." in last_line(plane)
    assert not is_alive(tick)


def test_a_node_whose_rules_are_not_programmed_leaves(segment: MemberSegment):
    plane = segment.planes["n1"]
    assert plane.process is not None
    tick = tick_pid(plane)
    plane.process.send_signal(signal.SIGSTOP)
    try:
        wait_taken_over(segment, "n2", "n3")
        wait_for(lambda: not is_alive(tick))
        assert not leased(plane.host)
    finally:
        plane.process.send_signal(signal.SIGCONT)
    assert plane.process.wait(5) == 1
    assert "The tick process ended" in last_line(plane)
    assert "Traceback" not in plane.log


def test_a_flushed_ruleset_is_back_in_time(segment: MemberSegment):
    node = segment.planes["n1"].host
    took = []
    for _ in range(5):
        began = time.monotonic()
        node.run(["nft", "flush", "ruleset"])
        wait_for(lambda: segment.owned_by(node, IP) == THIRDS["n1"])
        took.append(time.monotonic() - began)
    print(f"rules and lease were back after {max(took) * 1000:.0f} ms at worst")
    assert max(took) < REPAIR_SECONDS
    assert segment.owned(IP) == THIRDS


def test_a_renamed_interface_is_another_one(segment: MemberSegment):
    plane = segment.planes["n1"]
    before = present(segment)
    for former, name in pairwise(("eth0", "lan0", "eth0")):
        plane.host.run(["ip", "link", "set", former, "down"])
        plane.host.run(["ip", "link", "set", former, "name", name])
        plane.host.run(["ip", "link", "set", name, "up"])
        wait_for(lambda name=name: plane.running() and leased(plane.host, name))  # type: ignore[misc]
        assert not leased(plane.host, former)
    assert len(together(segment, "n2", "n3")) == BUCKETS
    wait_for(lambda: present(segment) > before)
    serve(segment)


def test_an_interface_that_is_made_again_is_another_one(segment: MemberSegment):
    plane, ip = segment.planes["n1"], "10.99.0.100"

    def make() -> None:
        for command in ("add v0 type veth peer name v1", "set v1 up", "set v0 up"):
            plane.host.run(["ip", "link", *command.split()])
        plane.host.run(["ip", "address", "add", "10.99.0.1/24", "dev", "v0"])

    def number() -> int:
        return next((i.incarnation for i in plane.observed().interfaces if i.name == "v0"), 0)

    make()
    plane.desire("uid-v", ip, "0-255")
    wait_for(lambda: leased(plane.host, "v0"))
    first = wait_for(number)
    plane.host.run(["ip", "link", "delete", "v0"])
    make()
    wait_for(lambda: number() > first)
    wait_for(lambda: plane.running() and leased(plane.host, "v0"))
    plane.withdraw("uid-v")
    plane.host.run(["ip", "link", "delete", "v0"])
    assert segment.owned(IP) == THIRDS


def test_a_node_without_a_carrier_ends_its_lease_at_once_and_serves_again_by_the_next_epoch(
    segment: MemberSegment,
):
    node = segment.planes["n1"].host
    segment.lan.cut(node)
    try:
        wait_for(lambda: not leased(node))
        wait_taken_over(segment, "n2", "n3")
        assert not leased(node)
    finally:
        segment.lan.join(node)
    wait_for(lambda: leased(node))
    serve(segment)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--lease-ms", "740"), 1, "at most DEAD - 0.05 s"),
        (("--lease-ms", "400"), 1, "QUIET < LEASE"),
        (("--tick-ms", "0"), 1, "TICK of 0 s is out of range"),
        (("--tick-ms", f"1{'0' * 400}"), 1, "do not work together"),
        (("--hold-ms", "-1"), 1, "hold of -0.001 s is out of range"),
        (("--tick-ms", "soon"), 2, "invalid int value: 'soon'"),
    ],
)
def test_times_that_do_not_work_together_are_refused_before_anything_is_touched(
    shared: MemberSegment, tmp_path: Path, arguments: tuple[str, str], status: int, says: str
):
    plane = Dataplane(shared.lan.client, tmp_path / "state", "n1", (*shared.arguments, *arguments))
    plane.desired.rmdir()
    plane.directory.rmdir()
    done = plane.run()
    assert done.returncode == status
    assert says in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1
    assert not plane.directory.exists()
    assert tables(plane.host) == set()


def test_ctrl_c_ends_both_processes_cleanly(segment: MemberSegment):
    plane = segment.planes["n1"]
    assert plane.process is not None
    tick = tick_pid(plane)
    os.killpg(plane.process.pid, signal.SIGINT)
    assert plane.process.wait(5) == 0
    assert not is_alive(tick)
    assert "Stopped" in last_line(plane)
    assert "Traceback" not in plane.log
    assert "KeyboardInterrupt" not in plane.log
