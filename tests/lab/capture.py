"""Capture: the frames that pass one interface of a host while a block runs; what they mean is `frames`'s.

Where every answer on the wire is seen exactly once: answers to the client on the segment at that client's eth0, those
to routed clients at the router's eth0, so the two together (`a + b`) are all answers, each with the Ethernet source of
the node that sent it. A node's own interface shows what that node sends, as it leaves.
"""

import struct
import subprocess
import threading
from types import TracebackType
from typing import BinaryIO, TextIO, cast

from lab.errors import LabError
from lab.frames import Arrival, Frames, parse
from lab.host import Host
from lab.inside.capture import END, READY, RECORD

# struct tpacket_stats: packets, drops.
STATISTICS = struct.Struct("@II")
START_SECONDS = 10
END_SECONDS = 30


class Capture:
    """`with Capture(lan.client, vip=vip) as frames:` has in `frames` what passes eth0 during the block.

    At the end of the block every frame is there; LabError is raised should the kernel have dropped one.
    """

    def __init__(
        self, host: Host, interface: str | None = None, *, vip: str | None = None, flooded: bool = False
    ) -> None:
        """Plan it for an interface (by default the host's first); with `vip`, for what concerns that address alone.

        Frames for other hosts' hardware addresses, which a switch floods while it does not know their port, are left
        out unless `flooded`; so a unicast answer is seen where it belongs and nowhere else. On the switch's ports all
        frames are for others.
        """
        self._host = host
        self._interface = interface or host.interface
        self._vip = vip
        self._flooded = flooded
        self._frames = Frames(vip)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self._captures = False
        self._drops: int | None = None

    def __enter__(self) -> Frames:
        command = self._host.inside("capture", self._interface, *([self._vip] if self._vip else []))
        self._process = self._host.popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, log="capture"
        )
        output = cast(TextIO, self._process.stdout).buffer
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()
        if not self._ready.wait(START_SECONDS) or not self._captures:
            self._kill()
            raise LabError(
                f"cannot capture on {self._interface} of {self._host.namespace}: {self._host.last_words('capture')}"
            )
        return self._frames

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._reader is None or self._process.stdin is None:
            return
        if error is None:
            self._process.stdin.close()
            self._reader.join(END_SECONDS)
        self._kill()
        if error is not None:
            return
        where = f"the capture on {self._interface} of {self._host.namespace}"
        if self._drops is None:
            raise LabError(f"{where} broke off: {self._host.last_words('capture')}")
        if self._drops:
            raise LabError(
                f"{where} lost {self._drops} frames, so it proves nothing: try again on a calmer machine"
            )

    def _read(self, stream: BinaryIO) -> None:
        """Take records until the end of the stream, which is the end of the process at the latest."""
        while len(header := stream.read(RECORD.size)) == RECORD.size:
            time_ns, kind, length = RECORD.unpack(header)
            content = stream.read(length)
            if kind == READY:
                self._captures = True
                self._ready.set()
            elif kind == END:
                _, self._drops = STATISTICS.unpack(content)
            elif self._flooded or kind != Arrival.OTHERHOST:
                self._frames.append(parse(time_ns, kind, content))
        self._ready.set()  # it will never be: whoever waits for it need not

    def _kill(self) -> None:
        if self._process is None or self._reader is None:
            return
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None
