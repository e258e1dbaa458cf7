"""Takeover in under a second, whatever happens to a node, with the API server and without: clients are the judges.

The same as a table, with more trials and at two paces: `make soak`, which ends in the figures of docs/failover.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab import failover, failovertable, faults, timeline
from lab.failover import Trial
from lab.faults import Fault
from lab.host import Host
from lab.programs import cache_directory
from lab.site import Site, site

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

WORST_SECONDS = 1.0
"""Promised: so long after a fault, each bucket of the node has answered as its new owner's."""
HOLD_SECONDS = 2.0
WORST_SECONDS_AT = {100: WORST_SECONDS, 50: 0.55}
"""The same by the pace of heartbeats, in ms."""
DEFAULT_TICK_MS = 100
TRIALS, SOAK_TRIALS = 3, 20
API, NO_API = "up", "stopped"

STEADY = (
    faults.KILL,
    faults.KILL_PROGRAMMING,
    faults.CUT,
    faults.POWER,
    faults.TWO,
    faults.SENT_LOST,
    faults.RECEIVED_LOST,
    faults.FLAPPING,
)
LONG = (faults.pause(10), faults.unplugged(5))
"""They end by themselves, and what a node does that comes back late counts as much as the takeover."""
SHORT = (faults.pause(2), faults.unplugged(2))
FAULTS = [*((fault, fault) for fault in STEADY), *zip(LONG, SHORT, strict=True)]
"""For the first trial, and for all others."""


@pytest.fixture(scope="module", params=[API, NO_API], ids=["API server up", "API server stopped"])
def place(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Three nodes that share an address; where the API server is stopped, its storage is too."""
    with site("failover") as made:
        if request.param == NO_API:
            made.leave_to_hand()
        yield made


def victims(place: Site, fault: Fault[Any], number: int) -> list[Host]:
    """Whom the trial with this number strikes: each node in turn."""
    nodes = place.lbless.nodes
    return [nodes[(number + one) % len(nodes)] for one in range(fault.victims)]


def strike(place: Site, fault: Fault[Site], number: int) -> Trial:
    """Make a trial and say what came of it."""
    trial = failover.run(place, fault, victims(place, fault, number))
    print(trial)
    return trial


def check(trial: Trial, worst_seconds: float) -> None:
    """What is promised of every takeover."""
    assert trial.faults == []
    assert max(trial.seconds) <= worst_seconds


@pytest.mark.parametrize(("first", "others"), FAULTS, ids=[first.name for first, _ in FAULTS])
def test_each_bucket_of_a_node_that_fails_has_its_new_owner_within_a_second_and_nobody_else_notices(
    place: Site, first: Fault[Site], others: Fault[Site]
) -> None:
    for number in range(TRIALS):
        check(strike(place, others if number else first, number), WORST_SECONDS)


def test_a_node_whose_dataplane_was_stopped_serves_for_its_hold_and_is_then_taken_over(place: Site) -> None:
    trial = strike(place, faults.STOP, 0)
    assert trial.faults == []
    assert min(trial.seconds) >= HOLD_SECONDS
    assert max(trial.seconds) <= HOLD_SECONDS + WORST_SECONDS
    assert max(trial.unserved_seconds) <= WORST_SECONDS


class Table:
    """The rows of a soak by its pace, written to the cache as they come."""

    def __init__(self) -> None:
        self._rows: dict[int, list[failovertable.Row]] = {}

    def add(self, tick_ms: int, api: str, trials: list[Trial]) -> None:
        rows = self._rows.setdefault(tick_ms, [])
        rows.append(failovertable.row(api, trials))
        cache_directory().mkdir(parents=True, exist_ok=True)
        path = cache_directory() / f"failover-tick-{tick_ms}.md"
        path.write_text(failovertable.markdown(rows))
        print(f"the table is in {path}")


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


@pytest.fixture(
    scope="module",
    # The faster pace without the API server alone: that is where nothing else helps.
    params=[(DEFAULT_TICK_MS, API), (DEFAULT_TICK_MS, NO_API), (50, NO_API)],
    ids=lambda p: f"tick {p[0]} ms, API server {p[1]}",
)
def pace(request: pytest.FixtureRequest) -> Iterator[tuple[Site, int, str]]:
    """A site whose heartbeats have a pace: (site, ms, what became of the API server)."""
    tick_ms, api = request.param
    arguments = [] if tick_ms == DEFAULT_TICK_MS else ["--tick-ms", str(tick_ms)]
    with site("soak", dataplane_arguments=arguments) as made:
        if api == NO_API:
            made.leave_to_hand()
        yield made, tick_ms, api


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", [*STEADY, *LONG], ids=lambda fault: fault.name)
def test_the_same_twenty_times_at_two_paces_as_a_table(
    pace: tuple[Site, int, str], table: Table, fault: Fault[Site]
) -> None:
    place, tick_ms, api = pace
    trials = [strike(place, fault, number) for number in range(SOAK_TRIALS)]
    table.add(tick_ms, api, trials)
    if fault is faults.CUT and api == NO_API:
        record = timeline.record(min(trials, key=lambda t: max(t.seconds)))
        path = cache_directory() / f"failover-tick-{tick_ms}.json"
        path.write_text(timeline.to_json(record))
        print(f"one of them for a picture is in {path}: python -m lab.timeline {path}")
    for trial in trials:
        check(trial, WORST_SECONDS_AT[tick_ms])
