"""The Kubernetes API as plain JSON: credentials, requests, paged LISTs, watches, server-side apply.

Owns talking HTTP with the API server through the `kubernetes` client's connection, and turning every
failure into an `ApiError` of one sentence. Objects stay the JSON they are: their readers parse them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config

from lbless_edge.process import Fatal

CLUSTERIPS = "/apis/lbless.dev/v1alpha1/clusterips"
CLUSTERIPNODES = "/apis/lbless.dev/v1alpha1/clusteripnodes"
NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
ENDPOINTSLICES = "/apis/discovery.k8s.io/v1/endpointslices"

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 30
WATCH_SILENCE_SECONDS = 75
"""Bookmarks come every 60 s: a watch silent for longer hangs on a connection that is half open."""
PAGE = 500

Object = dict[str, Any]


class ApiError(Exception):
    """A request failed. `status` is the HTTP status, 0 where there was no answer at all."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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
    return f"{root}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def connect(kubeconfig: str | None = None) -> Api:
    """Read the credentials: `kubeconfig` (usually $KUBECONFIG), else the in-cluster account.

    Raises Fatal with one sentence where neither can be used; does not talk to the server yet.
    """
    configuration = client.Configuration()
    if kubeconfig:
        path = Path(kubeconfig)
        if not path.is_file():
            raise Fatal(f"The kubeconfig {kubeconfig} does not exist: correct $KUBECONFIG.")
        try:
            config.load_kube_config(str(path), client_configuration=configuration)
        except (config.ConfigException, ValueError, TypeError, AttributeError, OSError) as error:
            raise Fatal(f"The kubeconfig {kubeconfig} cannot be used ({_line(error)}): correct it.") from None
    else:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            raise Fatal(
                "There are no Kubernetes credentials: set $KUBECONFIG, or run in a pod with a service account."
            ) from None
    return Api(configuration)


class Api:
    """One connection pool to the API server; safe to use from several threads."""

    def __init__(self, configuration: client.Configuration) -> None:
        configuration.retries = False
        self.server = str(configuration.host)
        self._client = client.ApiClient(configuration)

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

    def list_pages(self, path: str, *, limit: int = PAGE, **query: str) -> Iterator[tuple[list[Object], str]]:
        """LIST in pages of (items, resource version of the whole LIST).

        Only when the iterator ends without an ApiError was the LIST complete.
        """
        more = ""
        while True:
            page = self._json("GET", path, {**query, "limit": limit, **({"continue": more} if more else {})})
            yield page.get("items") or [], page["metadata"]["resourceVersion"]
            more = page["metadata"].get("continue") or ""
            if not more:
                return

    def watch(self, path: str, resource_version: str, *, timeout_seconds: int = 300, **query: str) -> Iterator[WatchEvent]:
        """WATCH from a resource version until the server ends it, with bookmarks.

        Raises ApiError; status 410 means that the resource version is too old: LIST again.
        """
        response = self._send(
            "GET",
            path,
            {
                **query,
                "watch": "true",
                "resourceVersion": resource_version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": timeout_seconds,
            },
            read_timeout_seconds=WATCH_SILENCE_SECONDS,
        )
        try:
            yield from self._events(response)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiError(0, f"The watch of {path} on {self.server} broke: {_line(error)}.") from error
        finally:
            response.close()

    def _events(self, response: urllib3.HTTPResponse) -> Iterator[WatchEvent]:
        rest = b""
        for chunk in response.stream(65536, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(int(event["object"].get("code", 500)), str(event["object"].get("message", "")))
                yield WatchEvent(event["type"], event["object"])

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        response = self._send(method, path, query, body, content_type)
        try:
            parsed = json.loads(response.read())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiError(0, f"The answer to {method} {path} from {self.server} broke off: {_line(error)}.") from error
        finally:
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
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    ) -> urllib3.HTTPResponse:
        """Return the open response of a request that the server answered with 2xx."""
        try:
            prepared = self._client.param_serialize(
                method=method,
                resource_path=path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(
                *prepared, _request_timeout=(CONNECT_TIMEOUT_SECONDS, read_timeout_seconds)
            )
        except client.ApiException as error:
            raise ApiError(error.status or 0, _refusal(method, path, self.server, error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(
                0, f"The API server {self.server} does not answer {method} {path}: {_line(error)}."
            ) from error
        response: urllib3.HTTPResponse = answer.response
        if not 200 <= response.status < 300:
            raise ApiError(response.status, _said(method, path, self.server, response.status, response.read()))
        return response


def _refusal(method: str, path: str, server: str, error: client.ApiException) -> str:
    return _said(method, path, server, error.status or 0, (error.body or error.reason or "").__str__().encode())


def _said(method: str, path: str, server: str, status: int, body: bytes) -> str:
    try:
        message = json.loads(body).get("message") or ""
    except (ValueError, AttributeError):
        message = body.decode(errors="replace")
    return f"{server} refused {method} {path} with {status}: {_line(message)}"


def _line(error: object) -> str:
    """The first line of an error's text, short enough for a condition."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
