"""The Kubernetes API over plain HTTPS, for tests that ask often: a request, its parsed answer; no watch."""

import http.client
import json
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.pki import Identity

TIMEOUT_SECONDS = 30

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(LabError):
    """The API server refused: `status` is the HTTP status, 0 where there was no answer at all."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """A client with a certificate. Each thread has a connection of its own, so any number of threads may ask."""

    def __init__(self, host: str, port: int, authority: Path, identity: Identity) -> None:
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(authority))
        self._tls.load_cert_chain(identity.certificate, identity.key)
        self._local = threading.local()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str | None = None,
    ) -> dict[str, Any]:
        """Make one request and return the parsed answer (for a text answer such as /readyz: {"text": …}).

        A PATCH is a merge patch unless `content_type` says otherwise. Raises ApiError.
        """
        headers = {"Accept": "application/json"}
        content = None
        if body is not None:
            content = json.dumps(body)
            headers["Content-Type"] = content_type or (
                MERGE_PATCH if method == "PATCH" else "application/json"
            )
        try:
            status, kind, text = self._exchange(method, path, content, headers)
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(
                0, "Unreachable", f"{method} {path}: the API server does not answer ({error})"
            ) from None
        if kind != "application/json":
            answer: dict[str, Any] = {"text": text}
        else:
            answer = json.loads(text)
        if status >= 400:
            message = answer.get("message") or text.strip() or "no reason given"
            raise ApiError(
                status, answer.get("reason", ""), f"{method} {path} failed with {status}: {message}"
            )
        return answer

    def _exchange(
        self, method: str, path: str, content: str | None, headers: Mapping[str, str]
    ) -> tuple[int, str, str]:
        connection: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return _ask(connection, method, path, content, headers)
            except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError):
                # The server closed it while it was idle, or was restarted; asked again on a new one.
                connection.close()
            except BaseException:
                # What is in the middle of a request takes no other one.
                connection.close()
                self._local.connection = None
                raise
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._tls
        )
        self._local.connection = connection
        try:
            return _ask(connection, method, path, content, headers)
        except BaseException:
            connection.close()
            self._local.connection = None
            raise


def _ask(
    connection: http.client.HTTPSConnection,
    method: str,
    path: str,
    content: str | None,
    headers: Mapping[str, str],
) -> tuple[int, str, str]:
    connection.request(method, path, body=content, headers=dict(headers))
    answer = connection.getresponse()
    text = answer.read().decode()
    return answer.status, answer.headers.get_content_type(), text
