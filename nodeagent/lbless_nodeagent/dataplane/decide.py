"""What of the desired state this node serves, where, and what it must refuse: pure functions.

Owns the decision alone: values in, values out. Nothing is read and nothing is changed here, but for what
`Decider` remembers of its last answer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import IPv4Address

from lbless_api.clusterip import ClusterIP
from lbless_api.fields import Invalid
from lbless_api.interfaces import Interface, choose_interface
from lbless_api.node import Outstanding
from lbless_api.refusal import Taken, refusal
from lbless_nodeagent.dataplane.engine import Vip
from lbless_nodeagent.dataplane.moving import AT_REST, Moving


@dataclass(frozen=True, slots=True)
class Decision:
    """For each ClusterIP in force exactly one of: a Vip to serve, nothing here, or a failure."""

    vips: Mapping[str, Vip]
    elsewhere: frozenset[str]
    failures: Mapping[str, Outstanding]


def in_force(
    desired: Mapping[str, ClusterIP],
    last_good: Mapping[str, ClusterIP],
    *,
    unusable: Container[str],
    complete: bool,
) -> dict[str, ClusterIP]:
    """Return the ClusterIPs that count, by UID.

    What is desired counts as it is. Where its file is `unusable`, the last good state does. What is
    absent counts as it last was, until the desired state is `complete`: then absence means deletion.
    """
    counted = dict(desired)
    for uid, clusterip in last_good.items():
        if uid not in counted and (uid in unusable or not complete):
            counted[uid] = clusterip
    return counted


def decide(
    node: str,
    clusterips: Iterable[ClusterIP],
    interfaces: Sequence[Interface],
    in_use: Taken,
    engine_refusal: Callable[[Vip], str | None],
    moving: Callable[[str], Moving] = lambda _: AT_REST,
) -> Decision:
    """Return what `node` does about each ClusterIP.

    It serves one whose assignments name it, also with no buckets: it then holds the address and keeps
    no packet. Of several with one address the oldest has it; the others fail wherever they are named,
    whatever becomes of the oldest, so that all nodes decide alike. `moving` has by UID what moves.
    """
    vips: dict[str, Vip] = {}
    elsewhere: set[str] = set()
    failures: dict[str, Outstanding] = {}
    holders: dict[IPv4Address, ClusterIP] = {}
    for clusterip in sorted(clusterips, key=lambda c: c.identity.age_order):
        uid = clusterip.identity.uid
        assignment = clusterip.assigned_to(node)
        if clusterip.epoch == 0 or assignment is None:
            elsewhere.add(uid)
            continue
        spec = clusterip.spec
        try:
            holder = holders.setdefault(spec.ip, clusterip)
            if holder is not clusterip:
                raise Invalid(
                    f"Address {spec.ip} is already that of the older ClusterIP {holder.identity.key}: "
                    f"delete one of the two, or give one another address.",
                    "AddressConflict",
                )
            reason = refusal(spec.ip, in_use)
            if reason:
                raise Invalid(reason, "AddressInUse")
            vip = Vip(
                ip=spec.ip,
                interface=choose_interface(spec.ip, spec.interfaces, interfaces).name,
                mac=spec.mac,
                hash=spec.hash,
                ports=spec.ports,
                owned=assignment.buckets,
                source_mac=spec.source_mac,
                moving=moving(uid),
            )
            reason = engine_refusal(vip)
            if reason:
                raise Invalid(reason, "NotSupported")
            vips[uid] = vip
        except Invalid as fault:
            failures[uid] = failure(clusterip, fault.reason, str(fault))
    return Decision(vips, frozenset(elsewhere), failures)


def failure(clusterip: ClusterIP, reason: str, message: str) -> Outstanding:
    """A failure of a ClusterIP whose state could be read."""
    return Outstanding(clusterip.identity.uid, clusterip.identity.key, clusterip.epoch, reason, message)


class Decider:
    """`decide`, which decides again only what may have another answer than the last time.

    What becomes of a ClusterIP follows from itself, from those with the same address, and from what the
    node looks like. `wanted` are the Vips of the last decision by address; like the decision, it is the
    very same object as long as it says the same.
    """

    def __init__(
        self,
        node: str,
        engine_refusal: Callable[[Vip], str | None],
        moving: Callable[[str], Moving] = lambda _: AT_REST,
    ) -> None:
        """`moving` is as for `decide`. Where it says something else of a UID, its ClusterIP is another object."""
        self._node = node
        self._moving = moving
        self._engine_refusal = engine_refusal
        self._counted: Mapping[str, ClusterIP] = {}
        self._claimants: dict[IPv4Address, set[str]] = {}
        self._interfaces: Sequence[Interface] = ()
        self._in_use = Taken()
        self._decision = Decision({}, frozenset(), {})
        self.wanted: Mapping[IPv4Address, Vip] = {}

    def decide(
        self, counted: Mapping[str, ClusterIP], interfaces: Sequence[Interface], in_use: Taken
    ) -> Decision:
        """Return what `decide` does for all of `counted`, which are by UID."""
        former = self._counted
        changed = {uid for uid, clusterip in counted.items() if former.get(uid) is not clusterip}
        changed |= former.keys() - counted.keys()
        self._counted = counted
        again = changed | self._claim(changed, former) | self._concerned(interfaces, in_use)
        self._interfaces, self._in_use = interfaces, in_use
        if again:
            clusterips = [counted[uid] for uid in again if uid in counted]
            made = decide(self._node, clusterips, interfaces, in_use, self._engine_refusal, self._moving)
            self._take_over(again, made)
        return self._decision

    def _concerned(self, interfaces: Sequence[Interface], in_use: Taken) -> Set[str]:
        """Those that may fare otherwise because the node looks otherwise."""
        if _matters(self._interfaces) != _matters(interfaces) or self._in_use.ranges != in_use.ranges:
            return self._counted.keys()
        before, now = self._in_use.addresses, in_use.addresses
        if before == now:
            return set()
        touched = [ip for ip in before.keys() | now.keys() if before.get(ip) != now.get(ip)]
        return {uid for ip in touched for uid in self._claimants.get(ip, ())}

    def _claim(self, changed: Iterable[str], former: Mapping[str, ClusterIP]) -> set[str]:
        """Note who claims which address, and return whoever claims one that a changed one claims or did."""
        rivals: set[str] = set()
        for clusterips, claims in ((former, False), (self._counted, True)):
            for uid in changed:
                clusterip = clusterips.get(uid)
                if clusterip:
                    claimants = self._claimants.setdefault(clusterip.spec.ip, set())
                    if claims:
                        claimants.add(uid)
                    else:
                        claimants.discard(uid)
                    rivals |= claimants
                    if not claimants:
                        del self._claimants[clusterip.spec.ip]
        return rivals

    def _take_over(self, again: Set[str], made: Decision) -> None:
        last = self._decision
        # A Vip that came out the same stays the same object, so that the engine need not compare it.
        vips = {u: former if (former := last.vips.get(u)) == vip else vip for u, vip in made.vips.items()}
        self._decision = Decision(
            vips={**{u: v for u, v in last.vips.items() if u not in again}, **vips},
            elsewhere=(last.elsewhere - again) | made.elsewhere,
            failures={**{u: f for u, f in last.failures.items() if u not in again}, **made.failures},
        )
        gone = {last.vips[uid].ip for uid in again if uid in last.vips}
        wanted = dict(self.wanted)
        for ip in gone:
            del wanted[ip]
        wanted.update((vip.ip, vip) for vip in vips.values())
        self.wanted = self.wanted if wanted == self.wanted else wanted


def _matters(interfaces: Iterable[Interface]) -> list[tuple[object, ...]]:
    """What of the interfaces decides which one carries an address: not their carrier, for one."""
    return [(interface.name, interface.addresses) for interface in interfaces]
