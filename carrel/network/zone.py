"""Who has which name on which network: the embedded resolver's data. Lives on the event loop."""

from __future__ import annotations

import ipaddress

from carrel.network.api import Endpoint


def folded(name: str) -> str:
    return name.rstrip(".").lower()


class Zone:
    """Names and addresses of endpoints, per network. Several endpoints may share a name."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[Endpoint]] = {}
        self._addresses: dict[tuple[str, str], Endpoint] = {}
        self._turn = 0

    def add(self, endpoint: Endpoint) -> None:
        network = endpoint.network_id
        for name in dict.fromkeys(map(folded, endpoint.dns_names)):
            self._names.setdefault((network, name), []).append(endpoint)
        for address in (endpoint.ipv4, endpoint.ipv6):
            if address and endpoint.dns_names:
                self._addresses[network, address] = endpoint

    def remove(self, endpoint: Endpoint) -> None:
        """Idempotent."""
        network = endpoint.network_id
        for name in dict.fromkeys(map(folded, endpoint.dns_names)):
            left = [e for e in self._names.get((network, name), ()) if e.id != endpoint.id]
            if left:
                self._names[network, name] = left
            else:
                self._names.pop((network, name), None)
        for address in (endpoint.ipv4, endpoint.ipv6):
            known = self._addresses.get((network, address))
            if known is not None and known.id == endpoint.id:
                del self._addresses[network, address]

    def lookup(self, network: str, network_name: str, name: str) -> list[Endpoint]:
        """The endpoints of that name, in turn a different one first. ``name.network`` works too."""
        wanted = folded(name)
        found = self._names.get((network, wanted))
        if found is None and wanted.endswith("." + network_name.lower()):
            found = self._names.get((network, wanted[:-len(network_name) - 1]))
        if not found:
            return []
        if len(found) > 1:
            self._turn += 1
            start = self._turn % len(found)
            return found[start:] + found[:start]
        return found

    def reverse(self, network: str, address: str) -> Endpoint | None:
        return self._addresses.get((network, address))

    def __len__(self) -> int:
        return len(self._names)


def address_of_pointer(name: str) -> str:
    """The address that a PTR question asks for, "" if it is not one."""
    labels = folded(name).split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(labels[:4]))))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
            digits = "".join(reversed(labels[:32]))
            return str(ipaddress.IPv6Address(int(digits, 16)))
    except ValueError:
        pass
    return ""
