"""The nftables engine: keeps the kernel's tables equal to what is wanted, and knows when they are not.

Owns the order of reading, comparing, writing and sealing. Rules, elements and their order are pure and
next door: `rules`, `footprint`, `transactions`.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address

from lbless_api import capabilities
from lbless_api.buckets import BucketSet
from lbless_api.capabilities import Capability, Demand
from lbless_api.clusterip import SourceMAC
from lbless_api.hashing import MAX_BUCKETS, HashFunction, HashMode
from lbless_api.mac import parse_mac, unicast_mac
from lbless_api.node import EngineReport
from lbless_nodeagent.dataplane.engine import NOTHING, EngineError, Vip, Wanted
from lbless_nodeagent.dataplane.moving import AT_REST
from lbless_nodeagent.dataplane.nftables import probe, readback, transactions
from lbless_nodeagent.dataplane.nftables.batch import Batch
from lbless_nodeagent.dataplane.nftables.footprint import vip as vip_of
from lbless_nodeagent.dataplane.nftables.library import Library
from lbless_nodeagent.dataplane.nftables.monitor import Monitor
from lbless_nodeagent.dataplane.nftables.names import TABLE, Family, valid_interface
from lbless_nodeagent.dataplane.nftables.netlink import Reader
from lbless_nodeagent.dataplane.nftables.transactions import MAX_ELEMENTS, BucketChange, Held
from lbless_nodeagent.dataplane.opening import mark

_LOG = logging.getLogger(__name__)

CAPABILITY = Capability(
    functions=frozenset(HashFunction),
    modes=frozenset(HashMode),
    max_buckets=MAX_BUCKETS,
    min_prefix_length=1,
    ports=True,
    source_macs=frozenset(SourceMAC),
    moves=True,
    redirect=True,
)
_ATTEMPTS = 3


class _Connection:
    """What the engine talks through. The monitor is older than anything that is read."""

    def __init__(self, *, lease: bool, redirect: bool) -> None:
        """Raises EngineError where nftables or the permission is missing."""
        with ExitStack() as opened:
            # First, as it fails with a sentence where libnftables would end the process.
            self.reader = Reader()
            opened.callback(self.reader.close)
            self.monitor = Monitor()
            opened.callback(self.monitor.close)
            self.batch = Batch()
            opened.callback(self.batch.close)
            self.library = Library()
            layout = probe.layout(self.library)
            self.layout = replace(layout, lease=lease, redirect=redirect and layout.redirect)
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()


class NftablesEngine:
    """The `Engine` of nftables. Opens nothing before it is used."""

    name = "nftables"

    def __init__(
        self, max_elements: int = MAX_ELEMENTS, *, lease: bool = False, redirect: bool = True
    ) -> None:
        """`max_elements` is how many elements a transaction may have. `lease`: an interface needs one; `redirect`:
        packets of buckets that move are sent on, where the kernel can."""
        self._max_elements = max_elements
        self._lease, self._redirect = lease, redirect
        self._capabilities = (CAPABILITY,)
        self._connection: _Connection | None = None
        self._held: Held | None = None  # what the kernel holds, unless in doubt; None: not known
        self._doubt = False
        self._goal: Held | None = None  # what was last applied, and the Held it comes to
        self._wanted = NOTHING
        self._sound: dict[IPv4Address, Vip] = {}
        """Those for which `refusal` had nothing to say: they are asked for twice."""

    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do, on every kernel that it works on; whether it sends packets on, as the last `probe` found
        it."""
        return self._capabilities

    def refusal(self, vip: Vip) -> str | None:
        """Return one sentence why `vip` cannot be had here, or None. Touches no kernel."""
        if self._sound.get(vip.ip) is vip:
            return None
        refused = self._refusal(vip)
        if refused is None:
            self._sound[vip.ip] = vip
        return refused

    def _refusal(self, vip: Vip) -> str | None:
        if not valid_interface(vip.interface):
            return (
                f"{vip.ip}: interface {vip.interface!r} cannot be written in a rule: "
                f"rename it to letters, digits and _ . @ + - only."
            )
        try:
            if parse_mac(vip.mac) != vip.mac:
                return f"{vip.ip}: MAC address {vip.mac} is not written in lower case with colons."
            if vip.source_mac is SourceMAC.CLUSTER:
                unicast_mac(vip.mac)
        except ValueError as error:
            return f"{vip.ip}: {error}"
        refused = _incapable(self.name, self._capabilities, vip.demand)
        if refused:
            return f"{vip.ip}: {refused}"
        buckets = vip.owned if vip.moving == AT_REST else vip.owned | vip.moving.buckets
        if not buckets.issubset(BucketSet.full(vip.hash.buckets)):
            return (
                f"{vip.ip}: buckets {buckets} are not all below {vip.hash.buckets}: correct the assignment."
            )
        fault = _fault(vip)
        return f"{vip.ip}: {fault}, which is a fault of lbless's own." if fault else None

    def probe(self) -> EngineReport:
        """Try everything that is needed, leave nothing behind, and say what is missing. Never raises."""
        tried = probe.trial()
        if tried.missing is not None:
            return EngineReport(self.name, False, tried.missing)
        self._capabilities = (replace(CAPABILITY, redirect=self._redirect and tried.redirect),)
        self._sound.clear()
        return EngineReport(self.name, True, capabilities=self._capabilities)

    def apply(self, wanted: Wanted) -> None:
        """Bring the kernel from whatever it holds to `wanted`; see `Engine.apply`."""
        self._check(wanted)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._refresh()
                self._bring(wanted)
            except EngineError as error:
                # Somebody may have changed what was just read: a second look decides.
                self._held = None
                if attempt == _ATTEMPTS:
                    raise
                _LOG.debug("Applying the rules is tried again: %s", error)
                continue
            if self.verify():
                return
        raise EngineError(
            "Another program changes lbless's tables while they are written: see with `nft monitor` which it is."
        )

    def verify(self) -> bool:
        """Whether the kernel still holds what was last applied; costs a read of the notifications."""
        held = self._refresh()  # also before the first `apply`: it reads the notifications empty
        return self._goal is not None and held == self._goal

    def audit(self) -> bool:
        """As `verify`, with everything read back."""
        self._doubt = True
        return self.verify()

    def remove(self) -> None:
        """Leave nothing of the engine's in the kernel, also of other versions of it."""
        connection = self._connect()
        self._held = self._goal = None
        tables = readback.tables_of_ours(connection.reader)
        if tables:
            self._commit("".join(f"add table {table}\ndelete table {table}\n" for table in tables))

    def installed(self) -> Wanted | None:
        """What the kernel holds, read back; see `Engine.installed`."""
        held = self._refresh()
        if Family.IP not in held.tables:
            return None
        vips = {
            ip: vip for ip, vip in ((ip, vip_of(ip, found)) for ip, found in held.footprints.items()) if vip
        }
        return Wanted(vips=vips, local_sources=held.local_sources)

    def lease_left(self, interface: str) -> float | None:
        """How many seconds the interface's lease still runs, None without one; see `Engine.lease_left`."""
        return readback.lease_left(self._connect().reader, TABLE, interface) if self._lease else None

    def counters(self) -> Mapping[str, int]:
        """How many packets met each end since the rules were built, by name."""
        return readback.read_counters(self._connect().reader)

    def fileno(self) -> int | None:
        """A descriptor that becomes readable when somebody changes nftables; None where it cannot work."""
        try:
            return self._connect().monitor.fileno()
        except EngineError as error:
            _LOG.debug("There are no notifications of changed rules: %s", error)
            return None

    def close(self) -> None:
        """Let go of descriptors; the kernel keeps what it holds."""
        if self._connection:
            self._connection.close()
        self._connection = self._held = self._goal = None

    def _connect(self) -> _Connection:
        if self._connection is None:
            self._connection = _Connection(lease=self._lease, redirect=self._redirect)
        return self._connection

    def _check(self, wanted: Wanted) -> None:
        for ip, vip in wanted.vips.items():
            if self._wanted.vips.get(ip) is vip:
                continue
            if vip.ip != ip:
                raise EngineError(
                    f"{ip} is wanted with the rules of {vip.ip}, which is a fault of lbless's own."
                )
            refused = self.refusal(vip)
            if refused:
                raise EngineError(refused)

    def _refresh(self) -> Held:
        """Return what the kernel holds, read back only if that is not known for sure."""
        connection = self._connect()
        touched, lost = connection.monitor.drain()
        self._doubt |= touched or lost
        if self._held is None or self._doubt:
            found = readback.read(connection.reader, connection.layout)
            self._doubt = False
            if found != self._held:  # if equal, the old one: to be the very same makes later comparison quick
                self._held = self._goal if found == self._goal else found
        assert self._held is not None  # noqa: S101 - for the type checker
        return self._held

    def _bring(self, wanted: Wanted) -> None:
        held = self._refresh()
        layout = self._connect().layout
        goal = transactions.target(wanted, self._wanted, self._goal, redirect=layout.redirect)
        restructured: set[Family] = set()
        for transaction in transactions.transactions(held, goal, layout, self._max_elements):
            self._held = None  # until the last one is done, nobody knows
            buckets = transaction.buckets
            if buckets is None:
                self._commit(transaction.text)
            else:
                self._commit(buckets)
            restructured |= transaction.restructured
        if restructured:
            self._held = None
            self._seal(restructured)
        self._held = self._goal = goal
        self._wanted = wanted
        self._sound.clear()

    def _seal(self, families: set[Family]) -> None:
        reader = self._connect().reader
        structures = {family: readback.read_structure(reader, family) for family in sorted(families)}
        self._commit("".join(transactions.seal(f, s.digest) for f, s in structures.items() if s))

    def _commit(self, what: str | Sequence[BucketChange]) -> None:
        """Run one transaction, and take its own notifications for what they are."""
        connection = self._connect()
        before = connection.reader.generation()
        try:
            if isinstance(what, str):
                connection.library.run(what)
            else:
                connection.batch.run(
                    (change.verb, change.name, change.keys, change.values) for change in what
                )
        finally:
            after = connection.reader.generation()
            # If somebody else committed meanwhile, which one is ours cannot be told: all is read back then.
            own = (after,) if after == (before + 1 & 0xFFFFFFFF or 1) else ()
            touched, lost = connection.monitor.drain(own)
            # Lost were only our own, if nothing else has happened to this moment.
            self._doubt |= touched or (lost and not (own and connection.reader.generation() == after))


