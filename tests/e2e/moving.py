"""Moves of a ClusterIP's buckets as users make them: by the weights of nodes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from lab.clients import Clients
from lab.installation import DATAPLANE, Installation
from lbless_api import WEIGHT_ANNOTATION
from lbless_api.clusterip import ClusterIP

NAMES = ("n1", "n2", "n3")
MOVES = 50
STORY_CHARACTERS = 8_000


def weigh(lbless: Installation, name: str, weight: int | None) -> None:
    """Give a node another weight; 0 takes it out."""
    value = None if weight is None else str(weight)
    lbless.control_plane.patch_node(name, {"metadata": {"annotations": {WEIGHT_ANNOTATION: value}}})


def move_again_and_again(lbless: Installation, web: ClusterIP) -> int:
    """Give nodes any weights until so many epochs have gone by: they leave and join, buckets go to and fro and on to a
    third, and often before the last move is through. Returns how many epochs it were."""
    draw, moves = random.Random(7), 0
    while moves < MOVES:
        weigh(lbless, draw.choice(NAMES), draw.choice((0, 50, 100, 200)))
        time.sleep(draw.choice((0, 0.05, 0.5, 1)))
        moves = int(lbless.get("web")["status"]["epoch"]) - web.epoch
    return moves


def undisturbed(lbless: Installation, ask: Callable[[], Clients]) -> Clients:
    """What clients noticed who asked while buckets moved; if they were harmed and a node had no lease for a while, as
    its processes waited for a processor, then once more: what was lost so, no move has lost."""
    before = lapses(lbless)
    seen = ask()
    if seen.impact().faults and lapses(lbless) != before:
        print(f"{seen.impact()}\nnodes without a lease meanwhile: {lapses(lbless)}; once more")
        seen = ask()
    return seen


def lapses(lbless: Installation) -> dict[str, int]:
    """How often each node has said that it had no lease any more."""
    return {node.name: lbless.log(DATAPLANE, node).count("has no lease any more") for node in lbless.nodes}


def check_unharmed(lbless: Installation, seen: Clients) -> None:
    """Nobody noticed a move. Where somebody did, what each node said by then is printed."""
    faults = seen.impact().faults
    if faults:
        for node in lbless.nodes:
            print(f"{node.name}:\n{lbless.log(DATAPLANE, node)[-STORY_CHARACTERS:]}")
    assert faults == []
