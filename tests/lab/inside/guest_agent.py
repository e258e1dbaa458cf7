"""Runs programs in a guest for the lab: `guest_agent.py PORT`, one connection a program (frames: `guest_wire`).

It is started in a network namespace of the lab's own, listens there, and runs everything in that of the guest. A
program whose connection breaks is killed: the process on the host that stood for it has ended.
"""

import contextlib
import ctypes
import json
import os
import queue
import resource
import select
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[2]))
from lab.inside.guest_wire import CHUNK, ERRORS, EXIT, FAILED, HELLO, INPUT, OUTPUT, RUN, SIGNAL, Wire

CLONE_NEWNET = 0x40000000


class Conversation(socketserver.BaseRequestHandler):
    """One program: started, fed, and told about. In a process of its own."""

    def handle(self) -> None:
        """Run the program that is asked for."""
        wire = Wire(self.request)
        wire.send(HELLO)
        asked = wire.receive()
        if asked is None or asked[0] != RUN:
            return
        plan = json.loads(asked[1])
        try:
            process = subprocess.Popen(
                plan["arguments"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=plan["environment"],
                cwd=plan["directory"] if os.path.isdir(plan["directory"]) else "/",
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            wire.send(FAILED, f"{plan['arguments'][0]}: {error.strerror}".encode())
            return
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        threading.Thread(target=obey, args=(wire, process, process.stdin), daemon=True).start()
        stop_r, stop_w = os.pipe()
        pumps = [
            threading.Thread(target=pump, args=(wire, kind, stream, stop_r))
            for kind, stream in ((OUTPUT, process.stdout), (ERRORS, process.stderr))
        ]
        for thread in pumps:
            thread.start()
        process.wait()
        # What it has written until now is passed on; what its children still hold open is nobody's to wait for.
        os.close(stop_w)
        for thread in pumps:
            thread.join()
        wire.send(EXIT, str(process.returncode).encode())


def pump(wire: Wire, kind: bytes, stream: IO[bytes], stop: int) -> None:
    """Pass output on until its end, or until the program has ended and nothing is there to read."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    poll.register(stop, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if stream.fileno() not in ready:
            return
        if not (data := os.read(stream.fileno(), CHUNK)):
            return
        with contextlib.suppress(OSError):  # the other side has gone; `obey` sees it too
            wire.send(kind, data)


def obey(wire: Wire, process: subprocess.Popen[bytes], stdin: IO[bytes]) -> None:
    """Take input and signals until the connection ends, which ends the program."""
    given: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=feed, args=(given, stdin), daemon=True).start()
    while frame := wire.receive():
        kind, data = frame
        if kind == INPUT:
            given.put(data)
        elif kind == SIGNAL:
            process.send_signal(int(data))
    process.kill()


def feed(given: queue.SimpleQueue[bytes], stdin: IO[bytes]) -> None:
    """Write input; apart from `obey`, so that a program that does not read can still be signalled."""
    with contextlib.suppress(OSError):
        while data := given.get():
            view = memoryview(data)
            while view:
                view = view[os.write(stdin.fileno(), view) :]
    with contextlib.suppress(OSError):
        stdin.close()


class Server(socketserver.ForkingTCPServer):
    """A process for each program."""

    allow_reuse_address = True
    max_children = 4096
    request_queue_size = 256


def main() -> None:
    """Listen here, and leave for the network of the first process."""
    server = Server(("0.0.0.0", int(sys.argv[1])), Conversation)
    home = os.open("/proc/1/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(home, CLONE_NEWNET) != 0:
        sys.exit(f"cannot enter the guest's network: {os.strerror(ctypes.get_errno())}")
    os.close(home)
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("the lab's agent listens", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
