"""What a guest's agent and the programs that talk to it say to each other: frames of a kind, a length and data."""

import socket
import struct
import threading

HEAD = struct.Struct("!cI")
# To the agent: what to run (JSON), input (empty: its end), a signal's number.
RUN, INPUT, SIGNAL = b"r", b"i", b"s"
# From the agent: that it listens, output, error output, the exit status (as subprocess has it), why nothing was run.
HELLO, OUTPUT, ERRORS, EXIT, FAILED = b"h", b"o", b"e", b"x", b"f"
CHUNK = 65536


class Wire:
    """One connection; any thread may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()

    def send(self, kind: bytes, data: bytes = b"") -> None:
        """Send a frame. Raises OSError where the other side has gone."""
        with self._lock:
            self._connection.sendall(HEAD.pack(kind, len(data)) + data)

    def receive(self) -> tuple[bytes, bytes] | None:
        """Return the next frame; None where the other side has gone."""
        head = self._exactly(HEAD.size)
        if head is None:
            return None
        kind, length = HEAD.unpack(head)
        data = self._exactly(length)
        return None if data is None else (kind, data)

    def _exactly(self, length: int) -> bytes | None:
        parts = []
        while length:
            try:
                part = self._connection.recv(min(length, CHUNK))
            except ConnectionError:
                return None
            if not part:
                return None
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
