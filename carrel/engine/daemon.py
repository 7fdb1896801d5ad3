"""One running daemon: what is made, in which order, and taken down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from typing import Any

from carrel import errdefs
from carrel.engine import flags, log, model, restore, server, sockets, stop, web
from carrel.engine.child import Child
from carrel.engine.config import Config
from carrel.engine.containerd import Client
from carrel.engine.context import EngineContext
from carrel.engine.events import EventBus
from carrel.engine.manager import Manager
from carrel.engine.store import Store
from carrel.engine.watch import Watcher
from carrel.proto.rpc import LocalTransport, Transport

#: seconds beyond a container's own stop timeout: for the kill, and what follows it
_GRACE = 5


class Daemon:
    """Made from a config, started once, stopped once; ``child`` is the process of the
    containerd layer, where that is ours."""

    def __init__(self, config: Config, child: Child | None) -> None:
        self.config = config
        self._child = child
        self._undo = contextlib.AsyncExitStack()
        self._ctx: EngineContext | None = None
        self._manager: Manager | None = None

    async def start(self, stopping: asyncio.Event) -> None:
        config, undo = self.config, self._undo
        if self._child:
            undo.push_async_callback(self._child.stop)
        store = Store(f"{config.engine_dir}/engine.db")
        undo.callback(store.close)
        transport = await self._layer()
        client = Client(transport, config.containerd_namespace)
        undo.callback(client.close)
        ctx = self._ctx = EngineContext(config, store, client, EventBus())
        ctx.id = _identity(store)
        await self._areas(ctx)
        manager = self._manager = Manager(ctx)
        ctx.containers = manager
        await _namespace(client)
        # compiling the profile takes its time: beside the rest of the start
        confined = asyncio.ensure_future(manager.confinement.load())
        undo.push_async_callback(_over, confined)
        watcher = Watcher(manager)
        watcher.start()
        undo.push_async_callback(watcher.stop)
        await ctx.images.start()
        await ctx.network.start()
        undo.push_async_callback(ctx.network.stop)
        wanted = await restore.restore(manager)
        await confined
        if not stopping.is_set():
            await self._listen(ctx)
            ctx.spawn(restore.start_wanted(manager, wanted), "restart policies")
            ctx.spawn(restore.auto_removals(manager), "auto removals")

    async def _layer(self) -> Transport:
        """The containerd layer: in this process, our own process, or one that is there."""
        config = self.config
        if self._child:
            await self._child.start()
        elif not config.foreign:
            return await self._embedded()
        from carrel.proto.grpc import GrpcTransport

        return GrpcTransport(config.containerd_socket)

    async def _embedded(self) -> Transport:
        from carrel.containerd.front import Front
        from carrel.containerd.service import build

        config = self.config
        services: Any = build(f"{config.data_root}/containerd", f"{config.exec_root}/containerd",
                              address=config.containerd_socket, debug=config.debug,
                              mirrors=tuple(config.registry_mirrors),
                              insecure=tuple(config.insecure_registries))
        os.makedirs(os.path.dirname(config.containerd_socket), mode=0o711, exist_ok=True)
        await services.start()  # listens to the shims too
        self._undo.push_async_callback(services.stop)
        servicers = services.servicers()
        front = Front(config.containerd_socket, servicers)
        self._undo.push_async_callback(front.close)
        return LocalTransport(servicers)

    async def _areas(self, ctx: EngineContext) -> None:
        from carrel.engine.images import ImageService
        from carrel.engine.volumes import VolumeService

        ctx.images = ImageService(ctx)
        ctx.volumes = VolumeService(ctx)
        ctx.network = make_network(ctx)

    async def _listen(self, ctx: EngineContext) -> None:
        http = web.Server(server.Api(server.all_routes(ctx)).handle)
        self._undo.push_async_callback(http.close)
        for sock, context, path in sockets.open_all(self.config):
            sock.setblocking(False)
            if path:
                self._undo.callback(_unlink, path)
            await http.listen(sock, context)

    def reload(self) -> None:
        """SIGHUP: what daemon.json says now, as far as it can change while running."""
        config = self.config
        try:
            fresh = flags.merge(config.given)
        except (errdefs.CarrelError, OSError) as error:
            log.error(f"reload: {error}")
            return
        for field in Config.__struct_fields__:
            if getattr(fresh, field) == getattr(config, field):
                continue
            if field in flags.RELOADABLE:
                setattr(config, field, getattr(fresh, field))
            else:
                log.warning(f"reload: {field.replace('_', '-')} has changed, which takes effect "
                            "at the next start of carreld")
        log.configure("debug" if config.debug else config.log_level)
        if self._ctx:
            self._ctx.spawn(self._ctx.network.reload(), "network reload")
            self._ctx.events.publish("daemon", "reload", self._ctx.id,
                                     {"name": os.uname().nodename})

    async def stop(self) -> None:
        """Containers first (unless they are to live on), then everything in reverse order."""
        ctx, manager = self._ctx, self._manager
        if manager:
            manager.stopping = True
            if not self.config.live_restore:
                await self._stop_containers(manager)
        if ctx:
            ctx.events.close()
            await ctx.drain(5.0)
        if manager:
            manager.flush_cleaned()
        await self._undo.aclose()

    async def _stop_containers(self, manager: Manager) -> None:
        """All at once, each with its own patience. --shutdown-timeout bounds the whole,
        but not below the patience that a container asked for, as in Docker."""
        running = [c for c in manager.all() if c.running]
        patience = [stop.patience(c) for c in running]
        limit: float | None = None
        if self.config.shutdown_timeout >= 0 and all(p >= 0 for p in patience):
            limit = max([self.config.shutdown_timeout, *(p + _GRACE for p in patience)])

        async def one(container: model.Container) -> None:
            try:
                await stop.stop(manager, container, None)
            except errdefs.NotModified:
                pass
            except (errdefs.CarrelError, OSError) as error:
                log.error(f"stopping {container.id[:12]}: {error}", error)

        if running:
            work = [asyncio.ensure_future(one(c)) for c in running]
            _, late = await asyncio.wait(work, timeout=limit)
            for task in late:
                task.cancel()
            if late:
                log.error(f"{len(late)} containers did not stop in {limit:.0f} s")


def make_network(ctx: EngineContext) -> Any:
    """The network layer with this daemon's options."""
    from carrel.network.api import Config as NetworkConfig
    from carrel.network.controller import Controller

    config = ctx.config
    return Controller(config.exec_root, ctx.store, NetworkConfig(
        bip=config.bip, bridge=config.bridge,
        mtu=config.mtu or 1500,
        address_pools=tuple((p["base"], p["size"]) for p in config.default_address_pools),
        icc=config.icc, ip_masq=config.ip_masq, ip_forward=config.ip_forward,
        default_host_ip=config.ip, userland_proxy=config.userland_proxy, dns=tuple(config.dns),
        dns_search=tuple(config.dns_search), dns_options=tuple(config.dns_options),
        live_restore=config.live_restore, fixed_cidr=config.fixed_cidr,
        default_gateway=config.default_gateway, iptables=config.iptables,
        ip6tables=config.ip6tables), report=log.warning)


async def _over(work: asyncio.Future[None]) -> None:
    """A thread cannot be cancelled: its work is waited for."""
    await asyncio.gather(work, return_exceptions=True)


def _identity(store: Store) -> str:
    """The daemon's id: made once, kept with the data."""
    doc = store.get("daemon", "identity")
    if doc is None:
        doc = {"id": str(uuid.uuid4())}
        store.put("daemon", "identity", doc)
    return str(doc["id"])


async def _namespace(client: Client) -> None:
    from carrel.proto import namespaces_pb2

    with contextlib.suppress(errdefs.AlreadyExists):
        await client.namespaces.Create(namespaces_pb2.CreateNamespaceRequest(
            namespace=namespaces_pb2.Namespace(name=client.namespace)))



def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
