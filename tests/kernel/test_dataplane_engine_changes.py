"""A node that had one engine and now has another: no packet is kept that neither would keep, no address
goes unfiltered, and nothing of the former stays."""

import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kernel import segment, synced
from lbless_api.buckets import BucketSet
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.engine import Engine, EngineError, Wanted
from lbless_nodeagent.dataplane.engines import Leftovers
from lbless_nodeagent.dataplane.network import AddressKey
from lbless_nodeagent.dataplane.nftables.engine import NftablesEngine
from lbless_nodeagent.dataplane.reconcile import Reconciler
from lbless_nodeagent.dataplane.rtnetlink import LinkError
from unit.memory_engine import MemoryEngine
from unit.stateobjects import desired_json

pytestmark = pytest.mark.root

FIRST, SECOND, THIRD = "10.8.0.101", "10.8.0.102", "10.8.0.103"
ALL = BucketSet.full(256)


class Watched(MemoryEngine):
    """Calls `look` around each of its changes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.look: Callable[[], None] = lambda: None
        self.stuck = False

    def apply(self, wanted: Wanted) -> None:
        self.look()
        super().apply(wanted)
        self.look()

    def remove(self) -> None:
        self.look()
        if self.stuck:
            raise EngineError("Device or resource busy.")
        super().remove()
        self.look()


class Node:
    """A node's reconcilers, one after the other, in the namespace of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.desired = directory / "desired"
        self.former, self.present = Watched("former"), Watched("present")
        for name in ("desired", "applied"):
            files.make_directory(directory / name)
        synced.complete(self.desired)
        self.reconciler: Reconciler | None = None

    def start(self, engine: Engine, *others: Engine) -> Reconciler:
        """Let the next process begin, with that engine."""
        self.close()
        leftovers = Leftovers({other.name: (lambda other=other: other) for other in others})
        self.reconciler = Reconciler("n1", self.directory, engine, files.boot_id(), leftovers=leftovers)
        return self.reconciler

    def close(self) -> None:
        if self.reconciler:
            self.reconciler.close()

    def desire(self, shares: dict[str, str]) -> None:
        for path in self.desired.glob("*.json"):
            if path.stem.replace("-", ".") not in shares:
                synced.delete(self.desired, path.stem)
        for ip, buckets in shares.items():
            uid = ip.replace(".", "-")
            synced.put(self.desired, uid, desired_json(uid, ip, {"n1": buckets}))

    @property
    def addresses(self) -> set[str]:
        shown = json.loads(segment.run("ip", "-j", "-4", "address", "show", "dev", "eth0"))
        return {a["local"] for a in shown[0]["addr_info"] if a["prefixlen"] == 32}

    def kept(self, ip: str) -> BucketSet:
        """What is kept of the packets to an address on the link: what no engine's rules drop."""
        kept = ALL
        for engine in (self.former, self.present):
            vip = engine.kernel.vips.get(IPv4Address(ip))
            kept = kept & vip.owned if vip else kept
        return kept


@pytest.fixture
def node(namespace: None, tmp_path: Path) -> Iterator[Node]:
    segment.link("eth0", "wire0")
    segment.run("ip", "address", "add", "10.8.0.11/24", "dev", "eth0")
    made = Node(tmp_path)
    yield made
    made.close()


BEFORE = {FIRST: "0-99", SECOND: "0-9"}
AFTER = {FIRST: "50-149", THIRD: "7"}


def watch(node: Node) -> list[str]:
    """Check at each step, and return what was wrong at any: the engines' errors would be caught."""
    wrong: list[str] = []

    def look() -> None:
        for ip in node.addresses:
            allowed = [BucketSet.parse(shares[ip]) for shares in (BEFORE, AFTER) if ip in shares]
            kept = node.kept(ip)
            if not any(kept.issubset(buckets) for buckets in allowed):
                wrong.append(f"{ip} is on the link and keeps {kept}")

    node.former.look = node.present.look = look
    return wrong


