"""What a node does next with each bucket of a ClusterIP: one step of a move that breaks no connection. Pure.

Bucket b goes from A to B, both alive. Each node steps by itself, from what its kernel does now and from what is known
of the others; no order of their steps gives b two nodes that take new flows, or two that answer for one flow:

    A        B          why it may step
    owned    foreign
    owned    standby    B: the epoch is in use here
    drain    standby    A: B stands by (or takes too long); A sends on to B what it no longer takes
    drain    fresh      B: A has lost b, or is dead
    drain    fresh      A: B has gained b; nothing is sent on any more
    ending   fresh      A: no flow is left, or it has been long enough
    foreign  owned      B: A has drained, or is dead, or it has been longer than that

What is not named by a move of the epoch is lost and gained in the same order without the states between: a bucket that
was taken over from a dead node, for one. A move that another epoch supersedes goes on from where it is: A -> B -> C
leaves flows with A and B, which C waits for; A -> B -> A leaves some with B.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from lbless_api.buckets import BucketSet
from lbless_api.heartbeat import node_id
from lbless_nodeagent.dataplane.membership import Epoch, View, owned
from lbless_nodeagent.dataplane.moving import AT_REST, Moving

NOTHING = BucketSet()


@dataclass(frozen=True, slots=True)
class Share:
    """What a node's kernel does with the buckets of a ClusterIP: those that it owns, and those that move."""

    owned: BucketSet = NOTHING
    moving: Moving = AT_REST

    @property
    def taking(self) -> BucketSet:
        """Where it takes new flows."""
        return self.owned | self.moving.fresh


@dataclass(frozen=True, slots=True)
class Order:
    """What the epoch in use and who lives mean for this node.

    `mine`: what it is to own in the end. `gain`: whether nobody else takes new flows there any more. `leaving`: what
    moves from here, with the new owner's address where that is known. `lose`: whether that may be given up; `ready`:
    whether the new owners stand by, so that it can be sent on to them; `settled`: whether they have gained it.
    `arriving`: what moves to here from nodes that may still have flows in it. `anew`: whether the step before was by
    another epoch.
    """

    mine: BucketSet = NOTHING
    gain: bool = False
    leaving: tuple[tuple[IPv4Address | None, BucketSet], ...] = ()
    lose: bool = True
    ready: bool = False
    settled: bool = True
    arriving: BucketSet = NOTHING
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Elapsed:
    """What time has decided: `drained` have no flow left here or were drained for long enough; `ended` have been
    ending for long enough; `awaited` were fresh for so long that their former owners have drained."""

    drained: BucketSet = NOTHING
    ended: BucketSet = NOTHING
    awaited: BucketSet = NOTHING


def order_of(epoch: Epoch, view: View, node: str, *, anew: bool) -> Order:
    """What `epoch`, which is the document that `view` uses, orders `node` to do; `anew`: another one did before."""
    use = view.use[epoch.uid]
    if use.acting is not None:
        return Order(owned(epoch, view, node), use.gain, anew=anew)
    me = node_id(node)
    addresses = {one.node: one.address for one in epoch.assignments}
    return Order(
        mine=owned(epoch, view, node),
        gain=use.gain,
        leaving=tuple((addresses.get(m.destination), m.buckets) for m in epoch.moves if m.source == me),
        lose=use.lose,
        ready=use.ready,
        settled=use.settled,
        arriving=_union(m.buckets for m in epoch.moves if m.source in use.unfinished),
        anew=anew,
    )


