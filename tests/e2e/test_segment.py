"""What is no failure of a node: dataplane replaced again and again, heartbeats that no switch carries, starvation."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.moving import STORY_CHARACTERS
from lab import takeover
from lab.host import Host
from lab.impact import time_of_day
from lab.installation import CHART_CAPABILITIES, DATAPLANE
from lab.kernelstate import leases
from lab.lan import Lan
from lab.prober import Log, Prober, Sources
from lab.progress import Silence
from lab.servers import TCP_PORT
from lab.site import BUCKETS, NAME, Site, site
from lbless_api.clusterip import parse_clusterip

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

RESTARTS = 10
"""In either way; 20 in all."""
LOADS_PER_CORE = 4
STARVED_SECONDS, SOAK_STARVED_SECONDS = 20, 300
PER_SECOND_STARVED = 100
# A SYN is sent again by the kernel after 1 s: whatever is answered before that has lost nothing.
PATIENCE_SECONDS = 0.9
UNHEARD_SECONDS = 120
ANEW = "anew"
"""A ClusterIP that begins where no heartbeat arrives."""
UNHEARD = ["--unheard-ms", "8000"]
HOLD = ["--hold-ms", "5000"]
"""Its two processes start in 1.5 s where nothing else runs, and the usual hold is 2 s."""
FILTER = """
table bridge lab_unheard {
 chain forward { type filter hook forward priority 0; policy accept; ether type 0x88b5 drop; }
}
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    """Three nodes that share an address; their dataplanes have the capabilities of the chart and no more."""
    with site("segment", dataplane_arguments=[*UNHEARD, *HOLD], dataplane_wrapper=CHART_CAPABILITIES) as made:
        yield made


def probing(place: Site, per_second: int = 200) -> Prober:
    """A patient prober."""
    return Prober(
        place.lan.client,
        place.address,
        TCP_PORT,
        place.sources,
        place.lan.owner_of,
        per_second=per_second,
        patience_seconds=PATIENCE_SECONDS,
    )


def replace(place: Site, node: Host) -> None:
    """As an upgrade with a surge does: the successor is there before its predecessor ends."""
    assert place.lbless.succeed(node) == 0


def restart(place: Site, node: Host) -> None:
    """As the death of a container does: the successor is started once its predecessor has ended."""
    assert place.lbless.stop(DATAPLANE, node) == 0
    place.lbless.start(DATAPLANE, node)


@pytest.mark.parametrize("way", [replace, restart])
def test_no_connection_fails_in_10_restarts_of_dataplane_and_no_bucket_moves(place: Site, way) -> None:
    place.await_healthy()
    owners, incarnations = place.owners(), place.incarnations()
    with probing(place) as log:
        for number in range(RESTARTS):
            node = place.lbless.nodes[number % len(place.lbless.nodes)]
            before = place.lbless.serving(node)
            way(place, node)
            Silence().until(
                f"the successor on {node.name} to serve",
                lambda node=node, before=before: place.lbless.serving(node) > before,
                timeout_seconds=20,
            )
        place.await_healthy()
    probes = log.probes()
    failed = [p for p in probes if p.error is not None]
    print(f"{RESTARTS} restarts ({way.__name__}), {len(probes)} connections, {len(failed)} failed")
    assert takeover.disturbed(probes, owners, ()) == []
    assert failed == []
    assert takeover.doubles(probes) == []
    assert place.owners() == owners
    assert place.incarnations() == incarnations


