"""The whole layer put together, for its own daemon and for embedding in the engine.

    services = build(root, state, address=...)
    await services.start()
    server = grpc.server(services.servicers())     or   rpc.LocalTransport(services.servicers())
    await services.stop()
"""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from types import ModuleType
from typing import Any

from google.protobuf.empty_pb2 import Empty

from carrel import lightly
from carrel.containerd.containers import ContainersService, ContainerStore
from carrel.containerd.content import ContentStore
from carrel.containerd.content_service import ContentService
from carrel.containerd.events import EventBus, EventsService, ShimEventsService
from carrel.containerd.gc import Collector
from carrel.containerd.images import ImagesService, ImageStore
from carrel.containerd.introspection import IntrospectionService, VersionService
from carrel.containerd.leases import LeasesService, LeaseStore
from carrel.containerd.metadata import Metadata
from carrel.containerd.namespaces import NamespacesService
from carrel.containerd.shims import CARREL as CARREL_RUNTIME
from carrel.containerd.shims import Launcher, program_name
from carrel.containerd.snapshots import Snapshotter
from carrel.containerd.snapshots_service import SnapshotsService
from carrel.containerd.sockets import listen
from carrel.containerd.streaming import StreamingService, StreamManager
from carrel.containerd.task_manager import TaskManager
from carrel.containerd.tasks import TasksService
from carrel.containerd.ttrpc import Handler, Server, unary
from carrel.containerd.zygote import Zygote
from carrel.proto import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    events_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
    transfer_pb2,
    ttrpc_events_pb2,
    version_pb2,
)
from carrel.proto.rpc import Context

log = logging.getLogger(__name__)

_MAINTENANCE_SECONDS = 15.0
_STARTUP_COLLECTION_SECONDS = 5.0


class Services:
    """Everything of one root; see :func:`build`."""

    def __init__(self, root: str, state: str, address: str, zygote_program: str,
                 debug: bool, options: dict[str, Any]) -> None:
        os.makedirs(state, mode=0o711, exist_ok=True)
        self.root, self.state, self.address = root, state, address
        self.options = options
        self.metadata = Metadata(root)
        self.events = EventBus()
        self.content = ContentStore(os.path.join(root, "content"), self.metadata, self.events)
        self.snapshotter = Snapshotter(os.path.join(root, "snapshots"), self.metadata, self.events)
        self.images = ImageStore(self.metadata, self.events)
        self.leases = LeaseStore(self.metadata)
        self.containers = ContainerStore(self.metadata, self.events)
        self.streams = StreamManager()
        self.collector = Collector(self.metadata, self.content, self.snapshotter, self.events)
        self.zygote = Zygote(zygote_program, debug) if zygote_program else None
        self.launcher = Launcher(state, address, self.zygote, debug)
        self.tasks = TaskManager(state, root, self.launcher, self.events)
        self._shim_events = Server(self.shim_handlers())
        self._maintenance: asyncio.Task[None] | None = None

    def servicers(self) -> list[tuple[ModuleType, str, object]]:
        """``(generated module, service name, servicer)`` of every service."""
        collect, collect_now = self.collector.schedule, self.collector.collect
        return [
            (namespaces_pb2, "Namespaces", NamespacesService(self.metadata, self.events)),
            (content_pb2, "Content", ContentService(self.content, collect)),
            (images_pb2, "Images", ImagesService(self.images, collect, collect_now)),
            (leases_pb2, "Leases", LeasesService(self.leases, collect, collect_now)),
            (snapshots_pb2, "Snapshots", SnapshotsService(self.snapshotter, collect)),
            (containers_pb2, "Containers", ContainersService(
                self.containers, self.collector.schedule_later)),
            (tasks_pb2, "Tasks", TasksService(self.tasks, self.containers)),
            (events_pb2, "Events", EventsService(self.events)),
            (version_pb2, "Version", VersionService()),
            (introspection_pb2, "Introspection",
             IntrospectionService(self.metadata.uuid(), self.snapshotter)),
            (streaming_pb2, "Streaming", StreamingService(self.streams)),
            (transfer_pb2, "Transfer", _Transfer(self)),
            (diff_pb2, "Diff", _Diff(self)),
        ]

    def shim_handlers(self) -> dict[str, Handler]:
        """What shims may call, over ttrpc on ``<address>.ttrpc``; :meth:`start` serves it."""
        return {"/containerd.services.events.ttrpc.v1.Events/Forward": unary(
            ttrpc_events_pb2.ForwardRequest, ShimEventsService(
                self.events, self.tasks.farewells.heard).Forward)}

    async def start(self) -> None:
        """Listen to shims, start the zygote, find the shims of an earlier daemon."""
        self.events.attach()
        # first: shims of an earlier daemon may be waiting to tell what happened
        await self._shim_events.start(listen(f"{self.address}.ttrpc", 0o600))
        if self.zygote is not None:
            self.zygote.start()
        await self.tasks.load()
        self._maintenance = asyncio.ensure_future(self._maintain())

    async def _maintain(self) -> None:
        """What is done when it is quiet: the database's log, rubbish of interrupted calls."""
        await asyncio.sleep(_STARTUP_COLLECTION_SECONDS)
        swept = False
        while True:
            try:
                if not swept:
                    swept = True
                    await asyncio.to_thread(self.collector.sweep_files)
                    await self.collector.collect()
                await asyncio.to_thread(self.metadata.checkpoint)
            except Exception:
                log.exception("maintenance")
            await asyncio.sleep(_MAINTENANCE_SECONDS)

    async def stop(self) -> None:
        """Let go of everything; shims and containers live on."""
        if self._maintenance is not None:
            self._maintenance.cancel()
        await self.collector.stop()
        await self.tasks.stop()
        self._shim_events.stop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.address}.ttrpc")
        if self.zygote is not None:
            await self.zygote.stop()
        self.events.close()
        await asyncio.to_thread(self.snapshotter.close)
        self.metadata.close()


