"""An engine whose kernel is a variable, for what the real one cannot be made to do: fail on demand.

That the real one behaves alike otherwise is what `engine_contract` shows of both, and the kernel tests of
dataplane.
"""

import re
from collections.abc import Callable, Mapping

from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability, refusal
from lbless_api.hashing import HashFunction, HashMode
from lbless_api.mac import parse_mac
from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.engine import NOTHING, EngineError, Vip, Wanted


class MemoryEngine:
    """`kernel` is what it holds; `fails` is asked about each apply and returns a sentence to fail with;
    `leases` is how many seconds of its lease an interface has left."""

    name = "memory"

    def __init__(self, kernel: Wanted = NOTHING) -> None:
        self.kernel = kernel
        self.fails: Callable[[Wanted], str | None] = lambda _: None
        self.available = True
        self.applies = 0
        self.leases: dict[str, float] = {}
        self._applied: Wanted | None = None

    def capabilities(self) -> tuple[Capability, ...]:
        return (
            Capability(
                frozenset(HashFunction), frozenset(HashMode), 4096, 1, ports=True, moves=True, redirect=True
            ),
        )

    def refusal(self, vip: Vip) -> str | None:
        sentence = refusal(self.name, self.capabilities(), vip.demand) or _fault(vip)
        return f"{vip.ip}: {sentence}" if sentence else None

    def probe(self) -> EngineReport:
        if self.available:
            return EngineReport(self.name, True, capabilities=self.capabilities())
        return EngineReport(self.name, False, "The kernel lacks nf_tables.")

    def apply(self, wanted: Wanted) -> None:
        for ip, vip in wanted.vips.items():
            refused = self.refusal(vip) if vip.ip == ip else f"{ip} is wanted with the rules of {vip.ip}."
            if refused:
                raise EngineError(refused)
        self.applies += 1
        self._applied = None
        sentence = self.fails(wanted)
        if sentence:
            raise EngineError(sentence)
        self.kernel = self._applied = wanted

    def verify(self) -> bool:
        return self._applied is not None and self.kernel == self._applied

    def audit(self) -> bool:
        return self.verify()

    def remove(self) -> None:
        self.kernel, self._applied = NOTHING, None

    def installed(self) -> Wanted | None:
        return self.kernel

    def lease_left(self, interface: str) -> float | None:
        return self.leases.get(interface)

    def counters(self) -> Mapping[str, int]:
        return {"kept": 1}

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        pass


def _fault(vip: Vip) -> str | None:
    """What no engine could write into a rule."""
    try:
        parse_mac(vip.mac)
    except ValueError as error:
        return str(error)
    if not re.fullmatch(r"[0-9A-Za-z_.@+][0-9A-Za-z_.@+-]{0,14}", vip.interface):
        return f"interface {vip.interface!r} cannot be written in a rule."
    if not (vip.owned | vip.moving.buckets).issubset(BucketSet.full(vip.hash.buckets)):
        return f"buckets {vip.owned} are not all below {vip.hash.buckets}."
    return None
