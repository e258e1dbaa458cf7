"""lbless-dataplane from its start to its end, on a real kernel: it leaves what it should and nothing else."""

import random
import signal
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kernel.dataplane import Dataplane, Interface, interface, tables, wait_for
from lab.capture import Capture
from lab.host import Host
from lab.kernelstate import owned_buckets, traces
from lab.lan import Lan
from lbless_api.mac import default_mac

pytestmark = pytest.mark.root

VIP, OTHER, ON_ETH1 = Lan.vip(1), Lan.vip(2), "10.83.2.1"
ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"
OUR_TABLES = {"ip lbless", "arp lbless", "netdev lbless"}


def mac(ip: str) -> str:
    return default_mac(IPv4Address(ip))


def clean(node: Host) -> tuple[Interface, Interface, set[str], str]:
    """What a test compares before and after: all that dataplane may change."""
    rules = node.run(["nft", "list", "ruleset"]).stdout
    return interface(node, "eth0"), interface(node, "eth1"), tables(node), rules


def make_foreign_state(node: Host) -> None:
    """What somebody else may have put beside ours."""
    node.run(["ip", "address", "add", "10.80.3.3/32", "dev", "eth0", "preferred_lft", "0"])
    node.run(["ip", "address", "add", "10.80.3.4/24", "dev", "eth0"])
    node.run(["ip", "maddress", "add", "03:bf:00:00:00:01", "dev", "eth0"])
    rules = (
        "add table ip other\nadd set ip other lbless { type ipv4_addr; }\n"
        "add element ip other lbless { 10.80.2.1 }\nadd table ip6 other\n"
    )
    node.run(["nft", "-f", "-"], stdin=rules)


def test_a_clusterip_gets_its_address_group_rules_and_arp_setting(dataplane: Dataplane, node: Host) -> None:
    before = interface(node, "eth0")
    dataplane.desire("a", VIP, "0-99")
    dataplane.start()
    dataplane.wait_applied("a")
    assert interface(node, "eth0") == Interface(
        addresses={**before.addresses, f"{VIP}/32": frozenset({"deprecated"})},
        groups=before.groups | {mac(VIP)},
        arp_announce=2,
    )
    assert str(owned_buckets(node, VIP)) == "0-99"
    observed = dataplane.observed()
    assert observed.engines[0].available
    assert {i.name: [str(a) for a in i.addresses] for i in observed.interfaces} == {
        "eth0": ["10.80.1.1/16"],
        "eth1": ["10.83.1.1/16"],
        "mgmt0": ["10.81.0.101/24"],
    }
    assert all(number > 0 for number in dataplane.incarnations().values())
    assert {i.incarnation for i in observed.interfaces} == {0}, "nobody may take its silence for its death"


def test_a_clusterip_of_another_subnet_goes_to_the_interface_of_that_subnet(
    dataplane: Dataplane, node: Host
) -> None:
    dataplane.desire("a", ON_ETH1)
    dataplane.start()
    wait_for(lambda: dataplane.serves(ON_ETH1, "eth1"))
    assert interface(node, "eth0").arp_announce == 0


def test_one_that_names_another_node_is_applied_by_leaving_nothing_here(
    dataplane: Dataplane, node: Host
) -> None:
    dataplane.desire("a", VIP, epoch=4)
    dataplane.start()
    dataplane.wait_applied("a", 4)
    dataplane.desire("a", VIP, None, epoch=5)
    dataplane.wait_applied("a", 5)
    assert not traces(node, VIP, mac(VIP))
    assert not list((dataplane.directory / "applied").iterdir())


def test_one_that_was_never_assigned_is_neither_applied_nor_a_failure(dataplane: Dataplane) -> None:
    dataplane.desire("a", VIP, None, epoch=0)
    dataplane.desire("b", OTHER)
    dataplane.start()
    dataplane.wait_applied("b")
    assert dataplane.observed().applied == {"b": 1}
    assert dataplane.observed().failures == ()