def build(root: str, state: str, *, address: str = "", zygote: str | None = None,
          debug: bool = False, **options: Any) -> Services:
    """Open a root.

    ``address`` is the gRPC socket (shims are told it, and ``<address>.ttrpc``);
    ``zygote`` the program to fork shims from: by default
    ``containerd-shim-carrel-v1`` beside this program, "" for none.
    ``options`` go to the transfer service (``mirrors``, ``insecure``).
    """
    root, state = os.path.abspath(root), os.path.abspath(state)
    if zygote is None:
        beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])),
                              program_name(CARREL_RUNTIME))
        zygote = beside if os.access(beside, os.X_OK) else ""
        if not zygote:
            log.warning("%s is missing: shims are started cold", beside)
    return Services(root, state, address or f"{state}/containerd.sock", zygote, debug, options)


class _Transfer:
    """Imports the transfer service at its first call: archives and HTTP are much code,
    which a daemon that only runs containers need not hold in memory."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._service: Any = None

    async def Transfer(self, request: transfer_pb2.TransferRequest, context: Context) -> Empty:
        if self._service is None:
            lightly.msgspec()
            from carrel.containerd.transfer import TransferService
            from carrel.containerd.transfer_work import Stores

            all_ = self._services
            self._service = TransferService(
                Stores(all_.content, all_.images, all_.snapshotter, all_.leases, all_.streams),
                **all_.options)
        result: Empty = await self._service.Transfer(request, context)
        return result


class _Diff:
    """Imports the diff service at its first call."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._service: Any = None

    def _load(self) -> Any:
        if self._service is None:
            from carrel.containerd.diff import DiffService

            self._service = DiffService(self._services.content)
        return self._service

    async def Apply(self, request: diff_pb2.ApplyRequest, context: Context,
                    ) -> diff_pb2.ApplyResponse:
        result: diff_pb2.ApplyResponse = await self._load().Apply(request, context)
        return result

    async def Diff(self, request: diff_pb2.DiffRequest, context: Context) -> diff_pb2.DiffResponse:
        result: diff_pb2.DiffResponse = await self._load().Diff(request, context)
        return result
