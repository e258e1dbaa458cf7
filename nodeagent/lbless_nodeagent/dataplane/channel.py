"""Messages between the two processes of dataplane: in order, whole, and without either ever waiting.

Owns the bytes and the queue. What a message means is `tick.messages`'. A message is pickled: the socket
has no name, and both its ends are this very program.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections import deque

_LENGTH = struct.Struct("=L")
_READ_BYTES = 1 << 16


class Closed(Exception):
    """The other process ended, or closed its end."""


class Channel:
    """One end. What cannot be sent at once is kept until `flush`: register for writing while `is_blocked`."""

    def __init__(self, end: socket.socket) -> None:
        """Take over a connected stream socket."""
        end.setblocking(False)
        self._end = end
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected ends; hand one to the other process."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def fileno(self) -> int:
        """For poll(): readable when a message comes, or the other process ended."""
        return self._end.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._unsent)

    def send(self, message: object) -> None:
        """Send it, or queue it behind what waits; raises Closed."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._unsent.append(memoryview(_LENGTH.pack(len(content)) + content))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now; raises Closed."""
        while self._unsent:
            first = self._unsent[0]
            try:
                sent = self._end.send(first)
            except BlockingIOError:
                return
            except OSError:
                raise Closed from None
            if sent == len(first):
                self._unsent.popleft()
            else:
                self._unsent[0] = first[sent:]

    def receive(self, limit: int) -> list[object]:
        """Return at most `limit` messages that have come; raises Closed where no more will.

        One that is left is returned by the next call: `fileno` does not tell of it, `has_more` does.
        """
        found = self._parsed(limit)
        while len(found) < limit:
            try:
                read = self._end.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                raise Closed from None
            if not read:
                if found:
                    break  # the next call finds the end again
                raise Closed
            self._received += read
            found += self._parsed(limit - len(found))
        return found

    @property
    def has_more(self) -> bool:
        """Whether a whole message was read from the socket and not returned yet."""
        return len(self._received) >= _LENGTH.size + self._next_length()

    def close(self) -> None:
        """Let go of the socket; the other end is told by that."""
        self._end.close()

    def _next_length(self) -> int:
        if len(self._received) < _LENGTH.size:
            return 0
        (length,) = _LENGTH.unpack_from(self._received)
        return int(length)

    def _parsed(self, limit: int) -> list[object]:
        found: list[object] = []
        position = 0
        while len(found) < limit and len(self._received) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, position)
            end = position + _LENGTH.size + length
            if len(self._received) < end:
                break
            found.append(pickle.loads(self._received[position + _LENGTH.size : end]))  # noqa: S301 - see above
            position = end
        del self._received[:position]
        return found
