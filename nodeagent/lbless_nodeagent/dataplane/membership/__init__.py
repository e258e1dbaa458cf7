"""Who lives, how long this node may serve, and which epoch is followed: decisions, and nothing else."""

from lbless_nodeagent.dataplane.membership.epoch import Epoch, Moved, Named, epoch_of
from lbless_nodeagent.dataplane.membership.machine import Membership
from lbless_nodeagent.dataplane.membership.ownership import owned
from lbless_nodeagent.dataplane.membership.times import Times
from lbless_nodeagent.dataplane.membership.view import Condition, Intent, Kept, Memory, Turn, Use, View

__all__ = [
    "Condition",
    "Epoch",
    "Intent",
    "Kept",
    "Membership",
    "Memory",
    "Moved",
    "Named",
    "Times",
    "Turn",
    "Use",
    "View",
    "epoch_of",
    "owned",
]
