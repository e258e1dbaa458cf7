"""Runs a program in a guest as if it ran here: `guest_exec.py PORT NAME=VALUE… -- PROGRAM ARGUMENT…`.

PORT is the agent's. Input, output, exit status and signals are the program's. SIGKILL and SIGSTOP are this process's
alone; when it ends, however that is, the agent kills the program. The environment is this one's, with the variables
that are given, and so is the working directory if the guest has it.
"""

import json
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from lab.inside.guest_wire import CHUNK, ERRORS, EXIT, FAILED, HELLO, INPUT, OUTPUT, RUN, SIGNAL, Wire

FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGABRT, signal.SIGCONT, signal.SIGTSTP),
)
GONE = 255


def main() -> None:
    """Do so and end as the program does."""
    # A signal that comes before the program runs waits for it. No handler: one that came just before the main thread
    # waits for the guest would wait with it.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    port, *rest = sys.argv[1:]
    divide = rest.index("--")
    own = dict(variable.split("=", 1) for variable in rest[:divide])
    try:
        wire = Wire(socket.create_connection(("127.0.0.1", int(port))))
    except OSError as error:
        leave(f"the guest's machine is not there: {error.strerror}")
    greeting = wire.receive()
    if greeting is None or greeting[0] != HELLO:
        leave("the guest does not answer")
    plan = {
        "arguments": rest[divide + 1 :],
        "environment": {**os.environ, **own},
        "directory": os.getcwd(),
    }
    wire.send(RUN, json.dumps(plan).encode())
    for passes_on in (feed, forward):
        threading.Thread(target=passes_on, args=(wire,), daemon=True).start()
    while frame := wire.receive():
        kind, data = frame
        if kind == OUTPUT:
            put(1, data)
        elif kind == ERRORS:
            put(2, data)
        elif kind == FAILED:
            leave(data.decode(), 127)
        elif kind == EXIT:
            end(int(data))
    leave("the guest has gone")


def feed(wire: Wire) -> None:
    """Pass input on until its end."""
    try:
        while data := os.read(0, CHUNK):
            wire.send(INPUT, data)
        wire.send(INPUT)
    except OSError:
        pass  # the program has ended, or the guest; the main thread tells


def forward(wire: Wire) -> None:
    """Pass signals on for ever."""
    try:
        while True:
            wire.send(SIGNAL, str(int(signal.sigwait(FORWARDED))).encode())
    except OSError:
        pass


def put(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def end(status: int) -> None:
    """End with an exit code, or where it is negative by that signal."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [-status])
        os.kill(os.getpid(), -status)
    os._exit(status)  # a thread may be waiting for input for ever


def leave(sentence: str, status: int = GONE) -> None:
    put(2, f"{sentence}\n".encode())
    os._exit(status)


if __name__ == "__main__":
    main()
