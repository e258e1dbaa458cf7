"""Who lives, how long this node may serve, and which epoch is followed: decisions, and nothing else."""

from lbless_nodeagent.dataplane.membership.epoch import Epoch, Named, epoch_of
from lbless_nodeagent.dataplane.membership.machine import Membership
from lbless_nodeagent.dataplane.membership.ownership import follow, owned
from lbless_nodeagent.dataplane.membership.times import Times
from lbless_nodeagent.dataplane.membership.view import Condition, Intent, Memory, Turn, Use, View

__all__ = [
    "Condition",
    "Epoch",
    "Intent",
    "Membership",
    "Memory",
    "Named",
    "Times",
    "Turn",
    "Use",
    "View",
    "epoch_of",
    "follow",
    "owned",
]
