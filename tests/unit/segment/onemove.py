"""`python -m unit.segment.onemove > RECORD.json`: one move in the simulation, as the record of a picture."""

from __future__ import annotations

import sys

from lab.movepicture import Record, Span, to_json
from lbless_nodeagent.dataplane.handover import Share
from unit.segment.world import World

UID, BUCKET = "uid-0", 0
FLOWS_SECONDS = 0.02
"""The flows of a real bucket last longer; here so that all fits in one picture."""
SEED = 3


def state(share: Share) -> str:
    """What a node does with the bucket, in a word or two."""
    moving = share.moving
    if BUCKET in share.owned:
        return "owned"
    if any(BUCKET in buckets for _, buckets in moving.redirect):
        return "drain, sends on"
    for name in ("standby", "fresh", "drain", "ending"):
        if BUCKET in getattr(moving, name):
            return name
    return ""


def record(seed: int = SEED) -> Record:
    """Move all buckets from n0 to n1."""
    world = World(seed, 2)
    world.start(spread=0.01)
    world.run(1.5)
    world.assign(UID, {"n0": 1, "n1": 0.001})
    world.run(1)
    for node in world.nodes.values():
        node.flows_last = FLOWS_SECONDS
    began = world.now
    world.assign(UID, {"n1": 1}, spread=0.002)
    world.run(1)

    def ms(at: float) -> float:
        return round((at - began) * 1000, 1)

    spans = []
    for name, kernels in world.record.kernels.items():
        changes = [(ms(k.at), state(k.shares.get(UID, Share()))) for k in kernels]
        changes = [(max(at, -3.0), what) for at, what in changes]
        kept = [c for n, c in enumerate(changes) if n + 1 == len(changes) or changes[n + 1][0] > c[0]]
        merged = [c for n, c in enumerate(kept) if n == 0 or kept[n - 1][1] != c[1]]
        ends = [at for at, _ in merged[1:]] + [float("inf")]
        spans += [Span(name, at, end, what) for (at, what), end in zip(merged, ends, strict=True)]
    last = max(span.from_ms for span in spans) + 6
    spans = [Span(s.node, s.from_ms, min(s.to_ms, last), s.state) for s in spans]
    marks = [
        (ms(at), f"{who}: {text.removeprefix(f'{UID}: ')}")
        for at, who, text in world.record.lines
        if at >= began and "epoch" in text
    ]
    return Record("A bucket moves from n0 to n1", -3.0, round(last, 1), tuple(spans), tuple(marks))


if __name__ == "__main__":
    sys.stdout.write(to_json(record()))
