from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from hypothesis import given, settings
from hypothesis import strategies as st

from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability
from lbless_api.clusterip import SourceMAC
from lbless_api.digest import MAX_MARKS, applied_digest, mark
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.heartbeat import MAX_NUMBER, node_id
from lbless_api.interfaces import Interface
from lbless_api.node import Drain, EngineReport, Outstanding, parse_node_status, render_node_status
from lbless_api.segment import Condition, Peer, SegmentReport, by_id
from lbless_api.state import Observed
from lbless_nodeagent.sync import report as reporting
from lbless_nodeagent.sync.observation import essence
from lbless_nodeagent.sync.report import STATE_UNWRITABLE, Reason, Report, Settled, Situation, Wanted
from lbless_nodeagent.sync.room import STATUS_BYTES, shorten, size

UIDS = st.sampled_from([f"u{n}" for n in range(8)])
EPOCHS = st.integers(0, 4)


def failure(uid: str, epoch: int = 0, message: str = "no interface") -> Outstanding:
    return Outstanding(uid, "", epoch, "NoMatchingInterface", message)


def observed(**fields: object) -> Observed:
    engines = (EngineReport("nftables", True),)
    return replace(Observed("boot", 5.0, kernel="6.1", engines=engines), **fields)  # type: ignore[arg-type]  # kwargs


def settle(wanted: dict[str, Wanted], applied: dict[str, int], refused: list[Outstanding]) -> Settled:
    state = observed(applied=applied, failures=tuple(refused))
    return reporting.settle(Situation(wanted, state))


def report(wanted: dict[str, Wanted], state: Observed | None, silence: str = "", trouble: str = "") -> Report:
    return reporting.report(Situation(wanted, state, silence, trouble))


def test_what_is_applied_as_wanted_is_in_the_digest_and_in_no_list() -> None:
    settled = settle({"a": Wanted("ns/a", 3), "b": Wanted("ns/b", 1)}, {"a": 3, "b": 1}, [])
    assert settled.pending == settled.failures == ()
    assert settled.applied == {"a": 3, "b": 1}


def test_an_older_epoch_is_pending_with_the_wanted_one_and_not_in_the_digest() -> None:
    settled = settle({"a": Wanted("ns/a", 3), "b": Wanted("ns/b", 1)}, {"a": 2, "b": 1}, [])
    assert [(p.uid, p.clusterip, p.epoch) for p in settled.pending] == [("a", "ns/a", 3)]
    assert settled.applied == {"b": 1}


def test_what_was_never_assigned_is_left_out_everywhere() -> None:
    wanted = {"a": Wanted("ns/a", 0)}
    settled = settle(wanted, {"a": 0}, [failure("a")])
    assert (settled.pending, settled.failures) == ((), ())
    assert settled.applied == {}


def test_a_failure_names_the_clusterip_and_the_wanted_epoch_and_is_not_pending_too() -> None:
    settled = settle({"a": Wanted("ns/a", 3)}, {"a": 2}, [failure("a", 2), failure("a", 2)])
    assert [(f.uid, f.clusterip, f.epoch, f.reason) for f in settled.failures] == [
        ("a", "ns/a", 3, "NoMatchingInterface")
    ]
    assert settled.pending == ()
    assert settled.applied == {}


def test_what_was_deleted_stays_in_the_digest_until_the_kernel_is_rid_of_it() -> None:
    assert settle({}, {"gone": 4}, []).applied == {"gone": 4}
    assert settle({}, {}, []).applied == {}


def test_an_epoch_newer_than_sync_has_heard_of_counts_as_applied() -> None:
    settled = settle({"a": Wanted("ns/a", 3)}, {"a": 4}, [])
    assert settled.pending == ()
    assert settled.applied == {"a": 4}


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
        assert settled.applied == expected


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


def test_one_engine_that_works_is_enough_and_comes_first() -> None:
    engines = (EngineReport("nftables", False, "not there", active=False), EngineReport("iptables", True))
    said = report({}, observed(engines=engines), "")
    assert said.ready
    assert [engine.name for engine in said.status.engines] == ["iptables", "nftables"]


def test_a_node_whose_dataplane_never_spoke_still_reports_that() -> None:
    said = report({"a": Wanted("ns/a", 2)}, None, "lbless-dataplane has not written observed.json yet.")
    assert said.reason is Reason.DATAPLANE_SILENT
    assert [p.uid for p in said.status.pending] == ["a"]


