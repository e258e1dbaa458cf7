"""What the unit tests of sync share: a ClusterIP as the API has it, and looks at the state directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lbless_api.state import parse_complete
from lbless_nodeagent import files

UID = "6f1a4a60-7a39-4f0e-9d7c-2b6a1c1d0e01"


def clusterip(uid: str = UID, name: str = "web", epoch: int = 0, **spec: Any) -> dict[str, Any]:
    """A ClusterIP; from epoch 1 on with an assignment."""
    status: dict[str, Any] = {"conditions": [{"type": "Ready", "status": "False"}]}
    if epoch:
        status |= {
            "epoch": epoch,
            "assignments": [{"node": "n1", "incarnation": 5, "buckets": "0-255", "share": 256}],
        }
    return {
        "metadata": {
            "namespace": "default",
            "name": name,
            "uid": uid,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": 1,
            "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"ip": "10.0.0.9", **spec},
        "status": status,
    }


def listed_as_complete(state: Path) -> frozenset[str] | None:
    """The UIDs that .complete names; None where it is of another boot."""
    return parse_complete(files.read_text(state / "desired" / ".complete"), files.boot_id())


def names(state: Path) -> list[str]:
    """What is in desired/."""
    return sorted(os.listdir(state / "desired"))


def inodes(state: Path) -> dict[str, int]:
    """The same with what changes when a file is written anew."""
    return {entry.name: entry.inode() for entry in os.scandir(state / "desired")}
