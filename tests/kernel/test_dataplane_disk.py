"""A state directory whose disk is full or read-only, or that is gone: traffic goes on, and the report says so."""

import json
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kernel.dataplane import Dataplane, interface, wait_for
from lab.host import Host
from lab.kernelstate import owned_buckets, traces
from lab.lan import Lan
from lbless_api.mac import default_mac
from unit.stateobjects import desired_json

pytestmark = pytest.mark.root

VIPS = [Lan.vip(n) for n in range(1, 21)]
LATER = Lan.vip(100)
LINES = 12
"""So much may be said of a disk that fails for as long as it does."""


@pytest.fixture
def disk(lan: Lan) -> Iterator[Path]:
    """A small file system of its own."""
    path = lan.directory / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "disk", path], check=True)
    yield path
    while path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def dataplane(disk: Path, node: Host) -> Dataplane:
    made = Dataplane(node, disk)
    fill_with_clusterips(made)
    made.start()
    wait_for(lambda: len(made.observed().applied) == len(VIPS))
    return made


def uid(ip: str) -> str:
    return ip.replace(".", "-")


def fill_with_clusterips(dataplane: Dataplane) -> None:
    for ip in VIPS:
        dataplane.desire(uid(ip), ip, "0-99")
    dataplane.complete()


def all_served(node: Host) -> bool:
    held = interface(node, "eth0")
    return {f"{ip}/32" for ip in VIPS} <= held.addresses.keys() and all(
        str(owned_buckets(node, ip)) == "0-99" for ip in VIPS
    )


def prepare(dataplane: Dataplane) -> Path:
    """Write one more ClusterIP under a name that does not count yet: to rename it takes no space."""
    path = dataplane.desired / ".later"
    path.write_text(json.dumps(desired_json(uid(LATER), LATER, {"n1": "5"})))
    return path


def fill(disk: Path) -> Path:
    path = disk / "rubbish"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def harm(node: Host) -> None:
    node.run(["nft", "flush", "ruleset"])
    node.run(["ip", "address", "delete", f"{VIPS[0]}/32", "dev", "eth0"])


def seconds_pass(dataplane: Dataplane, seconds: float) -> None:
    """Let it fail for a while, as often as it likes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert dataplane.running()
        time.sleep(0.05)


def test_a_full_disk_stops_nothing_and_is_said_once_it_can_be(
    dataplane: Dataplane, node: Host, disk: Path
) -> None:
    prepared = prepare(dataplane)
    rubbish = fill(disk)
    said = dataplane.log.count("\n")
    harm(node)
    wait_for(lambda: all_served(node))
    prepared.rename(dataplane.desired / f"{uid(LATER)}.json")
    wait_for(lambda: str(owned_buckets(node, LATER)) == "5")
    seconds_pass(dataplane, 4)
    assert dataplane.log.count("\n") - said < LINES, dataplane.log
    assert not dataplane.applied(uid(LATER))
    rubbish.unlink()
    problem = wait_for(lambda: [p for p in dataplane.observed().problems if "cannot be written" in p])[0]
    assert str(disk) in problem
    assert "No space left on device" in problem
    wait_for(lambda: dataplane.applied(uid(LATER)) and not dataplane.observed().problems)
    wait_for((disk / "applied" / f"{uid(LATER)}.json").exists)


def test_a_read_only_disk_stops_nothing_and_is_said_once_it_can_be(
    dataplane: Dataplane, node: Host, disk: Path
) -> None:
    # A second mount over the first, which could not become read-only itself while its lock file is open.
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
    said = dataplane.log.count("\n")
    harm(node)
    wait_for(lambda: all_served(node))
    seconds_pass(dataplane, 4)
    assert dataplane.log.count("\n") - said < LINES, dataplane.log
    subprocess.run(["umount", disk], check=True)
    problem = wait_for(lambda: [p for p in dataplane.observed().problems if "cannot be written" in p])[0]
    assert str(disk) in problem
    assert "Read-only file system" in problem
    wait_for(lambda: not dataplane.observed().problems)
    assert len(dataplane.observed().applied) == len(VIPS)
    assert dataplane.observed().repairs["rules"] == 1


def test_a_state_directory_that_is_emptied_is_made_again_and_takes_nothing_with_it(
    dataplane: Dataplane, node: Host, disk: Path
) -> None:
    said = dataplane.log.count("\n")
    subprocess.run(["find", disk, "-mindepth", "1", "-delete"], check=True)
    wait_for(lambda: (disk / "desired").is_dir() and (disk / "applied").is_dir())
    seconds_pass(dataplane, 3)
    assert all_served(node)
    assert len(dataplane.observed().applied) == len(VIPS)
    harm(node)
    wait_for(lambda: all_served(node))
    assert dataplane.log.count("\n") - said < LINES, dataplane.log

    # sync writes all of it again, with one change and one deletion.
    for ip in VIPS[1:]:
        dataplane.desire(uid(ip), ip, "0-99")
    dataplane.desire(uid(VIPS[1]), VIPS[1], "0-49", epoch=2)
    assert all_served(node) or str(owned_buckets(node, VIPS[1])) == "0-49"
    dataplane.complete()
    dataplane.wait_applied(uid(VIPS[1]), 2)
    wait_for(lambda: uid(VIPS[0]) not in dataplane.observed().applied)
    assert not traces(node, VIPS[0], default_mac(IPv4Address(VIPS[0])))
    assert len(dataplane.observed().applied) == len(VIPS) - 1
    assert not dataplane.observed().problems
    wait_for(lambda: (disk / "journal.json").exists() and (disk / "identity.json").exists())


def test_files_that_go_one_after_the_other_are_not_taken_for_deletions(lan: Lan, node: Host) -> None:
    """The mark that sync has listed everything goes last, as it does where a directory lists it last."""
    dataplane = Dataplane(node, lan.directory / "state")
    many = [f"10.80.{3 + n // 250}.{n % 250 + 1}" for n in range(500)]
    for ip in many:
        dataplane.desire(uid(ip), ip, "7")
    dataplane.complete()
    dataplane.start()
    wait_for(lambda: len(dataplane.observed().applied) == len(many))
    for path in dataplane.desired.glob("*.json"):
        path.unlink()
    (dataplane.desired / ".complete").unlink()
    seconds_pass(dataplane, 2)
    assert len(dataplane.observed().applied) == len(many)
    assert {f"{ip}/32" for ip in many} <= interface(node, "eth0").addresses.keys()


def test_a_state_directory_that_is_removed_itself_is_made_again(lan: Lan, node: Host) -> None:
    dataplane = Dataplane(node, lan.directory / "state")
    fill_with_clusterips(dataplane)
    dataplane.start()
    wait_for(lambda: len(dataplane.observed().applied) == len(VIPS))
    # It may fail at the end: dataplane is already making again what is gone.
    subprocess.run(["rm", "-rf", dataplane.directory], check=False, stderr=subprocess.DEVNULL)
    wait_for(dataplane.desired.is_dir)
    wait_for(lambda: dataplane.observed().boottime_seconds > 0)
    assert all_served(node)
    fill_with_clusterips(dataplane)
    dataplane.withdraw(uid(VIPS[0]))
    wait_for(lambda: uid(VIPS[0]) not in dataplane.observed().applied)
    assert len(dataplane.observed().applied) == len(VIPS) - 1
