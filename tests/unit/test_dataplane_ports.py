"""A node's memberships as the programming process has them: begun, resumed, refused, and never mistaken."""

from pathlib import Path

import pytest

from lbless_nodeagent import files
from lbless_nodeagent.dataplane.membership import Intent, Memory, Use
from lbless_nodeagent.dataplane.tick.messages import Carrier, Detach, Ended, Refused, Told
from lbless_nodeagent.dataplane.tickprocess import TickEndedError
from unit.faketick import BOOT, Node, interface, seen

ETH0 = interface()


def stored(directory: Path) -> int:
    """eth0's incarnation on the disk."""
    value = files.read_json(directory / "identity.json")
    assert isinstance(value, dict)
    number = value["interfaces"]["eth0"]["incarnation"]
    assert isinstance(number, int)
    return number


def served(directory: Path) -> int:
    """A process serves and is killed; returns its incarnation."""
    node = Node(directory)
    (attach,) = node.attach(ETH0)
    node.begin(attach)
    node.say(seen("eth0", attach.incarnation))
    return attach.incarnation


def test_an_incarnation_is_on_the_disk_before_the_tick_process_hears_of_it(tmp_path: Path):
    (attach,) = Node(tmp_path).attach(ETH0)
    assert stored(tmp_path) == attach.incarnation


def test_with_a_lease_and_a_memory_of_this_boot_a_successor_goes_on(tmp_path: Path):
    incarnation = served(tmp_path)
    (attach,) = Node(tmp_path, {"eth0": 0.5}).attach(ETH0)
    assert attach.incarnation == incarnation
    assert attach.resumed == Memory(incarnation)
    assert attach.lease_end is not None
    assert attach.lease_end <= files.boottime_seconds() + 0.5


@pytest.mark.parametrize("lacks", ["lease", "memory", "boot", "newest"])
def test_without_one_of_them_it_begins_anew(tmp_path: Path, lacks: str):
    incarnation = served(tmp_path)
    if lacks == "memory":
        (tmp_path / "membership.json").unlink()
    if lacks == "newest":  # one began since, whose memory could not be written
        content = (tmp_path / "identity.json").read_text()
        (tmp_path / "identity.json").write_text(content.replace(str(incarnation), str(incarnation + 1)))
    node = Node(
        tmp_path,
        {} if lacks == "lease" else {"eth0": 0.5},
        boot="another-boot" if lacks == "boot" else BOOT,
    )
    # What a pass does before: each interface has an incarnation of this boot.
    (attach,) = node.attach(ETH0)
    assert attach.resumed is None
    if lacks != "boot":  # of another one, `with_interfaces` makes it
        assert attach.incarnation > incarnation
        assert stored(tmp_path) == attach.incarnation


def test_a_lease_that_is_over_when_the_interface_is_attached_is_not_resumed_under_its_number(tmp_path: Path):
    incarnation = served(tmp_path)
    (attach,) = Node(tmp_path, {"eth0": 0.0}).attach(ETH0)
    assert attach.resumed is None
    assert attach.incarnation > incarnation


def test_an_interface_that_is_made_again_begins_anew_and_nothing_said_of_the_former_one_counts(
    tmp_path: Path,
):
    node = Node(tmp_path)
    (first,) = node.attach(ETH0)
    node.begin(first)
    node.say(seen("eth0", first.incarnation, 57, use={"uid": Use(1, 1, True)}))
    (second,) = node.attach(ETH0, index=3)
    assert second.incarnation > first.incarnation
    assert not node.say(
        seen("eth0", first.incarnation, 58, use={"uid": Use(2, 2, True)}), Refused("eth0", "It is gone.")
    )
    port = node.ports["eth0"]
    assert (port.view.version, port.use, port.refused) == (0, {}, "")
    node.begin(second)
    assert node.say(seen("eth0", second.incarnation))
    assert port.view.incarnation == second.incarnation


