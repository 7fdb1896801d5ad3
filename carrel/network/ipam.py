"""Addresses: which subnet a network gets, which address an endpoint gets.

Nothing here is stored.  The networks' records hold the subnets and the sandboxes' records hold the
addresses; the bitmaps are rebuilt from those at start, so they cannot disagree with them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from carrel import errdefs
from carrel.network.api import AddressPool

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: where networks get their subnets from when --default-address-pools says nothing. The first is
#: the default bridge's; Docker's own (172.17/16 and up) come last among the equals.
DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.30.0.0/16", 16), ("172.29.0.0/16", 20), ("172.28.0.0/16", 20), ("172.31.0.0/16", 20),
    ("10.201.0.0/16", 24), ("192.168.0.0/16", 24))

ALREADY_USED = "Address already in use"


def parse_network(text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise errdefs.InvalidParameter(f"invalid subnet {text}: invalid CIDR address") from None


def parse_address(text: str, what: str = "address") -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise errdefs.InvalidParameter(f"invalid {what}: {text}") from None


#: how many addresses of one range the bitmap covers (of a /64 nobody wants 2**64 bits)
_WINDOW = 1 << 20


class Pool:
    """The addresses of one subnet: a bitmap (a Python integer) of the range that addresses are
    allocated from, and a set of the taken ones outside of it."""

    def __init__(self, pool: AddressPool) -> None:
        self.subnet = parse_network(pool.subnet)
        chosen = parse_network(pool.ip_range) if pool.ip_range else self.subnet
        self._low = int(chosen.network_address)
        self._size = min(chosen.num_addresses, _WINDOW)
        self._taken = 0
        self._outside: set[int] = set()
        for number in self._never_given():
            self._mark(number)
        for text in (pool.gateway, *pool.aux.values()):
            if text:
                self.reserve(text)

    def _never_given(self) -> list[int]:
        """The subnet's own address and the broadcast address, where there are such things."""
        if self.subnet.prefixlen >= self.subnet.max_prefixlen - 1:
            return []
        first = int(self.subnet.network_address)
        return [first, int(self.subnet.broadcast_address)] if self.subnet.version == 4 else [first]

    def _number(self, text: str) -> int:
        address = parse_address(text)
        if address not in self.subnet:
            raise errdefs.InvalidParameter(
                f"invalid address {text}: it does not belong to any of this network's subnets")
        return int(address)

    def _is_taken(self, number: int) -> bool:
        offset = number - self._low
        if 0 <= offset < self._size:
            return bool(self._taken >> offset & 1)
        return number in self._outside

    def _mark(self, number: int) -> None:
        offset = number - self._low
        if 0 <= offset < self._size:
            self._taken |= 1 << offset
        else:
            self._outside.add(number)

    def reserve(self, text: str) -> None:
        """Mark as taken, whether it was or not."""
        self._mark(self._number(text))

    def take(self, text: str) -> str:
        """This very address."""
        number = self._number(text)
        if self._is_taken(number):
            raise errdefs.Forbidden(ALREADY_USED)
        self._mark(number)
        return str(parse_address(text))

    def allocate(self) -> str | None:
        """The lowest free address of the range; None when there is none."""
        offset = (~self._taken & (self._taken + 1)).bit_length() - 1
        if offset >= self._size:
            return None
        self._taken |= 1 << offset
        kind = ipaddress.IPv4Address if self.subnet.version == 4 else ipaddress.IPv6Address
        return str(kind(self._low + offset))

    def release(self, text: str) -> None:
        """Idempotent."""
        number = self._number(text)
        offset = number - self._low
        if 0 <= offset < self._size:
            self._taken &= ~(1 << offset)
        else:
            self._outside.discard(number)

    @property
    def used(self) -> int:
        return self._taken.bit_count() + len(self._outside)


class Addresses:
    """The pools of one network."""

    def __init__(self, pools: Iterable[AddressPool]) -> None:
        self.pools = [Pool(p) for p in pools]

    def of_version(self, version: int) -> list[Pool]:
        return [p for p in self.pools if p.subnet.version == version]

    def take(self, version: int, wanted: str, exhausted: str) -> tuple[str, int]:
        """An address and its prefix length. ``exhausted``: what to say when there is none."""
        for pool in self.of_version(version):
            if wanted:
                if parse_address(wanted) in pool.subnet:
                    return pool.take(wanted), pool.subnet.prefixlen
                continue
            address = pool.allocate()
            if address is not None:
                return address, pool.subnet.prefixlen
        if wanted:
            raise errdefs.InvalidParameter(
                f"no configured subnet contains IP address {wanted}")
        raise errdefs.Unavailable(exhausted)

    def reserve(self, address: str) -> None:
        """An address that a living sandbox has (after a restart)."""
        for pool in self.pools:
            if parse_address(address) in pool.subnet:
                pool.reserve(address)

    def release(self, address: str) -> None:
        for pool in self.pools:
            if address and parse_address(address) in pool.subnet:
                pool.release(address)


def first_address(subnet: IPNetwork) -> str:
    """The gateway of a subnet that names none."""
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return str(subnet.network_address)
    return str(subnet.network_address + 1)


def complete(wanted: AddressPool) -> AddressPool:
    """A pool as the user gave it, checked, with its gateway filled in."""
    subnet = parse_network(wanted.subnet)
    if subnet.prefixlen < (8 if subnet.version == 4 else 16):
        raise errdefs.InvalidParameter(f"invalid subnet {wanted.subnet}: it is too large")
    if wanted.ip_range:
        inner = parse_network(wanted.ip_range)
        if inner.version != subnet.version or not inner.subnet_of(subnet):  # type: ignore[arg-type]
            raise errdefs.InvalidParameter(
                "invalid network config:\n"
                f"invalid ip-range {wanted.ip_range}: it is not within subnet {subnet}")
    for text in (wanted.gateway, *wanted.aux.values()):
        if text and parse_address(text, "gateway address") not in subnet:
            raise errdefs.InvalidParameter(
                "invalid network config:\n"
                f"invalid gateway {text}: parent subnet is {subnet}")
    return AddressPool(subnet=str(subnet), gateway=wanted.gateway or first_address(subnet),
                       ip_range=wanted.ip_range, aux=dict(wanted.aux))


def choose_subnet(pools: Iterable[tuple[str, int]], taken: list[IPNetwork],
                  version: int = 4) -> IPNetwork:
    """The first subnet of the pools that meets none of ``taken`` (networks, host routes)."""
    for text, size in pools:
        base = parse_network(text)
        if base.version != version:
            continue
        busy = [t for t in taken if t.version == version and t.overlaps(base)]
        for candidate in base.subnets(new_prefix=max(size, base.prefixlen)):
            if not any(t.overlaps(candidate) for t in busy):
                return candidate
    raise errdefs.InvalidParameter("all predefined address pools have been fully subnetted")


def overlapping(subnet: IPNetwork, taken: Iterable[IPNetwork]) -> IPNetwork | None:
    for other in taken:
        if other.version == subnet.version and other.overlaps(subnet):
            return other
    return None


def unique_local(network_id: str) -> IPNetwork:
    """A /64 of the unique local range for a network that wants IPv6 and names no subnet."""
    return ipaddress.IPv6Network((int("fd" + network_id[:14], 16) << 64, 64))
