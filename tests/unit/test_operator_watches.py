"""How kopf is set up: what it asks for, when it gives up on a silent watch, and how it waits."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from kubernetes import client

from lbless_operator import watches as module
from lbless_operator.facts import Kind
from lbless_operator.mailbox import Mailbox
from lbless_operator.restraint import Restraint
from lbless_operator.watches import RETRY_SECONDS, Watches, _settings


class Rounds:
    """The lister, as far as watches talk to it: each round that they wait for is completed at once."""

    def __init__(self) -> None:
        self.requested = 0

    def await_round(self, since: float) -> None:
        pass

    def request_round(self) -> None:
        self.requested += 1


def test_kopf_begins_anew_whatever_ends_it_a_cancellation_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    stop, rounds, ends = threading.Event(), Rounds(), [asyncio.CancelledError(), ValueError("no")]

    async def kopf(**_: object) -> None:
        if ends:
            raise ends.pop(0)
        stop.set()

    monkeypatch.setattr(module.kopf, "operator", kopf)
    monkeypatch.setattr(module, "Backoff", lambda base_seconds: Patient())  # noqa: ARG005 - as the real one's
    watches = Watches(
        [Kind.NODE],
        "",
        Mailbox(),
        rounds,  # type: ignore[arg-type] # what is called of it is there
        Restraint(logging.getLogger("lbless.operator")),
        client.Configuration,
        stop,
        time.monotonic,
    )
    watches.run()
    assert rounds.requested == 3
    assert "begin anew: CancelledError" in caplog.text
    assert "begin anew: ValueError: no" in caplog.text


class Patient:
    """A Backoff that waits for nothing."""

    def failed(self) -> float:
        return 0.0

    def succeeded(self) -> None:
        pass


def test_requests_are_repeated_after_other_random_times_each_time():
    backoffs = _settings([Kind.NODE]).networking.error_backoffs
    assert not isinstance(backoffs, float)
    waits = [list(backoffs) for _ in range(20)]
    assert len({tuple(times) for times in waits}) == 20
    assert all(
        0 <= time <= bound for times in waits for time, bound in zip(times, RETRY_SECONDS, strict=True)
    )


def test_a_watch_that_is_silent_for_longer_than_bookmarks_take_is_given_up():
    assert 60 < _settings([Kind.NODE]).watching.inactivity_timeout <= 75
