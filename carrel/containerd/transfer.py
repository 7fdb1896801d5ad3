"""The Transfer service: pull, push, load, save and tag, each from a source to a destination.

    OCIRegistry        -> ImageStore          pull, and unpack
    ImageStore         -> OCIRegistry         push
    ImageImportStream  -> ImageStore          load, and unpack
    ImageStore         -> ImageExportStream   save
    ImageStore         -> ImageStore          tag
"""

# ruff: noqa: N802  (methods are named as in the .proto)
from __future__ import annotations

import asyncio
import socket
from typing import Any

from google.protobuf.empty_pb2 import Empty

from carrel import errdefs
from carrel.containerd import image_tree, transfer_bulk, transfer_work
from carrel.containerd.archive_export import ArchiveExporter, Exported, Options
from carrel.containerd.archive_import import ArchiveImporter
from carrel.containerd.transfer_work import Stores, Work, in_thread
from carrel.kernel import memory
from carrel.oci.image import Descriptor
from carrel.proto import (
    transfer_imagestore_pb2,
    transfer_importexport_pb2,
    transfer_pb2,
    transfer_registry_pb2,
)
from carrel.proto.rpc import Context

#: the buffers of a transfer are given back when no other one follows at once
_TRIM_SECONDS = 3.0
_KINDS: dict[str, Any] = {
    "ImageStore": transfer_imagestore_pb2.ImageStore,
    "OCIRegistry": transfer_registry_pb2.OCIRegistry,
    "ImageImportStream": transfer_importexport_pb2.ImageImportStream,
    "ImageExportStream": transfer_importexport_pb2.ImageExportStream,
}


class TransferService:
    """``containerd.services.transfer.v1.Transfer``"""

    def __init__(self, stores: Stores, *, mirrors: tuple[str, ...] = (),
                 insecure: tuple[str, ...] = ()) -> None:
        """``mirrors``: base URLs tried before Docker Hub; ``insecure``: registries (or
        networks) that may be spoken to without verified TLS."""
        self._stores = stores
        self._mirrors = mirrors
        self._insecure = insecure
        self._swept: set[str] = set()   # namespaces that a killed daemon's work was removed from
        self._trimming: asyncio.TimerHandle | None = None
        self.downloads: Any = None      # made with the first pull: it imports the HTTP client

    async def Transfer(self, request: transfer_pb2.TransferRequest, context: Context) -> Empty:
        try:
            return await self._transfer(request, context)
        finally:
            if self._trimming is not None:
                self._trimming.cancel()
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(
                _TRIM_SECONDS, lambda: loop.run_in_executor(None, memory.trim))

    async def _transfer(self, request: transfer_pb2.TransferRequest, context: Context) -> Empty:
        source_kind, source = _unpack(request.source)
        destination_kind, destination = _unpack(request.destination)
        if context.namespace not in self._swept:
            self._swept.add(context.namespace)
            transfer_work.drop_abandoned(self._stores, context.namespace)
        async with transfer_work.working(self._stores, context, request.options.progress_stream,
                                         resumable=source_kind == "OCIRegistry") as work:
            match source_kind, destination_kind:
                case "ImageImportStream", "ImageStore":
                    await _load(work, source, destination)
                case "ImageStore", "ImageExportStream":
                    await _save(work, source, destination)
                case "ImageStore", "ImageStore":
                    _tag(work, source, destination)
                case "OCIRegistry", "ImageStore":
                    from carrel.containerd import transfer_fetch, transfer_pull

                    self.downloads = self.downloads or transfer_fetch.Downloads()
                    await transfer_pull.pull(work, source, destination, self.downloads,
                                             self._mirrors, self._insecure)
                case "ImageStore", "OCIRegistry":
                    from carrel.containerd import transfer_push

                    await transfer_push.push(work, source, destination, self._insecure)
                case _:
                    raise errdefs.NotImplementedYet(
                        f"transfer from {source_kind} to {destination_kind} is not built in "
                        "carrel-containerd")
        return Empty()


def _unpack(message: Any) -> tuple[str, Any]:
    kind = message.type_url.rpartition("/")[2].rpartition(".")[2]
    if kind not in _KINDS:
        raise errdefs.NotImplementedYet(
            f"transfer with {message.type_url!r} is not built in carrel-containerd")
    return kind, _KINDS[kind].FromString(message.value)


async def _load(work: Work, source: transfer_importexport_pb2.ImageImportStream,
                store: transfer_imagestore_pb2.ImageStore) -> None:
    platforms = transfer_work.platforms_to_unpack(store)
    work.reporter.state("Importing")
    async with transfer_bulk.receiving(work.streams, work.namespace, source.stream) as sock:
        importer = ArchiveImporter(
            work.content, lambda size: work.reporter.count("importing", None, size))
        found = await in_thread(importer.read, transfer_bulk.SocketReader(sock),
                                stop=lambda: sock.shutdown(socket.SHUT_RDWR))
    unpacked: set[str] = set()
    for target in found:
        for platform in platforms if target.digest not in unpacked else ():
            try:
                await in_thread(transfer_work.unpack_image, work, target, platform)
            except errdefs.NotFound:
                # an index without an image for this machine: kept, as Docker does
                work.reporter.state("skipped unpacking", target)
        unpacked.add(target.digest)
        transfer_work.save_names(work, store, target, transfer_work.names_for(store, target))
    work.reporter.state("Completed import")


async def _save(work: Work, store: transfer_imagestore_pb2.ImageStore,
                destination: transfer_importexport_pb2.ImageExportStream) -> None:
    names = ([store.name] if store.name else []) + [r.name for r in store.extra_references]
    images = _exported(work, names)
    wanted = [transfer_work.platform_of(p) for p in destination.platforms]
    if len(wanted) > 1:
        raise errdefs.NotImplementedYet("export of several chosen platforms is not built")
    options = Options(wanted[0] if wanted else transfer_work.host_platform(),
                      destination.all_platforms, destination.skip_compatibility_manifest)
    work.reporter.state("Exporting")
    async with transfer_bulk.sending(work.streams, work.namespace, destination.stream) as sock:
        exporter = ArchiveExporter(work.content, sock, options)
        await in_thread(exporter.write, images,
                        stop=lambda: sock.shutdown(socket.SHUT_RDWR))
    work.reporter.state("Completed export")


def _exported(work: Work, names: list[str]) -> list[Exported]:
    """The targets of names, each once with all its names."""
    if not names:
        raise errdefs.InvalidParameter("no image to export was named")
    targets: dict[str, tuple[Descriptor, list[str]]] = {}
    for name in names:
        target, found = lookup(work, name)
        entry = targets.setdefault(target.digest, (target, []))
        if found and "@" not in name:
            entry[1].append(name)
    return [Exported(target, tuple(named)) for target, named in targets.values()]


def lookup(work: Work, name: str) -> tuple[Descriptor, bool]:
    """(target of a name, whether it is a name).  ``anything@sha256:...`` finds a target by
    its digest where no such name is stored."""
    try:
        return image_tree.from_record(work.images.get(name).target), True
    except errdefs.NotFound:
        _, at, digest = name.rpartition("@")
        if at:
            for image in work.images.walk():
                if image.target.digest == digest:
                    return image_tree.from_record(image.target), False
        raise


def _tag(work: Work, source: transfer_imagestore_pb2.ImageStore,
         destination: transfer_imagestore_pb2.ImageStore) -> None:
    target, _ = lookup(work, source.name)
    if not destination.name:
        raise errdefs.InvalidParameter("no name to tag with")
    transfer_work.save_names(work, destination, target, [destination.name])
