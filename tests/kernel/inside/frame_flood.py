"""A program: sends frames of heartbeats' ethertype at a steady rate, none of which anybody signed.

Runs in an attacker's network: `frame_flood.py INTERFACE PER-SECOND SECONDS KIND`, where KIND is `random` (random
bytes of random length to heartbeats' group) or `likely` (what the kernel's filter lets pass). Each frame comes from
another source address. Prints how many it sent.
"""

import random
import socket
import sys
import time

ETHERTYPE = b"\x88\xb5"
GROUP = bytes.fromhex("036c626c6573")
BURST_SECONDS = 0.001


def frames(kind: str) -> list[bytes]:
    """Enough different ones that none is often the same."""
    rng = random.Random(6)
    made = []
    for _ in range(4096):
        head = GROUP + b"\x02" + rng.randbytes(5) + ETHERTYPE
        if kind == "random":
            made.append(head + rng.randbytes(rng.randint(1, 1400)))
        else:
            made.append(head + bytes((1, rng.randint(1, 3))) + rng.randbytes(rng.randint(50, 600)))
    return made


def main() -> None:
    interface, per_second, seconds, kind = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.bind((interface, 0))
    made = frames(kind)
    sent, start = 0, time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        while sent < elapsed * per_second:
            raw.send(made[sent % len(made)])
            sent += 1
        time.sleep(BURST_SECONDS)
    print(sent)


if __name__ == "__main__":
    main()