def step(now: Share, order: Order, elapsed: Elapsed) -> Share:
    """Return what the kernel is to do next; the same where nothing changes until something else is known."""
    was = now.moving
    if was == AT_REST and not order.leaving and not order.arriving:
        # Nothing moves between living nodes: nearly always so, also of a thousand that a dead one has left.
        return Share(order.mine if order.gain else order.mine & now.owned)
    leaving = _union(buckets for _, buckets in order.leaving)
    # To whom another epoch sent it on may take it by now, or never will.
    sent_on = NOTHING if order.settled or order.anew else _union(buckets for _, buckets in was.redirect)
    arriving = order.arriving - elapsed.awaited
    mine, taking = order.mine, now.taking

    stays = mine & taking
    owned, fresh, standby = stays & now.owned, stays & was.fresh & arriving, NOTHING
    owned |= (stays & was.fresh) - arriving
    new = mine - taking
    if order.gain:
        fresh |= new & arriving
        owned |= new - arriving
    else:
        standby = new & (arriving | was.standby)

    # What opens flows here, or may have: sent on to this node, while it stood by.
    lost = (taking | was.standby) - mine
    drain = (was.drain - mine) & leaving & (sent_on | (was.drain - elapsed.drained))
    ending = ((was.drain - mine) - drain) | (was.ending - mine - elapsed.ended)
    if order.lose:
        drain |= lost & leaving
    else:
        owned |= lost & leaving & now.owned
        fresh |= lost & leaving & was.fresh
        standby |= lost & leaving & was.standby
    # It comes back, and waits: until then its flows are kept as they were.
    returning = new - standby if not order.gain else NOTHING
    drain |= was.drain & returning
    ending |= was.ending & returning
    if order.lose and order.ready and not order.settled:
        redirect = _redirect((sent_on | (lost & taking)) & drain, order)
    else:
        redirect = ()
    return Share(owned, Moving(standby, fresh, drain, ending, redirect))


Takers = Mapping[bytes, BucketSet]
"""By the id of each node, the buckets in which it takes new flows, as far as another one knows."""


def given_up(before: Share, after: Share, epoch: Epoch, me: bytes) -> dict[bytes, BucketSet]:
    """What each node (its id) may take as soon as this one (`me`) no longer takes what it does `before` and not
    `after`, because of the buckets that move to it by `epoch` this one took just these until then: so nobody else did.
    """
    found = {}
    for move in epoch.moves:
        had = move.buckets & before.taking
        if move.source == me and had and had.isdisjoint(after.taking):
            found[move.destination] = had
    return found


def takers(former: Epoch, before: Takers, taking: BucketSet, me: bytes, *, unbegun: bool) -> Takers:
    """Who took which buckets when another epoch followed `former`: whom that names, but for what it gave to this node
    (`me`), which did not come to take it; and whoever took them before where its moves had not begun. `before` is the
    same for the epoch before that, `taking` what this node takes."""
    if unbegun:
        return before
    found = {one.node: one.buckets for one in former.assignments}
    for node, buckets in before.items():
        if still := buckets & (found.get(me, NOTHING) - taking):
            found[node] = found.get(node, NOTHING) | still
    return found


def expected(share: Share, epoch: Epoch, had: Takers, me: bytes) -> dict[bytes, BucketSet]:
    """From which node (its id) this one expects each bucket for which it stands by, as far as it knows who `had` it.
    That may be wrong, and then is not what `given_up` says there."""
    found = {}
    for move in epoch.moves:
        buckets = share.moving.standby & move.buckets & had.get(move.source, NOTHING)
        if move.destination == me and buckets:
            found[move.source] = buckets
    return found


def without_moves(order: Order) -> Order:
    """The same for an engine that can do no more than own: it loses at once, and gains when nobody else takes."""
    return Order(order.mine, order.gain)


def _redirect(given_up: BucketSet, order: Order) -> tuple[tuple[IPv4Address, BucketSet], ...]:
    targets: dict[IPv4Address, BucketSet] = {}
    for address, buckets in order.leaving:
        if address is not None and not given_up.isdisjoint(buckets):
            targets[address] = targets.get(address, NOTHING) | (given_up & buckets)
    return tuple(sorted(targets.items(), key=lambda one: one[0]))


def _union(sets: Iterable[BucketSet]) -> BucketSet:
    union = NOTHING
    for one in sets:
        union |= one
    return union
