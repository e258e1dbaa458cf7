"""1,000 malformed ClusterIPs in the API, as an older or relaxed CRD lets them in, beside good ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from e2e.malformed import specs
from lab import claim, servers, verdict
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.installation import DATAPLANE, OPERATOR, SYNC, Installation
from lab.lan import Lan
from lab.progress import Silence

pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(400)]

COUNT, GOOD = 1000, 20
CLUSTERIPS = "/apis/lbless.dev/v1alpha1/namespaces/default/clusterips"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/clusterips.lbless.dev"
LOG_LINES = 100
"""What each program may say at most about a thousand objects at fault."""
TOLD_SECONDS = 60


@pytest.fixture
def lbless() -> Iterator[Installation]:
    """lbless with a CRD that takes anything."""
    with (
        Lan(claim.unique("lbmal"), nodes=3) as lan,
        servers.serving(lan.nodes),
        ControlPlane(lan, progress=Silence()) as control_plane,
        Installation(lan, control_plane) as installation,
    ):
        crd = control_plane.api("GET", CRD)
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        crd["spec"]["versions"][0].pop("selectableFields", None)  # they need a schema
        crd["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": anything}
        control_plane.api("PUT", CRD, crd)
        Silence().until("the CRD to take anything", lambda: takes_anything(control_plane), timeout_seconds=20)
        yield installation


def takes_anything(control_plane: ControlPlane) -> bool:
    body = {**head("probe"), "spec": 5}
    try:
        control_plane.api("POST", f"{CLUSTERIPS}?dryRun=All", body)
    except Exception:  # noqa: BLE001 - whatever it is, not yet
        return False
    return True


def head(name: str) -> dict[str, Any]:
    return {"apiVersion": "lbless.dev/v1alpha1", "kind": "ClusterIP", "metadata": {"name": name}}


def test_each_of_1000_malformed_objects_is_refused_in_a_sentence_and_the_good_ones_do_not_notice(lbless):
    names = [f"good-{number}" for number in range(GOOD)]
    for number, name in enumerate(names):
        lbless.create(name, {"ip": f"10.80.3.{1 + number}"})
    good = {name: lbless.wait_ready(name) for name in names}
    said = {key: lines(lbless, *key) for key in programs(lbless)}
    faults = {f"bad-{number}": pair for number, pair in enumerate(islice(specs(random.Random(9)), COUNT))}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: create(lbless, *item), faults.items()))

    told: dict[str, dict[str, str]] = {}

    def all_are_told() -> bool:
        objects = lbless.control_plane.api("GET", CLUSTERIPS)["items"]
        told.clear()
        for one in objects:
            for condition in (one.get("status") or {}).get("conditions", []):
                if condition["type"] == "Ready":
                    told[one["metadata"]["name"]] = condition
        return faults.keys() <= told.keys()

    try:
        Silence().until(
            "every one to be told", all_are_told, timeout_seconds=TOLD_SECONDS, interval_seconds=1
        )
    except LabError as error:
        untold = [faults[name] for name in sorted(faults.keys() - told.keys())]
        raise AssertionError(f"{error}; {len(untold)} are not, such as {untold[:5]}") from None
    for name, (field, spec) in faults.items():
        condition = told[name]
        assert condition["status"] == "False", (spec, condition)
        assert condition["reason"] in {"Invalid", "NotSupported"}, (spec, condition)
        assert field in condition["message"], (spec, condition)
        assert "\n" not in condition["message"]

    # The good ones: as they were, as quick to change as ever, and so is a new one.
    for name, before in good.items():
        now = lbless.wait_ready(name)
        assert (now.epoch, now.assignments) == (before.epoch, before.assignments)
    assert verdict.tcp(lbless.lan, good["good-7"], 200).faults == ()
    lbless.create("late", {"ip": "10.80.3.200"})
    assert verdict.tcp(lbless.lan, lbless.wait_ready("late", timeout_seconds=10), 100).faults == ()
    for node in lbless.lan.nodes:
        report = lbless.control_plane.api("GET", f"/apis/lbless.dev/v1alpha1/clusteripnodes/{node.name}")
        (ready,) = [c for c in report["status"]["conditions"] if c["type"] == "Ready"]
        assert (ready["status"], ready["reason"]) == ("True", "Applied"), ready
    events = lbless.control_plane.api("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    about = [e for e in events if e["regarding"]["name"].startswith("bad-")]
    grown = {key: lines(lbless, *key) - before for key, before in said.items()}
    print(f"lines logged: {grown}; Events: {len(about)}")
    assert max(grown.values()) <= LOG_LINES, grown


def create(lbless: Installation, name: str, fault: tuple[str, Any]) -> None:
    lbless.control_plane.api("POST", CLUSTERIPS, {**head(name), "spec": fault[1]})


def programs(lbless: Installation) -> list[tuple[str, str]]:
    """Every program that runs, as (program, host)."""
    agents = [(program, node.name) for node in lbless.lan.nodes for program in (SYNC, DATAPLANE)]
    return [(OPERATOR, lbless.lan.control.name), *agents]


def lines(lbless: Installation, program: str, host: str) -> int:
    """How many lines a program has logged."""
    return lbless.log(program, lbless.lan.host(host)).count("\n")
