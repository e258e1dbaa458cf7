"""How far the nodes are with an epoch: which have it in their kernels, which not yet, which cannot.

Pure; from the confirmations that the nodes' reports gave.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lbless_api.clusterip import Assignment
from lbless_operator.confirmations import Confirmation
from lbless_operator.phrases import LISTED


@dataclass(frozen=True, slots=True)
class Progress:
    """Nodes by what is known of them; those that were told to let go are waited for as well.

    `serving`: owns buckets and has confirmed. `confirmed`: named and has confirmed. `unheard`: named with
    buckets, its agent is silent. `failed`: node → what its agent says.
    """

    serving: frozenset[str]
    confirmed: frozenset[str]
    waiting: frozenset[str]
    unheard: frozenset[str]
    failed: Mapping[str, str]

    def print_failures(self) -> str:
        """What failed, node by node: ``Node n1: …``, a sentence each."""
        sentences = [f"Node {node}: {message}" for node, message in sorted(self.failed.items())]
        if len(sentences) > LISTED:
            sentences[LISTED:] = [f"{len(sentences) - LISTED} more nodes failed."]
        return " ".join(sentences)


def assess(
    assignments: Iterable[Assignment],
    epoch: int,
    confirmations: Mapping[str, Confirmation],
    fresh: Collection[str],
) -> Progress:
    """Return where each node is. Silent nodes are never waited for: they cannot be told."""
    named = {a.node: bool(a.buckets) for a in assignments}
    failed = {
        node: one.failure.message or one.failure.reason
        for node, one in confirmations.items()
        if node in fresh and one.failure
    }
    confirmed = {
        node for node in named if epoch and node not in failed and _epoch(confirmations, node) == epoch
    }
    waiting = {node for node in named if node in fresh and node not in confirmed and node not in failed}
    # Not named now, but it had an older epoch, which may have named it: until it says that it has this
    # one, it may still be keeping packets. A node that never had any has nothing to let go.
    waiting |= {
        node
        for node, one in confirmations.items()
        if node in fresh and node not in named and one.epoch and one.epoch < epoch and node not in failed
    }
    return Progress(
        serving=frozenset(node for node in confirmed if named[node]),
        confirmed=frozenset(confirmed),
        waiting=frozenset(waiting),
        unheard=frozenset(node for node, owns in named.items() if owns and node not in fresh),
        failed=failed,
    )


def _epoch(confirmations: Mapping[str, Confirmation], node: str) -> int | None:
    one = confirmations.get(node)
    return one.epoch if one else None
