"""The networks of one engine: names, validation, subnets, records. The kernel side is in
``carrel.network.bridge``."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator

import msgspec

from carrel import errdefs
from carrel.network import bridge, ipam
from carrel.network.api import AddressPool, Config, Network, NetworkSpec, Store

KIND = "network"
DEFAULT = "bridge"
#: the name of an auxiliary address that is the containers' gateway instead of the bridge
GATEWAY = "DefaultGatewayIPv4"
#: made by the engine, never by a user
PREDEFINED = ("bridge", "host", "none")
_RESERVED = (*PREDEFINED, "default", "container")
_NAME = re.compile(r"\w[\w. -]*", re.ASCII)
_NOT_BUILT = ("overlay", "macvlan", "ipvlan")


def timestamp() -> str:
    now = time.time_ns()
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
    return f"{text}.{now % 1_000_000_000:09d}Z"


class Networks:
    """Records by id. Only the event loop uses it."""

    def __init__(self, store: Store, config: Config, default_bridge: str) -> None:
        self._store = store
        self._config = config
        self._default_bridge = default_bridge
        self._known: dict[str, Network] = {}
        self._by_name: dict[str, str] = {}
        self.addresses: dict[str, ipam.Addresses] = {}

    def load(self) -> None:
        for _, document in self._store.all(KIND):
            self._add(msgspec.convert(document, Network))

    def _add(self, network: Network) -> None:
        self._known[network.id] = network
        self._by_name[network.name] = network.id
        self.addresses[network.id] = ipam.Addresses(network.pools)

    def __iter__(self) -> Iterator[Network]:
        return iter(list(self._known.values()))  # a copy: the namespace thread looks too

    def __contains__(self, ident: str) -> bool:
        return ident in self._known

    def bridges(self) -> list[Network]:
        return [n for n in self if n.bridge]

    def find(self, reference: str) -> Network:
        """By full id, name, or a prefix of one id only."""
        ident = reference if reference in self._known else self._by_name.get(reference)
        if ident is None and reference == "default":
            ident = self._by_name.get(DEFAULT)
        if ident is not None:
            return self._known[ident]
        found = [i for i in self._known if reference and i.startswith(reference)]
        if not found:
            raise errdefs.NotFound(f"network {reference} not found")
        if len(found) > 1:
            raise errdefs.InvalidParameter(
                f"network {reference} is ambiguous ({len(found)} matches found based on ID prefix)")
        return self._known[found[0]]

    def put(self, network: Network) -> None:
        """Remember, on disk too."""
        self._store.put(KIND, network.id, network)
        self._add(network)

    def forget(self, network: Network) -> None:
        self._store.delete(KIND, network.id)
        del self._known[network.id]
        self._by_name.pop(network.name, None)
        self.addresses.pop(network.id, None)

    # -- planning ---------------------------------------------------------------------------

    def plan(self, spec: NetworkSpec, taken: Iterable[ipam.IPNetwork]) -> Network:
        """A complete network for a wish, or the reason why there cannot be one. Pure."""
        self._check(spec)
        ident = secrets.token_hex(32)
        name = spec.options.get(bridge.OPT_NAME) or f"cr-{ident[:12]}"
        for other in self.bridges():
            if other.bridge == name:
                raise errdefs.Forbidden(
                    f"cannot create network {ident} ({name}): conflicts with network {other.id} "
                    f"({other.bridge}): networks have same bridge name")
        pools = self._pools(spec, ident, list(taken))
        return Network(
            id=ident, created=timestamp(), spec=spec, bridge=name, pools=pools,
            mtu=int(spec.options.get(bridge.OPT_MTU) or self._config.mtu),
            user_subnets=any(p.subnet for p in spec.pools))

    def _check(self, spec: NetworkSpec) -> None:
        if not spec.name:
            raise errdefs.InvalidParameter("invalid name: name is empty")
        if spec.name in _RESERVED:
            raise errdefs.Forbidden(
                f"operation is not permitted on predefined {spec.name} network")
        if len(spec.name) > 255 or not _NAME.fullmatch(spec.name):
            raise errdefs.InvalidParameter(
                f"invalid network name ({spec.name[:64]}), only letters, digits, dots, dashes, "
                "underscores and spaces are allowed")
        if spec.name in self._by_name:
            raise errdefs.Conflict(f"network with name {spec.name} already exists")
        if spec.driver in ("host", "null"):
            raise errdefs.Forbidden(
                f"only one instance of \"{spec.driver}\" network is allowed")
        if spec.driver in _NOT_BUILT:
            raise errdefs.NotImplementedYet(
                f"the network driver {spec.driver} is not built yet (only bridge, host and none)")
        if spec.driver != "bridge":
            raise errdefs.NotFound(
                f"could not find plugin {spec.driver} in v1 plugin registry: plugin not found")
        for wanted, what in ((spec.ingress, "ingress networks"),
                             (spec.config_only, "configuration-only networks"),
                             (spec.config_from, "networks from a configuration-only network"),
                             (not spec.enable_ipv4, "networks without IPv4"),
                             (spec.ipam_options, "IPAM driver options")):
            if wanted:
                raise errdefs.NotImplementedYet(f"{what} are not built yet")
        if spec.ipam_driver not in ("", "default"):
            raise errdefs.NotFound(
                f"could not find plugin {spec.ipam_driver} in v1 plugin registry: plugin not found")
        bridge.check_options(spec.options)

    def _pools(self, spec: NetworkSpec, ident: str,
               taken: list[ipam.IPNetwork]) -> tuple[AddressPool, ...]:
        own = [ipam.parse_network(p.subnet) for n in self for p in n.pools]
        result: list[AddressPool] = []
        for wanted in spec.pools:
            if not wanted.subnet:
                if wanted.gateway or wanted.ip_range or wanted.aux:
                    raise errdefs.InvalidParameter(
                        "invalid network config:\nevery ip-range or gateway must have a "
                        "corresponding subnet")
                continue
            pool = ipam.complete(wanted)
            subnet = ipam.parse_network(pool.subnet)
            if subnet.version == 6 and not spec.enable_ipv6:
                continue
            same = [ipam.parse_network(p.subnet) for p in result]
            if ipam.overlapping(subnet, own + same) is not None:
                raise errdefs.Forbidden(
                    "invalid pool request: Pool overlaps with other one on this address space")
            if any(s.version == subnet.version for s in same):
                raise errdefs.NotImplementedYet(
                    "more than one subnet of a family in a bridge network is not built yet")
            result.append(pool)
        versions = {ipam.parse_network(p.subnet).version for p in result}
        if 4 not in versions:
            result.insert(0, self._automatic(own + taken))
        if spec.enable_ipv6 and 6 not in versions:
            result.append(ipam.complete(AddressPool(subnet=str(ipam.unique_local(ident)))))
        return tuple(result)

    def _automatic(self, taken: list[ipam.IPNetwork]) -> AddressPool:
        pools = self._config.address_pools or ipam.DEFAULT_POOLS
        return ipam.complete(AddressPool(subnet=str(ipam.choose_subnet(pools, taken))))

    # -- the predefined ones ------------------------------------------------------------------

    def ensure_predefined(self, taken: Iterable[ipam.IPNetwork], *, in_use: set[str]) -> None:
        """host, none and the default bridge, with the daemon's options of today. A subnet that
        living sandboxes use (``in_use``: ids of networks) stays as it is."""
        for name, driver in (("host", "host"), ("none", "null")):
            if name not in self._by_name:
                self.put(Network(id=secrets.token_hex(32), created=timestamp(),
                                 spec=NetworkSpec(name=name, driver=driver)))
        self._ensure_default(list(taken), in_use)

    def _ensure_default(self, taken: list[ipam.IPNetwork], in_use: set[str]) -> None:
        config = self._config
        old = self._known.get(self._by_name.get(DEFAULT, ""))
        own = [ipam.parse_network(p.subnet) for n in self for p in n.pools
               if old is None or n.id != old.id]
        if old is not None and old.id in in_use:
            pool = old.pools[0]
        elif config.bip:
            address, _, prefix = config.bip.partition("/")
            if not prefix:
                raise errdefs.InvalidParameter(f"invalid --bip {config.bip}: invalid CIDR address")
            pool = AddressPool(subnet=str(ipam.parse_network(config.bip)), gateway=address)
        elif old is not None and ipam.overlapping(
                ipam.parse_network(old.pools[0].subnet), own + taken) is None:
            pool = old.pools[0]
        else:
            pool = self._automatic(own + taken)
        pool = ipam.complete(msgspec.structs.replace(
            pool, ip_range=config.fixed_cidr, aux={GATEWAY: config.default_gateway}
            if config.default_gateway else {}))
        spec = NetworkSpec(name=DEFAULT, options={
            bridge.OPT_DEFAULT: "true", bridge.OPT_ICC: _word(config.icc),
            bridge.OPT_MASQUERADE: _word(config.ip_masq),
            bridge.OPT_HOST_BINDING: config.default_host_ip or "0.0.0.0",
            bridge.OPT_NAME: self._default_bridge, bridge.OPT_MTU: str(config.mtu)})
        new = Network(
            id=old.id if old else secrets.token_hex(32),
            created=old.created if old else timestamp(), spec=spec, pools=(pool,),
            bridge=self._default_bridge, mtu=config.mtu)
        if new != old:
            self.put(new)


def _word(value: bool) -> str:
    return "true" if value else "false"
