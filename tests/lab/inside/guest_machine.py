"""Becomes a guest's virtual machine: `guest_machine.py PLAN`, where PLAN is what `lab.guest` writes as JSON.

Lays its cables, network interfaces that are ports of bridges in other namespaces, starts a file server for each
directory that the guest shares, and then is qemu itself. All of them end with this process.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys

CLONE_NEWNET = 0x40000000
# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Prepare everything that has to be open, and exec."""
    plan = json.loads(sys.argv[1])
    command = list(plan["qemu"])
    for number, share in enumerate(plan["shares"]):
        path = serve(
            plan["file_server"], share["directory"], f"{plan['directory']}/{plan['name']}-{number}.socket"
        )
        command += ["-chardev", f"socket,id=share{number},path={path}"]
        command += ["-device", f"vhost-user-fs-pci,chardev=share{number},tag={share['tag']}"]
    for number, cable in enumerate(plan["cables"]):
        descriptor = plug(cable["namespace"], cable["bridge"], cable["socket"])
        command += ["-netdev", f"tap,id=cable{number},fd={descriptor}"]
        command += ["-device", f"virtio-net-pci,netdev=cable{number},mac={cable['mac']},romfile="]
    os.execvp(command[0], command)  # noqa: S606  # so that the process that the lab started is the machine


def plug(namespace: str, bridge: str, name: str) -> int:
    """Return a descriptor whose frames go through port `name` of a bridge; the port goes when that is closed."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(os.open(namespace, os.O_RDONLY | os.O_CLOEXEC))
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "master", bridge, "up"], check=True)
    os.set_inheritable(tap, True)
    enter(home)
    return tap


def enter(descriptor: int) -> None:
    """Move to a network namespace."""
    if LIBC.setns(descriptor, CLONE_NEWNET) != 0:
        sys.exit(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)


def serve(program: str, directory: str, path: str) -> str:
    """Start a file server for a directory, and return the socket where it listens already."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    subprocess.Popen(
        # Not in a network namespace of its own, as it would by default: the lab's claim could not find it there.
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            program,
            f"--fd={listener.fileno()}",
            "-o",
            f"source={directory}",
            "-o",
            "sandbox=chroot",
        ],
        stdin=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
    )
    listener.close()
    return path


if __name__ == "__main__":
    main()
