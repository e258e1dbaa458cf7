"""Link-layer addresses of shared addresses: parsing, the default, and what may be one."""

import re
from ipaddress import IPv4Address

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_LINK_LOCAL = re.compile(r"01:80:c2:00:00:0[0-9a-f]", re.ASCII)
"""IEEE 802.1Q, 8.6.3: spanning tree, LLDP and their like, which every bridge keeps to itself."""


def default_mac(ip: IPv4Address) -> str:
    """The multicast MAC of an address that names none: ``03:bf:`` and its four bytes.

    03:bf is Microsoft NLB's prefix for multicast mode: group bit and locally-administered bit set, and
    outside 01:00:5e, which switches with IGMP snooping prune.
    """
    return ":".join(f"{byte:02x}" for byte in (0x03, 0xBF, *ip.packed))


def unicast_mac(mac: str) -> str:
    """The unicast MAC that goes with a multicast one: the same without its group bit, ``02:bf:…``.

    Raises ValueError with one sentence for one that is not locally administered: without its group bit it
    may be that of a real interface, or all zeros.
    """
    first = int(mac[:2], 16)
    if not first & 2:
        raise ValueError(
            f"MAC address {mac} has no unicast one that could be a source, as it is not locally administered: "
            f"the second lowest bit of its first byte must be set, as in 03:bf:0a:00:00:64."
        )
    return f"{first & 0xFE:02x}{mac[2:]}"


def parse_mac(text: str) -> str:
    """Return a MAC in lower case with colons.

    Raises ValueError with one sentence unless it is a multicast one (group bit set, not broadcast) that
    bridges forward.
    """
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"MAC address {text[:40]!r} is malformed: write six bytes as 03:bf:0a:00:00:64.")
    if not int(mac[:2], 16) & 1:
        raise ValueError(
            f"MAC address {mac} is a unicast one: every node must receive the frames, "
            f"so the lowest bit of its first byte must be set, as in 03:bf:0a:00:00:64."
        )
    if mac == _BROADCAST:
        raise ValueError("MAC address ff:ff:ff:ff:ff:ff is the broadcast one: use a multicast MAC.")
    if _LINK_LOCAL.fullmatch(mac):
        raise ValueError(
            f"MAC address {mac} is one that no switch forwards: use another, as 03:bf:0a:00:00:64."
        )
    return mac
