"""Links, addresses, groups and routes of the kernel over rtnetlink: read them, change them, hear of changes.

Owns the calls and what they mean. Which change is wanted is decided elsewhere; each is idempotent.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RTM_SETLINK,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_LINK,
)

from lbless_nodeagent.dataplane.network import AddressKey, GroupKey, Link, Network
from lbless_nodeagent.dataplane.rtdump import Dumps

_ARPHRD_ETHER = 1
_IFF_NOARP = 0x80
_MAIN_TABLE = 254
_DUMP_ATTEMPTS = 5


class LinkError(Exception):
    """The kernel refused; the message is one sentence."""


class _Part(Enum):
    """What is read at once, and read again only when something in it changed."""

    LINKS = "links and their settings"
    GROUPS = "groups that links joined"
    ADDRESSES = "addresses"
    ROUTES = "routes"


class Rtnetlink:
    """Changes over one socket, dumps and notifications over others. For one thread, which runs no event loop."""

    def __init__(self) -> None:
        self._route = IPRoute()
        self._dumps = Dumps()
        self._notice = _ChangeNotice()
        self._network = Network()
        self._stale = set(_Part)

    def close(self) -> None:
        """Close all."""
        self._notice.close()
        self._dumps.close()
        self._route.close()

    def fileno(self) -> int:
        """For poll(): readable when a link, an IPv4 address or an IPv4 route changed."""
        return self._notice.fileno()

    def drain(self) -> bool:
        """Note what was announced, for `read` to read it again; return whether it was anything of use."""
        changed = self._notice.drain()
        self._stale |= changed
        return bool(changed)

    def read(self, *, thorough: bool = False) -> Network:
        """Return the network as it is now; raises LinkError.

        Reads again what is announced to have changed, and what `self` changed. That a group was left is
        announced among all changes of neighbours, which are not heard, and only where it was left over
        netlink (`bridge fdb`, not `ip maddress`): it is seen when its link changes, or by a `thorough`
        reading of all.
        """
        if thorough:
            self._stale = set(_Part)
        # First, so that what changes from here on is announced for the next time.
        self.drain()
        try:
            for part in tuple(self._stale):
                self._network = replace(self._network, **self._read(part))
                self._stale.discard(part)
        except (OSError, NetlinkError) as error:
            raise LinkError(
                f"The links cannot be read from the kernel ({error}): this is tried again."
            ) from None
        return self._network

    def _read(self, part: _Part) -> dict[str, Any]:
        """Return the fields of Network that are of that part."""
        if part is _Part.LINKS:
            return {"links": {link.index: link for link in map(_link, self._links())}}
        if part is _Part.GROUPS:
            return {"groups": self._dumps.groups()}
        if part is _Part.ADDRESSES:
            return {"addresses": self._dumps.addresses()}
        return {"gateways": self._dumps.gateways()}

    def add_address(self, key: AddressKey) -> None:
        """Add a shared address: a /32, valid for ever, but deprecated at once so that nothing picks it.

        Raises LinkError, also where the link has the address already.
        """
        self._change(f"Address {key[1]} cannot be added", self._address_call("add", key))

    def deprecate_address(self, key: AddressKey) -> None:
        """Make a shared address that is there deprecated again; raises LinkError."""
        self._change(f"Address {key[1]} cannot be changed", self._address_call("replace", key))

    def remove_address(self, key: AddressKey) -> None:
        """Remove a shared address; it may be gone, with or without its link. Raises LinkError."""
        index, ip = key
        self._change(
            f"Address {ip} cannot be removed",
            lambda: self._route.addr("del", index=index, address=str(ip), prefixlen=32),
            gone=(errno.EADDRNOTAVAIL, errno.ENODEV),
        )

    def join_group(self, key: GroupKey) -> None:
        """Open a link's filter for frames to a multicast MAC; raises LinkError."""
        self._stale.add(_Part.GROUPS)  # it is not heard of
        self._change(
            f"The link cannot join group {key[1]}",
            lambda: self._route.fdb("append", ifindex=key[0], lladdr=key[1]),
        )

    def leave_group(self, key: GroupKey) -> None:
        """Close a link's filter again; the group or the link may be gone. Raises LinkError."""
        self._stale.add(_Part.GROUPS)  # it is not heard of
        self._change(
            f"The link cannot leave group {key[1]}",
            lambda: self._route.fdb("del", ifindex=key[0], lladdr=key[1]),
            gone=(errno.ENOENT, errno.ENODEV, errno.EINVAL),
        )

    def set_arp_announce(self, setting: tuple[int, int]) -> None:
        """Set arp_announce of the link with that index to that value; raises LinkError.

        By netlink, because /proc/sys is read-only in a container that has no more than NET_ADMIN.
        """
        index, value = setting
        self._stale.add(_Part.LINKS)  # announced only of a link that is up
        self._change(
            f"arp_announce cannot be set to {value}",
            lambda: self._route.nlm_request_batch([_set_arp_announce(index, value)]),
        )

    def _address_call(self, command: str, key: AddressKey) -> Callable[[], object]:
        index, ip = key
        return lambda: self._route.addr(command, index=index, address=str(ip), prefixlen=32, preferred_lft=0)

    def _change(self, failed: str, call: Callable[[], object], gone: Iterable[int] = ()) -> None:
        try:
            call()
        except (NetlinkError, OSError) as error:  # pyroute2 makes an OSError of ENOBUFS
            code = (error.code if isinstance(error, NetlinkError) else error.errno) or 0
            if code not in gone:
                says = os.strerror(code) if code else str(error)
                raise LinkError(f"{failed}: the kernel says {says}.") from None

    def _links(self) -> list[Any]:
        """A dump during which something changed is incomplete: the kernel says so, and it is repeated."""
        for _ in range(_DUMP_ATTEMPTS - 1):
            with suppress(NetlinkDumpInterrupted):
                return list(self._route.get_links())
        return list(self._route.get_links())


