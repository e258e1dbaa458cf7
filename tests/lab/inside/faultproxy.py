"""A proxy before the API server that misbehaves as it is told.

`faultproxy.py CERTIFICATE KEY AUTHORITY ADDRESS SERVER PORT FD` listens on a free port of ADDRESS, which its first
line of output says, and on FD, a socket that was made outside of this namespace and bound to a port by number. TLS
ends here with CERTIFICATE; the API server's own must be signed by AUTHORITY. Each line of standard input is an order,
answered by one line, both JSON. Without orders every byte of a request and its answer is passed on as it is; each
request has a connection of its own to the API server.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

LIMIT = 1 << 20
"""Of the head of a request or an answer, and of the line that begins a chunk, in bytes."""
EXPIRED = {
    "kind": "Status",
    "apiVersion": "v1",
    "metadata": {},
    "status": "Failure",
    "message": "too old resource version: 1 (2)",
    "reason": "Expired",
    "code": 410,
}
HALF_AN_EVENT = b'{"type":"MODIFIED","object":{"apiVersion":"v1","kind":"Pod","metadata":{"na'
REASONS = {410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


@dataclass
class Fault:
    """What happens to every `every`th request whose verb is one of `verbs` (none: any) and whose path contains `path`.

    "delay": it is passed on `seconds` later. "answer": `status` instead of it. "drop": the connection ends. "hang":
    nothing, ever.
    """

    kind: str
    verbs: list[str] = field(default_factory=list)
    path: str = ""
    every: int = 1
    seconds: float = 0.0
    status: int = 500
    retry_after: int = 0
    seen: int = 0

    def meets(self, verb: str, path: str) -> bool:
        """Whether it strikes this request; counts it."""
        if (self.verbs and verb not in self.verbs) or self.path not in path:
            return False
        self.seen += 1
        return self.seen % self.every == 0


@dataclass
class Request:
    """One request as it came: `head` with its empty line."""

    head: bytes
    body: bytes
    verb: str
    path: str
    record: dict[str, Any]


def verb_of(method: str, target: str) -> str:
    """LIST, WATCH, GET, or the method: as RBAC tells them apart, by the path alone."""
    url = urlsplit(target)
    if method != "GET":
        return method
    if parse_qs(url.query).get("watch", ["false"])[0] in {"1", "true"}:
        return "WATCH"
    parts = url.path.strip("/").split("/")
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    return "LIST" if len(rest) == 1 and parts[0] in {"api", "apis"} else "GET"


class Proxy:
    """All connections, and what is wrong with them."""

    def __init__(
        self,
        serving: ssl.SSLContext,
        asking: ssl.SSLContext,
        listeners: list[socket.socket],
        server: str,
        port: int,
    ) -> None:
        self.asking = asking
        self.server = server
        self.port = port
        self.faults: list[Fault] = []
        self.records: list[dict[str, Any]] = []
        self._serving = serving
        self._listeners = listeners
        self._connections: set[Connection] = set()
        self._held: list[object] = []  # silent for ever; referenced, or they would be closed
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._hangs = False

    def open(self) -> None:
        """Accept connections."""
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(1024)
            self._accepting.append(asyncio.create_task(self._accept(listener)))

    def order(self, what: str, **options: Any) -> Any:
        """Do what standard input says; return what the answer is to hold."""
        match what:
            case "cut":
                self._shut()
                for connection in list(self._connections):
                    connection.cut()
            case "stall":
                self._hangs = bool(options["new_too"])
                for connection in list(self._connections):
                    self._held.append(connection.hold())
            case "cut_watches":
                return self._end_watches(options["path"], HALF_AN_EVENT if options["within_event"] else b"")
            case "expire_watches":
                event = json.dumps({"type": "ERROR", "object": EXPIRED}).encode() + b"\n"
                return self._end_watches(options["path"], event)
            case "fault":
                self.faults.append(Fault(**options))
            case "heal":
                self.faults.clear()
                self._hangs = False
                if not self._accepting:
                    self.open()
            case "requests":
                return self.records
        return None

    def _shut(self) -> None:
        for task in self._accepting:
            task.cancel()
        self._accepting.clear()
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # refuses from now on, and keeps its port

    def _end_watches(self, path: str, last: bytes) -> int:
        watches = [c for c in self._connections if c.is_watching(path)]
        for connection in watches:
            connection.end_watch(last)
        return len(watches)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(listener)
            if self._hangs:
                self._held.append(accepted)
                continue
            task = asyncio.create_task(self._serve(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=self._serving)
        except OSError:
            return  # a client that does not trust this certificate, or is gone
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(self, reader, asyncio.StreamWriter(transport, protocol, reader, loop), task)
        self._connections.add(connection)
        try:
            await connection.run()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side is gone, or an order has ended it
        finally:
            self._connections.discard(connection)
            if not connection.is_held:
                connection.close()


class Connection:
    """One client's connection."""

    def __init__(
        self,
        proxy: Proxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: asyncio.Task[None],
    ) -> None:
        self.watches: str | None = None
        """The path of the watch that is being passed on."""
        self.is_held = False
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._task = task

    async def run(self) -> None:
        """Pass on one request after the other until either side ends it."""
        while (request := await self._read()) is not None:
            for fault in [f for f in self._proxy.faults if f.meets(request.verb, request.path)]:
                if not await self._strike(fault, request):
                    return
            if not await self._pass_on(request):
                return

    def is_watching(self, path: str) -> bool:
        """Whether a watch whose path contains `path` is being passed on, to a client that is still there."""
        return self.watches is not None and path in self.watches and not self._reader.at_eof()

    def cut(self) -> None:
        """End it at once, with a reset."""
        self._task.cancel()
        linger = struct.pack("ii", 1, 0)
        if (raw := self._writer.get_extra_info("socket")) is not None:  # its client may have ended it already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def hold(self) -> Connection:
        """Leave it open and never say or hear anything on it again."""
        self.is_held = True
        self._task.cancel()
        self._writer.transport.pause_reading()  # type: ignore[attr-defined] # it is no plain WriteTransport
        return self

    def end_watch(self, last: bytes) -> None:
        """End a watch, after some last bytes of the stream."""
        self._task.cancel()
        if last:
            self._writer.write(_chunk(last))
        if last.endswith(b"\n"):
            self._writer.write(_chunk(b""))
        self.close()

    def close(self) -> None:
        """End it after what was written."""
        self._writer.close()

    async def _read(self) -> Request | None:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, headers = _parse(head)
        method, path, _ = first.split(" ", 2)
        body = b""
        if headers.get("transfer-encoding", "") == "chunked":
            while chunk := await _read_chunk(self._reader):
                body += _chunk(chunk)
            body += _chunk(b"")
        elif length := int(headers.get("content-length", 0)):
            body = await self._reader.readexactly(length)
        verb = verb_of(method, path)
        record = {"at": time.monotonic(), "verb": verb, "path": path, "outcome": "open"}
        self._proxy.records.append(record)
        return Request(head, body, verb, path, record)

    async def _strike(self, fault: Fault, request: Request) -> bool:
        """Do what the fault is; return whether the request is to be passed on all the same."""
        match fault.kind:
            case "delay":
                await asyncio.sleep(fault.seconds)
                return True
            case "hang":
                request.record["outcome"] = "hung"
                await asyncio.Event().wait()
            case "drop":
                request.record["outcome"] = "dropped"
            case "answer":
                request.record["outcome"] = fault.status
                self._writer.write(_refusal(fault.status, fault.retry_after))
                await self._writer.drain()
        return False

    async def _pass_on(self, request: Request) -> bool:
        """Ask the API server and pass its answer on; return whether another request may follow."""
        reader, writer = await asyncio.open_connection(
            self._proxy.server, self._proxy.port, ssl=self._proxy.asking, limit=LIMIT
        )
        try:
            writer.write(request.head + request.body)
            head = await reader.readuntil(b"\r\n\r\n")
            first, headers = _parse(head)
            request.record["outcome"] = int(first.split(" ")[1])
            self._writer.write(head)
            if headers.get("transfer-encoding", "") == "chunked":
                self.watches = request.path if request.verb == "WATCH" else None
                await self._pass_chunks(reader)
            elif "content-length" in headers:
                await self._pass_bytes(reader, int(headers["content-length"]))
            await self._writer.drain()
            return headers.get("connection", "") != "close"
        finally:
            self.watches = None
            writer.close()

    async def _pass_chunks(self, reader: asyncio.StreamReader) -> None:
        while chunk := await _read_chunk(reader):
            self._writer.write(_chunk(chunk))
            await self._writer.drain()
        self._writer.write(_chunk(b""))

    async def _pass_bytes(self, reader: asyncio.StreamReader, left: int) -> None:
        while left:
            data = await reader.read(min(left, 65536))
            if not data:
                raise ConnectionError
            left -= len(data)
            self._writer.write(data)
            await self._writer.drain()


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip().lower() for name, _, value in pairs}


