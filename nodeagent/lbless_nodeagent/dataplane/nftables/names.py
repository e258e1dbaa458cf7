"""Names of what the engine has in the kernel, derived from what they stand for, so that a restart can
read back what it finds without any record. Opens and writes nothing."""

import re
from enum import StrEnum

from lbless_api.clusterip import HashParameters
from lbless_api.hashing import HashFunction, HashMode

TABLE = "lbless"


class Family(StrEnum):
    """The families in which the engine has its table, as nft writes them."""

    IP = "ip"
    ARP = "arp"
    NETDEV = "netdev"


SHARED, VIPS, PORTS, PORT_RANGES = "shared", "vips", "ports", "port_ranges"
LOCAL_SOURCES, MACS, SOURCE_MACS, SEAL = "local_sources", "macs", "source_macs", "seal"
MOVING, REFUSED, JUDGED, ANSWERS = "moving", "refused", "judged", "answers"
LEASE = "lease"
TOKENS, OPENED, WAITING, CLOSED = "tokens", "opened", "waiting", "closed"


class Role(StrEnum):
    """What one of a group's sets of buckets is for, and how its name ends.

    A bucket that drains is in two: in `DRAIN` its packets are still kept, and in `LEAVING` answers to SYNs are
    stopped, as they are for one that has drained, until nothing is under way any more. Not while its SYNs are sent on,
    or until it is known that its token has left, for some milliseconds: one that came just before may be answered just
    after.
    """

    OWNED = "owned"
    STANDBY = "standby"
    FRESH = "fresh"
    DRAIN = "drain"
    LEAVING = "leaving"


_FUNCTIONS = {HashFunction.JHASH: "jhash", HashFunction.LEGACY_CLUSTERIP: "legacy"}
_MODES = {
    HashMode.SOURCE_IP: "ip",
    HashMode.SOURCE_IP_SOURCE_PORT: "sport",
    HashMode.SOURCE_IP_SOURCE_PORT_DEST_PORT: "dport",
}
_FUNCTION_OF = {name: function for function, name in _FUNCTIONS.items()}
_MODE_OF = {name: mode for mode, name in _MODES.items()}
_GROUP = re.compile(r"(jhash|legacy)_(ip|sport|dport)_n([0-9]{1,4})_s([0-9]{1,10})_p([0-9]{1,2})", re.ASCII)
REDIRECT_SUFFIX = "_redirect"
_WITH_PORTS, _JUDGED, _ANSWERS = "_ports", "_judged", "_answers"

_INTERFACE = re.compile(r"[0-9A-Za-z_.@+-]{1,15}", re.ASCII)
_EGRESS = "arp_"


def group_name(group: HashParameters) -> str:
    """``jhash_sport_n256_s0_p32``: the entry chain of a group, and the beginning of all its names."""
    function, mode = _FUNCTIONS[group.function], _MODES[group.mode]
    return f"{function}_{mode}_n{group.buckets}_s{group.seed}_p{group.prefix_length}"


def bucket_set(group: HashParameters, role: Role) -> str:
    """The set of those of a group's buckets that are in that role."""
    return f"{group_name(group)}_{role}"


def redirect_map(group: HashParameters) -> str:
    """The map from buckets that drain to the nodes where they are to be had now."""
    return group_name(group) + REDIRECT_SUFFIX


def opening_map(group: HashParameters) -> str:
    """The map from buckets in standby to the marks of the tokens that open them, and from those that drain to the marks
    of the tokens that open them elsewhere."""
    return f"{group_name(group)}_opening"


def entry_chain(group: HashParameters, with_ports: bool) -> str:
    """The chain to which a packet for an address of the group goes first."""
    return group_name(group) + (_WITH_PORTS if with_ports else "")


def judged_chain(group: HashParameters) -> str:
    """The chain that judges by their flows packets for an address of the group of which something moves."""
    return group_name(group) + _JUDGED


def answers_chain(group: HashParameters) -> str:
    """The chain for answers to SYNs, from an address of the group of which something moves."""
    return group_name(group) + _ANSWERS


def group_of_set(name: str) -> HashParameters | None:
    """The group whose owned set is called `name`, or None."""
    return _group_before(f"_{Role.OWNED}", name)


def group_of_entry(chain: str) -> tuple[HashParameters, bool] | None:
    """The group whose entry chain is called `chain`, and whether that filters ports; or None."""
    with_ports = chain.endswith(_WITH_PORTS)
    group = _group(chain.removesuffix(_WITH_PORTS))
    return (group, with_ports) if group else None


def group_of_judged(chain: str) -> HashParameters | None:
    """The group whose judging chain is called `chain`, or None."""
    return _group_before(_JUDGED, chain)


def group_of_answers(chain: str) -> HashParameters | None:
    """The group whose chain for answers is called `chain`, or None."""
    return _group_before(_ANSWERS, chain)


def _group_before(suffix: str, name: str) -> HashParameters | None:
    return _group(name.removesuffix(suffix)) if name.endswith(suffix) else None


def _group(name: str) -> HashParameters | None:
    match = _GROUP.fullmatch(name)
    if not match:
        return None
    function, mode, buckets, seed, prefix = match.groups()
    group = HashParameters(_FUNCTION_OF[function], _MODE_OF[mode], int(seed), int(buckets), int(prefix))
    return group if group_name(group) == name else None  # not 007


def valid_interface(name: str) -> bool:
    """Whether `name` may stand, quoted, in a rule's text.

    Narrower than the kernel, which allows all but ``/``, ``:`` and white space: a quote or a backslash
    would end nft's string, and an asterisk at its end means every name with that beginning.
    """
    return bool(_INTERFACE.fullmatch(name)) and name not in (".", "..")


def egress_chain(interface: str) -> str:
    """The chain that mends what an interface sends; what an nft name cannot hold is written as _xx."""
    letters = (c if c.isalnum() else f"_{ord(c):02x}" for c in interface)
    return _EGRESS + "".join(letters)


def interface_of_egress(chain: str) -> str | None:
    """The interface whose egress chain is called `chain`, or None."""
    if not chain.startswith(_EGRESS):
        return None
    interface = re.sub("_([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), chain.removeprefix(_EGRESS))
    return interface if valid_interface(interface) and egress_chain(interface) == chain else None