@contextmanager
def starved() -> Iterator[None]:
    """Every core has more to do than it can."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(LOADS_PER_CORE * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
        for one in busy:
            one.wait()


@pytest.mark.parametrize(
    "seconds",
    [
        STARVED_SECONDS,
        pytest.param(SOAK_STARVED_SECONDS, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_a_starved_node_is_not_taken_for_a_dead_one(place: Site, seconds: int) -> None:
    place.await_healthy()
    owners, incarnations = place.owners(), place.incarnations()
    with starved(), probing(place, PER_SECOND_STARVED) as log:
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            strays = [s for s in takeover.disturbed(log.probes(), owners, ()) if "was answered by" in s]
            assert strays == []
            time.sleep(0.5)
    probes = log.probes()
    unanswered = [p for p in probes if p.answerer is None]
    print(f"{len(probes)} connections in {seconds} s of starvation, {len(unanswered)} not answered")
    print(f"lapses of leases: {lapses(log, owners)}; the prober was late by {log.late_seconds:.2f} s at most")
    place.await_healthy()
    assert takeover.doubles(probes) == []
    assert place.owners() == owners
    assert place.incarnations() == incarnations, "somebody stepped down"


def lapses(log: Log, owners: dict[int, str]) -> dict[str, int]:
    """For each node how often it was that nothing of it answered for a while."""
    found: dict[str, int] = {}
    for name in sorted({*owners.values()}):
        answered = [p.answerer is not None for p in log.probes() if owners[p.bucket] == name]
        found[name] = sum(a and not b for a, b in itertools.pairwise(answered))
    return found


def told(place: Site) -> dict[str, int]:
    """The incarnations that the operator has assigned buckets to."""
    return {a["node"]: a["incarnation"] for a in place.lbless.get(NAME)["status"]["assignments"]}


def tell(place: Site, log: Log) -> None:
    """Print when two nodes answered, and what each node said by then."""
    twice = [probe.started for probe in log.probes() if len(probe.senders) > 1]
    print(f"answered twice from {time_of_day(min(twice))} to {time_of_day(max(twice))}")
    for node in place.lbless.nodes:
        print(f"{node.name}:\n{place.lbless.log(DATAPLANE, node)[-STORY_CHARACTERS:]}")


def test_nodes_that_never_hear_each_other_take_nothing_over_and_say_so(place: Site) -> None:
    place.await_healthy()
    lan, lbless = place.lan, place.lbless
    for node in lbless.nodes:
        assert lbless.stop(DATAPLANE, node) == 0
    # Else they would go on as those who have heard each other, for whom silence is death.
    Silence().until("the leases to end", lambda: not any(map(leases, lbless.nodes)), timeout_seconds=10)
    lan.switch.run(["nft", "-f", "-"], stdin=FILTER)
    former = place.incarnations()

    def known() -> bool:
        """Whether the epochs name what was started: nodes whose former selves they name would act, each for itself."""
        now = place.incarnations()
        return now == told(place) and not now.items() & former.items()

    try:
        for node in lbless.nodes:
            lbless.start(DATAPLANE, node)
        Silence().until("health", known, timeout_seconds=UNHEARD_SECONDS)
        made = lbless.create(ANEW, {"ip": Lan.vip(2), "buckets": BUCKETS})
        parameters = parse_clusterip(made).spec.hash
        sources = Sources(parameters, TCP_PORT, lan.client.addresses)
        with Prober(lan.client, Lan.vip(2), TCP_PORT, sources, lan.owner_of, patience_seconds=1) as log:
            Silence().until(
                "the condition Degraded to say NoPeersHeard",
                lambda: lbless.condition(ANEW, "Degraded").get("reason") == "NoPeersHeard",
                timeout_seconds=UNHEARD_SECONDS,
            )
            assigned = {b: a.node for a in lbless.wait_ready(ANEW).assignments for b in a.buckets}
            since = time.monotonic()
            while not takeover.asked(log.probes(since), assigned, 10):
                time.sleep(0.05)
        # Each serves what it was given, and nothing else; where a second epoch follows the first, too.
        if takeover.doubles(log.probes()):
            tell(place, log)
        assert takeover.doubles(log.probes()) == []
        assert takeover.disturbed(log.probes(since), assigned, ()) == []
        lbless.delete(ANEW)
    finally:
        lan.switch.run(["nft", "delete", "table", "bridge", "lab_unheard"])
    place.await_healthy()