async def _read_chunk(reader: asyncio.StreamReader) -> bytes:
    """The bytes of the next chunk; none at the end."""
    size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
    return (await reader.readexactly(size + 2))[:-2]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _refusal(status: int, retry_after: int) -> bytes:
    reason = REASONS.get(status, "InternalError")
    message = f"the fault proxy answers {status}"
    body = json.dumps({**EXPIRED, "code": status, "reason": reason, "message": message}).encode()
    headers = [
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if retry_after:
        headers.append(f"Retry-After: {retry_after}")
    # The server's own refusals leave the connection open; this one is read to its end, which is as good.
    headers.append("Connection: close")
    return "\r\n".join([*headers, "", ""]).encode() + body


def bound(address: str) -> socket.socket:
    """A socket bound to a free port by its number: such a one keeps it when it is shut, and can listen again."""
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    return socket.create_server((address, port))


async def main(
    certificate: str, key: str, authority: str, address: str, server: str, port: str, outside: str
) -> None:
    """Proxy until standard input ends."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate, key)
    inside = bound(address)
    listeners = [inside, socket.socket(fileno=int(outside))]
    proxy = Proxy(serving, ssl.create_default_context(cafile=authority), listeners, server, int(port))
    proxy.open()
    print(json.dumps({"answer": inside.getsockname()[1]}), flush=True)
    orders = asyncio.StreamReader(limit=LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        answer = proxy.order(**json.loads(line))
        print(json.dumps({"answer": answer}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
