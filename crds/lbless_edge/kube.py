"""The Kubernetes API as plain JSON: requests, paged LISTs, watches, server-side apply.

Owns talking HTTP with the API server through the `kubernetes` client's connection, and turning every
failure into an `ApiError` of one sentence. Objects stay the JSON they are: their readers parse them.
Reading credentials is `lbless_edge.credentials`'; following a collection is `lbless_edge.listwatch`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import urllib3
from kubernetes import client, config

from lbless_edge.credentials import read_credentials
from lbless_edge.process import program_version

CLUSTERIPS = "/apis/lbless.dev/v1alpha1/clusterips"
CLUSTERIPNODES = "/apis/lbless.dev/v1alpha1/clusteripnodes"
NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
ENDPOINTSLICES = "/apis/discovery.k8s.io/v1/endpointslices"
LEASES = "/apis/coordination.k8s.io/v1/leases"

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 30
WATCH_SILENCE_SECONDS = 70
"""Bookmarks come every 60 s: a watch silent for longer hangs on a connection that is half open. kopf waits as long."""
PAGE = 500
POOL = 16
"""Idle connections that are kept: the operator has up to eight LISTs under way at once, beside its writes."""
MAX_RETRY_AFTER_SECONDS = 30

Object = dict[str, Any]


class ApiError(Exception):
    """A request failed. `status` is the HTTP status, 0 where there was no answer at all.

    `reason` is the one word of the server's Status object, empty where it sent none; a server that does
    not know the resource at all sends none. `retry_after_seconds` is the server's wish, 0 without one.
    `timed_out`: the server may be working on it still.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str = "",
        retry_after_seconds: float = 0,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: `kind` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: Object


def in_namespace(path: str, namespace: str, name: str = "") -> str:
    """The path of a namespace's part of a collection, or of one object in it.

    ``/apis/g/v/things`` → ``/apis/g/v/namespaces/NAMESPACE/things/NAME``.
    """
    root, _, plural = path.rpartition("/")
    return f"{root}/namespaces/{quote(namespace, safe='')}/{plural}" + (
        f"/{quote(name, safe='')}" if name else ""
    )


def named(path: str, name: str) -> str:
    """The path of one object of a cluster-scoped collection."""
    return f"{path}/{quote(name, safe='')}"


def connect(
    kubeconfig: str | None = None,
    *,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    connections: int = POOL,
) -> Api:
    """Read the credentials: `kubeconfig` (usually $KUBECONFIG), else the in-cluster account.

    Raises Fatal with one sentence where neither can be used; does not talk to the server yet.
    """
    configuration = read_credentials(kubeconfig)
    return Api(configuration, read_timeout_seconds=read_timeout_seconds, connections=connections)


