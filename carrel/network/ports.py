"""Published ports: reserved by bound sockets before anything is done to the kernel.

A port is given by nftables' maps (``carrel.network.rules``); the bound socket makes a conflict
with any other program an error at once, in Docker's words, and keeps the port.  The sockets listen
and are served by :mod:`carrel.network.relay`: for [::] of a container without IPv6, and for what
reaches them when somebody removed our rules.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from carrel import errdefs
from carrel.kernel import record, sysctl
from carrel.network.api import PortBinding

_PORT_RANGE = (32768, 60999)


class Reserved:
    """One port of one host address, held by a bound socket."""

    __slots__ = ("binding", "owner", "socket")

    def __init__(self, binding: PortBinding, sock: socket.socket, owner: str) -> None:
        self.binding = binding
        self.socket = sock
        self.owner = owner


class PortTable:
    """Who of our containers has which port. Lives on the event loop."""

    def __init__(self) -> None:
        #: (protocol, host port) -> host address -> reservation
        self._taken: dict[tuple[str, int], dict[str, Reserved]] = {}
        self._next = 0
        self._range: tuple[int, int] | None = None

    def reserve(self, wanted: PortBinding, addresses: tuple[str, ...], owner: str, *,
                optional_v6: bool) -> list[Reserved]:
        """Bind the port on every address, all or none. ``optional_v6``: no IPv6 on this host is
        no error, because the user did not ask for it by name."""
        if wanted.proto not in ("tcp", "udp"):
            raise errdefs.NotImplementedYet(
                f"publishing {wanted.proto} ports is not built yet (only tcp and udp)")
        last: errdefs.CarrelError | None = None
        for port in self._candidates(wanted):
            try:
                return self._reserve_one(wanted, port, addresses, owner, optional_v6)
            except errdefs.SystemFailure as problem:
                last = problem
        raise last or errdefs.SystemFailure("all ports are allocated")

    def _candidates(self, wanted: PortBinding) -> Iterator[int]:
        if wanted.host_port:
            yield from range(wanted.host_port, max(wanted.host_port, wanted.host_port_end) + 1)
            return
        low, high = self._ephemeral()
        for step in range(high - low + 1):
            port = low + (self._next - low + step) % (high - low + 1)
            if (wanted.proto, port) in self._taken:
                continue
            self._next = port + 1
            yield port

    def _ephemeral(self) -> tuple[int, int]:
        if self._range is None:
            self._range = _PORT_RANGE
            with contextlib.suppress(OSError, ValueError):
                low, high = sysctl.read("net/ipv4/ip_local_port_range").split()
                self._range = (int(low), int(high))
            self._next = self._range[0]
        return self._range

    def _reserve_one(self, wanted: PortBinding, port: int, addresses: tuple[str, ...],
                     owner: str, optional_v6: bool) -> list[Reserved]:
        done: list[Reserved] = []
        try:
            for address in addresses:
                self._check(wanted.proto, address, port)
                try:
                    sock = _bind(wanted.proto, address, port)
                except OSError as error:
                    missing = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                    if missing and optional_v6 and address == "::" and done:
                        continue
                    raise _bind_error(error, address, port, wanted) from None
                binding = PortBinding(container_port=wanted.container_port, proto=wanted.proto,
                                      host_ip=address, host_port=port)
                entry = Reserved(binding, sock, owner)
                done.append(entry)
                self._taken.setdefault((wanted.proto, port), {})[address] = entry
        except BaseException:
            self.release(done)
            raise
        return done

    def _check(self, proto: str, address: str, port: int) -> None:
        taken = self._taken.get((proto, port))
        if not taken:
            return
        family = ":" in address
        wild = "::" if family else "0.0.0.0"
        for other in taken:
            if (":" in other) == family and (other == address or wild in (other, address)):
                raise errdefs.SystemFailure(
                    f"Bind for {_join(address, port)} failed: port is already allocated")

    def release(self, reservations: list[Reserved]) -> None:
        """Idempotent."""
        for entry in reservations:
            key = (entry.binding.proto, entry.binding.host_port)
            holders = self._taken.get(key, {})
            if holders.get(entry.binding.host_ip) is entry:
                del holders[entry.binding.host_ip]
                if not holders:
                    del self._taken[key]
            entry.socket.close()


def _join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _bind(proto: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if proto == "tcp":
            # old connections in TIME_WAIT must not count as "in use"; listening makes the
            # port exclusive all the same
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if proto == "tcp":
            sock.listen(128)
    except OSError as error:
        sock.close()
        record.note("bind", (proto, _join(address, port)), None, error.errno or 0)
        raise
    record.note("bind", (proto, _join(address, port)), 0)
    return sock


def _bind_error(error: OSError, address: str, port: int,
                wanted: PortBinding) -> errdefs.CarrelError:
    text = os.strerror(error.errno or 0)
    reason = text[:1].lower() + text[1:]
    return errdefs.SystemFailure(
        f"failed to bind host port {_join(address, port)}/{wanted.proto}: {reason}")
