"""Sandboxes: plan, hand to the namespace thread, remember; the reverse on removal.

Order of a start: addresses and ports are taken (memory and sockets, each with its undo), then one
job on the namespace thread does everything to the kernel, then names and relays are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from functools import partial

import msgspec

from carrel import errdefs
from carrel.kernel import netns, nftables, plan
from carrel.kernel.conntrack import forget_udp
from carrel.kernel.plan import Operation
from carrel.network import bridge, endpoints, files, operations, ports, rules
from carrel.network.api import (
    Config,
    Endpoint,
    EndpointSpec,
    Network,
    PortBinding,
    Sandbox,
    SandboxSpec,
)
from carrel.network.networks import DEFAULT, GATEWAY, Networks
from carrel.network.nsthread import Kernel, NamespaceThread
from carrel.network.pool import Pool, Ready
from carrel.network.relay import Relay
from carrel.network.resolver import Resolver
from carrel.network.zone import Zone

_encode = msgspec.json.Encoder().encode
#: seconds after a start until the relays of its ports are set up
_RELAY_AFTER = 0.02
_Sockets = tuple[socket.socket, socket.socket] | None


class Live:
    """One sandbox with what the daemon holds for it. Changed by the task that has ``lock``."""

    __slots__ = ("lock", "published", "relays", "reserved", "sandbox")

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.reserved: list[ports.Reserved] = []
        self.published: tuple[nftables.Port, ...] = ()
        self.relays: list[Relay] = []
        self.lock = asyncio.Lock()


class Sandboxes:
    """All sandboxes of the engine. Only the event loop uses it."""

    def __init__(self, exec_root: str, config: Config, networks: Networks,
                 thread: NamespaceThread) -> None:
        self.config = config
        self.table = rules.table_name(exec_root)
        self.netns_folder = f"{exec_root}/netns"
        self.record_folder = f"{exec_root}/network"
        self.networks = networks
        self.thread = thread
        self.live: dict[str, Live] = {}
        self.zone = Zone()
        self.ports = ports.PortTable()
        self.resolver = Resolver(self.zone, networks)
        #: host ends of pairs that should vanish with their namespaces; swept when idle
        self.lingering: set[str] = set()
        self.pool = Pool(config.pool_size)
        self.host = files.Resolver()

    # -- questions --------------------------------------------------------------------------

    def on_network(self, network_id: str) -> list[tuple[Sandbox, Endpoint]]:
        return [(one.sandbox, e) for one in self.live.values()
                for e in one.sandbox.endpoints.values() if e.network_id == network_id]

    def by_id(self, ident: str) -> Live:
        live = self.live.get(ident)
        if live is None:
            raise errdefs.NotFound(f"no network sandbox of container {ident}")
        return live

    def host_gateways(self) -> tuple[str, ...]:
        if self.config.host_gateway_ips:
            return self.config.host_gateway_ips
        return tuple(p.gateway for p in self.networks.find(DEFAULT).pools)

    def networks_of(self, places: dict[str, Endpoint]) -> dict[str, Network]:
        return {i: self.networks.find(i) for i in places}

    def namespace_path(self, key: str) -> str:
        """Where the namespace of a sandbox with that key is bound."""
        return f"{self.netns_folder}/{key[:12]}"

    # -- creation ---------------------------------------------------------------------------

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.id in self.live:
            await self.remove(spec.id)  # left by a start that its daemon did not survive
        if spec.mode == "host" or spec.mode.startswith("container:"):
            return self._create_shared(spec)
        if spec.mode not in ("", "none"):
            raise errdefs.InvalidParameter(f"unknown network mode {spec.mode!r}")
        with contextlib.ExitStack() as undo:
            live = await self._create(spec, undo)
            undo.pop_all()
        return live.sandbox

    def _create_shared(self, spec: SandboxSpec) -> Sandbox:
        """host and container:<id>: nothing of its own."""
        if spec.mode == "host":
            self.host = files.host_resolver()
            sandbox = Sandbox(id=spec.id, spec=spec,
                              hosts=files.host_hosts(spec, self.host_gateways()),
                              resolv_conf=files.host_resolv_conf(spec, self.config))
        else:
            other = self.by_id(spec.mode.partition(":")[2]).sandbox
            sandbox = msgspec.structs.replace(other, id=spec.id, spec=spec, endpoints={}, ports=())
        with contextlib.suppress(OSError):  # the record only serves a restart of the daemon
            operations.WriteRecord(self.record_path(spec.id), _encode(sandbox)).write()
        self.live[spec.id] = Live(sandbox)
        return sandbox

    async def _create(self, spec: SandboxSpec, undo: contextlib.ExitStack) -> Live:
        key = spec.key or secrets.token_hex(32)
        path = self.namespace_path(key)
        self.host = files.host_resolver()
        places: dict[str, Endpoint] = {}
        for wanted in spec.endpoints:
            endpoint = self._plan_endpoint(spec, wanted, key, places, undo)
            places[endpoint.network_id] = endpoint
        networks = self.networks_of(places)
        ready = self._from_pool(places, networks, undo)
        live = Live(Sandbox(id=spec.id, spec=spec, key=key, netns_path=path, endpoints=places))
        self._reserve(live, networks, undo)
        live.sandbox = self._with_files(live, networks)
        await self._execute(live, self._plan(live, networks, ready))
        return live

    def _plan_endpoint(self, spec: SandboxSpec, wanted: EndpointSpec, key: str,
                       others: dict[str, Endpoint], undo: contextlib.ExitStack) -> Endpoint:
        """Take the addresses (their release is pushed at once) and the names."""
        network = self.networks.find(wanted.network)
        if not network.bridge:
            raise errdefs.Forbidden(
                f"container cannot be connected to network {network.name} together with others")
        if network.id in others:
            raise errdefs.Forbidden(
                f"endpoint with name {spec.name} already exists in network {network.name}")
        endpoints.check(network, wanted)
        ipv4, prefix4, gateway4 = self._take(network, 4, wanted.ipv4, undo)
        ipv6, prefix6, gateway6 = ("", 0, "")
        if network.spec.enable_ipv6:
            ipv6, prefix6, gateway6 = self._take(network, 6, wanted.ipv6, undo)
        mac = endpoints.normal_mac(wanted.mac) if wanted.mac else bridge.mac_for(ipv4)
        used = {e.ifname for e in others.values()}
        named = network.name != DEFAULT
        return Endpoint(
            id=secrets.token_hex(32), network_id=network.id, network_name=network.name,
            spec=wanted, ifname=endpoints.interface_name(wanted, used),
            host_ifname=bridge.host_ifname(key, network.id), mac=mac, ipv4=ipv4, prefix4=prefix4,
            gateway4=gateway4, ipv6=ipv6, prefix6=prefix6, gateway6=gateway6,
            dns_names=endpoints.dns_names(spec, wanted) if named else ())

    def _take(self, network: Network, version: int, wanted: str,
              undo: contextlib.ExitStack) -> tuple[str, int, str]:
        addresses = self.networks.addresses[network.id]
        address, prefix = addresses.take(
            version, wanted, f"no available IPv{version} addresses on this network's address "
            f"pools: {network.name} ({network.id})")
        undo.callback(addresses.release, address)
        if network.spec.internal:
            return address, prefix, ""
        gateway = next((p.aux.get(GATEWAY) or p.gateway for p in network.pools
                        if (":" in p.subnet) == (version == 6)), "")
        return address, prefix, gateway

    def _from_pool(self, places: dict[str, Endpoint], networks: dict[str, Network],
                   undo: contextlib.ExitStack) -> Ready | None:
        """A namespace made ahead, and its interface's name in the plan."""
        first = next(iter(places.values()), None)
        connected = (first is not None and first.ifname == "eth0"
                     and networks[first.network_id].name == DEFAULT)
        ready = self.pool.take(connected=connected) or (
            self.pool.take(connected=False) if connected else None)
        if ready is not None:
            undo.callback(ready.inside.close)
            if ready.host_ifname and first is not None:
                places[first.network_id] = msgspec.structs.replace(
                    first, host_ifname=ready.host_ifname)
        return ready

    def _plan(self, live: Live, networks: dict[str, Network],
              ready: Ready | None) -> list[Operation]:
        """Everything that the kernel has to do, in order. Pure."""
        sandbox = live.sandbox
        path = sandbox.netns_path
        through = endpoints.gateways(sandbox.endpoints.values(), networks)
        work: list[Operation] = [operations.MakeNamespace(path, ready)]
        pooled = ready.index if ready is not None else 0
        for ident, endpoint in sandbox.endpoints.items():
            shape = endpoints.interface(endpoint, networks[ident], through.get(endpoint.id, ()))
            work.append(operations.AddInterface(path, shape, pooled=pooled))
            pooled = 0
        if endpoints.has_resolver(networks.values()):
            work.append(operations.OpenResolver(path))
        if live.published:
            work.append(operations.Publish(self.table, live.published))
        work.append(operations.WriteRecord(self.record_path(sandbox.id), _encode(sandbox)))
        return work

    async def _execute(self, live: Live, work: list[Operation]) -> None:
        """Run a plan that makes a sandbox; a cancelled caller leaves nothing behind."""
        path = live.sandbox.netns_path
        made: list[_Sockets] = []
        try:
            await self.thread.run(lambda kernel: made.append(execute(kernel, path, work)))
        except asyncio.CancelledError:
            for sock in (made[0] if made else None) or ():
                sock.close()
            await self.thread.run(lambda kernel: self._tear_down(kernel, live))
            raise
        self.serve(live, made[0])

    # -- published ports --------------------------------------------------------------------

    def _reserve(self, live: Live, networks: dict[str, Network],
                 undo: contextlib.ExitStack) -> None:
        """Bind the host's side of every published port, before anything is done."""
        sandbox = live.sandbox
        exit_point = endpoints.published_through(sandbox.endpoints.values(), networks)
        if exit_point is None or not sandbox.spec.ports:
            return
        undo.callback(self.ports.release, live.reserved)
        try:
            for wanted in sandbox.spec.ports:
                live.reserved += self.ports.reserve(
                    wanted, self._host_addresses(wanted, networks[exit_point.network_id]),
                    sandbox.id, optional_v6=not wanted.host_ip)
        except errdefs.SystemFailure as error:
            raise errdefs.SystemFailure(
                "failed to set up container networking: driver failed programming external "
                f"connectivity on endpoint {sandbox.spec.name} ({exit_point.id}): {error}"
            ) from None
        self._direct_ports(live, exit_point)

    def _host_addresses(self, wanted: PortBinding, network: Network) -> tuple[str, ...]:
        if wanted.host_ip:
            return (files.ip_text(wanted.host_ip),)
        default = network.spec.options.get(bridge.OPT_HOST_BINDING) or self.config.default_host_ip
        if default and default != "0.0.0.0":
            return (default,)
        usable = self.config.userland_proxy or network.spec.enable_ipv6
        return ("0.0.0.0", "::") if usable else ("0.0.0.0",)

    def _direct_ports(self, live: Live, exit_point: Endpoint) -> None:
        """The elements of the maps, and the ports as inspect shows them."""
        bindings = tuple(r.binding for r in live.reserved)
        live.sandbox = msgspec.structs.replace(live.sandbox, ports=bindings)
        live.published = self.map_elements(bindings, exit_point)

    def map_elements(self, bindings: tuple[PortBinding, ...],
                     exit_point: Endpoint) -> tuple[nftables.Port, ...]:
        """What nftables is to do for published ports; the rest is the relay's."""
        if not self.config.iptables:
            return ()
        found = endpoints.map_elements(bindings, exit_point)
        return found if self.config.ip6tables else tuple(p for p in found if "6" not in p.map)

    def serve(self, live: Live, sockets: _Sockets) -> None:
        """Names, relays and the resolver: what lives in the daemon."""
        sandbox = live.sandbox
        self.live[sandbox.id] = live
        for endpoint in sandbox.endpoints.values():
            self.zone.add(endpoint)
        if live.reserved:  # not on the path of a start: the kernel queues what comes earlier
            asyncio.get_running_loop().call_later(_RELAY_AFTER, self._serve_later, live)
        if sockets is not None:
            self._serve_resolver(sandbox, sockets)

    def _serve_later(self, live: Live) -> None:
        if self.live.get(live.sandbox.id) is live and not live.relays:
            self._serve_ports(live)

    def _serve_ports(self, live: Live) -> None:
        for relay in live.relays:
            relay.close()
        live.relays = []
        places = live.sandbox.endpoints
        exit_point = endpoints.published_through(places.values(), self.networks_of(places))
        if exit_point is not None and self.config.userland_proxy:
            for reserved in live.reserved:
                six = ":" in reserved.binding.host_ip and exit_point.ipv6
                live.relays.append(Relay(reserved, exit_point.ipv6 if six else exit_point.ipv4))

    def _serve_resolver(self, sandbox: Sandbox, sockets: tuple[socket.socket, socket.socket],
                        ) -> None:
        spec, config = sandbox.spec, self.config
        self.resolver.serve(
            sandbox.id, sockets, tuple(sandbox.endpoints),
            lambda: files.upstream_servers(spec, config, files.host_resolver()),
            internal=self._is_internal(sandbox), links=endpoints.link_names(spec))

    def _is_internal(self, sandbox: Sandbox) -> bool:
        """No network of the sandbox leads outside: its questions must not either."""
        return all(self.networks.find(i).spec.internal for i in sandbox.endpoints)

    def _with_files(self, live: Live, networks: dict[str, Network]) -> Sandbox:
        sandbox = live.sandbox
        spec = sandbox.spec
        embedded = endpoints.has_resolver(networks.values())
        return msgspec.structs.replace(
            sandbox,
            hosts=files.hosts(spec, sandbox.endpoints.values(), self.host_gateways(),
                              endpoints.link_entries(spec, self._link_targets())
                              if not embedded and any(e.links for e in spec.endpoints) else ()),
            resolv_conf=files.resolv_conf(spec, self.config, self.host, embedded=embedded))

    def _link_targets(self) -> dict[str, tuple[str, str]]:
        found = {}
        for one in self.live.values():
            place = next(iter(one.sandbox.endpoints.values()), None)
            if place is not None:
                spec = one.sandbox.spec
                names = f"{spec.hostname or spec.id[:12]} {spec.name}"
                found[spec.name] = found[spec.id] = (place.ipv4, names)
        return found

    # -- changes of a running one -----------------------------------------------------------

    async def connect(self, ident: str, wanted: EndpointSpec) -> Endpoint:
        live = self.by_id(ident)
        async with live.lock:
            with contextlib.ExitStack() as undo:
                endpoint = await self._connect(live, wanted, undo)
                undo.pop_all()
                return endpoint

    async def _connect(self, live: Live, wanted: EndpointSpec,
                       undo: contextlib.ExitStack) -> Endpoint:
        old = live.sandbox
        path = old.netns_path
        endpoint = self._plan_endpoint(old.spec, wanted, old.key, old.endpoints, undo)
        places = {**old.endpoints, endpoint.network_id: endpoint}
        networks = self.networks_of(places)
        before = endpoints.gateways(old.endpoints.values(), networks)
        after = endpoints.gateways(places.values(), networks)
        sandbox = msgspec.structs.replace(old, endpoints=places, spec=msgspec.structs.replace(
            old.spec, endpoints=(*old.spec.endpoints, wanted)))
        new_route = endpoint.id in after and bool(before)
        shape = endpoints.interface(endpoint, networks[endpoint.network_id],
                                    () if new_route else after.get(endpoint.id, ()))
        work: list[Operation] = [operations.OpenNamespace(path),
                                 operations.AddInterface(path, shape)]
        if new_route:
            work.append(operations.DefaultRoute(path, endpoint.ifname, after[endpoint.id],
                                                _route_of(old, before)))
        embedded = endpoints.has_resolver(self.networks_of(old.endpoints).values())
        if not embedded and endpoints.has_resolver(networks.values()):
            work.append(operations.OpenResolver(path, replace=True))
        live.sandbox = sandbox
        try:
            live.sandbox = self._with_files(live, networks)
            work.append(operations.WriteRecord(self.record_path(old.id), _encode(live.sandbox)))
            sockets = await self.thread.run(lambda kernel: execute(kernel, path, work))
        except BaseException:
            live.sandbox = old
            raise
        self.zone.add(endpoint)
        if sockets is not None:
            self._serve_resolver(live.sandbox, sockets)
        else:
            self.resolver.change(old.id, tuple(places), internal=self._is_internal(live.sandbox))
        if new_route or not old.endpoints:
            await self._republish(live)
        return endpoint

    async def disconnect(self, ident: str, network: Network) -> None:
        live = self.by_id(ident)
        async with live.lock:
            await self._disconnect(live, network)

    async def _disconnect(self, live: Live, network: Network) -> None:
        old = live.sandbox
        gone = old.endpoints.get(network.id)
        if gone is None:
            raise errdefs.NotFound(
                f"container {old.id} is not connected to network {network.name}")
        places = {i: e for i, e in old.endpoints.items() if i != network.id}
        networks = self.networks_of(places)
        after = endpoints.gateways(places.values(), networks)
        before = endpoints.gateways(old.endpoints.values(), self.networks_of(old.endpoints))
        path = old.netns_path
        live.sandbox = msgspec.structs.replace(old, endpoints=places, spec=msgspec.structs.replace(
            old.spec, endpoints=tuple(e.spec for e in places.values())))
        live.sandbox = self._with_files(live, networks)
        work: list[Operation] = [operations.RemoveInterface(gone.host_ifname)]
        if gone.id in before and after:
            route = _route_of(live.sandbox, after)
            if route is not None and netns.identity(path) is not None:
                work += [operations.OpenNamespace(path),
                         operations.DefaultRoute(path, *route, None)]
        work.append(operations.WriteRecord(self.record_path(old.id), _encode(live.sandbox)))
        await self.thread.run(lambda kernel: execute(kernel, path, work))
        self.zone.remove(gone)
        self._release(gone)
        self.resolver.change(old.id, tuple(places), internal=self._is_internal(live.sandbox))
        if gone.id in before:
            await self._republish(live)

    async def _republish(self, live: Live) -> None:
        """Published ports lead to another endpoint now (or to none)."""
        places = live.sandbox.endpoints
        networks = self.networks_of(places)
        old = live.published
        exit_point = endpoints.published_through(places.values(), networks)
        if exit_point is None:
            self._stop_ports(live)
            live.published = ()
            live.sandbox = msgspec.structs.replace(live.sandbox, ports=())
        elif live.reserved:
            self._direct_ports(live, exit_point)
        else:
            with contextlib.ExitStack() as undo:
                self._reserve(live, networks, undo)
                undo.pop_all()
        record = operations.WriteRecord(self.record_path(live.sandbox.id), _encode(live.sandbox))
        new = live.published

        def job(kernel: Kernel) -> None:
            operations.unpublish(kernel, self.table, old)
            if new:
                operations.Publish(self.table, new).execute(kernel)
            record.execute(kernel)

        await self.thread.run(job)
        self._serve_ports(live)

    def rename(self, ident: str, name: str) -> None:
        live = self.live.get(ident)
        if live is None:
            return
        spec = msgspec.structs.replace(live.sandbox.spec, name=name)
        places = {}
        for network, endpoint in live.sandbox.endpoints.items():
            self.zone.remove(endpoint)
            if endpoint.dns_names:
                endpoint = msgspec.structs.replace(
                    endpoint, dns_names=endpoints.dns_names(spec, endpoint.spec))
            self.zone.add(endpoint)
            places[network] = endpoint
        live.sandbox = msgspec.structs.replace(live.sandbox, spec=spec, endpoints=places)
        operations.WriteRecord(self.record_path(ident), _encode(live.sandbox)).write()

    def unlink(self, ident: str, alias: str) -> None:
        live = self.live.get(ident)
        if live is None:
            return
        spec = live.sandbox.spec
        wanted = tuple(msgspec.structs.replace(e, links=tuple(
            text for text in e.links if (text.partition(":")[2] or text) != alias))
            for e in spec.endpoints)
        live.sandbox = msgspec.structs.replace(
            live.sandbox, spec=msgspec.structs.replace(spec, endpoints=wanted))
        live.sandbox = self._with_files(live, self.networks_of(live.sandbox.endpoints))
        operations.WriteRecord(self.record_path(ident), _encode(live.sandbox)).write()

    # -- removal ----------------------------------------------------------------------------

    async def remove(self, ident: str) -> None:
        live = self.live.get(ident)
        if live is None:
            return
        async with live.lock:
            if self.live.get(ident) is not live:
                return
            self.forget(live)
            try:
                await self.thread.run(lambda kernel: self._tear_down(kernel, live))
            finally:
                self.ports.release(live.reserved)
                for endpoint in live.sandbox.endpoints.values():
                    self._release(endpoint)
                    self.lingering.add(endpoint.host_ifname)

    def forget(self, live: Live) -> None:
        """Stop serving it: names, resolver, relays."""
        self.live.pop(live.sandbox.id, None)
        for endpoint in live.sandbox.endpoints.values():
            self.zone.remove(endpoint)
        self.resolver.stop(live.sandbox.id)
        for relay in live.relays:
            relay.close()
        live.relays = []

    def _stop_ports(self, live: Live) -> None:
        for relay in live.relays:
            relay.close()
        live.relays = []
        self.ports.release(live.reserved)
        live.reserved = []

    def _tear_down(self, kernel: Kernel, live: Live) -> None:
        """On the namespace thread. Every step is tried; the first error is raised at the end."""
        sandbox = live.sandbox
        record = operations.WriteRecord(self.record_path(sandbox.id), b"")
        steps: list[Callable[[], object]] = [
            partial(operations.unpublish, kernel, self.table, live.published)]
        if sandbox.spec.mode in ("", "none"):
            steps += [partial(operations.silence, kernel, e.host_ifname)
                      for e in sandbox.endpoints.values()]
            steps.append(partial(netns.unbind, sandbox.netns_path))
        steps.append(partial(record.undo, kernel))
        if any(p.key[0] == nftables.PROTOCOLS["udp"] for p in live.published):
            steps += [partial(forget_udp, e.ipv4) for e in sandbox.endpoints.values() if e.ipv4]
        first: Exception | None = None
        for step in steps:
            try:
                step()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first

    def _release(self, endpoint: Endpoint) -> None:
        addresses = self.networks.addresses.get(endpoint.network_id)
        if addresses is not None:
            addresses.release(endpoint.ipv4)
            addresses.release(endpoint.ipv6)

    def record_path(self, ident: str) -> str:
        return f"{self.record_folder}/{ident}.json"


def _route_of(sandbox: Sandbox, through: dict[str, tuple[str, ...]]
              ) -> tuple[str, tuple[str, ...]] | None:
    """(interface, gateways) of the default route."""
    for endpoint in sandbox.endpoints.values():
        if endpoint.id in through:
            return endpoint.ifname, through[endpoint.id]
    return None


def execute(kernel: Kernel, path: str, work: list[Operation]) -> _Sockets:
    """On the namespace thread: run the plan, close what it opened; the resolver's sockets."""
    try:
        plan.run(work, kernel)
        inside = kernel.inside.get(path)
        return inside.take_resolver() if inside is not None else None
    finally:
        inside = kernel.inside.pop(path, None)
        if inside is not None:
            inside.close()
