"""What ending dataplane is to mean: for each state of the Node, and with and without ClusterIPs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lbless_api import EXCLUDE_LABEL
from lbless_api.state import Intent
from lbless_nodeagent.sync.intent import IntentFile, intend, why_it_goes

SHUTTING = {
    "type": "Ready",
    "status": "False",
    "reason": "KubeletNotReady",
    "message": "node is shutting down",
}


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({}, ""),
        ({"spec": {"taints": None}, "status": {"conditions": None}}, ""),
        ({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}, ""),
        ({"metadata": {"annotations": {"lbless.dev/weight": "50"}}}, ""),
        ({"status": {"conditions": [{**SHUTTING, "message": "container runtime is down"}]}}, ""),
        ({"status": {"conditions": [{**SHUTTING, "type": "DiskPressure"}]}}, ""),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "is being deleted"),
        ({"status": {"conditions": [SHUTTING]}}, "is shutting down"),
        (
            {"status": {"conditions": [{"type": "Ready", "reason": "node is shutting down"}]}},
            "is shutting down",
        ),
        (
            {"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}},
            "is tainted NoExecute (node.kubernetes.io/out-of-service)",
        ),
        ({"spec": {"unschedulable": True}}, "is cordoned"),
        ({"metadata": {"annotations": {"lbless.dev/weight": "0"}}}, "has weight 0"),
        ({"metadata": {"labels": {EXCLUDE_LABEL: ""}}}, f"has the label {EXCLUDE_LABEL}"),
    ],
)
def test_a_node_that_goes_hands_over_and_any_other_holds(node: dict[str, Any], why: str):
    assert why_it_goes(node) == why
    assert intend(why, 3) is (Intent.HANDOVER if why else Intent.HOLD)


def test_without_any_clusterip_all_is_removed_but_not_before_that_is_known():
    assert intend("", 0) is intend("is cordoned", 0) is Intent.REMOVE
    assert intend("", None) is Intent.HOLD
    assert intend("is cordoned", None) is Intent.HANDOVER


def test_the_file_is_written_when_it_changes_and_when_it_was_lost(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    why, count = "", 1
    written: list[Intent] = []
    file = IntentFile(lambda: why, lambda: count, written.append)
    file.update()
    file.update()
    assert written == [Intent.HOLD]
    why = "is cordoned"
    file.update()
    assert caplog.messages == ["Ending lbless-dataplane means handover from now on: the node is cordoned."]
    why, count = "", 0
    file.update()
    file.update(anew=True)
    assert written == [Intent.HOLD, Intent.HANDOVER, Intent.REMOVE, Intent.REMOVE]
