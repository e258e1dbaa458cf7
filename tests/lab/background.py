"""A program of `inside/` that works on a host while a block runs, and says at its end what it has seen.

Owns its start, its end and the failure of either. The program reads its plan as one line of JSON, writes `ready` when
it is at work, ends when its standard input does, and writes lines of JSON then.
"""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lab.errors import LabError
from lab.host import Host


@contextmanager
def background(
    host: Host, program: str, plan: Mapping[str, Any], *, start_seconds: float, end_seconds: float
) -> Iterator[list[Any]]:
    """Let it work inside the block; the list has what it said once the block is over.

    Raises LabError where it does not begin in time, or breaks off.
    """
    process = host.popen(host.inside(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, log=program)
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[Any] = []
    try:
        process.stdin.write(json.dumps(plan) + "\n")
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], start_seconds)
        first = process.stdout.readline().strip() if readable else "it says nothing"
        if first != "ready":
            raise LabError(f"{program} on {host.namespace} cannot begin: {first or host.last_words(program)}")
        yield said
        output, _ = process.communicate(timeout=end_seconds)
        if process.returncode != 0:
            raise LabError(f"{program} on {host.namespace} broke off: {host.last_words(program)}")
        said += [json.loads(line) for line in output.splitlines()]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
