"""Writes kernel settings of network namespaces: {"/run/netns/x": {"net/ipv4/ip_forward": "1"}} on standard input.

One process for all of them, because entering a namespace costs nothing and starting a process does.
"""

import ctypes
import json
import os
import sys

CLONE_NEWNET = 0x40000000


def main() -> None:
    """Enter each namespace in turn and write its settings; /proc/sys/net is that of the process that opens it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for namespace, settings in json.load(sys.stdin).items():
        descriptor = os.open(namespace, os.O_RDONLY)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            sys.exit(f"cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")
        os.close(descriptor)
        for name, value in settings.items():
            path = f"/proc/sys/{name}"
            # A kernel without IPv6 needs nothing switched off.
            if name.startswith("net/ipv6/") and not os.path.exists(path):
                continue
            with open(path, "w") as stream:
                stream.write(value)


if __name__ == "__main__":
    main()
