"""Planning of endpoints: checks, names, interface names, which one has the default route. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from carrel import errdefs
from carrel.kernel import nftables
from carrel.network import bridge, ipam
from carrel.network.api import Endpoint, EndpointSpec, Network, PortBinding, SandboxSpec
from carrel.network.networks import DEFAULT
from carrel.network.operations import Interface

OPT_IFNAME = "com.docker.network.endpoint.ifname"
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", re.ASCII)


def normal_mac(text: str) -> str:
    if not _MAC.fullmatch(text):
        raise errdefs.InvalidParameter(f"address {text}: invalid MAC address")
    if int(text[:2], 16) & 1:
        raise errdefs.InvalidParameter(f"address {text}: not a unicast MAC address")
    return text.lower().replace("-", ":")


def check(network: Network | None, spec: EndpointSpec) -> None:
    """Refuse what cannot be connected. ``network`` None: it does not exist (yet)."""
    problems = list(_problems(network, spec))
    if problems:
        raise errdefs.InvalidParameter(
            f"invalid config for network {spec.network}: invalid endpoint settings:\n"
            + "\n".join(problems))
    if spec.mac:
        normal_mac(spec.mac)
    for text in spec.link_local:
        if not ipam.parse_address(text, "link-local IP address").is_link_local:
            raise errdefs.InvalidParameter(f"invalid link-local IP address: {text}")
    for name, value in spec.driver_opts.items():
        if name == OPT_IFNAME:
            if not bridge.valid_ifname(value):
                raise errdefs.InvalidParameter(f"invalid interface name {value!r}")
        elif name.startswith("com.docker.network."):
            raise errdefs.NotImplementedYet(f"the endpoint option {name} is not built yet")


def _problems(network: Network | None, spec: EndpointSpec) -> Iterable[str]:
    default = network is not None and network.name == DEFAULT
    if default and spec.aliases:
        yield ("network-scoped aliases are only supported for user-defined networks")
    if not (spec.ipv4 or spec.ipv6):
        return
    if default:
        yield "user specified IP address is supported on user defined networks only"
        return
    if network is not None and not network.user_subnets:
        yield ("user specified IP address is supported only when connecting to networks with "
               "user configured subnets")
        return
    for text in (spec.ipv4, spec.ipv6):
        if text and network is not None and not any(
                ipam.parse_address(text) in ipam.parse_network(p.subnet) for p in network.pools):
            yield f"no configured subnet contains IP address {text}"


def dns_names(sandbox: SandboxSpec, spec: EndpointSpec) -> tuple[str, ...]:
    """Name, aliases, short id, host name: what others on a user-defined network may call it."""
    names = [sandbox.name, *spec.aliases, sandbox.id[:12], sandbox.hostname]
    return tuple(dict.fromkeys(n for n in names if n))


def interface_name(spec: EndpointSpec, used: set[str]) -> str:
    wanted = spec.driver_opts.get(OPT_IFNAME)
    if wanted:
        if wanted in used or wanted == "lo":
            raise errdefs.InvalidParameter(f"interface name {wanted} is used twice")
        return wanted
    number = 0
    while f"eth{number}" in used:
        number += 1
    return f"eth{number}"


def by_priority(endpoints: Iterable[Endpoint],
                networks: dict[str, Network]) -> list[Endpoint]:
    """In the order in which they are asked for a default route: external ones first, then by
    priority, those with both families, and by the network's name."""
    def key(endpoint: Endpoint) -> tuple[bool, int, bool, str]:
        return (networks[endpoint.network_id].spec.internal, -endpoint.spec.gateway_priority,
                not (endpoint.gateway4 and endpoint.gateway6), endpoint.network_name)

    return sorted(endpoints, key=key)


def gateways(endpoints: Iterable[Endpoint],
             networks: dict[str, Network]) -> dict[str, tuple[str, ...]]:
    """Endpoint id -> the gateways of the default routes that go through it."""
    ordered = by_priority(endpoints, networks)
    result: dict[str, tuple[str, ...]] = {}
    for family in ("gateway4", "gateway6"):
        for endpoint in ordered:
            gateway = getattr(endpoint, family)
            if gateway:
                result[endpoint.id] = (*result.get(endpoint.id, ()), gateway)
                break
    return result


def published_through(endpoints: Iterable[Endpoint],
                      networks: dict[str, Network]) -> Endpoint | None:
    """The endpoint that published ports lead to: the one with the IPv4 default route."""
    for endpoint in by_priority(endpoints, networks):
        if endpoint.gateway4:
            return endpoint
    return None


def map_elements(bindings: Iterable[PortBinding],
                 exit_point: Endpoint) -> tuple[nftables.Port, ...]:
    """The map elements that lead published ports to an endpoint; a host address of a family that
    the endpoint does not have is the relay's."""
    found = []
    for b in bindings:
        target = exit_point.ipv6 if ":" in b.host_ip else exit_point.ipv4
        if target:
            at = "" if b.host_ip in ("0.0.0.0", "::") else b.host_ip
            found.append(nftables.Port(b.proto, at, b.host_port, target, b.container_port))
    return tuple(found)


def interface(endpoint: Endpoint, network: Network, through: tuple[str, ...]) -> Interface:
    """The endpoint for the kernel."""
    addresses = [(a, p) for a, p in ((endpoint.ipv4, endpoint.prefix4),
                                     (endpoint.ipv6, endpoint.prefix6)) if a]
    addresses += [(a, 64 if ":" in a else 16) for a in endpoint.spec.link_local]
    return Interface(
        ifname=endpoint.ifname, host_ifname=endpoint.host_ifname, bridge=network.bridge,
        mac=endpoint.mac, mtu=network.mtu, addresses=tuple(addresses), gateways=through,
        isolated=not bridge.flag(network.spec.options, bridge.OPT_ICC, True),
        ipv6=bool(endpoint.ipv6))


def has_resolver(networks: Iterable[Network]) -> bool:
    """Whether a sandbox on these networks gets the embedded resolver."""
    return any(n.bridge and n.name != DEFAULT for n in networks)


def link_names(spec: SandboxSpec) -> dict[str, str]:
    """Legacy links on networks with names: alias -> the other container's name."""
    result = {}
    for endpoint in spec.endpoints:
        for text in endpoint.links:
            target, _, alias = text.partition(":")
            if alias:
                result[alias.lower()] = target
    return result


def link_entries(spec: SandboxSpec, resolve: dict[str, tuple[str, str]]
                 ) -> list[tuple[str, str]]:
    """Lines of /etc/hosts for legacy links: ``resolve`` is container -> (address, names)."""
    result = []
    for endpoint in spec.endpoints:
        for text in endpoint.links:
            target, _, alias = text.partition(":")
            found = resolve.get(target)
            if found is not None:
                address, names = found
                words = dict.fromkeys([alias or target, *names.split()])
                result.append((address, " ".join(words)))
    return result
