"""Runs in a node's namespace: prints CLOCK_MONOTONIC, in seconds, whenever lbless's rules changed.

Started by `bench.changes`, never imported.
"""

import select
import sys
import time

from lbless_nodeagent.dataplane.nftables.monitor import Monitor


def main() -> None:
    """Print a line for each burst of notifications, until killed."""
    monitor = Monitor()
    print("ready", flush=True)
    while True:
        select.select([monitor], [], [])
        touched, lost = monitor.drain()
        if touched or lost:
            sys.stdout.write(f"{time.monotonic()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
