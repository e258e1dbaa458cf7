"""A small API server for faults that a real one does not produce on demand: LIST and WATCH over HTTP.

It cuts streams in the middle, stays silent, answers 410, 429 and 500, and is slow, as a test tells it. What
it does when nothing is told is checked against the real one by tests/cluster/test_edge_api.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


class FakeApi:
    """One collection at `path`, whatever the test names it; version numbers count from 1."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.version = 1
        self.oldest_version = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        """How many have been opened so far."""
        self.refusals: list[tuple[int, object]] = []
        """Answers for the next requests, in this order: (status, body).

        Status 0 closes the connection, -1 leaves the request without an answer until the client goes.
        """
        self.forbidden: set[str] = set()
        """Paths that are answered with 403, however often."""
        self.silent = False
        """A watch opened meanwhile gets a header and never anything more."""
        self.pages_take_seconds = 0.0
        """How long each page of a LIST is worked on."""
        self._log: list[tuple[int, str, Object]] = []
        self._watches: set[_Watch] = set()
        self._changed = threading.Condition()

    def put(self, name: str, **fields: Any) -> Object:
        """Create or change an object."""
        with self._changed:
            self.version += 1
            old = self.objects.get(name)
            uid = old["metadata"]["uid"] if old else f"uid-{name}-{self.version}"
            metadata = {"name": name, "uid": uid, "resourceVersion": str(self.version)}
            obj = {**fields, "metadata": metadata | fields.get("metadata", {})}
            self.objects[name] = obj
            self._record("MODIFIED" if old else "ADDED", obj)
        return obj

    def delete(self, name: str) -> None:
        """Delete an object."""
        with self._changed:
            self.version += 1
            obj = self.objects.pop(name)
            gone = {"metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
            self._record("DELETED", gone)

    def bookmark(self) -> None:
        """Send every watch a bookmark of a new version."""
        with self._changed:
            self.version += 1
            self._record("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def forget_history(self) -> None:
        """Answer watches from before now with 410."""
        with self._changed:
            self.oldest_version = self.version
            self._log.clear()

    def send_raw(self, data: bytes) -> None:
        """Put bytes, as they are, into every open watch as a chunk."""
        with self._changed:
            for watch in self._watches:
                watch.raw.append(data)
            self._changed.notify_all()

    def silence_watches(self) -> None:
        """The open watches get nothing more."""
        with self._changed:
            for watch in self._watches:
                watch.silent = True

    def end_watches(self, *, cut: bool) -> None:
        """End every open watch: cleanly, or by closing its connection in the middle."""
        with self._changed:
            for watch in self._watches:
                watch.ending = "cut" if cut else "end"
            self._changed.notify_all()

    @property
    def open_watches(self) -> int:
        """How many watches are being served."""
        with self._changed:
            return len(self._watches)

    def count(self, *, watch: bool) -> int:
        """How many requests of a kind have come so far."""
        with self._changed:
            return sum(("watch" in query) == watch for _, query in self.requests)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve on a free port of the loopback interface and yield the URL."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with fake._changed:
                    fake.connections += 1

            def do_GET(self) -> None:
                fake._answer(self)

            def do_PATCH(self) -> None:
                fake._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            self.end_watches(cut=True)
            server.shutdown()
            server.server_close()

    def _record(self, kind: str, obj: Object) -> None:
        self._log.append((self.version, kind, obj))
        self._changed.notify_all()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._changed:
            self.requests.append((url.path, query))
            self.headers.append({key.title(): value for key, value in handler.headers.items()})
            self.bodies.append(body)
            refusal = self.refusals.pop(0) if self.refusals else None
            if url.path in self.forbidden:
                refusal = (403, {"message": f"{url.path} is forbidden", "reason": "Forbidden"})
        if refusal and refusal[0] <= 0:
            if refusal[0] < 0:
                handler.rfile.read(1)
            handler.close_connection = True
        elif refusal:
            self._reply(handler, *refusal)
        elif "watch" in query:
            self._serve_watch(handler, int(query["resourceVersion"]))
        else:
            time.sleep(self.pages_take_seconds)
            self._reply(handler, 200, self._page(query))

    def _page(self, query: dict[str, str]) -> Object:
        with self._changed:
            names = sorted(self.objects)
            start = int(query.get("continue", "0"))
            end = start + int(query.get("limit", "500"))
            metadata = {"resourceVersion": str(self.version)}
            if end < len(names):
                metadata["continue"] = str(end)
            return {"metadata": metadata, "items": [self.objects[n] for n in names[start:end]]}

    @staticmethod
    def _reply(handler: BaseHTTPRequestHandler, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        if status == 429:
            handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _serve_watch(self, handler: BaseHTTPRequestHandler, version: int) -> None:
        watch = _Watch(handler, version, silent=self.silent)
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with self._changed:
            self._watches.add(watch)
            gone = version < self.oldest_version
        try:
            if gone:
                watch.send_event(
                    "ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"}
                )
                watch.end()
            else:
                self._feed(watch)
        except OSError:
            watch.ending = "cut"  # the client went away
        finally:
            handler.close_connection = watch.ending == "cut"
            with self._changed:
                self._watches.discard(watch)

    def _feed(self, watch: _Watch) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: watch.ending or watch.raw or self._newer(watch))
                ending, raw, events = watch.ending, list(watch.raw), self._newer(watch)
                watch.raw.clear()
                watch.version = self.version
            for data in raw:
                watch.send(data)
            for _, kind, obj in events:
                watch.send_event(kind, obj)
            if ending == "cut":
                return
            if ending == "end":
                watch.end()
                return

    def _newer(self, watch: _Watch) -> list[tuple[int, str, Object]]:
        return [] if watch.silent else [entry for entry in self._log if entry[0] > watch.version]


class _Watch:
    def __init__(self, handler: BaseHTTPRequestHandler, version: int, *, silent: bool) -> None:
        self.version = version
        self.silent = silent
        self.raw: list[bytes] = []
        self.ending = ""
        self._handler = handler

    def send_event(self, kind: str, obj: Object) -> None:
        self.send(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self._handler.wfile.flush()

    def end(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")