def test_counters_and_the_time_of_writing_make_no_difference() -> None:
    first = observed(applied={"a": 1}, counters={"foreign": 1}, boottime_seconds=1.0)
    later = observed(applied={"a": 1}, counters={"foreign": 99}, boottime_seconds=3.0)
    assert essence(first) == essence(later)
    assert essence(first) != essence(observed(applied={"a": 2}))


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
    said = report(wanted, state)
    status = said.status
    assert [f.uid for f in status.failures] == [f"u{n:04}" for n in range(len(status.failures))], "the first"
    assert 16 < len(status.failures) < 64
    assert len(status.interfaces) == 64
    assert status.unlisted == {
        mark(uid) for uid in wanted if uid not in {o.uid for o in (*status.pending, *status.failures)}
    }
    listed = len(status.pending) + len(status.failures)
    assert said.message.startswith("pppp")
    assert said.message.endswith(f"pp… Beside what is listed {1000 - listed} more are pending or failed.")
    assert len(said.message) < 2048
    assert len(status.kernel) <= 128
    assert written_bytes(said) <= STATUS_BYTES
    assert parse_node_status(render_node_status(status)) == status


def written_bytes(said: Report) -> int:
    """What it takes at most in the API server's JSON."""
    return size(render_node_status(said.status)) + size(said.message)


ABLE = Capability(
    frozenset(HashFunction), frozenset(HashMode), 2**63 - 1, 32, source_macs=frozenset(SourceMAC), ports=False
)
TEXT = st.text(max_size=30) | st.builds(lambda c, n: c * n, st.characters(), st.integers(100, 4096))
SPREAD = st.sampled_from([0, 1, 63, 64, 65, 300, 1000, 2500])


@settings(max_examples=40, deadline=None)
@given(
    kernel=TEXT,
    sentence=TEXT,
    key=TEXT,
    name=st.text(max_size=15),
    engines=st.integers(0, 12),
    capabilities=st.integers(0, 6),
    interfaces=st.integers(0, 90),
    addresses=st.integers(0, 300),
    failing=SPREAD,
    waiting=SPREAD,
    silent=st.booleans(),
    peers=st.integers(0, 64),
    draining=SPREAD,
    worst=st.booleans(),
)
def test_every_report_fits_into_32_kib(
    kernel: str,
    sentence: str,
    key: str,
    name: str,
    engines: int,
    capabilities: int,
    interfaces: int,
    addresses: int,
    failing: int,
    waiting: int,
    silent: bool,
    peers: int,
    draining: int,
    worst: bool,
) -> None:
    buckets = BucketSet(range(0, 4096, 2)) if worst else BucketSet.full(85)
    seen = tuple(Peer(f"{n:0253}", MAX_NUMBER) for n in range(peers))
    state = observed(
        kernel=kernel,
        engines=(EngineReport(name, True, sentence, True, (ABLE,) * capabilities, sentence),) * engines,
        interfaces=tuple(
            Interface(
                name,
                "02:00:00:00:00:01",
                (IPv4Interface("100.100.100.100/24"),) * addresses,
                (IPv4Address("100.100.100.254"),) * 20,
                incarnation=MAX_NUMBER,
                segment=SegmentReport(frozenset(Condition), seen, seen) if peers else None,
            )
            for _ in range(interfaces)
        ),
        failures=tuple(Outstanding(f"{n:063}", key, MAX_NUMBER, sentence, sentence) for n in range(failing)),
        drains=tuple(Drain(f"d{n:062}", key, buckets, MAX_NUMBER) for n in range(draining)),
    )
    wanted = {f"w{n:062}": Wanted("n" * 63 + "/" + "c" * 253, MAX_NUMBER) for n in range(waiting)}
    said = report(wanted, state, sentence if silent else "")
    assert written_bytes(said) <= STATUS_BYTES
    assert len(said.message) <= 2048
    assert bool(said.status.engines) == bool(engines)
    assert parse_node_status(json.loads(json.dumps(render_node_status(said.status)))) == said.status
    outstanding = len(said.status.pending) + len(said.status.failures) + len(said.status.unlisted)
    assert outstanding == failing + waiting or len(said.status.unlisted) >= MAX_MARKS - 1
    drains = len(said.status.drains) + len(said.status.unlisted_drains)
    assert drains == draining or len(said.status.unlisted_drains) >= MAX_MARKS - 1
    everything = said.message.endswith("are in the kernel.") or said.status.unlisted == frozenset()
    assert everything == ("more are pending or failed" not in said.message)


def test_a_few_failures_are_told_in_full() -> None:
    wanted = {f"u{n}": Wanted(f"ns/{n}", 1) for n in range(5)}
    said = report(wanted, observed(failures=tuple(failure(uid, message="m" * 1900) for uid in wanted)))
    assert [len(f.message) for f in said.status.failures] == [1900] * 5
    assert said.status.unlisted == frozenset()


