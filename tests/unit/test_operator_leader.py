"""Leading: who may take the Lease, and for how long its holder may trust that nobody else has."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_edge.kube import ApiError
from lbless_edge.process import Fatal
from lbless_operator.leader import Leader, LeaseRecord, NotLeading, Term


def test_a_free_a_released_and_an_own_lease_may_be_taken():
    term = Term("me", 15)
    assert term.may_take(LeaseRecord(), 0)
    assert term.may_take(LeaseRecord(holder="", version="3"), 0)
    assert term.may_take(LeaseRecord(holder="me", version="3"), 0)


def test_anothers_lease_may_be_taken_after_a_whole_term_without_a_change():
    term = Term("me", 15)
    record = LeaseRecord(holder="other", renewed="t0", version="1")
    assert not term.may_take(record, 100)
    assert not term.may_take(record, 114.9)
    assert term.may_take(record, 115)


def test_every_change_of_the_record_begins_a_new_term_whatever_time_it_names():
    term = Term("me", 15)
    assert not term.may_take(LeaseRecord(holder="other", renewed="t0", version="1"), 100)
    assert not term.may_take(LeaseRecord(holder="other", renewed="long ago", version="2"), 114)
    assert not term.may_take(LeaseRecord(holder="other", renewed="long ago", version="2"), 116)


def test_a_holder_with_a_longer_term_of_its_own_is_waited_for():
    term = Term("me", 3)
    record = LeaseRecord(holder="other", duration_seconds=15, version="1")
    assert not term.may_take(record, 0)
    assert not term.may_take(record, 10)
    assert term.may_take(record, 15)


def test_the_holder_trusts_a_renewal_for_two_thirds_of_the_term_from_when_it_asked():
    term = Term("me", 15)
    assert not term.is_valid(0)
    term.won(asked_at=100)
    assert term.is_valid(109.9)
    assert not term.is_valid(110)


@given(
    st.floats(0, 5),
    st.floats(0, 30),
    st.floats(0, 5),
    st.floats(0.01, 2),
)
def test_two_never_trust_at_the_same_time(delay, silence, look_delay, interval):
    """The holder renews once (the answer takes `delay`) and stops; another looks every `interval`."""
    mine, other = Term("me", 15), Term("other", 15)
    asked_at, stored_at = 10.0, 10.0 + delay / 2
    mine.won(asked_at)
    record = LeaseRecord(holder="me", renewed="t", version="1")
    now = stored_at + look_delay
    while now < stored_at + silence:
        if other.may_take(record, now):
            assert not mine.is_valid(now)
            return
        now += interval


@dataclass
class OneLease:
    """An API server that has nothing but a Lease; checked against the real one by tests/cluster."""

    lease: dict[str, Any] | None = None
    version: int = 0
    fails: bool = False
    server: str = "fake"
    writes: list[str] = field(default_factory=list)
    reads: int = 0

    def get(self, _path: str) -> dict[str, Any]:
        self._check()
        self.reads += 1
        if self.lease is None:
            raise ApiError(404, "not found", reason="NotFound")
        return self.lease

    def create(self, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.lease is not None:
            raise ApiError(409, "exists")
        return self._store(body)

    def replace(self, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.lease is None or body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "changed")
        return self._store(body)

    def _check(self) -> None:
        if self.fails:
            raise ApiError(0, "The API server cannot be reached.")

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.lease = body
        self.writes.append(body["spec"]["holderIdentity"])
        return body


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def leader(api: OneLease, identity: str, clock: FakeClock, stop: threading.Event | None = None) -> Leader:
    # The fake has the three methods that are used of an Api.
    return Leader(api, "lbless-system", identity, stop or threading.Event(), clock)  # type: ignore[arg-type]


def test_who_finds_no_lease_makes_one_and_may_write():
    api, clock = OneLease(), FakeClock()
    one = leader(api, "a", clock)
    with pytest.raises(NotLeading):
        one.check()
    assert one.acquire()
    one.check()
    assert api.lease is not None
    assert api.lease["spec"]["holderIdentity"] == "a"
    assert api.lease["spec"]["leaseTransitions"] == 0


def test_a_process_that_slept_through_its_term_may_not_write_when_it_wakes():
    api, clock = OneLease(), FakeClock()
    one = leader(api, "a", clock)
    assert one.acquire()
    clock.now += 60
    with pytest.raises(NotLeading):
        one.check()


def test_who_is_told_to_end_releases_the_lease_and_the_next_takes_it_at_once():
    api, clock = OneLease(), FakeClock()
    one, other = leader(api, "a", clock), leader(api, "b", clock)
    assert one.acquire()
    one.release()
    assert other.acquire()
    assert api.lease is not None
    assert api.lease["spec"]["leaseTransitions"] == 1
    with pytest.raises(NotLeading):
        one.check()


def test_who_leads_no_longer_releases_nothing():
    api, clock = OneLease(), FakeClock()
    one, other = leader(api, "a", clock), leader(api, "b", clock)
    assert one.acquire()
    one.release()
    assert other.acquire()
    clock.now += 60
    one.release()
    other.release()
    assert api.writes == ["a", "", "b"]


def test_a_leader_that_finds_another_ones_name_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch):
    api, clock = OneLease(), FakeClock()
    one, other = leader(api, "a", clock), leader(api, "b", clock)
    assert one.acquire()
    one.release()
    assert other.acquire()
    monkeypatch.setattr(one, "_pause", lambda _seconds: False)
    with pytest.raises(
        Fatal, match=r"The Lease lbless-system/lbless-operator was lost to b: this replica ends\."
    ):
        one.run()


def renew(one: Leader, clock: FakeClock, times: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a leader renew so many times; return how long it waited before each."""
    waited: list[float] = []

    def pause(seconds: float) -> bool:
        waited.append(seconds)
        clock.now += seconds
        return len(waited) > times

    monkeypatch.setattr(one, "_pause", pause)
    one.run()
    return waited[:times]


