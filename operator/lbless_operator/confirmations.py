"""Which node has which ClusterIP's epoch in its kernel, as far as the nodes' reports tell.

A report holds one digest over everything applied, lists what is pending or failed, and marks what of that
it has no room to list. If the digest is the expected one, everything neither listed nor marked is confirmed;
if not, what was confirmed earlier stays so.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbless_api.digest import applied_digest, mark
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
        self._marks: dict[str, bytes] = {}
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
            self._marks.setdefault(uid, mark(uid))
        else:
            self.forget(uid)

    def forget(self, uid: str) -> None:
        """A ClusterIP is deleted."""
        self.stale |= self._expected.pop(uid, None) is not None
        self._marks.pop(uid, None)
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
        # A mark tells no epoch; an older one than expected may well be in the kernel still.
        lost |= {uid for uid in self.marked(report.unlisted) if confirmed.get(uid) == self._expected.get(uid)}
        for uid in lost:  # it was in the kernel and is no longer: dataplane is at work on it again
            del confirmed[uid]
        return lost | {uid for uid in before.keys() | after.keys() if before.get(uid) != after.get(uid)}

    def evaluate(self) -> set[str]:
        """Compare all digests; return the UIDs for which a node confirmed another epoch than before.

        Costs one hash over all ClusterIPs for each different list of outstanding ones, so call it after a
        burst of changes and not in it.
        """
        self.stale = False
        digests: dict[tuple[frozenset[str], frozenset[bytes]], tuple[frozenset[str], str]] = {}
        changed: set[str] = set()
        for node, report in self._reports.items():
            listed = frozenset(o.uid for o in (*report.pending, *report.failures))
            left_out = (listed, report.unlisted)
            if left_out not in digests:
                outstanding = (listed & self._expected.keys()) | self.marked(report.unlisted)
                applied = {uid: epoch for uid, epoch in self._expected.items() if uid not in outstanding}
                digests[left_out] = (outstanding, applied_digest(applied))
            outstanding, digest = digests[left_out]
            if report.applied_digest == digest:
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

    def marked(self, marks: frozenset[bytes]) -> set[str]:
        """The UIDs of which something is expected, and that have one of these marks."""
        return {uid for uid, its in self._marks.items() if its in marks} if marks else set()

    def _confirm(self, node: str, outstanding: frozenset[str]) -> set[str]:
        confirmed = self._confirmed.setdefault(node, {})
        changed = {
            uid
            for uid, epoch in self._expected.items()
            if uid not in outstanding and confirmed.get(uid) != epoch
        }
        confirmed.update((uid, self._expected[uid]) for uid in changed)
        return changed
