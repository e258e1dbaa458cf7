"""The API server's audit log: what the programs under test have asked for, and what they were refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.pki import MASTERS

# Finished requests by service accounts; not what tests and controllers ask.
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "userGroups": [MASTERS]},
        {"level": "None", "users": ["system:apiserver"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Request:
    """A finished request; `resource` is "nodes" or "nodes/status" or a path, `code` the HTTP status."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int


def read(log: Path) -> list[Request]:
    """Return the requests in a log that is being written; none while there is no log."""
    # The last line may be half written.
    lines = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []
    return [_request(json.loads(line)) for line in lines]


def _request(event: Mapping[str, Any]) -> Request:
    reference = event.get("objectRef", {})
    parts = [reference.get("resource", event["requestURI"]), reference.get("subresource", "")]
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        resource="/".join(part for part in parts if part),
        namespace=reference.get("namespace", ""),
        name=reference.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
    )