def holding(node: Node) -> None:
    """Let the former engine be in force."""
    node.desire(BEFORE)
    assert len(node.start(node.former).run_pass().applied) == 2
    assert node.addresses == {FIRST, SECOND}


def test_the_former_engines_rules_go_once_the_new_ones_hold_every_address(node: Node) -> None:
    holding(node)
    node.desire(AFTER)
    wrong = watch(node)
    reconciler = node.start(node.present, node.former)
    outcome = reconciler.run_pass()
    assert (len(outcome.applied), outcome.problems) == (2, ())
    assert not wrong
    assert node.addresses == {FIRST, THIRD}
    assert (str(node.kept(FIRST)), str(node.kept(THIRD))) == ("50-149", "7")
    assert not node.former.kernel.vips


def test_an_address_that_the_new_engine_does_not_take_leaves_the_link_before_the_former_rules_go(
    node: Node,
) -> None:
    holding(node)
    node.desire(AFTER)
    wrong = watch(node)
    node.present.fails = lambda wanted: "Too much." if IPv4Address(FIRST) in wanted.vips else None
    outcome = node.start(node.present, node.former).run_pass()
    assert outcome.failures.keys() == {"10-8-0-101"}
    assert not wrong
    assert node.addresses == {THIRD}
    assert not node.former.kernel.vips


def test_a_new_engine_that_does_not_work_takes_every_address_off_before_the_former_rules_go(
    node: Node,
) -> None:
    holding(node)
    wrong = watch(node)
    node.present.available = False
    outcome = node.start(node.present, node.former).run_pass()
    assert "does not work here" in outcome.failures["10-8-0-101"].message
    assert not wrong
    assert node.addresses == set()
    assert not node.former.kernel.vips


def test_an_address_that_cannot_be_taken_off_keeps_the_former_rules_until_it_can(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(node)
    node.desire({FIRST: "0-99"})
    wrong = watch(node)
    node.present.fails = lambda wanted: "Too much." if wanted.vips else None
    reconciler = node.start(node.present, node.former)

    def refuse_removal(key: AddressKey) -> None:
        raise LinkError(f"Address {key[1]} cannot be removed: the kernel says no.")

    with monkeypatch.context() as broken:
        broken.setattr(reconciler.links, "remove_address", refuse_removal)
        reconciler.run_pass()
        assert node.addresses == {FIRST, SECOND}
        assert node.former.kernel.vips.keys() == {IPv4Address(FIRST), IPv4Address(SECOND)}
    reconciler.run_pass()
    assert not wrong
    assert node.addresses == set()
    assert not node.former.kernel.vips


def test_rules_that_cannot_be_removed_are_a_problem_until_they_are(node: Node) -> None:
    holding(node)
    wrong = watch(node)
    node.former.stuck = True
    reconciler = node.start(node.present, node.former)
    sentence = "The rules that the former engine left here cannot be removed: Device or resource busy."
    outcome = reconciler.run_pass()
    assert outcome.problems == (sentence,)
    assert outcome.retry_at is not None
    assert len(outcome.applied) == 2
    node.former.stuck = False
    assert reconciler.run_pass().problems == ()
    assert not wrong
    assert not node.former.kernel.vips


def test_taking_lbless_out_takes_the_former_engines_rules_too(node: Node) -> None:
    holding(node)
    wrong = watch(node)
    assert node.start(node.present, node.former).remove() == ()
    assert not wrong
    assert node.addresses == set()
    assert not node.former.kernel.vips


def test_the_real_tables_of_nftables_are_left_behind_by_no_other_engine(node: Node) -> None:
    node.desire(BEFORE)
    nftables = NftablesEngine()
    node.start(nftables).run_pass()
    assert "table ip lbless" in segment.ruleset()
    nftables.close()
    assert len(node.start(node.present, NftablesEngine()).run_pass().applied) == 2
    assert segment.ruleset() == ""
    assert node.addresses == {FIRST, SECOND}