def test_a_number_that_a_former_membership_took_meanwhile_is_still_written_down(tmp_path: Path):
    node = Node(tmp_path)
    (first,) = node.attach(ETH0)
    node.begin(first)
    node.say(seen("eth0", first.incarnation + 1000))
    assert stored(tmp_path) == first.incarnation + 1000
    (second,) = node.attach(ETH0, index=3)
    assert second.incarnation > first.incarnation + 1000
    node.say(seen("eth0", second.incarnation + 1000))
    assert stored(tmp_path) == second.incarnation + 1000


def test_what_is_refused_is_asked_for_again_after_a_rest(tmp_path: Path):
    node = Node(tmp_path)
    (first,) = node.attach(ETH0)
    node.begin(first)
    assert node.say(Refused("eth0", "Interface eth0 is not there."))
    assert node.ports.problems == ["Interface eth0 is not there."]
    assert node.ports.retry_at is not None
    assert node.attach(ETH0) == []
    node.ports["eth0"].retry_at = 0.0
    (second,) = node.attach(ETH0)
    assert second.incarnation > first.incarnation
    assert node.ports.problems == []


def test_an_interface_begins_once_it_was_told_of_everything(tmp_path: Path):
    node = Node(tmp_path)
    node.attach(ETH0)
    for expected in ([Told("eth0")], []):
        node.ports.begin()
        assert node.tick.take(Told) == expected


def test_an_interface_that_goes_is_detached_and_its_memory_is_gone(tmp_path: Path):
    served(tmp_path)
    node = Node(tmp_path)
    (attach,) = node.attach(ETH0)
    node.begin(attach)
    node.say(seen("eth0", attach.incarnation))
    node.ports.attach((), {}, ())
    assert node.tick.take(Detach) == [Detach("eth0")]
    (after,) = Node(tmp_path, {"eth0": 0.5}).attach(ETH0)
    assert after.resumed is None


def test_only_interfaces_that_are_used_have_a_membership(tmp_path: Path):
    node = Node(tmp_path)
    node.ports.attach((ETH0, interface("eth1")), {"eth0": 2, "eth1": 3}, {"eth1"})
    assert [name for name, _ in node.ports.items()] == ["eth1"]


def test_a_carrier_is_told_when_it_changes(tmp_path: Path):
    node = Node(tmp_path)
    node.attach(ETH0)
    for carrier in (False, False, True):
        node.ports.attach((interface(carrier=carrier),), {"eth0": 2}, {"eth0"})
    assert node.tick.take(Carrier) == [Carrier("eth0", False), Carrier("eth0", True)]


def test_a_stop_is_over_when_every_interface_has_said_so(tmp_path: Path):
    node = Node(tmp_path)
    for attach in node.attach(ETH0, interface("eth1")):
        node.begin(attach)
    node.ports.stop(Intent.HOLD)
    node.say(Ended("eth0", Memory(5)))
    assert not node.ports.ended
    node.say(Ended("eth1", Memory(6)))
    assert node.ports.ended


def test_the_end_of_the_tick_process_is_an_error_unless_it_was_asked_for(tmp_path: Path):
    node = Node(tmp_path)
    node.tick.ended = "It has ended."
    with pytest.raises(TickEndedError, match="It has ended"):
        node.ports.receive()
    node.ports.stop(Intent.LEAVE)
    assert not node.ports.receive()
    assert node.ports.ended


def test_equal_parts_of_views_stay_the_same_objects(tmp_path: Path):
    node = Node(tmp_path)
    (attach,) = node.attach(ETH0)
    node.begin(attach)
    node.say(seen("eth0", 7, 1, living={"n2": 9}, use={"uid": Use(1, 1)}))
    port, living = node.ports["eth0"], node.ports["eth0"].view.living
    assert not node.say(seen("eth0", 7, 1, living={"n2": 9}))
    assert node.say(seen("eth0", 7, 2, living={"n2": 9}, unused=("uid",)))
    assert port.view.living is living
    assert port.use == {}
