"""Networks in the API's words: what is asked for as a NetworkSpec, what is there as JSON."""

from __future__ import annotations

from typing import Any

from carrel import errdefs
from carrel.engine import schema
from carrel.engine.context import EngineContext
from carrel.engine.filters import Filters
from carrel.network.api import AddressPool, Network, NetworkSpec

CREATE: schema.Fields = {
    "Name": ("str", ""), "Driver": ("str", ""), "Scope": ("str", ""), "Internal": ("bool", False),
    "EnableIPv4": ("bool", None), "EnableIPv6": ("bool", None), "Attachable": ("bool", False),
    "Ingress": ("bool", False), "ConfigOnly": ("bool", False), "ConfigFrom": ("obj", None),
    "IPAM": ("obj", None), "Options": ("strmap", {}), "Labels": ("strmap", {}),
    "CheckDuplicate": ("bool", None),
}
_IPAM: schema.Fields = {
    "Driver": ("str", ""), "Options": ("strmap", None), "Config": ("objs", None)}
_POOL: schema.Fields = {
    "Subnet": ("str", ""), "IPRange": ("str", ""), "Gateway": ("str", ""),
    "AuxiliaryAddresses": ("strmap", None)}
#: users that can make none of these; everything else is "custom"
BUILTIN = ("bridge", "host", "none")
FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})


def spec_of(body: dict[str, Any]) -> NetworkSpec:
    """A NetworkCreateRequest."""
    fields = schema.complete(schema.check(body, CREATE, "NetworkCreateRequest"), CREATE)
    ipam = schema.complete(schema.check(fields["IPAM"], _IPAM, "IPAM"), _IPAM)
    pools = []
    for config in ipam["Config"] or ():
        one = schema.complete(schema.check(config, _POOL, "IPAM.Config"), _POOL)
        pools.append(AddressPool(subnet=one["Subnet"], gateway=one["Gateway"],
                                 ip_range=one["IPRange"], aux=one["AuxiliaryAddresses"] or {}))
    options = dict(fields["Options"])
    enable_ipv6 = fields["EnableIPv6"]
    if enable_ipv6 is None:
        enable_ipv6 = options.pop("com.docker.network.enable_ipv6", "") in ("true", "1")
    if fields["Scope"] not in ("", "local"):
        raise errdefs.NotImplementedYet(
            f"networks of scope {fields['Scope']} are not built yet (no swarm)")
    return NetworkSpec(
        name=fields["Name"], driver=fields["Driver"] or "bridge",
        enable_ipv4=fields["EnableIPv4"] is not False, enable_ipv6=enable_ipv6,
        internal=fields["Internal"], attachable=fields["Attachable"], ingress=fields["Ingress"],
        config_only=fields["ConfigOnly"],
        config_from=str((fields["ConfigFrom"] or {}).get("Network") or ""),
        ipam_driver=ipam["Driver"] or "default", ipam_options=ipam["Options"],
        pools=tuple(pools), options=options, labels=fields["Labels"])


def view(ctx: EngineContext, network: Network, *, containers: bool = False) -> dict[str, Any]:
    """A network as the API shows it; with ``containers`` as inspect does."""
    spec = network.spec
    return {
        "Name": network.name, "Id": network.id, "Created": network.created, "Scope": spec.scope,
        "Driver": network.driver, "EnableIPv4": spec.enable_ipv4, "EnableIPv6": spec.enable_ipv6,
        "IPAM": {"Driver": spec.ipam_driver, "Options": spec.ipam_options,
                 "Config": [_pool(p) for p in network.pools] if network.pools else None
                 if network.name in BUILTIN else []},
        "Internal": spec.internal, "Attachable": spec.attachable, "Ingress": spec.ingress,
        "ConfigFrom": {"Network": spec.config_from}, "ConfigOnly": spec.config_only,
        "Containers": _containers(ctx, network) if containers else {},
        "Options": dict(spec.options), "Labels": dict(spec.labels),
    }


def _pool(pool: AddressPool) -> dict[str, Any]:
    shown: dict[str, Any] = {"Subnet": pool.subnet}
    if pool.ip_range:
        shown["IPRange"] = pool.ip_range
    if pool.gateway:
        shown["Gateway"] = pool.gateway
    if pool.aux:
        shown["AuxiliaryAddresses"] = dict(pool.aux)
    return shown


def _containers(ctx: EngineContext, network: Network) -> dict[str, Any]:
    result = {}
    for sandbox, endpoint in ctx.network.on_network(network.id):
        result[sandbox.id] = {
            "Name": sandbox.spec.name, "EndpointID": endpoint.id, "MacAddress": endpoint.mac,
            "IPv4Address": f"{endpoint.ipv4}/{endpoint.prefix4}" if endpoint.ipv4 else "",
            "IPv6Address": f"{endpoint.ipv6}/{endpoint.prefix6}" if endpoint.ipv6 else ""}
    if not network.bridge:
        result |= {s.id: {"Name": s.spec.name, "EndpointID": "", "MacAddress": "",
                          "IPv4Address": "", "IPv6Address": ""}
                   for s in ctx.network.sandboxes() if s.spec.mode == network.name}
    return result


def in_use(ctx: EngineContext, network: Network) -> bool:
    """A container is on it, or is configured for it."""
    if ctx.network.on_network(network.id):
        return True
    return any(network.id in c.networks or network.name in c.networks
               for c in ctx.containers.all())


def select(ctx: EngineContext, filters: Filters) -> list[Network]:
    """The networks that a list is asked for, newest last."""
    kinds = filters.get("type")
    for kind in kinds:
        if kind not in ("builtin", "custom"):
            raise errdefs.InvalidParameter(f"invalid filter: 'type'='{kind}'")
    names, idents = filters.get("name"), filters.get("id")
    dangling = filters.flag("dangling", True) if "dangling" in filters else None
    result = []
    for network in ctx.network.networks():
        kind = "builtin" if network.name in BUILTIN else "custom"
        if ((kinds and kind not in kinds)
                or not filters.match("driver", network.driver)
                or not filters.match("scope", network.spec.scope)
                or not filters.match_labels(network.spec.labels)
                or (names and not any(n in network.name for n in names))
                or (idents and not any(network.id.startswith(i) for i in idents))):
            continue
        if dangling is not None and (
                kind == "builtin" or in_use(ctx, network) == dangling):
            continue
        result.append(network)
    return result
