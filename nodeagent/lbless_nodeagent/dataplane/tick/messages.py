"""What the two processes of dataplane tell each other: values, pickled by `channel`.

Owns the shapes. To the tick go what the files say and what the kernel follows; from it come who lives, by which
epochs buckets are to be owned, and what it has learnt from the peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lbless_api.heartbeat_frame import Stamp
from lbless_nodeagent.dataplane.membership import Condition, Epoch, Intent, Kept, Memory, Times, View


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message. `keys`: the first signs, all verify."""

    node: str
    times: Times
    keys: tuple[bytes, ...]
    realtime: bool = False


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys have changed."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Attach:
    """Begin a membership on an interface. `resumed` and `lease_end` (boot time, in seconds) where
    a former process of this node is succeeded whose lease still runs; `fenced`: whether the
    kernel has a lease; `newest`: the newest frame of each node that a former process has taken."""

    interface: str
    index: int
    incarnation: int
    fenced: bool
    resumed: Memory | None = None
    lease_end: float | None = None
    newest: tuple[Stamp, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """All epochs that were known of the interface when it was attached have been told. Before that its membership
    decides nothing: of what a former process followed, and this one has not heard of yet, nothing is to be lost."""

    interface: str


@dataclass(frozen=True, slots=True)
class Detach:
    """The interface is gone, or is no longer one that addresses can be on."""

    interface: str


@dataclass(frozen=True, slots=True)
class Carrier:
    """Whether the interface has one."""

    interface: str
    up: bool


@dataclass(frozen=True, slots=True)
class Known:
    """An epoch that this node holds, and its document in pieces, for peers that lack it."""

    interface: str
    epoch: Epoch
    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The ClusterIP is not, or no longer, one of this interface."""

    interface: str
    uid: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What the kernel does by now of some ClusterIPs, by UID, and the view's version if that is followed whole. Rules
    may be new, so the lease is renewed at once."""

    interface: str
    version: int | None
    clusterips: tuple[tuple[str, Kept], ...]


@dataclass(frozen=True, slots=True)
class Alive:
    """To the tick process: the programming process is through with a pass, or has nothing to do. From it, once a
    second: it comes round."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The node's dataplane is to end."""

    intent: Intent


ToTick = Begin | Keys | Attach | Told | Detach | Carrier | Known | Forgotten | Applied | Alive | Stop


@dataclass(frozen=True, slots=True)
class Attached:
    """The `Attach` with this incarnation has been taken. What was said of the interface before is of a former
    membership; what is said from now on, and be it `Refused`, of this one."""

    interface: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The view of an interface has changed, or what a successor would need has: of that the newest frames are
    told every `station.MEMORY_SECONDS`. `view.use` holds only what is another than the last time; `unused` are
    the UIDs that it has no more."""

    interface: str
    view: View
    unused: tuple[str, ...]
    memory: Memory


@dataclass(frozen=True, slots=True)
class Refused:
    """The interface has no membership, and why; it is asked for again by another `Attach`."""

    interface: str
    sentence: str


@dataclass(frozen=True, slots=True)
class RulesGone:
    """Nothing took the renewal of the interface's lease."""

    interface: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """A document that a peer has sent; nothing of it is checked yet."""

    interface: str
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Happened:
    """A sentence for the log."""

    interface: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Who counts as what on an interface, told whenever it changes: `heard` and `dead` are (node id, incarnation).
    `heard` are living peers whose own frames have come within DEAD. `names` are by node id, as far as known."""

    interface: str
    incarnation: int
    conditions: frozenset[Condition]
    heard: frozenset[tuple[bytes, int]]
    dead: frozenset[tuple[bytes, int]]
    names: Mapping[bytes, str]


@dataclass(frozen=True, slots=True)
class Figures:
    """What has been counted on an interface since its membership began, told once a second.

    `lapses`: how often a lease ran out or was given up, other than at a stop. `late`: `Lateness.cumulative`.
    """

    interface: str
    sent: int
    unsent: int
    lapses: int
    dropped: Mapping[str, int]
    late: tuple[int, ...]
    late_sum_ms: float
    late_worst_ms: float


@dataclass(frozen=True, slots=True)
class Ended:
    """After `Stop`: the interface's part has ended, and what a successor resumes from."""

    interface: str
    memory: Memory


FromTick = Alive | Attached | Seen | Refused | RulesGone | Learnt | Happened | Segment | Figures | Ended
