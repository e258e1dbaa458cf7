"""The tick process: `python -m lbless_nodeagent.dataplane.tick DESCRIPTOR`, begun by lbless-dataplane alone.

Owns the loop: what has arrived is taken in before anything is decided, and nobody wakes it more often than
every few milliseconds. It ends when the other process does, and leaves the leases to run out.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys

from lbless_nodeagent.dataplane.channel import Channel, Closed
from lbless_nodeagent.dataplane.membership import Intent
from lbless_nodeagent.dataplane.scheduling import ask_for_short_turns
from lbless_nodeagent.dataplane.tick.messages import (
    Alive,
    Applied,
    Attach,
    Attached,
    Begin,
    Carrier,
    Detach,
    Forgotten,
    FromTick,
    Happened,
    Keys,
    Known,
    Refused,
    Stop,
    Told,
)
from lbless_nodeagent.dataplane.tick.packetsocket import WireError
from lbless_nodeagent.dataplane.tick.station import Station
from lbless_nodeagent.dataplane.watch import STUCK_SECONDS, Watch
from lbless_nodeagent.files import boottime_seconds as now

RESTS_A_TICK, CALM_RESTS_A_TICK = 5, 20
"""Between two drainings is so much of a TICK: whatever arrives, the process runs no more often for it. Each frame
has the kernel's time of arrival, so that a rest delays what is made known, and judges nobody.

