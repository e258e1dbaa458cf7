"""The journal: whatever end the process comes to, what is ours is removed and what is not is never touched."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.fields import Invalid
from lbless_nodeagent.dataplane.journal import (
    Changes,
    Journal,
    Place,
    adopt,
    after,
    before,
    changes,
    parse_journal,
    render_journal,
)
from lbless_nodeagent.dataplane.network import Address, AddressKey, GroupKey, Link, Network

BOOT = "6b0e1a4c-0000-4000-8000-000000000000"


class KilledError(Exception):
    """The process was killed here."""


@dataclass
class World:
    """A kernel and a disk, changed one step at a time; the process can be killed before any of them."""

    announce: dict[int, int] = field(default_factory=lambda: {2: 0, 3: 1})
    addresses: dict[AddressKey, bool] = field(default_factory=dict)
    groups: set[GroupKey] = field(default_factory=set)
    disk: Journal = field(default_factory=Journal)
    steps_left: int = 10**9

    def network(self) -> Network:
        return Network(
            links={i: Link(i, f"eth{i}", "", True, True, arp_announce=a) for i, a in self.announce.items()},
            addresses=tuple(
                Address(i, ip, 32, deprecated=deprecated) for (i, ip), deprecated in self.addresses.items()
            ),
            groups=frozenset(self.groups),
        )

    def step(self, act: Callable[[], object]) -> None:
        if self.steps_left == 0:
            raise KilledError
        self.steps_left -= 1
        act()

    def reach(self, wanted: set[Place]) -> None:
        """One run of the process, from reading its journal to having reached what is wanted."""
        network = self.network()
        journal = parse_journal(render_journal(self.disk, BOOT), BOOT)
        ahead = before(journal, network, wanted)
        self.step(lambda: setattr(self, "disk", ahead))
        todo = changes(ahead, network, wanted)
        for key in todo.remove_addresses:
            self.step(partial(self.addresses.pop, key))
        for group in todo.leave_groups:
            self.step(partial(self.groups.remove, group))
        for index, value in {**todo.restore_arp_announce, **todo.arp_announce}.items():
            self.step(partial(self.announce.__setitem__, index, value))
        for group in todo.join_groups:
            self.step(partial(self.groups.add, group))
        for key in todo.add_addresses + todo.deprecate_addresses:
            self.step(partial(self.addresses.__setitem__, key, True))
        self.step(lambda: setattr(self, "disk", after(ahead, self.network(), wanted)))


OWN = {(2, IPv4Address("10.8.0.11")): False, (3, IPv4Address("10.8.0.12")): True}
FOREIGN_GROUPS = {(2, "01:00:5e:00:00:01"), (3, "03:bf:00:00:00:03")}
PLACES = st.sets(
    st.builds(
        Place,
        index=st.sampled_from([2, 3]),
        ip=st.integers(100, 104).map(lambda n: IPv4Address(f"10.8.0.{n}")),
        mac=st.integers(1, 3).map(lambda n: f"03:bf:00:00:00:0{n}"),
    ),
    max_size=5,
)


def distinct(places: set[Place]) -> set[Place]:
    """At most one place an address, as the decision makes them."""
    return set({place.ip: place for place in sorted(places, key=repr)}.values())


@given(runs=st.lists(st.tuples(PLACES, st.integers(0, 25)), max_size=6), last=PLACES)
def test_killed_anywhere_and_as_often_as_it_may_a_last_run_leaves_exactly_what_is_wanted(
    runs: list[tuple[set[Place], int]], last: set[Place]
) -> None:
    world = World(addresses=dict(OWN), groups=set(FOREIGN_GROUPS))
    for wanted, steps in runs:
        world.steps_left = steps
        try:
            world.reach(distinct(wanted))
        except KilledError:
            continue
    world.steps_left = 10**9
    places = distinct(last)
    world.reach(places)
    assert world.addresses == {**OWN, **{place.address: True for place in places}}
    assert world.groups == FOREIGN_GROUPS | {place.group for place in places}
    links = {place.index for place in places}
    assert world.announce == {2: 2 if 2 in links else 0, 3: 2 if 3 in links else 1}
    assert not changes(world.disk, world.network(), places)
    world.reach(set())
    assert (world.addresses, world.groups, world.announce) == (OWN, FOREIGN_GROUPS, {2: 0, 3: 1})
    assert world.disk == Journal()


VIP = Place(2, IPv4Address("10.8.0.100"), "03:bf:0a:08:00:64")


def reached() -> World:
    world = World(addresses=dict(OWN), groups=set(FOREIGN_GROUPS))
    world.reach({VIP})
    return world


def test_nothing_is_done_where_everything_is_as_wanted() -> None:
    world = reached()
    assert changes(world.disk, world.network(), [VIP]) == Changes()


def test_what_somebody_else_undid_is_made_again() -> None:
    world = reached()
    del world.addresses[VIP.address]
    world.groups.clear()
    world.announce[2] = 1
    world.reach({VIP})
    assert VIP.address in world.addresses
    assert world.groups == {VIP.group}
    world.reach(set())
    assert world.announce[2] == 0


def test_an_address_that_somebody_made_a_source_again_is_deprecated_again() -> None:
    world = reached()
    world.addresses[VIP.address] = False
    assert changes(world.disk, world.network(), [VIP]) == Changes(deprecate_addresses=(VIP.address,))


def test_a_later_choice_of_somebody_else_for_arp_announce_stays() -> None:
    world = reached()
    world.announce[2] = 1
    world.reach(set())
    assert world.announce[2] == 1


def test_two_addresses_with_one_mac_share_the_group_until_the_last_of_them_goes() -> None:
    other = replace(VIP, ip=IPv4Address("10.8.0.101"))
    world = reached()
    world.reach({VIP, other})
    world.reach({other})
    assert VIP.group in world.groups
    world.reach(set())
    assert VIP.group not in world.groups


def test_a_link_that_is_gone_leaves_nothing_to_do() -> None:
    world = reached()
    world.addresses = dict(OWN)
    world.groups = set()
    del world.announce[2]
    world.reach(set())
    assert world.disk == Journal()


def test_a_lost_journal_is_learnt_from_the_rules_and_takes_no_foreign_address() -> None:
    world = reached()
    own = Place(2, IPv4Address("10.8.0.11"), "03:bf:0a:08:00:0b")
    gone = Place(2, IPv4Address("10.8.0.105"), "03:bf:0a:08:00:69")
    found = adopt(Journal(), world.network(), [VIP, own, gone])
    assert found.addresses == {VIP.address}
    assert found.groups == {VIP.group}


def test_the_journal_of_another_boot_claims_nothing() -> None:
    written = render_journal(reached().disk, BOOT)
    assert parse_journal(written, BOOT).addresses == {VIP.address}
    assert parse_journal(written, "another") == Journal()


@pytest.mark.parametrize(
    "garbage",
    [[], {}, {"bootID": BOOT}, {"bootID": BOOT, "addresses": [{"index": 0, "ip": "10.8.0.1"}]}],
)
def test_a_journal_that_is_none_is_refused(garbage: object) -> None:
    with pytest.raises(Invalid):
        parse_journal(garbage, BOOT)


def test_a_group_that_is_still_there_after_we_left_it_is_somebody_elses() -> None:
    refused = replace(VIP, index=3)
    ours = Journal(groups=frozenset({VIP.group, refused.group}))
    still_there = replace(World().network(), groups=ours.groups)
    left_one = after(ours, still_there, [], frozenset({VIP.group}))
    assert changes(left_one, still_there, []).leave_groups == (refused.group,)