@given(text=st.text(max_size=200), room=st.integers(8, 300))
def test_a_shortened_text_fits_its_room_and_is_the_beginning_of_the_whole(text: str, room: int) -> None:
    short = shorten(text, room)
    assert size(short) <= room
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))
    assert len(json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass")) <= size(text)


def test_what_is_not_on_the_disk_has_failed_whatever_the_kernel_has() -> None:
    wanted = {uid: Wanted(f"ns/{uid}", 2) for uid in ("a", "b", "c")}
    sentence = "/var/lib/lbless/desired/a.json cannot be written (No space left on device): why."
    situation = Situation(
        wanted,
        observed(applied={"a": 1, "b": 2, "c": 2, "deleted": 7}),
        trouble=sentence,
        unstored={"a": sentence, "b": sentence, "not-assigned": sentence},
    )
    settled = reporting.settle(situation)
    assert settled.pending == ()
    assert settled.applied == {"c": 2}
    assert [(f.uid, f.clusterip, f.epoch, f.reason, f.message) for f in settled.failures] == [
        ("deleted", "", 7, STATE_UNWRITABLE, sentence),
        ("a", "ns/a", 2, STATE_UNWRITABLE, sentence),
        ("b", "ns/b", 2, STATE_UNWRITABLE, sentence),
    ]
    said = reporting.report(situation)
    assert (said.ready, said.reason, said.message) == (False, Reason.NODE_PROBLEM, sentence)


def test_the_disk_is_named_as_the_cause_of_dataplanes_silence() -> None:
    sentence = "/var/lib/lbless/observed.json cannot be written (Read-only file system): why."
    said = report(
        {}, observed(), "lbless-dataplane has not written observed.json for more than 6 s.", sentence
    )
    assert said.reason is Reason.NODE_PROBLEM
    assert said.message == (
        f"{sentence} lbless-dataplane has not written observed.json for more than 6 s. "
        f"The node's Lease is not renewed meanwhile."
    )


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


def on_segment(number: int, names: list[str]) -> Interface:
    peers = tuple(Peer(name, 1_767_225_600_000) for name in names)
    addresses = tuple(IPv4Interface(f"10.{number}.{host}.1/16") for host in range(200))
    segment = SegmentReport(frozenset({Condition.ACTING}), peers[:40], peers[40:])
    return Interface(f"zz{number:013}", "02:00:00:00:00:01", addresses, segment=segment)


def test_peers_are_named_where_there_is_room_and_else_told_by_their_ids() -> None:
    names = [f"node-{number:02}" for number in range(64)]
    (shown,) = report({}, observed(interfaces=(on_segment(1, names),))).status.interfaces
    assert shown.segment == on_segment(1, names).segment
    long = [f"{name}.{'a' * 200}" for name in names]
    both = (on_segment(1, long), on_segment(2, long))
    kept = report({}, observed(interfaces=both)).status.interfaces
    for before, after in zip(both, kept, strict=True):
        assert before.segment
        assert after.segment
        assert after.segment.heard == tuple(map(by_id, before.segment.heard))
        assert [peer.life[0] for peer in after.segment.dead] == [node_id(name) for name in long[40:]]


def test_an_interface_whose_peers_have_no_room_at_all_says_nothing_of_its_segment_rather_than_half() -> None:
    names = [f"node-{number:02}" for number in range(64)]
    many = tuple(on_segment(number, names) for number in range(8))
    kept = report({}, observed(interfaces=many)).status
    said = [i.segment for i in kept.interfaces if i.segment]
    assert 2 <= len(said) < 8
    assert all(len(segment.heard) == 40 for segment in said)
    assert size(render_node_status(kept)) <= STATUS_BYTES


def test_what_is_not_listed_for_lack_of_room_is_missing_from_the_digest_as_well() -> None:
    wanted = {f"u{n:04}": Wanted(f"ns/{n:04}", 1) for n in range(200)}
    said = report(wanted, observed(applied={"u0000": 1}))
    assert said.status.applied_digest == applied_digest({"u0000": 1})
    assert len(said.status.pending) + len(said.status.unlisted) == 199


def drain(uid: str, flows: int = 3) -> Drain:
    return Drain(uid, f"ns/{uid}", BucketSet.full(85), flows)


def test_of_many_drains_the_first_by_uid_are_listed_and_the_others_have_a_mark() -> None:
    drains = [drain(f"u{n:03}") for n in range(200)]
    said = report({}, observed(drains=tuple(reversed(drains)))).status
    assert said.drains == tuple(drains[:64])
    assert said.unlisted_drains == {mark(d.uid) for d in drains[64:]}
    assert (said.unlisted, said.applied_digest) == (frozenset(), applied_digest({}))
    few = report({}, observed(drains=tuple(drains[:3]))).status
    assert (few.drains, few.unlisted_drains) == (tuple(drains[:3]), frozenset())


def test_how_much_is_left_is_a_figure_and_what_drains_is_not() -> None:
    first = report({}, observed(drains=(drain("a"), drain("b"))))
    later = report({}, observed(drains=(drain("a", 2), replace(drain("b"), buckets=BucketSet([1])))))
    assert first != later
    assert reporting.without_figures(first) == reporting.without_figures(later)
    for other in (
        observed(drains=(drain("a"),)),
        observed(drains=first.status.drains, kernel="6.2"),
        # So that nobody reads "0 connections" before they were counted.
        observed(drains=(drain("a", 0), drain("b"))),
    ):
        assert reporting.without_figures(report({}, other)) != reporting.without_figures(first)
