"""Which node has which ClusterIP's epoch in its kernel, as far as the nodes' reports tell.

A report holds one digest over everything applied, and lists what is pending or failed. If the digest is
the expected one, everything not listed is confirmed; if not, what was confirmed earlier stays so.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbless_api.digest import applied_digest
from lbless_api.node import NodeStatus, Outstanding


@dataclass(frozen=True, slots=True)
class Confirmation:
    """One node and one ClusterIP: the newest epoch known to be applied there, and what failed, if so."""

    epoch: int | None = None
    failure: Outstanding | None = None


_NOTHING = Confirmation()


class Confirmations:
    """All nodes' reports against what is expected of them."""

    def __init__(self) -> None:
        self._expected: dict[str, int] = {}
        self._reports: dict[str, NodeStatus] = {}
        self._failures: dict[str, dict[str, Outstanding]] = {}
        self._confirmed: dict[str, dict[str, int]] = {}
        self.stale = False
        """Whether something came in since `evaluate`."""

    def expect(self, uid: str, epoch: int) -> None:
        """A ClusterIP has this epoch now; 0: it was never assigned."""
        if self._expected.get(uid, 0) == epoch:
            return
        self.stale = True
        if epoch:
            self._expected[uid] = epoch
        else:
            self.forget(uid)

    def forget(self, uid: str) -> None:
        """A ClusterIP is deleted."""
        self.stale |= self._expected.pop(uid, None) is not None
        for confirmed in self._confirmed.values():
            confirmed.pop(uid, None)

    def report(self, node: str, report: NodeStatus | None) -> set[str]:
        """A node reported, or None: its report is gone. Return the UIDs that failed or ceased to."""
        before = self._failures.pop(node, {})
        self.stale = True
        if report is None:
            self._reports.pop(node, None)
            self._confirmed.pop(node, None)
            return set(before)
        self._reports[node] = report
        after = self._failures[node] = {failure.uid: failure for failure in report.failures}
        confirmed = self._confirmed.get(node, {})
        lost = {o.uid for o in (*report.pending, *report.failures) if o.epoch <= confirmed.get(o.uid, -1)}
        for uid in lost:  # it was in the kernel and is no longer: dataplane is at work on it again
            del confirmed[uid]
        return lost | {uid for uid in before.keys() | after.keys() if before.get(uid) != after.get(uid)}

    def evaluate(self) -> set[str]:
        """Compare all digests; return the UIDs for which a node confirmed another epoch than before.

        Costs one hash over all ClusterIPs for each different list of outstanding ones, so call it after a
        burst of changes and not in it.
        """
        self.stale = False
        digests: dict[frozenset[str], str] = {}
        changed: set[str] = set()
        for node, report in self._reports.items():
            listed = (o.uid for o in (*report.pending, *report.failures))
            outstanding = frozenset(uid for uid in listed if uid in self._expected)
            if outstanding not in digests:
                digests[outstanding] = applied_digest(
                    {uid: epoch for uid, epoch in self._expected.items() if uid not in outstanding}
                )
            if report.applied_digest == digests[outstanding]:
                changed |= self._confirm(node, outstanding)
        return changed

    def of(self, node: str, uid: str) -> Confirmation:
        """What is known of one ClusterIP on one node."""
        epoch = self._confirmed.get(node, {}).get(uid)
        failure = self._failures.get(node, {}).get(uid)
        return Confirmation(epoch, failure) if epoch or failure else _NOTHING

    def nodes(self) -> frozenset[str]:
        """The nodes that have reported."""
        return frozenset(self._reports)

    def _confirm(self, node: str, outstanding: frozenset[str]) -> set[str]:
        confirmed = self._confirmed.setdefault(node, {})
        changed = {
            uid
            for uid, epoch in self._expected.items()
            if uid not in outstanding and confirmed.get(uid) != epoch
        }
        confirmed.update((uid, self._expected[uid]) for uid in changed)
        return changed
