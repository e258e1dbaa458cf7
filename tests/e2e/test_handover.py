"""Buckets move between living nodes, again and again, and no client notices: not one connection, datagram or SYN."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from lab import clients
from lab.installation import Installation
from lab.lan import Lan
from lab.progress import Silence
from lbless_api import WEIGHT_ANNOTATION
from lbless_api.clusterip import ClusterIP

pytestmark = [pytest.mark.root, pytest.mark.apiserver]

NAMES = ("n1", "n2", "n3")


@pytest.fixture
def web(lbless: Installation, vip: str) -> Iterator[ClusterIP]:
    """A ClusterIP of which buckets move; a drain that no flow needs any more ends by itself."""
    lbless.create("web", {"ip": vip, "drainTimeoutSeconds": 600})
    yield lbless.wait_ready("web")
    for name in NAMES:
        weigh(lbless, name, None)
    lbless.delete("web")


def weigh(lbless: Installation, name: str, weight: int | None) -> None:
    """Give a node another weight; 0 takes it out."""
    value = None if weight is None else str(weight)
    lbless.control_plane.patch_node(name, {"metadata": {"annotations": {WEIGHT_ANNOTATION: value}}})


def settled(lbless: Installation) -> ClusterIP:
    """Wait until all nodes have the newest epoch in their kernels."""
    return lbless.wait_ready("web")


def test_fifty_moves_disturb_no_connection_no_datagram_and_no_syn(lbless: Installation, web: ClusterIP):
    draw = random.Random(7)
    lan: Lan = lbless.lan
    moves = 0
    began_epoch = web.epoch
    with clients.asking(lan.client, str(web.spec.ip), web.spec.hash, lan.owner_of) as seen:
        time.sleep(1)
        while moves < 50:
            weigh(lbless, draw.choice(NAMES), draw.choice((0, 50, 100, 200)))
            if draw.random() < 0.7:
                Silence().until(
                    "the move",
                    lambda: lbless.condition("web", "Programmed").get("status") == "True",
                    timeout_seconds=30,
                )
            time.sleep(draw.uniform(0, 0.5))
            moves = int(lbless.get("web")["status"]["epoch"]) - began_epoch
        time.sleep(1)
    found = seen.impact()
    print(found)
    print(f"{moves} epochs; the clients were late by {seen.late_seconds * 1000:.0f} ms at most")
    assert found.faults == []
