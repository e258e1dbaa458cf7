"""What a refused request means to a person: what is missing, and what to do."""

from __future__ import annotations

from lbless_api import GROUP
from lbless_edge.kube import ApiError


def explain(error: ApiError, path: str, server: str) -> str:
    """One sentence about a failed request for `path` of `server`, the same each time for the same cause."""
    group, resource = _resource(path)
    name = f"{resource}.{group}" if group else resource
    if error.status == 404 and group == GROUP:
        return f"The CustomResourceDefinition {name} is not installed: kubectl apply -f crds/"
    if error.status == 404:
        return f"{server} does not serve {name}: use Kubernetes 1.32 or newer."
    if error.status == 403:
        return f"A permission is missing, grant it (helm/lbless/rbac/): {error}"
    if error.status == 401:
        return f"{server} does not accept the credentials: renew the token or certificate, or correct $KUBECONFIG."
    return str(error)


def _resource(path: str) -> tuple[str, str]:
    """The API group, empty for the core group, and the plural of a collection's or an object's path."""
    parts = path.strip("/").split("/")
    group, rest = (parts[1], parts[3:]) if parts[0] == "apis" else ("", parts[2:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    return group, rest[0]
