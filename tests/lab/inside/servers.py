"""A node's service: says over TCP and UDP, in one line of JSON, which node answers whom.

Run as `servers.py NODE --tcp PORT… --udp PORT… --long PORT… --stream PORT… --echo PORT…`; writes `ready` to standard
output once every port is bound. A TCP connection gets a line when it is accepted and one more for each line that it
sends, until the client closes it. On the ports of `--long`, TCP too, a line has 256 KiB, most of it blanks. On those of
`--stream` data follows the line, steadily and never the same, in pieces with their length (4 bytes) before them; when
the client has ended its side, a length of 0 and the SHA-256 of all data are the end. On those of `--echo` everything
that comes is sent back, after the line.
"""

import argparse
import asyncio
import hashlib
import json
import os
import socket
import struct

# linux/in.h; the socket module has no names for them before Python 3.14.
IP_PKTINFO = 8
PKTINFO = struct.Struct("@i4s4s")
BACKLOG = 4096
# A FIN sent at once can overtake, by way of another processor, the ACK that the kernel owes the client's FIN. The
# client, having seen both, answers that late ACK, and no socket is left to take it: a RST that is nobody's fault.
LINGER_SECONDS = 0.05
BLANKS = b" " * (256 * 1024)
DATAGRAM_BUFFER = 8 * 1024 * 1024
PIECE_BYTES, PIECE_SECONDS = 4096, 0.02


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("node")
    parser.add_argument("--tcp", type=int, nargs="*", default=[])
    parser.add_argument("--udp", type=int, nargs="*", default=[])
    parser.add_argument("--long", type=int, nargs="*", default=[])
    parser.add_argument("--stream", type=int, nargs="*", default=[])
    parser.add_argument("--echo", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    asyncio.run(
        serve(
            arguments.node,
            arguments.tcp,
            arguments.udp,
            arguments.long,
            arguments.stream,
            arguments.echo,
        )
    )


class Echo(asyncio.Protocol):
    """One connection whose data goes back; without a stream's buffers, as there may be hundreds of them."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who answers."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(_answer(self._node, transport.get_extra_info("peername")))

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        assert self._transport is not None
        self._transport.write(data)


async def serve(
    node: str,
    tcp_ports: list[int],
    udp_ports: list[int],
    long_ports: list[int],
    stream_ports: list[int],
    echo_ports: list[int],
) -> None:
    """Bind every port on all addresses, say so, and answer."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _answer(node, writer.get_extra_info("peername"))
        if writer.get_extra_info("sockname")[1] in long_ports:
            line = BLANKS + line
        try:
            writer.write(line)
            while await reader.readline():
                writer.write(line)
            await asyncio.sleep(LINGER_SECONDS)
        except ConnectionError:
            pass  # the client's end to tell, not the server's
        finally:
            writer.close()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_answer(node, writer.get_extra_info("peername")))
        sent = hashlib.sha256()
        over = asyncio.create_task(reader.read())
        try:
            while not over.done():
                piece = os.urandom(PIECE_BYTES)
                sent.update(piece)
                writer.write(len(piece).to_bytes(4, "big") + piece)
                await writer.drain()
                await asyncio.wait([over], timeout=PIECE_SECONDS)
            await over
            writer.write(bytes(4) + sent.digest())
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            over.cancel()
            writer.close()

    servers = [
        await asyncio.start_server(converse, "0.0.0.0", port, backlog=BACKLOG, reuse_address=True)
        for port in (*tcp_ports, *long_ports)
    ]
    servers += [
        await asyncio.start_server(stream, "0.0.0.0", port, reuse_address=True) for port in stream_ports
    ]
    loop = asyncio.get_running_loop()
    servers += [
        await loop.create_server(lambda: Echo(node), "0.0.0.0", port, backlog=BACKLOG, reuse_address=True)
        for port in echo_ports
    ]
    for port in udp_ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
        listener.bind(("0.0.0.0", port))
        loop.add_reader(listener, _answer_datagrams, listener, node)
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers), asyncio.Event().wait())


def _answer_datagrams(listener: socket.socket, node: str) -> None:
    """Answer what has arrived, each from the address that it was sent to: the shared one, not the node's."""
    while True:
        try:
            _, ancillary, _, peer = listener.recvmsg(2048, socket.CMSG_SPACE(PKTINFO.size))
        except BlockingIOError:
            return
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                _, _, asked = PKTINFO.unpack(data[: PKTINFO.size])
                # Interface 0: by the routing table, as an answer to a routed client has to leave.
                source = PKTINFO.pack(0, asked, bytes(4))
                listener.sendmsg([_answer(node, peer)], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, peer)


def _answer(node: str, peer: tuple[str, int]) -> bytes:
    return json.dumps({"node": node, "peer": peer[0], "port": peer[1]}).encode() + b"\n"


if __name__ == "__main__":
    main()
