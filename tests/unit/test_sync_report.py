from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from hypothesis import given
from hypothesis import strategies as st

from lbless_api.digest import applied_digest
from lbless_api.interfaces import Interface
from lbless_api.node import EngineReport, Outstanding, parse_node_status, render_node_status
from lbless_api.state import Observed
from lbless_nodeagent.sync.report import MAX_MESSAGE, Reason, Wanted, report, settle

UIDS = st.sampled_from([f"u{n}" for n in range(8)])
EPOCHS = st.integers(0, 4)


def failure(uid: str, epoch: int = 0, message: str = "no interface") -> Outstanding:
    return Outstanding(uid, "", epoch, "NoMatchingInterface", message)


def observed(**fields: object) -> Observed:
    engines = (EngineReport("nftables", True),)
    return replace(Observed("boot", 5.0, kernel="6.1", engines=engines), **fields)  # type: ignore[arg-type]  # kwargs


def test_what_is_applied_as_wanted_is_in_the_digest_and_in_no_list() -> None:
    settled = settle({"a": Wanted("ns/a", 3), "b": Wanted("ns/b", 1)}, {"a": 3, "b": 1}, [])
    assert settled.pending == settled.failures == ()
    assert settled.applied_digest == applied_digest({"a": 3, "b": 1})


def test_an_older_epoch_is_pending_with_the_wanted_one_and_not_in_the_digest() -> None:
    settled = settle({"a": Wanted("ns/a", 3), "b": Wanted("ns/b", 1)}, {"a": 2, "b": 1}, [])
    assert [(p.uid, p.clusterip, p.epoch) for p in settled.pending] == [("a", "ns/a", 3)]
    assert settled.applied_digest == applied_digest({"b": 1})


def test_what_was_never_assigned_is_left_out_everywhere() -> None:
    wanted = {"a": Wanted("ns/a", 0)}
    settled = settle(wanted, {"a": 0}, [failure("a")])
    assert (settled.pending, settled.failures) == ((), ())
    assert settled.applied_digest == applied_digest({})


def test_a_failure_names_the_clusterip_and_the_wanted_epoch_and_is_not_pending_too() -> None:
    settled = settle({"a": Wanted("ns/a", 3)}, {"a": 2}, [failure("a", 2), failure("a", 2)])
    assert [(f.uid, f.clusterip, f.epoch, f.reason) for f in settled.failures] == [
        ("a", "ns/a", 3, "NoMatchingInterface")
    ]
    assert settled.pending == ()
    assert settled.applied_digest == applied_digest({})


def test_what_was_deleted_stays_in_the_digest_until_the_kernel_is_rid_of_it() -> None:
    assert settle({}, {"gone": 4}, []).applied_digest == applied_digest({"gone": 4})
    assert settle({}, {}, []).applied_digest == applied_digest({})


def test_an_epoch_newer_than_sync_has_heard_of_counts_as_applied() -> None:
    settled = settle({"a": Wanted("ns/a", 3)}, {"a": 4}, [])
    assert settled.pending == ()
    assert settled.applied_digest == applied_digest({"a": 4})


@given(
    wanted=st.dictionaries(UIDS, EPOCHS),
    applied=st.dictionaries(UIDS, EPOCHS),
    refused=st.lists(UIDS),
)
def test_every_assigned_clusterip_is_in_exactly_one_place_and_the_operator_finds_the_same_digest(
    wanted: dict[str, int], applied: dict[str, int], refused: list[str]
) -> None:
    settled = settle(
        {uid: Wanted(f"ns/{uid}", epoch) for uid, epoch in wanted.items()},
        applied,
        [failure(uid) for uid in refused],
    )
    pending, failures = {p.uid for p in settled.pending}, {f.uid for f in settled.failures}
    assert not pending & failures
    for uid, epoch in wanted.items():
        up_to_date = applied.get(uid, 0) >= epoch
        assert (uid in failures) == (epoch > 0 and uid in refused)
        assert (uid in pending) == (epoch > 0 and not up_to_date and uid not in refused)
    # What the operator does: all that it has assigned, without what the node lists as outstanding.
    if all(applied.get(uid, 0) <= epoch for uid, epoch in wanted.items()) and set(applied) <= set(wanted):
        expected = {u: e for u, e in wanted.items() if e > 0 and u not in pending | failures}
        assert settled.applied_digest == applied_digest(expected)


def test_nothing_wrong_is_ready_and_says_how_much_is_applied() -> None:
    said = report({"a": Wanted("ns/a", 1), "b": Wanted("ns/b", 0)}, observed(applied={"a": 1}), "")
    assert (said.ready, said.reason) == (True, Reason.APPLIED)
    assert said.message == "All 1 assigned ClusterIPs are in the kernel."