While all stations are calm, only what is urgent ends a rest early: then the shorter rest costs nothing. Most of what
the process takes is not what it does but that it wakes up."""
MESSAGES_AT_ONCE = 64
FIGURES_SECONDS = 1.0
REALTIME_PRIORITY = 10
_MCL_CURRENT_AND_FUTURE = 3


class Ticker:
    """All interfaces of a node, until the other process ends or has this one end."""

    def __init__(self, channel: Channel, begin: Begin) -> None:
        self._channel, self._begin, self._keys = channel, begin, begin.keys
        self._stations: dict[str, Station] = {}
        self._rest, self._calm_rest = begin.times.tick / RESTS_A_TICK, begin.times.tick / CALM_RESTS_A_TICK
        self._stopping: Intent | None = None
        self._wires, self._bells, self._resting = select.poll(), select.poll(), select.poll()
        for poll in (self._wires, self._bells, self._resting):
            poll.register(channel.fileno(), select.POLLIN)
        self._figures_at = now()
        self._programming = Watch(self._figures_at, STUCK_SECONDS)

    def run(self) -> None:
        """Return when every interface's part has ended after a `Stop`; raises Closed."""
        drained_at = now()
        while not (self._stopping and not self._stations):
            self._await(drained_at)
            drained_at = now()
            for station in list(self._stations.values()):
                station.take_in(self._keys)
            for message in self._channel.receive(MESSAGES_AT_ONCE):
                self._take(message)
            if self._programming.is_stuck(now()):
                self._leave()
            for name, station in list(self._stations.items()):
                if station.begun or self._stopping:
                    station.turn(self._keys[0])
                if station.is_gone or station.ended:
                    self._detach(name)
            if now() >= self._figures_at:
                self._figures_at = now() + FIGURES_SECONDS
                self._channel.send(Alive())
                for station in self._stations.values():
                    self._channel.send(station.figures())
            if self._channel.is_blocked:
                self._channel.flush()

    def _await(self, drained_at: float) -> None:
        """Wait for the next wake-up. What arrives by a wire waits for the end of a rest, all else does not."""
        calm = all(station.calm for station in self._stations.values())
        wake = min((s.wake for s in self._stations.values() if s.begun), default=self._figures_at)
        wake = min(wake, self._figures_at)
        rested = min(drained_at + (self._calm_rest if calm else self._rest), wake)
        if self._channel.has_more or (not calm and self._rests_until(rested)):
            return
        wanted = select.POLLIN | select.POLLOUT if self._channel.is_blocked else select.POLLIN
        poll = self._bells if calm else self._wires
        poll.modify(self._channel.fileno(), wanted)
        # Rounded up: a poll that ends before the time would only be another one.
        ready = poll.poll(max(0.0, wake - now()) * 1000 + 0.9)
        if calm and ready and all(descriptor != self._channel.fileno() for descriptor, _ in ready):
            self._rests_until(rested)

    def _rests_until(self, end: float) -> bool:
        """Wait for a time, whatever the wires bring; returns whether a message has ended that early."""
        rest = end - now()
        return rest > 0 and bool(self._resting.poll(rest * 1000))

    def _leave(self) -> None:
        """Give up: the programming process could take over nothing for so long."""
        if not self._stopping and self._stations:
            for name in self._stations:
                self._say(Happened(name, f"leaves: rules were not programmed for {STUCK_SECONDS:.0f} s."))
            self._stop(Intent.LEAVE)

    def _take(self, message: object) -> None:
        match message:
            case Alive():
                self._programming.heard(now())
            case Attach():
                self._attach(message)
            case Detach(interface):
                self._detach(interface)
            case Keys(keys):
                self._keys = keys
            case Stop(intent):
                self._stop(intent)
            case Carrier() | Known() | Told() | Forgotten() | Applied():
                station = self._stations.get(message.interface)
                if station:
                    _tell(station, message)

    def _attach(self, attach: Attach) -> None:
        # It may have waited for another dataplane's end until now, for as long as that took.
        self._programming.heard(now())
        self._detach(attach.interface)
        self._say(Attached(attach.interface, attach.incarnation))
        try:
            station = Station(self._begin, attach, self._say)
        except WireError as error:
            self._say(Refused(attach.interface, str(error)))
            return
        self._stations[attach.interface] = station
        self._wires.register(station.fileno(), select.POLLIN)
        self._bells.register(station.bell, select.POLLIN)
        if self._stopping:
            station.membership.stop(self._stopping, now())

    def _detach(self, interface: str) -> None:
        station = self._stations.pop(interface, None)
        if station:
            self._wires.unregister(station.fileno())
            self._bells.unregister(station.bell)
            station.close()
            if station.is_gone and not self._stopping:
                self._say(Refused(interface, f"Interface {interface} was removed or renamed."))

    def _stop(self, intent: Intent) -> None:
        if self._stopping is None:
            self._stopping = intent
            for station in self._stations.values():
                station.membership.stop(intent, now())

    def _say(self, message: FromTick) -> None:
        self._channel.send(message)


def _tell(station: Station, message: Carrier | Known | Told | Forgotten | Applied) -> None:
    match message:
        case Carrier(_, up):
            station.membership.linked(up, now())
        case Known():
            station.known(message)
        case Told():
            station.begun = True
        case Forgotten(_, uid):
            station.forgotten(uid)
        case Applied():
            station.applied(message)


def _first(channel: Channel) -> Begin:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        for message in channel.receive(1):
            if isinstance(message, Begin):
                return message


def _hurry() -> str | None:
    """Run before everything else, from memory that stays; return why not, or None."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    except OSError as error:
        return f"Real-time priority is not to be had ({error.strerror}): the process needs CAP_SYS_NICE."
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE):
        why = os.strerror(ctypes.get_errno())
        return f"Memory cannot be locked ({why}): the process needs CAP_IPC_LOCK or a larger RLIMIT_MEMLOCK."
    return None


def main() -> None:
    """Serve the descriptor."""
    # A terminal sends these to the whole group; how to end is the other process's to say.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ask_for_short_turns()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(Closed):
        begin = _first(channel)
        ticker = Ticker(channel, begin)
        problem = _hurry() if begin.realtime else None
        if problem:
            channel.send(Happened("", problem))
        gc.collect()
        gc.freeze()
        ticker.run()


if __name__ == "__main__":
    main()
