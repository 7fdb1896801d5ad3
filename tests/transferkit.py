"""A containerd layer's stores and transfer service in one process, for tests of images."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from carrel.containerd.content import ContentStore
from carrel.containerd.images import ImageStore
from carrel.containerd.leases import LeaseStore
from carrel.containerd.metadata import Metadata
from carrel.containerd.snapshots import Snapshotter
from carrel.containerd.streaming import StreamingService, StreamManager
from carrel.containerd.transfer import TransferService
from carrel.containerd.transfer_work import Stores
from carrel.proto import (
    streaming_pb2,
    transfer_imagestore_pb2,
    transfer_importexport_pb2,
    transfer_pb2,
    transfer_progress_pb2,
    transfer_registry_pb2,
)
from carrel.proto.rpc import NAMESPACE_HEADER, LocalTransport, Service

NAMESPACE = "test"


def pack(message: Any) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Kit:
    """Stores below ``root`` and a client of the transfer service."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.metadata = Metadata(str(root))
        self.stores = Stores(
            ContentStore(str(root / "content"), self.metadata), ImageStore(self.metadata),
            Snapshotter(str(root / "snapshots"), self.metadata), LeaseStore(self.metadata),
            StreamManager())
        self.content = self.stores.content.of(NAMESPACE)
        self.images = self.stores.images.of(NAMESPACE)
        self.snapshots = self.stores.snapshotter.of(NAMESPACE)
        self.service = TransferService(self.stores, **options)
        transport = LocalTransport([
            (transfer_pb2, "Transfer", self.service),
            (streaming_pb2, "Streaming", StreamingService(self.stores.streams))])
        metadata = {NAMESPACE_HEADER: NAMESPACE}
        self.transfer = Service(transport, transfer_pb2, "Transfer", metadata)
        self.streaming = Service(transport, streaming_pb2, "Streaming", metadata)

    def close(self) -> None:
        self.stores.snapshotter.close()
        self.metadata.close()

    def names(self) -> list[str]:
        return [image.name for image in self.images.walk()]

    def layer_path(self, chain: str) -> Path:
        return Path(self.snapshots.path(chain))

    def chains(self) -> list[str]:
        return [info.name for info in self.snapshots.walk()]

    async def call(self, source: Any, destination: Any,
                   progress: list[transfer_progress_pb2.Progress] | None = None) -> None:
        options = transfer_pb2.TransferOptions()
        reader: asyncio.Task[None] | None = None
        if progress is not None:
            options.progress_stream = "progress-" + os.urandom(4).hex()
            reader = asyncio.ensure_future(self._read(options.progress_stream, progress))
        try:
            await self.transfer.Transfer(transfer_pb2.TransferRequest(
                source=pack(source), destination=pack(destination), options=options))
        finally:
            if reader is not None:
                await asyncio.wait_for(reader, 5)

    async def _read(self, name: str, into: list[transfer_progress_pb2.Progress]) -> None:
        async def requests() -> AsyncIterator[AnyMessage]:
            yield pack(streaming_pb2.StreamInit(id=name))
            await asyncio.Event().wait()

        async for message in self.streaming.Stream(requests()):
            if message.type_url.endswith("Progress"):
                into.append(transfer_progress_pb2.Progress.FromString(message.value))

    async def load(self, path: str | Path,
                   progress: list[transfer_progress_pb2.Progress] | None = None) -> None:
        """As our engine does it: the archive through a unix socket."""
        with _serving() as (address, listener):
            def serve() -> None:
                connection, _ = listener.accept()
                with connection, open(path, "rb") as file, contextlib.suppress(OSError):
                    connection.sendfile(file)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            await self.call(transfer_importexport_pb2.ImageImportStream(stream=address),
                            destination(), progress)
            thread.join(5)

    async def save(self, path: str | Path, *names: str) -> None:
        with _serving() as (address, listener):
            def serve() -> None:
                connection, _ = listener.accept()
                with connection, open(path, "wb") as file:
                    while data := connection.recv(1 << 20):
                        file.write(data)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            source = transfer_imagestore_pb2.ImageStore(extra_references=[
                transfer_imagestore_pb2.ImageReference(name=name) for name in names])
            try:
                await self.call(source, transfer_importexport_pb2.ImageExportStream(
                    stream=address, all_platforms=True))
            finally:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                thread.join(5)

    async def pull(self, reference: str,
                   progress: list[transfer_progress_pb2.Progress] | None = None,
                   **resolver: Any) -> None:
        store = destination()
        store.name = reference
        del store.extra_references[:]
        await self.call(transfer_registry_pb2.OCIRegistry(
            reference=reference, resolver=transfer_registry_pb2.RegistryResolver(**resolver)),
            store, progress)

    async def push(self, name: str, reference: str = "",
                   progress: list[transfer_progress_pb2.Progress] | None = None,
                   **resolver: Any) -> None:
        await self.call(
            transfer_imagestore_pb2.ImageStore(name=name),
            transfer_registry_pb2.OCIRegistry(
                reference=reference or name,
                resolver=transfer_registry_pb2.RegistryResolver(**resolver)), progress)


def destination() -> transfer_imagestore_pb2.ImageStore:
    """Unpacked, under the archive's names or, without one, by digest."""
    return transfer_imagestore_pb2.ImageStore(
        unpacks=[transfer_imagestore_pb2.UnpackConfiguration(snapshotter="overlayfs")],
        extra_references=[
            transfer_imagestore_pb2.ImageReference(is_prefix=True, allow_overwrite=True),
            transfer_imagestore_pb2.ImageReference(
                name="moby-dangling", add_digest=True, skip_named_digest=True)])


@contextlib.contextmanager
def _serving() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            yield f"unix://{path}", listener
