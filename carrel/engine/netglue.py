"""Between the API's words for networks and those of the network layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import schema, validate
from carrel.engine.model import Container
from carrel.network.api import Endpoint, EndpointSpec, PortBinding, Sandbox, SandboxSpec

if TYPE_CHECKING:
    from carrel.engine.manager import Manager

SPECIAL = ("host", "none")


def mode_of(host: Mapping[str, Any]) -> str:
    mode = host.get("NetworkMode") or "default"
    return "bridge" if mode == "default" else str(mode)


def wanted_endpoints(host: Mapping[str, Any], networking: Any, mac: str | None
                     ) -> dict[str, dict[str, Any]]:
    """Network name -> settings; the network of ``--network`` first."""
    given: dict[str, dict[str, Any]] = {}
    if networking is not None and not isinstance(networking, dict):
        raise errdefs.InvalidParameter("invalid JSON: NetworkingConfig must be an object")
    settings = (networking or {}).get("EndpointsConfig") or {}
    if not isinstance(settings, dict):
        raise errdefs.InvalidParameter("invalid JSON: NetworkingConfig.EndpointsConfig")
    for name, value in settings.items():
        given[name] = endpoint_settings(value, f"EndpointsConfig[{name[:40]}]")
    mode = mode_of(host)
    if mode in SPECIAL or mode.startswith("container:"):
        extra = [n for n in given if n != mode]
        if extra and mode == "host":
            raise errdefs.InvalidParameter(
                "conflicting options: cannot attach both user-defined and non-user-defined "
                "network-modes")
        return {}
    first = given.pop("default", None) or given.pop(mode, None) or {}
    if mac and not first.get("MacAddress"):
        first["MacAddress"] = mac
    return {mode: first, **given}


def endpoint_settings(value: Any, what: str) -> dict[str, Any]:
    """EndpointSettings as a client gives them: what it asks for, nothing else."""
    checked = schema.check(value, schema.ENDPOINT, what)
    result = {k: checked[k] for k in ("IPAMConfig", "Links", "Aliases", "MacAddress",
                                      "DriverOpts", "GwPriority") if checked.get(k)}
    ipam = schema.check(result.get("IPAMConfig"), schema.IPAM_CONFIG, f"{what}.IPAMConfig")
    if ipam:
        result["IPAMConfig"] = ipam
    for address in ipam.get("LinkLocalIPs") or ():
        validate.ip(address)
    for key in ("IPv4Address", "IPv6Address"):
        if ipam.get(key):
            validate.ip(ipam[key])
    for alias in result.get("Aliases") or ():
        if "\n" in alias or not alias:
            raise errdefs.InvalidParameter(f"invalid network alias: {alias[:64]!r}")
    return result


def endpoint_spec(name: str, value: Mapping[str, Any]) -> EndpointSpec:
    ipam = value.get("IPAMConfig") or {}
    return EndpointSpec(
        network=name, aliases=tuple(value.get("Aliases") or ()),
        ipv4=ipam.get("IPv4Address") or "", ipv6=ipam.get("IPv6Address") or "",
        link_local=tuple(ipam.get("LinkLocalIPs") or ()), mac=value.get("MacAddress") or "",
        driver_opts=dict(value.get("DriverOpts") or {}),
        gateway_priority=value.get("GwPriority") or 0, links=tuple(value.get("Links") or ()))


def bindings(container: Container) -> tuple[PortBinding, ...]:
    """Published ports, in the order in which they were asked for."""
    host = container.host
    result = []
    wanted: dict[str, Any] = dict(host["PortBindings"] or {})
    if host["PublishAllPorts"]:
        for port in container.record.config.get("ExposedPorts") or {}:
            wanted.setdefault(port, [{"HostIp": "", "HostPort": ""}])
    for text, targets in wanted.items():
        port, proto = validate.parse_port(text)
        for target in targets or [{}]:
            low, high = validate.host_ports(target.get("HostPort") or "")
            result.append(PortBinding(
                container_port=port, proto=proto, host_ip=target.get("HostIp") or "",
                host_port=low, host_port_end=high if high != low else 0))
    return tuple(result)


def sandbox_spec(manager: Manager, container: Container, key: str = "") -> SandboxSpec:
    """What this container's network should be, from its record."""
    host, config = container.host, container.record.config
    mode = mode_of(host)
    endpoints: tuple[EndpointSpec, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    if mode.startswith("container:"):
        mode = f"container:{manager.joinable(mode[10:], 'network').id}"
    elif mode not in SPECIAL:
        mode = ""
        endpoints = tuple(endpoint_spec(n, v) for n, v in container.record.endpoints.items())
        if host["Links"] and endpoints:
            endpoints = (_with_links(endpoints[0], host["Links"]), *endpoints[1:])
        ports = bindings(container)
    return SandboxSpec(
        id=container.id, key=key, name=container.name, hostname=config.get("Hostname") or "",
        domainname=config.get("Domainname") or "", mode=mode, endpoints=endpoints, ports=ports,
        extra_hosts=tuple(host["ExtraHosts"] or ()), dns=tuple(host["Dns"] or ()),
        dns_search=tuple(host["DnsSearch"] or ()), dns_options=tuple(host["DnsOptions"] or ()))


def _with_links(spec: EndpointSpec, links: list[str]) -> EndpointSpec:
    import msgspec

    return msgspec.structs.replace(spec, links=(*spec.links, *links))


def settings(manager: Manager, container: Container) -> dict[str, Any]:
    """``NetworkSettings`` of inspect."""
    sandbox = manager.sandbox_of(container)
    networks = endpoint_views(manager, container, sandbox)
    first = networks.get("bridge", {})
    return {
        "Bridge": "", "SandboxID": sandbox.key if sandbox else "",
        "SandboxKey": sandbox.netns_path if sandbox else "",
        "Ports": port_map(container, sandbox), "HairpinMode": False,
        "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None, "SecondaryIPv6Addresses": None,
        "EndpointID": first.get("EndpointID", ""), "Gateway": first.get("Gateway", ""),
        "GlobalIPv6Address": first.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": first.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": first.get("IPAddress", ""), "IPPrefixLen": first.get("IPPrefixLen", 0),
        "IPv6Gateway": first.get("IPv6Gateway", ""), "MacAddress": first.get("MacAddress", ""),
        "Networks": networks,
    }


def port_map(container: Container, sandbox: Sandbox | None) -> dict[str, Any]:
    """``80/tcp`` -> host bindings, null for a port that is only exposed."""
    if sandbox is None:
        return {}
    result: dict[str, Any] = {}
    for binding in sandbox.ports:
        result.setdefault(f"{binding.container_port}/{binding.proto}", []).append(
            {"HostIp": binding.host_ip, "HostPort": str(binding.host_port)})
    for text in container.record.config.get("ExposedPorts") or {}:
        port, proto = validate.parse_port(text)
        result.setdefault(f"{port}/{proto}", None)
    return result


def endpoint_views(manager: Manager, container: Container, sandbox: Sandbox | None
                   ) -> dict[str, dict[str, Any]]:
    """EndpointSettings by network name."""
    live = {e.network_name: e for e in sandbox.endpoints.values()} if sandbox else {}
    by_id = {e.network_id: e for e in sandbox.endpoints.values()} if sandbox else {}
    mode = mode_of(container.host)
    names = list(container.record.endpoints) or ([mode] if mode in SPECIAL else [])
    result = {}
    for name in names:
        endpoint = live.get(name) or by_id.get(name)
        try:
            network = manager.ctx.network.network(name)
            ident, shown = network.id, network.name
        except errdefs.NotFound:
            ident, shown = "", name
        result[shown] = _view(container.record.endpoints.get(name, {}), ident, endpoint)
    return result


def _view(wanted: Mapping[str, Any], network: str, live: Endpoint | None) -> dict[str, Any]:
    return {
        "IPAMConfig": wanted.get("IPAMConfig"), "Links": wanted.get("Links"),
        "Aliases": wanted.get("Aliases"),
        "MacAddress": live.mac if live else wanted.get("MacAddress", ""),
        "DriverOpts": wanted.get("DriverOpts"), "GwPriority": wanted.get("GwPriority", 0),
        "NetworkID": network, "EndpointID": live.id if live else "",
        "Gateway": live.gateway4 if live else "", "IPAddress": live.ipv4 if live else "",
        "IPPrefixLen": live.prefix4 if live else 0, "IPv6Gateway": live.gateway6 if live else "",
        "GlobalIPv6Address": live.ipv6 if live else "",
        "GlobalIPv6PrefixLen": live.prefix6 if live else 0,
        "DNSNames": list(live.dns_names) or None if live else None,
    }


def announce(manager: Manager, container: Container, action: str) -> None:
    """The events of a start and of an end: one for each network of the container."""
    mode = mode_of(container.host)
    for name in container.record.endpoints or ([mode] if mode in SPECIAL else []):
        try:
            found = manager.ctx.network.network(name)
        except errdefs.NotFound:
            continue    # removed while the container was stopped
        manager.ctx.events.publish("network", action, found.id, {
            "container": container.id, "name": found.name, "type": found.driver})
