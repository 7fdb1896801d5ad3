"""The network layer as the engine sees it (``carrel.network.api.Controller``)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable

from carrel import errdefs
from carrel.kernel import netlink, netns, nftables, rtnetlink, sysctl
from carrel.network import bridge, endpoints, ipam, operations, restoring, rules
from carrel.network.api import (
    Config,
    Endpoint,
    EndpointSpec,
    Network,
    NetworkSpec,
    Sandbox,
    SandboxSpec,
    Store,
)
from carrel.network.networks import DEFAULT, PREDEFINED, Networks
from carrel.network.nsthread import Inside, Kernel, NamespaceThread
from carrel.network.pool import Ready
from carrel.network.purge import owner
from carrel.network.sandboxes import Sandboxes

_FORWARD_POLICY = "list chain ip filter FORWARD"
#: how long after the last start the pool is filled again, so that a burst is not slowed down
_REFILL_AFTER = 0.03
#: seconds between a change of somebody's rules and our look at what it did to ours
_LOOK_AFTER = 0.5
#: how long a removed sandbox's veth may take to vanish by itself
_LINGER_SECONDS = 1.0


def default_bridge(exec_root: str, config: Config) -> str:
    """carrel0, or a name of its own for an engine with another exec-root."""
    tail = rules.instance(exec_root)
    return config.bridge or (f"carrel-{tail}" if tail else "carrel0")


class Controller:
    """One engine's networks and sandboxes."""

    def __init__(self, exec_root: str, store: Store, config: Config | None = None,
                 report: Callable[[str], None] | None = None) -> None:
        """``report`` gets sentences for the daemon's log."""
        self.config = config or Config()
        self.exec_root = exec_root.rstrip("/")
        self.warnings: list[str] = []
        self._report = report or logging.getLogger("carrel.network").warning
        self._thread = NamespaceThread()
        self._networks = Networks(store, self.config, default_bridge(exec_root, self.config))
        self._sandboxes = Sandboxes(self.exec_root, self.config, self._networks, self._thread)
        #: the alias of our bridges
        self._owner = owner(self.exec_root)
        self._changes = asyncio.Lock()  # of networks: one create or remove at a time
        self._refill: asyncio.TimerHandle | None = None
        self._filling: asyncio.Task[None] | None = None
        self._watch: netlink.Socket | None = None
        self._look: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        for folder in (self._sandboxes.netns_folder, self._sandboxes.record_folder):
            os.makedirs(folder, mode=0o711, exist_ok=True)
        self._thread.start()
        self._networks.load()
        taken = await self._thread.run(self._host_subnets)
        self._networks.ensure_predefined(taken, in_use={
            network for sandbox in self._records() for network in sandbox.endpoints})
        await self._thread.run(self._recall_ports)
        await self._thread.run(self._prepare)
        await self._thread.run(self._sweep)
        if self.config.iptables:
            self._watch = await self._thread.run(lambda kernel: nftables.watch())
            asyncio.get_running_loop().add_reader(self._watch, self._rules_changed)
        self._schedule_refill()

    def _rules_changed(self) -> None:
        """Somebody (we too) changed tables or rules: look a moment later, once."""
        if self._watch is not None:
            self._watch.drain()
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_AFTER, self._start_look)

    def _start_look(self) -> None:
        self._look = None
        self._looking = asyncio.get_running_loop().create_task(self._repair())

    async def _repair(self) -> None:
        """`nft flush ruleset` (a restart of nftables.service) takes our table away as well."""
        def job(kernel: Kernel) -> bool:
            if nftables.has_table(kernel.nft, self._sandboxes.table):
                return False
            self._load_rules(kernel)
            return True

        try:
            if await self._thread.run(job):
                self._report("somebody removed our nftables table: it is back")
        except (OSError, errdefs.CarrelError) as error:
            self._report(f"our nftables table is gone and cannot be restored: {error}")

    def _stop_watching(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)
            self._watch.close()
            self._watch = None

    async def stop(self) -> None:
        self._stop_watching()
        if self._looking is not None:
            await asyncio.wait([self._looking])
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._filling is not None:
            await asyncio.wait([self._filling])
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping])
        self._sandboxes.pool.drain()
        alive = list(self._sandboxes.live.values())
        for live in alive:
            self._sandboxes.forget(live)
            self._sandboxes.ports.release(live.reserved)
        self._sandboxes.resolver.close()
        await self._sweep_lingering()
        if not alive:
            await self._thread.run(self._take_off)
        self._thread.stop()

    async def restore(self, alive: Iterable[str]) -> dict[str, Sandbox]:
        wanted = set(alive)
        found: dict[str, Sandbox] = {}
        gone: list[Sandbox] = []
        for sandbox in self._records():
            if sandbox.id in wanted and await restoring.adopt(self._sandboxes, sandbox):
                found[sandbox.id] = self._sandboxes.live[sandbox.id].sandbox
            else:
                gone.append(sandbox)

        def drop(kernel: Kernel) -> None:
            for sandbox in gone:
                operations.unpublish(kernel, self._sandboxes.table,
                                     restoring.elements(self._sandboxes, sandbox))
                for endpoint in sandbox.endpoints.values():
                    operations.silence(kernel, endpoint.host_ifname)
                    self._sandboxes.lingering.add(endpoint.host_ifname)
                if sandbox.spec.mode in ("", "none"):
                    netns.unbind(sandbox.netns_path)
                operations.WriteRecord(
                    f"{self._sandboxes.record_folder}/{sandbox.id}.json", b"").undo(kernel)

        await self._thread.run(drop)
        return found

    async def reload(self) -> None:
        await self._thread.run(self._prepare)

    # -- jobs on the namespace thread -------------------------------------------------------

    def _host_subnets(self, kernel: Kernel) -> list[ipam.IPNetwork]:
        """What the host already routes somewhere, our own bridges left out."""
        own = {n.bridge for n in self._networks.bridges()}
        own.add(default_bridge(self.exec_root, self.config))
        names = {link.index: link.name for link in rtnetlink.links(kernel.route)}
        result = []
        for route in rtnetlink.routes(kernel.route):
            if route.destination and route.prefix and names.get(route.index) not in own:
                result.append(ipam.parse_network(f"{route.destination}/{route.prefix}"))
        return result

    def _prepare(self, kernel: Kernel) -> None:
        """Forwarding, bridges and rules as they should be."""
        self.warnings.clear()
        kernel.restore_rules = self._load_rules
        if self.config.ip_forward and sysctl.change("net/ipv4/ip_forward", "1") is not None:
            self._report("IPv4 forwarding was off on this host: turned on (net.ipv4.ip_forward)")
        elif not self.config.ip_forward and sysctl.read("net/ipv4/ip_forward") == "0":
            self.warnings.append("WARNING: IPv4 forwarding is disabled")
        networks = self._networks.bridges()
        for network in networks:
            try:
                bridge.ensure(kernel, network, self._owner)
            except (OSError, errdefs.CarrelError) as error:
                if network.name == DEFAULT:
                    raise
                self.warnings.append(f"WARNING: network {network.name}: {error}")
        kernel.bridge_filter = _bridge_filter()
        if any(_routes_ipv6(n) for n in networks):
            self._forward_ipv6()
        self._load_rules(kernel)
        if self.config.iptables:
            self._look_at_foreign_rules(kernel)
        for warning in self.warnings:
            self._report(warning)

    def _forward_ipv6(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if sysctl.change("net/ipv6/conf/all/forwarding", "1") is not None:
                self._report("IPv6 forwarding was off on this host: turned on "
                             "(net.ipv6.conf.all.forwarding)")

    def _load_rules(self, kernel: Kernel) -> None:
        described = self._described()
        published = [(p.map, p.text.strip("{ }")) for p in kernel.published.values()]
        self._run_rules(kernel, rules.base(self._sandboxes.table, described, published))

    def _described(self) -> list[rules.BridgeRules]:
        return [bridge.bridge_rules(n, ip6tables=self.config.ip6tables)
                for n in self._networks.bridges()]

    def _run_rules(self, kernel: Kernel, text: str) -> None:
        """Changes of our table; the library's memory is given back afterwards."""
        if self.config.iptables:
            try:
                kernel.ruleset.run(text)
            finally:
                kernel.ruleset.close()

    def _recall_ports(self, kernel: Kernel) -> None:
        """What the last daemon's sandboxes publish goes on working before :meth:`restore`."""
        for sandbox in self._records():
            kernel.published.update(
                ((p.map, p.key), p) for p in restoring.elements(self._sandboxes, sandbox))

    def _records(self) -> list[Sandbox]:
        return restoring.records(self._sandboxes.record_folder)

    def _look_at_foreign_rules(self, kernel: Kernel) -> None:
        """Say so when somebody else's firewall will drop what we forward."""
        try:
            text = kernel.ruleset.run(_FORWARD_POLICY)
        except OSError:
            return
        finally:
            kernel.ruleset.close()
        if "policy drop" in text:
            self.warnings.append(
                "WARNING: the iptables chain FORWARD has the policy DROP (Docker sets it): packets "
                "of containers are dropped unless rules accept them, for example: iptables -I "
                f"{'DOCKER-USER' if 'DOCKER-USER' in text else 'FORWARD'} -i carrel+ -j ACCEPT, "
                "and the same with -o carrel+, -i cr-+ and -o cr-+ (what is not published stays "
                "closed: Carrel's own rules see to that)")

    def _sweep(self, kernel: Kernel) -> None:
        """Namespaces without a record: a start that its daemon did not finish."""
        known = {os.path.basename(s.netns_path) for s in self._records()}
        for name in os.listdir(self._sandboxes.netns_folder):
            if name not in known:
                netns.unbind(f"{self._sandboxes.netns_folder}/{name}")
        self._sweep_links(kernel)

    def _sweep_links(self, kernel: Kernel) -> None:
        """Bridges of networks that are no more; ports of our bridges that no sandbox knows."""
        links = rtnetlink.links(kernel.route)
        known = {n.bridge for n in self._networks.bridges()}
        for link in links:
            if link.kind == "bridge" and link.alias == self._owner and link.name not in known:
                bridge.remove(kernel, link.name, self._owner)
        masters = {link.index for link in links if link.name in known}
        ours = {e.host_ifname for s in self._records() for e in s.endpoints.values()}
        operations.delete_lingering(kernel, {
            link.name for link in links
            if link.master in masters and link.kind == "veth" and link.name not in ours
            and link.name.startswith("veth")})

    def _take_off(self, kernel: Kernel) -> None:
        """An engine without containers leaves nothing behind when it stops."""
        with contextlib.suppress(OSError):
            self._run_rules(kernel, rules.remove_table(self._sandboxes.table))
        for network in self._networks.bridges():
            with contextlib.suppress(OSError):
                bridge.remove(kernel, network.bridge, self._owner)

    # -- the pool ---------------------------------------------------------------------------

    def _schedule_refill(self) -> None:
        if self._sandboxes.pool.size == 0:
            return
        if self._refill is not None:
            self._refill.cancel()
        self._refill = asyncio.get_running_loop().call_later(_REFILL_AFTER, self._start_filling)

    def _start_filling(self) -> None:
        self._refill = None
        if self._filling is None or self._filling.done():
            self._filling = asyncio.get_running_loop().create_task(self._fill())

    async def _fill(self) -> None:
        """One namespace a job, so that a start never waits for more than one."""
        pool = self._sandboxes.pool
        network = self._networks.find(DEFAULT)
        usable = bridge.flag(network.spec.options, bridge.OPT_ICC, True)
        with contextlib.suppress(OSError, errdefs.CarrelError):  # only slower without
            while any(pool.missing):
                connected = bool(pool.missing[0]) and usable
                if not connected and not pool.missing[1]:
                    return
                pool.put(await self._thread.run(
                    lambda kernel, c=connected: _make_ready(  # type: ignore[misc]
                        kernel, network if c else None)))

    # -- networks ---------------------------------------------------------------------------

    async def create_network(self, spec: NetworkSpec) -> Network:
        async with self._changes:
            taken = await self._thread.run(self._host_subnets)
            network = self._networks.plan(spec, taken)
            self._networks.put(network)
            try:
                await self._thread.run(lambda kernel: self._make_network(kernel, network))
            except BaseException:
                self._networks.forget(network)
                raise
            return network

    def _make_network(self, kernel: Kernel, network: Network) -> None:
        if _link_exists(kernel, network.bridge):
            raise errdefs.Conflict(f"interface {network.bridge} exists already")
        bridge.ensure(kernel, network, self._owner)
        try:
            if _routes_ipv6(network):
                self._forward_ipv6()
            table = self._sandboxes.table
            described = self._described()
            self._run_rules(kernel, rules.add_bridge(table, bridge.bridge_rules(network))
                            + rules.leave(table, described))
        except BaseException:
            bridge.remove(kernel, network.bridge, self._owner)
            raise

    async def remove_network(self, reference: str) -> Network:
        async with self._changes:
            network = self._networks.find(reference)
            if network.name in PREDEFINED:
                raise errdefs.Forbidden(
                    f"{network.name} is a pre-defined network and cannot be removed")
            users = self._sandboxes.on_network(network.id)
            if users:
                names = ", ".join(f'name:"{s.spec.name}" id:"{e.id[:12]}"' for s, e in users)
                raise errdefs.Forbidden(
                    f"error while removing network: network {network.name} has active endpoints "
                    f"({names})")
            self._networks.forget(network)
            await self._thread.run(lambda kernel: self._unmake_network(kernel, network))
            return network

    def _unmake_network(self, kernel: Kernel, network: Network) -> None:
        described = self._described()
        table = self._sandboxes.table
        try:
            self._run_rules(kernel, rules.leave(table, described)
                            + rules.remove_bridge(table, bridge.bridge_rules(network)))
        except OSError:  # somebody changed our table by hand: put it right as a whole
            self._load_rules(kernel)
        bridge.remove(kernel, network.bridge, self._owner)

    def networks(self) -> list[Network]:
        return list(self._networks)

    def network(self, reference: str) -> Network:
        return self._networks.find(reference)

    def on_network(self, network_id: str) -> list[tuple[Sandbox, Endpoint]]:
        """The sandboxes that are on a network now, with their places there."""
        return self._sandboxes.on_network(network_id)

    # -- sandboxes --------------------------------------------------------------------------

    def namespace_path(self, key: str) -> str:
        return self._sandboxes.namespace_path(key)

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        try:
            return await self._sandboxes.create(spec)
        finally:
            self._schedule_refill()

    async def connect(self, sandbox_id: str, network: str, spec: EndpointSpec) -> Endpoint:
        return await self._sandboxes.connect(sandbox_id, _at(spec, network))

    async def disconnect(self, sandbox_id: str, network: str) -> None:
        await self._sandboxes.disconnect(sandbox_id, self._networks.find(network))

    async def remove_sandbox(self, sandbox_id: str) -> None:
        try:
            await self._sandboxes.remove(sandbox_id)
        finally:
            if self._sandboxes.lingering and self._linger is None:
                self._linger = asyncio.get_running_loop().call_later(
                    _LINGER_SECONDS, self._start_sweep)

    def _start_sweep(self) -> None:
        self._linger = None
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_lingering())

    async def _sweep_lingering(self) -> None:
        names = set(self._sandboxes.lingering)
        self._sandboxes.lingering -= names
        with contextlib.suppress(OSError, errdefs.CarrelError):
            await self._thread.run(lambda kernel: operations.delete_lingering(kernel, names))

    def rename(self, sandbox_id: str, name: str) -> None:
        self._sandboxes.rename(sandbox_id, name)

    def unlink(self, sandbox_id: str, alias: str) -> None:
        self._sandboxes.unlink(sandbox_id, alias)

    def sandbox(self, sandbox_id: str) -> Sandbox | None:
        live = self._sandboxes.live.get(sandbox_id)
        return live.sandbox if live is not None else None

    def sandboxes(self) -> list[Sandbox]:
        return [live.sandbox for live in self._sandboxes.live.values()]

    def check_endpoint(self, spec: EndpointSpec, *, mode: str) -> None:
        network: Network | None = None
        with contextlib.suppress(errdefs.NotFound):
            network = self._networks.find(spec.network)
        endpoints.check(network, spec)


