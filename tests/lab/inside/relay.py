"""Joins a listening socket that was made outside to an address inside the namespace: `relay.py FD ADDRESS PORT`.

A socket belongs to the namespace that it was made in, whoever uses it. So this is how a process outside, without a
cable into the lab, reaches the API server within.
"""

import asyncio
import socket
import sys

CHUNK = 65536


async def relay(listener: socket.socket, address: str, port: int) -> None:
    """Accept connections and join each to (address, port) until killed."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()  # the client sees a closed connection, which is what there is to see
            return
        await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))

    server = await asyncio.start_server(join, sock=listener, backlog=1024)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass  # one side's reset ends both directions below
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(relay(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