def test_the_gravest_fault_is_the_reason_and_each_says_what_to_do() -> None:
    wanted = {"a": Wanted("ns/a", 2), "b": Wanted("ns/b", 2)}
    worst = observed(
        engines=(EngineReport("nftables", False, "install libnftables 1.0.6 or newer."),),
        problems=("eth0 is down: plug the cable in.",),
        failures=(failure("a", message="no interface matches eth9: correct the globs."),),
    )
    seen = []
    for state, silence in (
        (worst, "lbless-dataplane is silent."),
        (worst, ""),
        (replace(worst, engines=()), ""),
        (replace(worst, engines=(), problems=()), ""),
        (replace(worst, engines=(), problems=(), failures=()), ""),
    ):
        said = report(wanted, state, silence)
        assert not said.ready
        seen.append((said.reason, said.message))
    assert seen == [
        (
            Reason.DATAPLANE_SILENT,
            "lbless-dataplane is silent. The node's Lease is not renewed meanwhile: "
            "look at the log of lbless-dataplane.",
        ),
        (
            Reason.ENGINE_UNAVAILABLE,
            "No engine works on this node. nftables: install libnftables 1.0.6 or newer.",
        ),
        (Reason.NODE_PROBLEM, "eth0 is down: plug the cable in."),
        (
            Reason.FAILED,
            "1 of 2 assigned ClusterIPs cannot be served here; "
            "ns/a: no interface matches eth9: correct the globs.",
        ),
        (Reason.PROGRAMMING, "2 of 2 assigned ClusterIPs wait to be programmed, first ns/a."),
    ]


def test_one_engine_that_works_is_enough() -> None:
    engines = (EngineReport("iptables", False, "not there"), EngineReport("nftables", True))
    assert report({}, observed(engines=engines), "").ready


def test_a_node_whose_dataplane_never_spoke_still_reports_that() -> None:
    said = report({"a": Wanted("ns/a", 2)}, None, "lbless-dataplane has not written observed.json yet.")
    assert said.reason is Reason.DATAPLANE_SILENT
    assert [p.uid for p in said.status.pending] == ["a"]


def test_counters_and_the_time_of_writing_make_no_difference() -> None:
    wanted = {"a": Wanted("ns/a", 1)}
    first = observed(applied={"a": 1}, counters={"foreign": 1}, boottime_seconds=1.0)
    later = observed(applied={"a": 1}, counters={"foreign": 99}, boottime_seconds=3.0)
    assert report(wanted, first, "") == report(wanted, later, "")


def test_a_report_of_a_thousand_troubles_stays_within_the_schema() -> None:
    wanted = {f"u{n:04}": Wanted(f"ns/{n:04}", 1) for n in range(1000)}
    address = IPv4Interface("10.0.0.1/24")
    interface = Interface("eth0", "02:00:00:00:00:01", (address,) * 300, (IPv4Address("10.0.0.254"),) * 100)
    state = observed(
        kernel="k" * 500,
        interfaces=tuple(replace(interface, name=f"e{n}") for n in range(100)),
        failures=tuple(failure(f"u{n:04}", message="m" * 4000) for n in range(100)),
        problems=("p" * 4000,),
    )
    said = report(wanted, state, "")
    status = said.status
    assert len(status.pending) == len(status.failures) == 64
    assert [p.uid for p in status.pending] == [f"u{n:04}" for n in range(100, 164)], "always the same ones"
    assert len(status.interfaces) == 64
    assert (len(status.interfaces[0].addresses), len(status.interfaces[0].gateways)) == (256, 64)
    assert max(len(f.message) for f in status.failures) == MAX_MESSAGE
    assert len(said.message) == MAX_MESSAGE
    assert len(status.kernel) == 128
    assert parse_node_status(render_node_status(status)) == status


def test_of_too_many_interfaces_those_that_can_carry_addresses_are_reported() -> None:
    bare = Interface("", "02:00:00:00:00:01", ())
    uplink = replace(
        bare,
        name="eth0",
        addresses=(IPv4Interface("10.0.0.1/24"),),
        gateways=(IPv4Address("10.0.0.254"),),
    )
    storage = replace(bare, name="storage", addresses=(IPv4Interface("10.1.0.1/24"),))
    bridges = tuple(replace(bare, name=f"br-{n:03}") for n in range(100))
    listed = report({}, observed(interfaces=(*bridges, uplink, storage)), "").status.interfaces
    assert len(listed) == 64
    assert listed[-2:] == (uplink, storage)
    assert list(listed) == sorted(listed, key=lambda i: i.name), "in an order that does not change"


def test_what_is_not_listed_for_lack_of_room_is_missing_from_the_digest_as_well() -> None:
    wanted = {f"u{n:04}": Wanted(f"ns/{n:04}", 1) for n in range(100)}
    said = report(wanted, observed(applied={"u0000": 1}), "")
    assert said.status.applied_digest == applied_digest({"u0000": 1})
