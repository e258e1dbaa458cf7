"""Services of the nodes: starting and stopping what answers over TCP and UDP with the node's name.

The protocol is in `inside/servers.py`; who asks is `traffic`'s.
"""

import select
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lab.errors import LabError
from lab.host import Host

START_SECONDS = 60
TCP_PORT = 8080
UDP_PORT = 5353
STREAM_PORT = 8082
ECHO_PORT = 8083
# Something of the node's own that is not meant to answer on a shared address.
SSH_PORT = 22


@contextmanager
def serving(
    hosts: Sequence[Host],
    *,
    tcp: Sequence[int] = (TCP_PORT, SSH_PORT),
    udp: Sequence[int] = (UDP_PORT,),
    long: Sequence[int] = (),
    stream: Sequence[int] = (),
    echo: Sequence[int] = (),
) -> Iterator[list[subprocess.Popen[str]]]:
    """Serve on every host, on all its addresses, inside the block; every port is bound when it begins.

    `long` are TCP ports whose answers have 256 KiB, `stream` those whose answers do not end (see `downloads`), `echo`
    those that send back what they get (see `echoes`).

    Raises LabError where a server does not start (a port in use, say).
    """
    servers = [start(host, tcp=tcp, udp=udp, long=long, stream=stream, echo=echo) for host in hosts]
    try:
        for host, server in zip(hosts, servers, strict=True):
            await_ready(host, server)
        yield servers
    finally:
        for server in servers:
            stop(server)


def start(
    host: Host,
    *,
    tcp: Sequence[int],
    udp: Sequence[int],
    long: Sequence[int] = (),
    stream: Sequence[int] = (),
    echo: Sequence[int] = (),
) -> subprocess.Popen[str]:
    """Start the server of one host; it may not be ready yet."""
    ports = {"--tcp": tcp, "--udp": udp, "--long": long, "--stream": stream, "--echo": echo}
    words = [word for option, numbers in ports.items() for word in (option, *map(str, numbers))]
    return host.popen(host.inside("servers", host.name, *words), stdout=subprocess.PIPE, log="servers")


def await_ready(host: Host, server: subprocess.Popen[str]) -> None:
    """Return once the server has bound its ports. Raises LabError if it ends, or takes too long."""
    assert server.stdout is not None
    readable, _, _ = select.select([server.stdout], [], [], START_SECONDS)
    if not readable or server.stdout.readline() != "ready\n":
        raise LabError(f"the servers of {host.namespace} do not start: {host.last_words('servers')}")


def stop(server: subprocess.Popen[str]) -> None:
    """Kill a server; its connections end with a RST or FIN, as the kernel sees fit."""
    server.kill()
    server.wait()
    if server.stdout is not None:
        server.stdout.close()