def test_a_renewal_is_one_write_and_no_read_every_fifth_of_the_term(monkeypatch: pytest.MonkeyPatch):
    api, clock = OneLease(), FakeClock()
    one = leader(api, "a", clock)
    assert one.acquire()
    reads = api.reads
    assert renew(one, clock, 10, monkeypatch) == [3.0] * 10
    assert (api.reads, len(api.writes)) == (reads, 11)
    one.check()


def test_a_lease_that_somebody_touched_is_read_and_renewed_all_the_same(monkeypatch: pytest.MonkeyPatch):
    api, clock = OneLease(), FakeClock()
    one = leader(api, "a", clock)
    assert one.acquire()
    reads = api.reads
    assert api.lease is not None
    api._store({**api.lease, "metadata": {**api.lease["metadata"], "labels": {"touched": "yes"}}})
    renew(one, clock, 2, monkeypatch)
    assert api.reads == reads + 1
    one.check()


def test_after_a_failure_it_reads_before_it_writes_and_hurries(monkeypatch: pytest.MonkeyPatch):
    api, clock = OneLease(), FakeClock()
    one = leader(api, "a", clock)
    assert one.acquire()
    reads = api.reads
    api.fails = True
    waited = renew(one, clock, 3, monkeypatch)
    assert waited[0] == 3
    assert max(waited[1:]) <= 2
    api.fails = False
    renew(one, clock, 1, monkeypatch)
    assert api.reads == reads + 1


def test_who_waits_wakes_at_the_moment_when_the_lease_runs_out(monkeypatch: pytest.MonkeyPatch):
    api, clock = OneLease(), FakeClock()
    one, other = leader(api, "a", clock), leader(api, "b", clock)
    assert one.acquire()
    clock.now += 0.7
    seen_at, waited = clock.now, []

    def pause(seconds: float) -> bool:
        waited.append(seconds)
        clock.now += seconds
        return False

    monkeypatch.setattr(other, "_pause", pause)
    assert other.acquire()
    assert clock.now == pytest.approx(seen_at + 15)
    assert max(waited) <= 2
    with pytest.raises(NotLeading):
        one.check()


def test_an_api_server_that_is_away_costs_the_right_to_write_but_not_the_lease():
    api, clock = OneLease(), FakeClock()
    one = leader(api, "a", clock)
    assert one.acquire()
    api.fails = True
    clock.now += 20
    with pytest.raises(NotLeading):
        one.check()
    api.fails = False
    assert one.acquire()
    one.check()


def test_of_two_that_read_the_same_lease_one_gets_it():
    api, clock = OneLease(), FakeClock()
    api._store({"metadata": {}, "spec": {"holderIdentity": "", "leaseDurationSeconds": 1}})
    one, other = leader(api, "a", clock), leader(api, "b", clock)
    stale = other._read()
    assert one.acquire()
    with pytest.raises(ApiError, match="changed"):
        other._write(stale, holder="b", duration_seconds=15)


def test_waiting_to_lead_ends_when_told():
    api, clock, stop = OneLease(), FakeClock(), threading.Event()
    assert leader(api, "a", clock).acquire()
    stop.set()
    assert not leader(api, "b", clock, stop).acquire()
