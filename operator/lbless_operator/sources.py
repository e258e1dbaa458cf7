"""Where each kind of object comes from: its path in the API, and which of its objects are asked for.

The same for LISTs and watches, or a LIST would delete what the watch tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lbless_edge.kube import CLUSTERIPNODES, CLUSTERIPS, ENDPOINTSLICES, LEASES, NODES, PODS
from lbless_operator.facts import SERVICE_LABEL, Kind

SERVICECIDRS = "/apis/networking.k8s.io/v1/servicecidrs"


@dataclass(frozen=True, slots=True)
class Source:
    """A collection. `optional`: an API server that does not know it has none of them."""

    path: str
    field_selector: str = ""
    label_selector: str = ""
    optional: bool = False

    @property
    def selectors(self) -> dict[str, str]:
        """The query of a LIST or WATCH."""
        query = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {key: value for key, value in query.items() if value}

    @property
    def resource(self) -> tuple[str, str, str]:
        """Group (empty for the core group), version, plural."""
        parts = self.path.strip("/").split("/")
        return (parts[1], parts[2], parts[3]) if parts[0] == "apis" else ("", parts[1], parts[2])


SOURCES: Mapping[Kind, Source] = {
    Kind.CLUSTERIP: Source(CLUSTERIPS),
    Kind.AGENT: Source(CLUSTERIPNODES),
    Kind.NODE: Source(NODES),
    Kind.LEASE: Source(LEASES),
    # Finished pods stay in the API for long and are never ready.
    Kind.POD: Source(PODS, field_selector="status.phase!=Succeeded,status.phase!=Failed"),
    Kind.SLICE: Source(ENDPOINTSLICES, label_selector=SERVICE_LABEL),
    # Kubernetes 1.32 serves it as v1beta1 and only if asked to.
    Kind.SERVICE_RANGE: Source(SERVICECIDRS, optional=True),
}
