"""rtnetlink: links, addresses, routes and neighbours as messages; dumps as small objects.

The functions here only build messages (pure); :meth:`netlink.Socket.request` sends a batch.  An
interface is named by index where the caller knows it: the index of a new interface can be chosen,
which saves asking for it.
"""

from __future__ import annotations

import _socket
from struct import Struct

from carrel.kernel import netlink
from carrel.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Socket,
    attr,
    nest,
    string,
    u8,
    u32,
)

AF_UNSPEC, AF_INET, AF_INET6, AF_BRIDGE = 0, 2, 10, 7

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_PROTINFO, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 12, 18, 26, 28
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_IFALIAS = 31, 32, 20
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_BRPORT_STATE, IFLA_BRPORT_MODE, IFLA_BRPORT_FLUSH, IFLA_BRPORT_ISOLATED = 1, 4, 24, 33

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
NDA_DST, NDA_LLADDR = 1, 2

_IFINFO = Struct("=BxHiII")
_IFADDR = Struct("=BBBBi")
_RTMSG = Struct("=BBBBBBBBI")
_NDMSG = Struct("=BxxxiHBB")


def packed(address: str) -> tuple[int, bytes]:
    """(family, network bytes) of an address in text."""
    if ":" in address:
        return AF_INET6, _socket.inet_pton(AF_INET6, address)
    return AF_INET, _socket.inet_pton(AF_INET, address)


def unpacked(raw: bytes) -> str:
    return _socket.inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)


def mac_bytes(text: str) -> bytes:
    raw = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if len(raw) != 6:
        raise ValueError(f"not an Ethernet address: {text!r}")
    return raw


def _link_attributes(name: str, mtu: int, mac: str, master: int, v6_link_local: bool) -> bytes:
    parts = []
    if name:
        parts.append(string(IFLA_IFNAME, name))
    if mtu:
        parts.append(u32(IFLA_MTU, mtu))
    if mac:
        parts.append(attr(IFLA_ADDRESS, mac_bytes(mac)))
    if master:
        parts.append(u32(IFLA_MASTER, master))
    if not v6_link_local:
        mode = nest(AF_INET6, u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE))
        parts.append(nest(IFLA_AF_SPEC, mode))
    return b"".join(parts)


def _flags(up: bool | None) -> tuple[int, int]:
    return (0, 0) if up is None else (IFF_UP if up else 0, IFF_UP)


def add_bridge(name: str, *, mac: str = "", mtu: int = 0, up: bool = False,
               v6_link_local: bool = True) -> Message:
    """A Linux bridge. With a fixed MAC its identity does not follow its ports."""
    body = (_IFINFO.pack(0, 0, 0, *_flags(up or None))
            + _link_attributes(name, mtu, mac, 0, v6_link_local)
            + nest(IFLA_LINKINFO, string(IFLA_INFO_KIND, "bridge")))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body,
                   f"link add {name} type bridge", name)


def add_dummy(name: str, *, up: bool = False) -> Message:
    body = (_IFINFO.pack(0, 0, 0, *_flags(up or None)) + _link_attributes(name, 0, "", 0, True)
            + nest(IFLA_LINKINFO, string(IFLA_INFO_KIND, "dummy")))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body,
                   f"link add {name} type dummy", name)


def add_veth(name: str, peer: str, peer_netns: int, *, peer_index: int = 0, peer_mac: str = "",
             mac: str = "", mtu: int = 0, master: int = 0, up: bool = True) -> Message:
    """A veth pair whose peer is born in ``peer_netns`` (a descriptor).

    Moving an existing one there would cost an RCU grace period (10 to 30 ms).  One queue a side:
    the kernel would allocate one per possible CPU and use one.
    """
    queues = u32(IFLA_NUM_TX_QUEUES, 1) + u32(IFLA_NUM_RX_QUEUES, 1)
    inside = (_IFINFO.pack(0, 0, peer_index, 0, 0)
              + _link_attributes(peer, mtu, peer_mac, 0, True)
              + u32(IFLA_NET_NS_FD, peer_netns) + queues)
    info = (string(IFLA_INFO_KIND, "veth")
            + nest(IFLA_INFO_DATA, attr(VETH_INFO_PEER, inside)))
    body = (_IFINFO.pack(0, 0, 0, *_flags(up or None))
            + _link_attributes(name, mtu, mac, master, True) + queues
            + nest(IFLA_LINKINFO, info))
    text = f"link add {name} type veth peer name {peer} netns fd/{peer_netns}"
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, text, name)