def test_a_change_of_the_assignment_reaches_the_kernel_at_once(dataplane: Dataplane, node: Host) -> None:
    dataplane.desire("a", VIP, "0-99")
    dataplane.start()
    dataplane.wait_applied("a")
    for epoch, buckets in enumerate(["100-255", "", "0-255"], start=2):
        dataplane.desire("a", VIP, buckets, epoch=epoch)
        dataplane.wait_applied("a", epoch)
        assert str(owned_buckets(node, VIP)) == buckets


def test_a_restart_changes_nothing_in_the_kernel(dataplane: Dataplane, node: Host, lan: Lan) -> None:
    dataplane.desire("a", VIP, "0-99")
    dataplane.desire("b", ON_ETH1)
    dataplane.complete()
    dataplane.start()
    dataplane.wait_applied("b")
    listing = ["nft", "--handle", "list", "ruleset"]
    rules = node.run(listing).stdout
    incarnations = dataplane.incarnations()
    events = [
        node.popen(["ip", "-o", "monitor", "address", "link", "neigh"], log="ip-monitor"),
        node.popen(["nft", "monitor"], log="nft-monitor"),
    ]
    with Capture(lan.client, flooded=True) as frames:
        for end in (dataplane.stop, dataplane.kill, dataplane.stop):
            end()
            dataplane.start()
            dataplane.wait_applied("b")
    for event in events:
        event.kill()
        event.wait()
    assert node.run(listing).stdout == rules
    assert node.log("ip-monitor").read_text() == ""
    assert "lbless" not in node.log("nft-monitor").read_text()
    assert not list(frames.arp())
    assert dataplane.incarnations() == incarnations


def test_a_file_that_is_removed_takes_all_of_it_away_once_sync_has_listed(
    dataplane: Dataplane, node: Host
) -> None:
    make_foreign_state(node)
    before = clean(node)
    dataplane.desire("a", VIP)
    dataplane.desire("b", ON_ETH1)
    dataplane.start()
    dataplane.wait_applied("b")
    dataplane.withdraw("a")
    dataplane.withdraw("b")
    dataplane.desire("c", OTHER)
    dataplane.wait_applied("c")
    assert dataplane.serves(VIP)
    since = time.monotonic()
    dataplane.complete()
    wait_for(lambda: dataplane.observed().applied == {"c": 1})
    assert time.monotonic() - since < 2
    assert not traces(node, ON_ETH1, mac(ON_ETH1))
    assert not owned_buckets(node, VIP)
    dataplane.withdraw("c")
    wait_for(lambda: not dataplane.observed().applied)
    after = clean(node)
    assert after[:2] == before[:2]
    assert after[2] - OUR_TABLES == before[2]


def test_a_deletion_while_it_was_down_is_made_up_for_within_two_seconds(
    dataplane: Dataplane, node: Host
) -> None:
    before = interface(node, "eth0")
    dataplane.desire("a", VIP)
    dataplane.desire("b", OTHER)
    dataplane.start()
    dataplane.wait_applied("b")
    dataplane.kill()
    dataplane.withdraw("a")
    dataplane.withdraw("b")
    dataplane.complete()
    dataplane.launch()
    wait_for(lambda: dataplane.log.count("Serving node") == 2)
    wait_for(
        lambda: (
            interface(node, "eth0") == before
            and not owned_buckets(node, VIP)
            and not owned_buckets(node, OTHER)
        ),
        seconds=2,
    )


def test_without_sync_having_listed_since_boot_nothing_that_is_absent_is_removed(
    dataplane: Dataplane,
) -> None:
    dataplane.desire("a", VIP)
    dataplane.start()
    dataplane.wait_applied("a")
    dataplane.stop()
    dataplane.withdraw("a")
    dataplane.complete(ANOTHER_BOOT)
    dataplane.start()
    dataplane.wait_applied("a")
    assert dataplane.serves(VIP)


