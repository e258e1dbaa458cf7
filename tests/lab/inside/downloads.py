"""Long downloads: connections that stay open and get data all the time, and whether all of it came and was right.

In, as one line of JSON: {"address", "port", "sources": [[source, port], …], "patience_seconds"}. Writes
`SOURCE PORT NODE` for each connection that has begun (NODE is "-" where it failed). When standard input ends, each is
ended in order, and a line of JSON says how it was: [source, port, node, bytes, longest pause in seconds, error or
null]. The protocol is in `servers.py`.
"""

import asyncio
import hashlib
import json
import os
import socket
import sys
import time


async def main() -> None:
    """Begin all, wait for the end of standard input, end all."""
    plan = json.loads(sys.stdin.readline())
    ending = asyncio.Event()

    def end() -> None:
        if not os.read(0, 1):
            asyncio.get_running_loop().remove_reader(sys.stdin)
            ending.set()

    asyncio.get_running_loop().add_reader(sys.stdin, end)
    target, patience = (plan["address"], plan["port"]), plan["patience_seconds"]
    begun = (download(target, source, port, ending, patience) for source, port in plan["sources"])
    outcomes = await asyncio.gather(*begun)
    for outcome in outcomes:
        print(json.dumps(outcome))


async def download(
    target: tuple[str, int], source: str, port: int, ending: asyncio.Event, patience_seconds: float
) -> list[object]:
    """Take what comes until `ending`, and check it against what the server says it sent."""
    node, count, pause = "-", 0, 0.0
    seen = hashlib.sha256()
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    error: str | None = None
    try:
        connection.bind((source, port))
        async with asyncio.timeout(patience_seconds):
            await asyncio.get_running_loop().sock_connect(connection, target)
            reader, writer = await asyncio.open_connection(sock=connection)
            node = json.loads(await reader.readline())["node"]
        print(source, port, node, flush=True)
        stopping = asyncio.create_task(_end(ending, writer, patience_seconds))
        last = time.monotonic()
        while length := int.from_bytes(await reader.readexactly(4), "big"):
            data = await reader.readexactly(length)
            now = time.monotonic()
            last, pause = now, max(pause, now - last)
            seen.update(data)
            count += length
        if await reader.readexactly(32) != seen.digest():
            error = "the data is not what was sent"
        await stopping
        writer.close()
    except TimeoutError:
        error = "timeout"
    except asyncio.IncompleteReadError:
        error = "ended early"
    except OSError as failure:
        error = os.strerror(failure.errno or 0)
    finally:
        connection.close()
    if node == "-":
        print(source, port, node, flush=True)
    return [source, port, node, count, pause, error]


async def _end(ending: asyncio.Event, writer: asyncio.StreamWriter, patience_seconds: float) -> None:
    """Say, when it is time, that no more is wanted; give up what does not come to its end then."""
    await ending.wait()
    writer.write_eof()
    asyncio.get_running_loop().call_later(patience_seconds, writer.transport.abort)


if __name__ == "__main__":
    asyncio.run(main())