@lru_cache(maxsize=64)
def _incapable(name: str, able: tuple[Capability, ...], wanted: Demand) -> str | None:
    """`capabilities.refusal`: of thousands of ClusterIPs most ask for the same."""
    return capabilities.refusal(name, able, wanted)


def _fault(vip: Vip) -> str | None:
    """What of a Vip's moves contradicts itself, as the beginning of a sentence."""
    moving = vip.moving
    if moving == AT_REST:
        return None
    states = (vip.owned, moving.standby, moving.fresh, moving.drain, moving.ending)
    if sum(map(len, states)) != len(vip.owned | moving.buckets):
        return "some bucket is in two states at once"
    ways = [buckets for _, buckets in moving.redirect]
    sent = BucketSet(bucket for buckets in ways for bucket in buckets)
    clear = sum(map(len, ways)) == len(sent) and all(ways) and sent.issubset(moving.drain)
    addresses = [address for address, _ in moving.redirect]
    if not clear or addresses != sorted(set(addresses)):
        return "where the packets of its draining buckets go is not clear"
    by_token = [buckets for _, buckets in moving.openings]
    uncertain = moving.uncertain
    clear = sum(map(len, by_token)) == len(uncertain) and all(by_token)
    clear &= uncertain.issubset(moving.standby | moving.drain)
    tokens = [token for token, _ in moving.openings]
    marks = {mark(token) for token in tokens} - {0}
    if not clear or tokens != sorted(tokens) or len(marks) != len(tokens):
        return "what opens its buckets is not clear"
    return None
