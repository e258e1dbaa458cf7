"""membership.json: what a process of this boot leaves to its successor, which may go on as the same incarnation.

Owns the file. Whether it counts is decided by the lease in the kernel. It need not survive a power cut, after
which no lease runs. The newest frames count in any case, also those of another boot: no node sends an older one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lbless_api.clusterip import is_uid
from lbless_api.fields import Invalid, integer, items, mapping, text
from lbless_api.heartbeat import ID_BYTES, MAX_NUMBER
from lbless_api.heartbeat_frame import MAX_SEQUENCE, Stamp
from lbless_api.node import JSON
from lbless_nodeagent import files
from lbless_nodeagent.dataplane.membership import Kept, Memory

NAME = "membership.json"

_LOG = logging.getLogger(__name__)


class MemoryFile:
    """The memories by interface. `former` are those of an earlier process of this boot, `newest` the newest frames
    that any process has taken."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._path = directory / NAME
        self._boot_id = boot_id
        self._present: dict[str, Memory] = {}
        self.problem: str | None = None
        self.former: Mapping[str, Memory] = {}
        self.newest: dict[str, tuple[Stamp, ...]] = {}
        try:
            boot, memories = parse_memories(files.read_json(self._path))
            self.newest = {name: memory.newest for name, memory in memories.items()}
            self.former = memories if boot == boot_id else {}
        except FileNotFoundError:
            pass
        except Invalid as fault:
            _LOG.warning("%s is left aside, this node begins as a new incarnation: %s", self._path, fault)

    def keep(self, interface: str, memory: Memory) -> None:
        """Write down an interface's."""
        if self._present.get(interface) == memory and not self.problem:
            return
        self._present[interface], self.newest[interface] = memory, memory.newest
        self._write()

    def drop(self, interface: str) -> None:
        """There is no such interface any more: what has its name next is another one."""
        if self._present.pop(interface, None):
            self._write()

    def _write(self) -> None:
        try:
            files.write_json(self._path, render_memories(self._present, self._boot_id), durable=False)
            self.problem = None
        except files.UnwritableError as error:
            self.problem = str(error)


def render_memories(memories: Mapping[str, Memory], boot_id: str) -> JSON:
    """The file's content."""
    return {
        "bootID": boot_id,
        "interfaces": {
            name: {
                "incarnation": memory.incarnation,
                "peers": [[node.hex(), number] for node, number in memory.peers],
                "verdicts": [[node.hex(), number] for node, number in memory.verdicts],
                "holding": [[node.hex(), round(until * 1000)] for node, until in memory.holding],
                "kernel": [list(one) for one in memory.kernel],
                "held": memory.held,
                "newest": [[one.node.hex(), one.incarnation, one.sequence] for one in memory.newest],
            }
            for name, memory in memories.items()
        },
    }


def parse_memories(value: object) -> tuple[str, dict[str, Memory]]:
    """Read the file's content: the boot that it is of, and the memories by interface. Raises Invalid."""
    whole = mapping(value, NAME)
    interfaces = mapping(whole.get("interfaces"), "interfaces")
    boot_id = text(whole.get("bootID"), "bootID")
    return boot_id, {name: _memory(mapping(one, f"interfaces.{name}")) for name, one in interfaces.items()}


def _memory(fields: Mapping[str, object]) -> Memory:
    return Memory(
        incarnation=integer(fields.get("incarnation"), "incarnation", 1, MAX_NUMBER),
        peers=_numbered(fields, "peers"),
        verdicts=_numbered(fields, "verdicts"),
        holding=tuple((node, ms / 1000) for node, ms in _numbered(fields, "holding")),
        kernel=tuple(_kernel(one) for one in items(fields.get("kernel"), "kernel")),
        held=_flag(fields.get("held"), "held"),
        newest=_newest(fields),
    )


def _numbered(fields: Mapping[str, object], name: str) -> tuple[tuple[bytes, int], ...]:
    found = []
    for one in items(fields.get(name), name):
        node, number = _row(one, name, 2)
        found.append((_id(node, name), integer(number, name, 0, MAX_NUMBER)))
    return tuple(found)


def _newest(fields: Mapping[str, object]) -> tuple[Stamp, ...]:
    name, found = "newest", []
    for one in items(fields.get(name), name):
        node, incarnation, sequence = _row(one, name, 3)
        found.append(
            Stamp(
                _id(node, name),
                integer(incarnation, name, 0, MAX_NUMBER),
                integer(sequence, name, 0, MAX_SEQUENCE),
            )
        )
    return tuple(found)


def _id(value: object, name: str) -> bytes:
    try:
        key = bytes.fromhex(text(value, name))
    except ValueError:
        key = b""
    if len(key) != ID_BYTES:
        raise Invalid(f"{name} has a node id that is not {ID_BYTES} bytes long.")
    return key


def _kernel(one: object) -> tuple[str, int, Kept, bool]:
    uid, in_use, kept, acts = _row(one, "kernel", 4)
    name = text(uid, "kernel")
    if not is_uid(name):
        raise Invalid("kernel has a UID that is malformed.")
    return name, integer(in_use, "kernel", 0, MAX_NUMBER), _kept(kept), _flag(acts, "kernel")


def _kept(value: object) -> Kept:
    epoch, owns, ready, *states = _row(value, "kernel", len(Kept._fields))
    gained, sends, drains = (_flag(state, "kernel") for state in states)
    return Kept(
        integer(epoch, "kernel", 0, MAX_NUMBER),
        _flag(owns, "kernel"),
        integer(ready, "kernel", 0, MAX_NUMBER),
        gained,
        sends,
        drains,
    )


def _row(one: object, name: str, length: int) -> tuple[object, ...]:
    row = tuple(items(one, name))
    if len(row) != length:
        raise Invalid(f"{name} has an entry of {len(row)} values, not {length}.")
    return row


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{name} is not true or false.")
    return value