def set_link(index: int, *, name: str = "", ifname: str = "", up: bool | None = None, mtu: int = 0,
             mac: str = "", master: int = 0, v6_link_local: bool = True,
             alias: str = "") -> Message:
    """Change a link given by index, or by ``ifname`` when the index is 0; ``name`` is a new one."""
    body = (_IFINFO.pack(0, 0, index, *_flags(up))
            + _link_attributes(name, mtu, mac, master, v6_link_local))
    if ifname and not name and not index:
        # beside an index it would be a new name, and before Linux 6.2 a link that is up takes
        # none (EBUSY), not even the one it has
        body += string(IFLA_IFNAME, ifname)
    if alias:
        body += attr(IFLA_IFALIAS, alias.encode())
    words = [f"link set {ifname or f'index {index}'}"]
    words += [f"{k} {v}" for k, v in (("name", name), ("mtu", mtu), ("address", mac),
                                      ("master", master), ("alias", alias)) if v]
    if up is not None:
        words.append("up" if up else "down")
    return Message(RTM_NEWLINK, 0, body, " ".join(words), ifname)


def set_port(index: int, ifname: str, *, isolated: bool, hairpin: bool) -> Message:
    """Flags of a bridge port. ``isolated``: no traffic with other isolated ports.  ``hairpin``:
    a frame may leave through the port by which it came."""
    body = (_IFINFO.pack(AF_BRIDGE, 0, index, 0, 0)
            + nest(IFLA_PROTINFO, u8(IFLA_BRPORT_ISOLATED, isolated),
                   u8(IFLA_BRPORT_MODE, hairpin)))
    words = f"isolated {'on' if isolated else 'off'} hairpin {'on' if hairpin else 'off'}"
    return Message(RTM_SETLINK, 0, body, f"bridge link set dev {ifname} {words}", ifname)


def silence_port(index: int, ifname: str) -> Message:
    """Nothing goes through this bridge port any more, and the bridge forgets what was behind it.

    Takes effect at once and costs no RCU grace period, as setting the link down would.
    """
    body = (_IFINFO.pack(AF_BRIDGE, 0, index, 0, 0)
            + nest(IFLA_PROTINFO, u8(IFLA_BRPORT_STATE, 0), attr(IFLA_BRPORT_FLUSH, b"")))
    return Message(RTM_SETLINK, 0, body, f"bridge link set dev {ifname} state disabled", ifname)


def delete_link(index: int = 0, ifname: str = "") -> Message:
    body = _IFINFO.pack(0, 0, index, 0, 0)
    if ifname and not index:
        body += string(IFLA_IFNAME, ifname)
    return Message(RTM_DELLINK, 0, body, f"link delete {ifname or f'index {index}'}", ifname)


def _address(kind: int, flags: int, index: int, address: str, prefix: int, verb: str) -> Message:
    family, raw = packed(address)
    body = _IFADDR.pack(family, prefix, 0, 0, index) + attr(IFA_LOCAL, raw) + attr(IFA_ADDRESS, raw)
    if family == AF_INET and prefix < 31:
        host_bits = (1 << (32 - prefix)) - 1
        broadcast = int.from_bytes(raw, "big") | host_bits
        body += attr(IFA_BROADCAST, broadcast.to_bytes(4, "big"))
    elif family == AF_INET6:
        # ours by allocation: no waiting for a duplicate to show up
        body += u32(IFA_FLAGS, IFA_F_NODAD)
    text = f"address {verb} {address}/{prefix} dev index {index}"
    return Message(kind, flags, body, text, f"{address}/{prefix}")


def add_address(index: int, address: str, prefix: int) -> Message:
    return _address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address, prefix, "add")


def replace_address(index: int, address: str, prefix: int) -> Message:
    return _address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, address, prefix, "replace")


def delete_address(index: int, address: str, prefix: int) -> Message:
    return _address(RTM_DELADDR, 0, index, address, prefix, "delete")


def _route(kind: int, flags: int, verb: str, destination: str, prefix: int, gateway: str,
           index: int) -> Message:
    family, via = packed(gateway or destination)
    scope = RT_SCOPE_UNIVERSE if gateway or family == AF_INET6 else RT_SCOPE_LINK
    body = _RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    if destination:
        body += attr(RTA_DST, packed(destination)[1])
    if gateway:
        body += attr(RTA_GATEWAY, via)
    if index:
        body += u32(RTA_OIF, index)
    where = f"{destination}/{prefix}" if destination else "default"
    text = f"route {verb} {where}" + (f" via {gateway}" if gateway else "")
    return Message(kind, flags, body, text + (f" dev index {index}" if index else ""), where)


def add_route(gateway: str, *, destination: str = "", prefix: int = 0, index: int = 0) -> Message:
    """A route; without a destination the default route."""
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, "add", destination, prefix, gateway,
                  index)


def replace_route(gateway: str, *, index: int = 0) -> Message:
    """The default route, whatever it was."""
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, "replace", "", 0, gateway, index)


