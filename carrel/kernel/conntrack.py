"""Connection tracking: forget the UDP flows of an address that is gone.

A UDP flow has no end, so the kernel would send a client's next packets to the old address for
minutes, past the new container on the same published port.
"""

from __future__ import annotations

from errno import ENOENT

from carrel.kernel import libc, rtnetlink
from carrel.kernel.netlink import NETLINK_NETFILTER, Message, Socket, attr, attributes, nest

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ZONE = 1, 2, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _PROTO_NUM = 1, 1
_UDP = 17


def forget_udp(address: str) -> int:
    """Delete the UDP flows that are answered by this IPv4 address; how many there were.

    Acts on the calling thread's network namespace.
    """
    family, raw = rtnetlink.packed(address)
    header = bytes([family, 0, 0, 0])
    count = 0
    with Socket(NETLINK_NETFILTER) as socket:
        for _, body in socket.dump(Message(_GET, 0, header, "conntrack list")):
            entry = attributes(body, 4)
            reply = attributes(entry.get(_TUPLE_REPLY, b""))
            source = attributes(reply.get(_TUPLE_IP, b"")).get(_V4_SRC)
            proto = attributes(reply.get(_TUPLE_PROTO, b"")).get(_PROTO_NUM)
            if source != raw or proto != bytes([_UDP]):
                continue
            which = header + nest(_TUPLE_ORIG, entry[_TUPLE_ORIG])
            if _ZONE in entry:
                which += attr(_ZONE, entry[_ZONE])
            done = libc.quietly(
                socket.request, [Message(_DELETE, 0, which, f"conntrack delete udp {address}")],
                ignore=(ENOENT,))
            count += done
    return count
