"""Passes whose engine fails, which the real one cannot be made to do: what then becomes of the addresses."""

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import segment, synced
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.network import AddressKey
from lbless_nodeagent.dataplane.reconcile import Outcome, Reconciler
from lbless_nodeagent.dataplane.rtnetlink import LinkError
from unit.memory_engine import MemoryEngine
from unit.stateobjects import desired_json

pytestmark = pytest.mark.root


class Node:
    """A reconciler with an engine of memory, in the namespace of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.desired = directory / "desired"
        self.engine = MemoryEngine()
        for name in ("desired", "applied"):
            files.make_directory(directory / name)
        synced.complete(self.desired)
        self.reconciler = Reconciler("n1", directory, self.engine, files.boot_id())

    def desire(self, *ips: str, epoch: int = 1, buckets: str = "0-255") -> None:
        for ip in ips:
            uid = ip.replace(".", "-")
            synced.put(self.desired, uid, desired_json(uid, ip, {"n1": buckets}, epoch=epoch))

    def run_pass(self) -> Outcome:
        return self.reconciler.run_pass()

    @property
    def addresses(self) -> set[str]:
        shown = json.loads(segment.run("ip", "-j", "-4", "address", "show", "dev", "eth0"))
        return {a["local"] for a in shown[0]["addr_info"] if a["prefixlen"] == 32}


@pytest.fixture
def node(namespace: None, tmp_path: Path) -> Iterator[Node]:
    segment.link("eth0", "wire0")
    segment.run("ip", "address", "add", "10.8.0.11/24", "dev", "eth0")
    made = Node(tmp_path)
    yield made
    made.reconciler.close()


FIRST, SECOND, THIRD = "10.8.0.101", "10.8.0.102", "10.8.0.103"


def refuse(node: Node, ip: str, buckets: int = 256) -> None:
    """Make the engine take nothing in which that address owns so many buckets."""
    node.engine.fails = lambda wanted: (
        "The kernel says no."
        if any(str(v.ip) == ip and len(v.owned) == buckets for v in wanted.vips.values())
        else None
    )


def test_one_that_the_engine_refuses_gets_no_address_and_the_others_do(node: Node) -> None:
    refuse(node, SECOND)
    node.desire(FIRST, SECOND, THIRD)
    outcome = node.run_pass()
    assert node.addresses == {FIRST, THIRD}
    assert outcome.applied.keys() == {"10-8-0-101", "10-8-0-103"}
    failure = outcome.failures["10-8-0-102"]
    assert (failure.reason, failure.message) == ("EngineFailed", "The kernel says no.")
    assert outcome.retry_at is not None
    assert outcome.retry_at > time.monotonic()


def test_a_change_that_the_engine_refuses_leaves_what_was(node: Node) -> None:
    node.desire(FIRST, SECOND, buckets="0-9")
    assert len(node.run_pass().applied) == 2
    refuse(node, FIRST, 20)
    node.desire(FIRST, epoch=2, buckets="0-19")
    outcome = node.run_pass()
    assert node.addresses == {FIRST, SECOND}
    assert {str(ip): str(v.owned) for ip, v in node.engine.kernel.vips.items()} == {
        FIRST: "0-9",
        SECOND: "0-9",
    }
    assert outcome.applied == {"10-8-0-102": 1}
    assert outcome.failures["10-8-0-101"].epoch == 2


def test_an_address_whose_rules_are_gone_and_cannot_be_made_again_leaves_the_link(node: Node) -> None:
    node.desire(FIRST)
    node.run_pass()
    node.engine.remove()
    refuse(node, FIRST)
    assert node.run_pass().failures.keys() == {"10-8-0-101"}
    assert node.addresses == set()
    node.engine.fails = lambda _: None
    time.sleep(max(0.0, (node.reconciler.programming.retry_at or 0) - time.monotonic()))
    assert node.run_pass().applied == {"10-8-0-101": 1}
    assert node.addresses == {FIRST}


def test_an_address_whose_rules_are_flushed_before_the_engine_is_asked_again_leaves_the_link(
    node: Node,
) -> None:
    node.desire(FIRST)
    node.run_pass()
    node.engine.fails = lambda _: "No buffer space available."
    node.desire(SECOND)
    while (node.reconciler.programming.retry_at or 0) - time.monotonic() < 1:
        node.run_pass()
    assert node.addresses == {FIRST}
    node.engine.remove()
    node.run_pass()
    assert node.addresses == set()


def test_a_removal_that_the_engine_refuses_takes_the_address_and_is_said_until_it_succeeds(
    node: Node,
) -> None:
    node.desire(FIRST, SECOND)
    node.run_pass()
    synced.delete(node.desired, "10-8-0-101")
    node.engine.fails = lambda _: "Device or resource busy."
    outcome = node.run_pass()
    assert node.addresses == {SECOND}
    assert any(f"{FIRST} of the former ClusterIP" in problem for problem in outcome.problems)
    node.engine.fails = lambda _: None
    time.sleep(max(0.0, (node.reconciler.programming.retry_at or 0) - time.monotonic()))
    outcome = node.run_pass()
    assert outcome.applied == {"10-8-0-102": 1}
    assert outcome.problems == ()
    assert [p.name for p in (node.directory / "applied").iterdir()] == ["10-8-0-102.json"]


def test_an_engine_that_does_not_work_here_gets_no_address_onto_a_link_and_says_why(
    node: Node, tmp_path: Path
) -> None:
    node.reconciler.close()
    node.engine.available = False
    node.reconciler = Reconciler("n1", tmp_path, node.engine, files.boot_id())
    node.desire(FIRST)
    message = node.run_pass().failures["10-8-0-101"].message
    assert message == "The memory engine does not work here: The kernel lacks nf_tables."
    assert node.addresses == set()
    node.engine.available = True
    assert node.reconciler.run_pass(audit=True).applied == {"10-8-0-101": 1}
    assert node.addresses == {FIRST}


def cannot_remove(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_removal(key: AddressKey) -> None:
        raise LinkError(f"Address {key[1]} cannot be removed: the kernel says no.")

    monkeypatch.setattr(node.reconciler.links, "remove_address", refuse_removal)


def test_an_address_that_cannot_be_removed_keeps_its_rules_until_it_can(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.desire(FIRST, SECOND)
    node.run_pass()
    synced.delete(node.desired, "10-8-0-101")
    with monkeypatch.context() as broken:
        cannot_remove(node, broken)
        outcome = node.run_pass()
        assert any(f"{FIRST} cannot be removed" in problem for problem in outcome.problems)
        assert node.addresses == {FIRST, SECOND}
        assert {str(ip) for ip in node.engine.kernel.vips} == {FIRST, SECOND}
    node.run_pass()
    assert node.addresses == {SECOND}
    assert {str(ip) for ip in node.engine.kernel.vips} == {SECOND}


def test_the_last_removal_leaves_the_rules_of_an_address_that_stayed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.desire(FIRST)
    node.run_pass()
    with monkeypatch.context() as broken:
        cannot_remove(node, broken)
        assert node.reconciler.remove() == (f"Address {FIRST} cannot be removed: the kernel says no.",)
        assert {str(ip) for ip in node.engine.kernel.vips} == {FIRST}
    assert node.reconciler.remove() == ()
    assert node.addresses == set()
    assert not node.engine.kernel.vips


def is_at_once(outcome: Outcome) -> bool:
    return outcome.retry_at is not None and outcome.retry_at <= time.monotonic()


@pytest.mark.parametrize("harm", ["change {} preferred_lft forever", "delete {}"])
def test_what_somebody_does_to_an_address_during_a_pass_brings_the_next_one_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """The pass reads the notification away when it reads its own."""
    node.desire(FIRST)
    node.run_pass()
    node.desire(SECOND)
    add = node.reconciler.links.add_address

    def add_and_harm(key: AddressKey) -> None:
        add(key)
        segment.run("ip", "address", *harm.format(f"{FIRST}/32").split(), "dev", "eth0")

    with monkeypatch.context() as harmed:
        harmed.setattr(node.reconciler.links, "add_address", add_and_harm)
        assert is_at_once(node.run_pass())
    assert not is_at_once(node.run_pass())
    shown = segment.run("ip", "-4", "address", "show", "dev", "eth0", "to", FIRST)
    assert "deprecated" in shown


def test_a_link_that_takes_nothing_is_tried_again_after_a_rest(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose MTU is too small for IPv4; each change that is tried is a reason to read the links again."""
    node.desire(FIRST)
    change = node.reconciler.links._change

    def no_room() -> None:
        raise OSError(errno.ENOBUFS, None)  # how pyroute2 says it

    with monkeypatch.context() as broken:
        broken.setattr(
            node.reconciler.links, "_change", lambda failed, _, gone=(): change(failed, no_room, gone)
        )
        for _ in range(3):
            outcome = node.run_pass()
            failure = outcome.failures["10-8-0-101"]
            assert failure.reason == "LinkFailed"
            assert failure.message.endswith(": the kernel says No buffer space available.")
            assert not is_at_once(outcome)
    assert node.run_pass().applied == {"10-8-0-101": 1}


def test_links_that_cannot_be_read_for_once_take_nothing_back_that_was_reported(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.desire(FIRST)
    before = node.run_pass()

    def refuse_reading(*, thorough: bool = False) -> None:
        raise LinkError("The links cannot be read.")

    with monkeypatch.context() as broken:
        broken.setattr(node.reconciler.links, "read", refuse_reading)
        outcome = node.run_pass()
    assert outcome.problems == ("The links cannot be read.",)
    assert (outcome.applied, outcome.interfaces) == (before.applied, before.interfaces)
    assert node.run_pass().problems == ()
