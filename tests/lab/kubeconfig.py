"""Kubeconfig files: one cluster, one user, everything inside the file, readable by its owner alone."""

import base64
import json
import os
from pathlib import Path

from lab.pki import Identity


def with_token(path: Path, server: str, authority: Path, token: str) -> Path:
    """Write a kubeconfig that shows a bearer token; return its path."""
    return _write(path, server, authority, {"token": token})


def with_certificate(path: Path, server: str, authority: Path, identity: Identity) -> Path:
    """Write a kubeconfig that shows a client certificate; return its path."""
    credentials = {
        "client-certificate-data": _encoded(identity.certificate),
        "client-key-data": _encoded(identity.key),
    }
    return _write(path, server, authority, credentials)


def _write(path: Path, server: str, authority: Path, credentials: dict[str, str]) -> Path:
    cluster = {"server": server, "certificate-authority-data": _encoded(authority)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": credentials}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }
    # JSON is YAML too.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(config, stream)
    return path


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
