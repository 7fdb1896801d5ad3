"""Namespaces made ahead of time, because making one is the dearest step of a start.

A ready namespace is kept alive by a descriptor only (it is bound to a path when it is taken), so a
daemon that dies leaves none behind.  Two kinds: with a veth pair on the default bridge, and bare.
An empty pool makes a start slower, never wrong.
"""

from __future__ import annotations

from carrel.network.nsthread import Inside


class Ready:
    """A namespace with its loopback up and, where ``host_ifname`` says so, eth0 on the default
    bridge: up, without an address."""

    __slots__ = ("host_ifname", "index", "inside")

    def __init__(self, inside: Inside, host_ifname: str = "", index: int = 0) -> None:
        """``index``: of eth0 in the namespace."""
        self.inside = inside
        self.host_ifname = host_ifname
        self.index = index


class Pool:
    """Two small stacks. Only the event loop takes and puts."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.connected: list[Ready] = []
        self.bare: list[Ready] = []

    def take(self, *, connected: bool) -> Ready | None:
        stack = self.connected if connected else self.bare
        return stack.pop() if stack else None

    def put(self, ready: Ready) -> None:
        (self.connected if ready.host_ifname else self.bare).append(ready)

    @property
    def missing(self) -> tuple[int, int]:
        """How many (connected, bare) are wanted."""
        return (max(0, self.size - len(self.connected)), max(0, self.size - len(self.bare)))

    def drain(self) -> None:
        """Give all back; the kernel takes the pairs away with the namespaces."""
        for ready in (*self.connected, *self.bare):
            ready.inside.close()
        self.connected.clear()
        self.bare.clear()