class Api:
    """One connection pool to the API server; safe to use from several threads.

    Where one connection has failed, the idle ones are suspect: whatever broke it, or made it half open, did the
    same to them. They are given up, so that requests pay for one time-out and not for one a connection.
    """

    def __init__(
        self,
        configuration: client.Configuration,
        *,
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
        connections: int = POOL,
    ) -> None:
        """`connections`: how many are kept open while idle. More may be in use; they are closed after that."""
        # urllib3 would repeat a request three times by itself; who asks decides about that here.
        configuration.retries = False
        # The default follows the number of cores; a pool that is too small complains in the log.
        configuration.connection_pool_maxsize = connections
        self.server = str(configuration.host)
        self._read_timeout_seconds = read_timeout_seconds
        self._client = client.ApiClient(configuration)
        self._client.user_agent = f"lbless/{program_version()}"

    def get(self, path: str, **query: str | int) -> Object:
        """GET one object."""
        return self._json("GET", path, query)

    def create(self, path: str, body: Object) -> Object:
        """POST a new object to its collection."""
        return self._json("POST", path, {}, body)

    def replace(self, path: str, body: Object) -> Object:
        """PUT an object; with metadata.resourceVersion the server refuses a lost update with 409."""
        return self._json("PUT", path, {}, body)

    def apply(self, path: str, body: Object, *, field_manager: str) -> Object:
        """Server-side apply, forced: fields of `body` become this manager's. Idempotent."""
        query: dict[str, str | int] = {"fieldManager": field_manager, "force": "true"}
        return self._json("PATCH", path, query, body, "application/apply-patch+yaml")

    def delete(self, path: str) -> Object:
        """DELETE one object."""
        return self._json("DELETE", path, {})

    def list_pages(
        self, path: str, *, limit: int = PAGE, read_timeout_seconds: float | None = None, **query: str
    ) -> Iterator[tuple[list[Object], str]]:
        """LIST in pages of (items, resource version of the whole LIST); the time-out is for each page.

        Only when the iterator ends without an ApiError was the LIST complete.
        """
        more = ""
        while True:
            wanted: dict[str, str | int] = {**query, "limit": limit}
            if more:
                wanted["continue"] = more
            page = self._json("GET", path, wanted, read_timeout_seconds=read_timeout_seconds)
            metadata = page.get("metadata")
            if not isinstance(metadata, dict) or not isinstance(metadata.get("resourceVersion"), str):
                raise ApiError(
                    0, f"The answer to a LIST of {path} from {self.server} is not a Kubernetes list."
                )
            yield page.get("items") or [], metadata["resourceVersion"]
            more = metadata.get("continue") or ""
            if not more:
                return

    def watch(
        self,
        path: str,
        resource_version: str,
        *,
        timeout_seconds: int = 300,
        silence_seconds: float = WATCH_SILENCE_SECONDS,
        read_timeout_seconds: float | None = None,
        **query: str,
    ) -> Watch:
        """WATCH from a resource version until the server ends it after `timeout_seconds`, with bookmarks.

        `read_timeout_seconds` is for the head of the answer, `silence_seconds` for each event or bookmark.

        Raises ApiError here or while iterating; status 410 means that the resource version is too old:
        LIST again.
        """
        wanted: dict[str, str | int] = {
            **query,
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": timeout_seconds,
        }
        # The head comes at once, so a connection that was half open already need not cost a whole silence.
        response = self._send("GET", path, wanted, read_timeout_seconds=read_timeout_seconds)
        connection = response.connection
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(silence_seconds)
        return Watch(response, f"The watch of {path} on {self.server}", self._give_up_idle)

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Object | None = None,
        content_type: str = "application/json",
        read_timeout_seconds: float | None = None,
    ) -> Object:
        response = self._send(method, path, query, body, content_type, read_timeout_seconds)
        try:
            parsed = json.loads(response.read())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            response.close()
            self._give_up_idle()
            raise ApiError(
                0,
                f"The answer to {method} {path} from {self.server} broke off: {first_line(error)}.",
                timed_out=_is_time_out(error),
            ) from error
        response.release_conn()
        if not isinstance(parsed, dict):
            raise ApiError(0, f"The answer to {method} {path} from {self.server} is not a JSON object.")
        return parsed

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Object | None = None,
        content_type: str = "application/json",
        read_timeout_seconds: float | None = None,
    ) -> urllib3.HTTPResponse:
        """Return the open response, its body unread, of a request that the server answered with 2xx."""
        read_timeout_seconds = read_timeout_seconds or self._read_timeout_seconds
        began = time.monotonic()
        try:
            prepared = self._client.param_serialize(
                method=method,
                resource_path=path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                # Also where a fresh token is read from its file, once a minute (in-cluster credentials).
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(
                *prepared, _request_timeout=(CONNECT_TIMEOUT_SECONDS, read_timeout_seconds)
            )
        # The client turns urllib3's SSLError into an ApiException without a status; a token file that
        # cannot be read just now is a ConfigException.
        except (
            client.ApiException,
            config.ConfigException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            self._give_up_idle()
            raise ApiError(
                0,
                f"The API server {self.server} cannot be reached: {_cause(error)}.",
                # A TLS handshake that is not answered looks the same, sooner: the server has no request then.
                timed_out=_is_time_out(error) and time.monotonic() - began >= read_timeout_seconds,
            ) from error
        response: urllib3.HTTPResponse = answer.response
        if not 200 <= response.status < 300:
            raise self._refusal(method, path, response)
        return response

    def _give_up_idle(self) -> None:
        """Later requests open connections of their own; those that are in use are not touched."""
        self._client.rest_client.pool_manager.clear()

    def _refusal(self, method: str, path: str, response: urllib3.HTTPResponse) -> ApiError:
        try:
            body = response.read()
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError):
            body = b""  # the status alone says enough
            response.close()
        try:
            status = json.loads(body)
            message, reason = str(status["message"]), str(status.get("reason") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            message, reason = body.decode(errors="replace"), ""
        return ApiError(
            response.status,
            f"{self.server} refused {method} {path} with {response.status}: {first_line(message)}",
            reason=reason,
            retry_after_seconds=_retry_after(response.headers.get("Retry-After")),
        )


class Watch(Iterator[WatchEvent]):
    """The events of one open watch. Iterate in one thread; `cut` is for the others."""

    def __init__(self, response: urllib3.HTTPResponse, name: str, on_break: Callable[[], None]) -> None:
        """`on_break` is called when its connection failed, not when the server has ended it."""
        self._response = response
        self._name = name
        self._on_break = on_break
        self._lines = self._read_lines()

    def __next__(self) -> WatchEvent:
        try:
            event = json.loads(next(self._lines))
            kind, obj = str(event["type"]), event["object"]
            if not isinstance(obj, dict):
                raise TypeError("its object is none")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.close()
            self._on_break()
            raise ApiError(0, f"{self._name} broke: {_cause(error)}.") from error
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise ApiError(0, f"{self._name} sent what is no event: {first_line(error)}.") from error
        except StopIteration:
            self.close()
            raise
        if kind == "ERROR":
            self.close()
            code = obj.get("code")
            raise ApiError(
                code if isinstance(code, int) else 500,
                f"{self._name} ended: {first_line(obj.get('message', ''))}",
                reason=str(obj.get("reason") or ""),
            )
        return WatchEvent(kind, obj)

    def cut(self) -> None:
        """End it from another thread, at once also while that waits for the next event."""
        # Either error means that the reader has closed it meanwhile.
        with suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection; for the thread that iterates."""
        self._response.close()

    def _read_lines(self) -> Iterator[bytes]:
        """Whole lines as they arrive; a watch is chunked, and a chunk is handed on without waiting for more."""
        parts: list[bytes] = []
        for chunk in self._response.stream(65536, decode_content=True):
            *ended, rest = chunk.split(b"\n")
            for line in ended:
                yield b"".join([*parts, line])
                parts.clear()
            if rest:
                parts.append(rest)
        if parts:
            raise urllib3.exceptions.ProtocolError("it ended within an event")


def first_line(error: object) -> str:
    """The first line of an error's text, short enough for a condition."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _cause(error: BaseException) -> str:
    """The innermost reason, without the addresses of Python objects: the same fault reads the same again."""
    if isinstance(error, client.ApiException):
        return _last_line(error.reason)
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "nothing was heard for too long"
    if isinstance(
        error.__context__, urllib3.exceptions.InvalidChunkLength | urllib3.exceptions.IncompleteRead
    ):
        return "the connection was closed in the middle of it"
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return first_line(cause)


def _is_time_out(error: BaseException) -> bool:
    """Whether the server took the request, as far as can be seen, and let it wait."""
    return isinstance(error, urllib3.exceptions.ReadTimeoutError)


def _last_line(reason: object) -> str:
    lines = str(reason).strip().splitlines()
    return lines[-1][:300] if lines else "no reason was given"


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header; the date form, which the API server never sends, counts as none."""
    return (
        min(float(value), MAX_RETRY_AFTER_SECONDS) if value and value.isascii() and value.isdigit() else 0.0
    )