@pytest.mark.parametrize("lost", ["journal.json", "applied", "everything"])
def test_lost_state_disturbs_nothing_and_what_is_ours_is_still_known(
    dataplane: Dataplane, node: Host, lost: str
) -> None:
    make_foreign_state(node)
    before = clean(node)
    dataplane.desire("a", VIP)
    dataplane.start()
    dataplane.wait_applied("a")
    dataplane.kill()
    for path in dataplane.directory.rglob("*"):
        if path.is_file() and lost in (path.name, path.parent.name, "everything"):
            path.unlink()
    dataplane.start()
    if lost == "everything":
        wait_for(lambda: dataplane.observed().problems)
        assert "kept as an earlier run left them" in dataplane.observed().problems[0]
    else:
        dataplane.wait_applied("a")
        dataplane.withdraw("a")
    assert dataplane.serves(VIP)
    dataplane.complete()
    wait_for(lambda: not owned_buckets(node, VIP))
    wait_for(lambda: not dataplane.observed().problems and not dataplane.observed().applied)
    after = clean(node)
    assert after[1:3] == (before[1], before[2] | (after[2] & OUR_TABLES))
    assert after[0].addresses == before[0].addresses
    assert after[0].groups == before[0].groups


def test_the_intent_to_remove_leaves_the_kernel_as_it_was(dataplane: Dataplane, node: Host) -> None:
    make_foreign_state(node)
    before = clean(node)
    dataplane.desire("a", VIP)
    dataplane.desire("b", ON_ETH1)
    dataplane.start()
    dataplane.wait_applied("b")
    dataplane.intend("remove")
    assert dataplane.stop() == 0
    assert clean(node) == before
    assert dataplane.observed().applied == {}
    assert not (dataplane.directory / "journal.json").exists()


@pytest.mark.parametrize("intent", ["hold", "handover", "nonsense", None])
def test_any_other_intent_leaves_the_address_served(dataplane: Dataplane, intent: str | None) -> None:
    dataplane.desire("a", VIP)
    dataplane.start()
    dataplane.wait_applied("a")
    if intent:
        dataplane.intend(intent)
    assert dataplane.stop() == 0
    assert dataplane.serves(VIP)


def test_ctrl_c_is_a_clean_stop_too(dataplane: Dataplane) -> None:
    dataplane.start()
    assert dataplane.signal(signal.SIGINT) == 0


@pytest.mark.parametrize("state", ["there", "lost"])
def test_cleanup_leaves_nothing_of_lbless_and_all_of_the_rest(
    dataplane: Dataplane, node: Host, state: str
) -> None:
    make_foreign_state(node)
    before = clean(node)
    dataplane.desire("a", VIP)
    dataplane.desire("b", ON_ETH1)
    dataplane.start()
    dataplane.wait_applied("b")
    refused = dataplane.run("--cleanup")
    assert refused.returncode == 1
    assert "Another lbless-dataplane uses" in refused.stderr
    dataplane.kill()
    if state == "lost":
        (dataplane.directory / "journal.json").unlink()
    done = dataplane.run("--cleanup")
    assert done.returncode == 0, done.stderr
    after = clean(node)
    assert after[2:] == before[2:]
    if state == "there":
        assert after == before
    else:
        # What arp_announce was is lost with the journal.
        assert [i.addresses for i in after[:2]] == [i.addresses for i in before[:2]]
        assert [i.groups for i in after[:2]] == [i.groups for i in before[:2]]
    assert dataplane.run("--cleanup").returncode == 0


