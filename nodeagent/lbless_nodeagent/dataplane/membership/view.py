"""What membership tells its surroundings: the view that decides who owns what, and what to do at a turn.

Values alone. Who owns a bucket follows from an epoch and a view in `ownership`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from lbless_api.heartbeat import Heartbeat
from lbless_api.heartbeat_frame import Stamp


class Condition(StrEnum):
    """What a person should know of a membership."""

    LISTENING = "Listening"
    DEAF = "Deaf"
    NO_PEERS_HEARD = "NoPeersHeard"
    ACTING = "Acting"
    HELD = "Held"
    LEAVING = "Leaving"
    LEASE_LAPSED = "LeaseLapsed"
    """It neither listens nor is deaf, and still no peer's acknowledgement extends its lease."""


class Intent(StrEnum):
    """What it means that the process stops."""

    HOLD = "hold"
    """Another one follows within the hold: keep the share meanwhile, if that is safe."""
    LEAVE = "leave"
    """None follows: the peers are to take over at once."""


@dataclass(frozen=True, slots=True)
class Use:
    """How a ClusterIP is to be followed.

    `epoch`: the one in use, 0 for none (this is what is confirmed). `document`: the epoch by which owners
    are computed; it differs from `epoch` where nodes act. `gain`: whether buckets may be added to what the
    kernel has; losing them is at once, but for those that move (`lose`). `acting`: None, or the names of
    the nodes that share all buckets among themselves. `unheard`: no peer was ever heard; if the document names this
    very incarnation, one that acts leaves to others what it gives them.

    Of buckets that move: `lose`, whether this node may give up what moves from it; `ready`, whether the new owners
    stand by; `settled`, whether they have gained it; `unfinished`, the nodes (ids) that may still have flows in what
    moved from them; `unbegun`: whether nothing had been given up yet by the epoch that was in use before.
    """

    epoch: int = 0
    document: int = 0
    gain: bool = False
    acting: tuple[str, ...] | None = None
    unheard: bool = False
    lose: bool = True
    ready: bool = False
    settled: bool = True
    unfinished: frozenset[bytes] = frozenset()
    unbegun: bool = False


class Kept(NamedTuple):
    """What the kernel does of a ClusterIP. `epoch`: the newest `Use.epoch` by which it was free to lose all that it
    must and has, None: as told before; `owns`: it takes new flows in any bucket; `ready`: the epoch for which it
    stands by, 0 for none; `gained`: it has all that is its own by `epoch`; `sends`: it still sends on what it gave up;
    `drains`: it still keeps flows there."""

    epoch: int | None
    owns: bool
    ready: int = 0
    gained: bool = True
    sends: bool = False
    drains: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Who lives and which epoch is followed, as a version: an equal one says the same.

    `living` holds (node id, incarnation) of all that are not counted dead, this node among them unless it
    listens; `held` the ids of those that take over nothing. `use` is by UID; what it lacks is not followed.
    """

    version: int = 0
    incarnation: int = 0
    living: frozenset[tuple[bytes, int]] = frozenset()
    held: frozenset[bytes] = frozenset()
    use: Mapping[str, Use] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do now, in this order: if `lease_end` is None end the lease; send the heartbeats; otherwise
    have the lease end at `lease_end` (absolute; never later than that, also where it ran longer).

    `wanted`: epochs to ask the peers for, (ClusterIP id, number) each. `wake`: when `tick` must be called
    again at the latest. `calm`: until then nothing hangs on frames that are not urgent (`Flag.URGENT`): they may
    wait unread. `events`: what happened, a sentence each. `done`: after this turn the process ends.
    """

    heartbeats: tuple[Heartbeat, ...]
    lease_end: float | None
    view: View
    wanted: tuple[tuple[bytes, int], ...]
    wake: float
    calm: bool
    conditions: frozenset[Condition]
    events: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What a successor process needs to go on as the same incarnation, while the lease in the kernel runs.

    `verdicts` and `peers` are (node id, incarnation); `holding` (node id, until when at most it is silent, by the
    clock of `Membership.tick`); `kernel` is (UID, epoch in use, what the kernel does, acts). `newest` is not
    membership's: the newest frame of each node, so that the successor takes no older one.
    """

    incarnation: int
    peers: tuple[tuple[bytes, int], ...] = ()
    verdicts: tuple[tuple[bytes, int], ...] = ()
    holding: tuple[tuple[bytes, float], ...] = ()
    kernel: tuple[tuple[str, int, Kept, bool], ...] = ()
    held: bool = False
    newest: tuple[Stamp, ...] = ()