def _at(spec: EndpointSpec, network: str) -> EndpointSpec:
    import msgspec

    return spec if spec.network == network else msgspec.structs.replace(spec, network=network)


def _bridge_filter() -> bool:
    """Known once a bridge exists: br_netfilter makes its settings with the first one."""
    with contextlib.suppress(OSError):
        return sysctl.read("net/bridge/bridge-nf-call-iptables") != "0"
    return False


def _routes_ipv6(network: Network) -> bool:
    return network.spec.enable_ipv6 and not network.spec.internal


def _link_exists(kernel: Kernel, name: str) -> bool:
    try:
        rtnetlink.link(kernel.route, name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _make_ready(kernel: Kernel, network: Network | None) -> Ready:
    """A namespace for the pool; with ``network`` a pair on its bridge, up and without address."""
    inside: Inside = operations.new_namespace(kernel)
    if network is None:
        return Ready(inside)
    try:
        mac = bridge.random_mac()
        name = bridge.host_ifname(mac, network.id)
        operations.make_pair(kernel, inside, operations.Interface(
            ifname="eth0", host_ifname=name, bridge=network.bridge, mac=mac, mtu=network.mtu))
        index = rtnetlink.link(inside.route, "eth0").index
        inside.route.request([rtnetlink.set_link(index, ifname="eth0", up=True)])
    except BaseException:
        inside.close()
        raise
    return Ready(inside, name, index)