def test_killed_at_any_moment_the_next_run_reaches_what_is_wanted_by_then(
    dataplane: Dataplane, node: Host
) -> None:
    seed = time.time_ns() % 1_000_000
    print("seed", seed)
    chance = random.Random(seed)
    make_foreign_state(node)
    before = interface(node, "eth0"), interface(node, "eth1")
    dataplane.complete()
    pool = {f"uid-{n}": Lan.vip(n) if n % 2 else f"10.83.2.{n}" for n in range(1, 7)}
    wanted: dict[str, str] = {}
    for life in range(8):
        dataplane.start() if life % 2 else dataplane.launch()
        for _ in range(chance.randint(1, 4)):
            uid = chance.choice(sorted(pool))
            if uid in wanted and chance.random() < 0.5:
                dataplane.withdraw(uid)
                del wanted[uid]
            else:
                wanted[uid] = f"0-{chance.randint(1, 255)}"
                dataplane.desire(uid, pool[uid], wanted[uid])
            time.sleep(chance.uniform(0, 0.02))
        time.sleep(chance.uniform(0, 0.05 if life % 2 else 1.0))
        dataplane.kill()
    dataplane.start()
    wait_for(lambda: dataplane.observed().applied == dict.fromkeys(wanted, 1))
    for uid, ip in pool.items():
        assert str(owned_buckets(node, ip)) == wanted.get(uid, ""), uid
    for name, was in zip(("eth0", "eth1"), before, strict=True):
        on_it = [pool[uid] for uid in wanted if pool[uid].startswith("10.83.") == (name == "eth1")]
        now = interface(node, name)
        assert now.addresses.keys() == was.addresses.keys() | {f"{ip}/32" for ip in on_it}
        assert now.groups == was.groups | {mac(ip) for ip in on_it}
        assert now.arp_announce == (2 if on_it else was.arp_announce)
    dataplane.intend("remove")
    assert dataplane.stop() == 0
    assert (interface(node, "eth0"), interface(node, "eth1")) == before


def test_killed_before_any_single_step_the_next_run_makes_up_for_it(lan: Lan, node: Host) -> None:
    """Every step of a pass: each file written, each change over netlink, each transaction of nftables."""
    script = Path(__file__).parent / "inside" / "killed_at_each_step.py"
    done = node.run([sys.executable, script, lan.directory / "steps", VIP, ON_ETH1], timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split()[-1])
    assert kills > 20


def test_the_segment_hears_the_cluster_mac_when_an_address_becomes_active(
    dataplane: Dataplane, node: Host, lan: Lan
) -> None:
    dataplane.start()
    with Capture(lan.client, vip=VIP) as frames:
        dataplane.desire("a", VIP)
        dataplane.wait_applied("a")
        frames.await_that("both forms, twice", lambda frames: len(list(frames.arp())) >= 4)
    assert {(f.source, f.destination) for f, _ in frames.arp()} == {(node.mac, "ff:ff:ff:ff:ff:ff")}
    assert {(arp.sender, arp.sender_mac, arp.target) for _, arp in frames.arp()} == {(VIP, mac(VIP), VIP)}
    assert [arp.operation.name for _, arp in frames.arp()] == ["REQUEST", "REPLY"] * 2


def test_one_that_waits_takes_over_when_the_other_ends_and_no_rule_is_missing_meanwhile(
    dataplane: Dataplane, node: Host
) -> None:
    dataplane.desire("a", VIP)
    dataplane.start()
    dataplane.wait_applied("a")
    first, rules = dataplane.process, owned_buckets(node, VIP)
    assert first is not None
    dataplane.arguments = (*dataplane.arguments, "--wait")
    dataplane.launch()
    wait_for(lambda: "waiting for its end to take over" in dataplane.log)
    first.terminate()
    assert first.wait(10) == 0
    dataplane.desire("b", ON_ETH1)
    dataplane.wait_applied("b")
    assert owned_buckets(node, VIP) == rules
    assert dataplane.stop() == 0


def test_waiting_ends_with_a_signal(dataplane: Dataplane) -> None:
    dataplane.start()
    first = dataplane.process
    assert first is not None
    dataplane.arguments = (*dataplane.arguments, "--wait")
    dataplane.launch()
    wait_for(lambda: "waiting for its end to take over" in dataplane.log)
    assert dataplane.stop() == 0
    assert first.poll() is None
    first.terminate()
    assert first.wait(10) == 0