class _ChangeNotice:
    """A socket that becomes readable when a link, an IPv4 address or an IPv4 route changes."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> set[_Part]:
        """Read all there is, and return what it is about. No more is parsed: the state itself is read."""
        changed: set[_Part] = set()
        while True:
            try:
                received = self._socket.recv(_NOTICE_BYTES)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # More changed than the buffer holds, and some of it was dropped.
                changed |= set(_Part)
            else:
                for kind, table in _messages(received):
                    if kind not in _ROUTES or table == _MAIN_TABLE:
                        changed |= _PARTS.get(kind, _LINK_PARTS)


_NOTICE_BYTES = 65536
_ROUTES = (RTM_NEWROUTE, RTM_DELROUTE)
_LINK_PARTS = {_Part.LINKS, _Part.GROUPS}
_PARTS = {
    RTM_NEWADDR: {_Part.ADDRESSES},
    RTM_DELADDR: {_Part.ADDRESSES},
    RTM_NEWROUTE: {_Part.ROUTES},
    RTM_DELROUTE: {_Part.ROUTES},
}


def _messages(received: bytes) -> Iterator[tuple[int, int]]:
    """The type of each netlink message in a datagram, and of a route its table (rtm_table).

    Each begins with its length and its type; each shared address has a route in table local.
    """
    offset = 0
    while offset + 16 <= len(received):
        length, kind = struct.unpack_from("=IH", received, offset)
        yield kind, received[offset + 20] if length > 20 else 0
        offset += max(16, (length + 3) & ~3)


def _link(message: Any) -> Link:
    settings = message.get_nested("IFLA_AF_SPEC", "AF_INET") or {}
    name = message.get("ifname")
    # Bytes that are no UTF-8, which the kernel allows: such a link can be talked of, but not be served.
    named = isinstance(name, str)
    return Link(
        index=message["index"],
        name=name if named else name.decode("ascii", "backslashreplace"),
        mac=(message.get("address") or "").lower(),
        ethernet=named and message["ifi_type"] == _ARPHRD_ETHER and not message["flags"] & _IFF_NOARP,
        carrier=bool(message.get("carrier")),
        kind=message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        enslaved=bool(message.get("master")),
        arp_announce=settings.get("arp_announce", 0),
    )


class _SetLink(nlmsg):  # type: ignore[misc]  # pyroute2 ships no types
    """RTM_SETLINK with IFLA_AF_SPEC › AF_INET › IFLA_INET_CONF: pyroute2's own class only reads these."""

    prefix = "IFLA_"
    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = ((26, "IFLA_AF_SPEC", "af_spec"),)

    class af_spec(nla):  # type: ignore[misc]  # noqa: N801  # pyroute2 finds the class by this name
        """Settings by address family."""

        nla_map = ((2, "AF_INET", "inet"),)

        class inet(nla):  # type: ignore[misc]  # noqa: N801
            """Those of IPv4."""

            nla_map = ((1, "IFLA_INET_CONF", "conf"),)

            class conf(nla):  # type: ignore[misc]  # noqa: N801
                """Numbered as in the kernel's enum IPV4_DEVCONF."""

                nla_map = ((18, "ARP_ANNOUNCE", "uint32"),)


def _set_arp_announce(index: int, value: int) -> nlmsg:
    message = _SetLink()
    message["index"] = index
    conf = {"attrs": [("ARP_ANNOUNCE", value)]}
    message["attrs"] = [("IFLA_AF_SPEC", {"attrs": [("AF_INET", {"attrs": [("IFLA_INET_CONF", conf)]})]})]
    message["header"]["type"] = RTM_SETLINK
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    return message