def delete_route(gateway: str, *, index: int = 0) -> Message:
    return _route(RTM_DELROUTE, 0, "delete", "", 0, gateway, index)


def add_neighbour(index: int, address: str, mac: str) -> Message:
    family, raw = packed(address)
    body = (_NDMSG.pack(family, index, 0x80, 0, 0) + attr(NDA_DST, raw)
            + attr(NDA_LLADDR, mac_bytes(mac)))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body,
                   f"neighbour replace {address} lladdr {mac} dev index {index}", address)


def delete_neighbour(index: int, address: str) -> Message:
    family, raw = packed(address)
    body = _NDMSG.pack(family, index, 0, 0, 0) + attr(NDA_DST, raw)
    return Message(RTM_DELNEIGH, 0, body, f"neighbour delete {address} dev index {index}", address)


class Link:
    """An interface as the kernel reports it."""

    __slots__ = ("alias", "index", "kind", "mac", "master", "mtu", "name", "peer_index", "up")

    def __init__(self, body: bytes) -> None:
        _, _, self.index, flags, _ = _IFINFO.unpack_from(body)
        found = netlink.attributes(body, _IFINFO.size)
        self.up = bool(flags & IFF_UP)
        self.name = _text(found.get(IFLA_IFNAME))
        self.alias = _text(found.get(IFLA_IFALIAS))
        self.mtu = _number(found.get(IFLA_MTU))
        self.master = _number(found.get(IFLA_MASTER))
        self.peer_index = _number(found.get(IFLA_LINK))
        self.mac = found.get(IFLA_ADDRESS, b"").hex(":")
        self.kind = _text(netlink.attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND))


class Address:
    """An address of an interface."""

    __slots__ = ("address", "family", "index", "prefix")

    def __init__(self, body: bytes) -> None:
        self.family, self.prefix, _, _, self.index = _IFADDR.unpack_from(body)
        found = netlink.attributes(body, _IFADDR.size)
        raw = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
        self.address = unpacked(raw) if raw else ""


class Route:
    """A unicast route: ``destination`` is "" for the default route."""

    __slots__ = ("destination", "family", "gateway", "index", "prefix", "table")

    def __init__(self, body: bytes) -> None:
        self.family, self.prefix, _, _, table, _, _, _, _ = _RTMSG.unpack_from(body)
        found = netlink.attributes(body, _RTMSG.size)
        self.table = _number(found.get(RTA_TABLE)) or table
        self.index = _number(found.get(RTA_OIF))
        self.destination = unpacked(found[RTA_DST]) if RTA_DST in found else ""
        self.gateway = unpacked(found[RTA_GATEWAY]) if RTA_GATEWAY in found else ""


class Neighbour:
    """An entry of the ARP or neighbour-discovery table."""

    __slots__ = ("address", "family", "index", "mac", "state")

    def __init__(self, body: bytes) -> None:
        self.family, self.index, self.state, _, _ = _NDMSG.unpack_from(body)
        found = netlink.attributes(body, _NDMSG.size)
        self.address = unpacked(found[NDA_DST]) if NDA_DST in found else ""
        self.mac = found.get(NDA_LLADDR, b"").hex(":")


def _text(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace") if raw else ""


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, "little" if netlink._LITTLE else "big") if raw else 0


def links(socket: Socket) -> list[Link]:
    ask = Message(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0), "link list")
    return [Link(body) for kind, body in socket.dump(ask) if kind == RTM_NEWLINK]


def link(socket: Socket, name: str) -> Link:
    """One link by name; ENODEV (as OSError with the name) where there is none."""
    body = (_IFINFO.pack(0, 0, 0, 0, 0) + string(IFLA_IFNAME, name)
            + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))
    ask = Message(RTM_GETLINK, netlink.NLM_F_ACK, body, f"link get {name}", name)
    return Link(socket.ask(ask)[1])


def addresses(socket: Socket, family: int = AF_UNSPEC) -> list[Address]:
    ask = Message(RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0), "address list")
    return [Address(body) for kind, body in socket.dump(ask) if kind == RTM_NEWADDR]


def routes(socket: Socket, family: int = AF_UNSPEC) -> list[Route]:
    """Unicast routes of every table (broadcast, local and multicast entries are left out)."""
    ask = Message(RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "route list")
    return [Route(body) for kind, body in socket.dump(ask)
            if kind == RTM_NEWROUTE and body[7] == RTN_UNICAST]


def neighbours(socket: Socket, family: int = AF_UNSPEC) -> list[Neighbour]:
    ask = Message(RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0), "neighbour list")
    return [Neighbour(body) for kind, body in socket.dump(ask) if kind == RTM_NEWNEIGH]


