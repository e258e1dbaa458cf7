"""The one exception of the lab; its message is a sentence for a person: what failed, on what, what to do.

And what it comes to as a program's exit status.
"""

import sys
from collections.abc import Callable


class LabError(RuntimeError):
    """Something of the lab's own failed: a program, a namespace, a deadline."""


def exit_code(work: Callable[[], None], stopped: str) -> int:
    """Do a program's work and return its exit status: a LabError is one line, and Ctrl-C says what it leaves."""
    try:
        work()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    return 0
