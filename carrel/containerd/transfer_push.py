"""Push: an image's blobs, then its manifests, to a registry."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from carrel import errdefs
from carrel.containerd import image_tree, transfer_pull
from carrel.containerd.image_tree import SOURCE_LABEL
from carrel.containerd.transfer_auth import asker
from carrel.containerd.transfer_work import Work, host_platform
from carrel.oci import image as oci
from carrel.oci import reference as references
from carrel.oci.image import Descriptor
from carrel.oci.reference import Reference
from carrel.proto import transfer_imagestore_pb2, transfer_registry_pb2
from carrel.registry.client import RegistryClient
from carrel.registry.errors import Transient
from carrel.registry.hosts import Endpoint
from carrel.registry.transport import ATTEMPTS

_PARALLEL = 5
_PIECE = 1 << 20


async def push(work: Work, store: transfer_imagestore_pb2.ImageStore,
               destination: transfer_registry_pb2.OCIRegistry,
               insecure: tuple[str, ...]) -> None:
    from carrel.containerd.transfer import lookup

    reference = references.parse(destination.reference).tagged()
    target = _whole(work, lookup(work, store.name)[0])
    ask = asker(work.streams, work.namespace, destination.resolver.auth_stream)
    async with RegistryClient(ask, insecure=insecure,
                              default_scheme=destination.resolver.default_scheme) as client:
        endpoint = client.endpoints(reference, pull=False)[-1]
        work.reporter.state("resolved", target)
        await _Pusher(work, client, endpoint, reference).run(target)
    transfer_pull.note_source(work, target, reference)
    work.reporter.state("Completed push")


def _whole(work: Work, target: Descriptor) -> Descriptor:
    """The target, or this machine's image of it where not all of an index is here."""
    if target.media_type not in oci.INDEXES:
        return target
    for descriptor, below in image_tree.walk(work.content, target):
        if not all(work.content.exists(child.digest) for _, child in below) or (
                not below and not work.content.exists(descriptor.digest)):
            return image_tree.select(work.content, target, host_platform()).descriptor
    return target


class _Pusher:
    def __init__(self, work: Work, client: RegistryClient, endpoint: Endpoint,
                 reference: Reference) -> None:
        self._work = work
        self._client = client
        self._endpoint = endpoint
        self._reference = reference
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def run(self, target: Descriptor) -> None:
        """Blobs side by side, then manifests, lowest first, the tag last."""
        blobs: dict[str, Descriptor] = {}
        documents: list[Descriptor] = []
        for descriptor, _ in image_tree.walk(self._work.content, target, missing_ok=False):
            if descriptor.media_type in oci.MANIFESTS | oci.INDEXES:
                documents.append(descriptor)
            else:
                blobs[descriptor.digest] = descriptor
        for descriptor in blobs.values():
            self._work.content.info(descriptor.digest)
            self._work.reporter.state("waiting", descriptor)
        tasks = [asyncio.ensure_future(self._blob(d)) for d in blobs.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        unique = {d.digest: d for d in reversed(documents)}
        for descriptor in unique.values():
            is_target = descriptor.digest == target.digest
            what = self._reference.tag if is_target and self._reference.tag else descriptor.digest
            await self._document(descriptor, what)

    async def _document(self, descriptor: Descriptor, what: str) -> None:
        data = self._work.content.read(descriptor.digest, oci.MAX_MANIFEST)
        await self._client.put_manifest(self._endpoint, self._reference, what, data,
                                        descriptor.media_type)
        self._work.reporter.state("complete", descriptor, progress=descriptor.size)

    async def _blob(self, descriptor: Descriptor) -> None:
        async with self._slots:
            if await self._client.has_blob(self._endpoint, self._reference, descriptor.digest):
                self._work.reporter.state("already exists", descriptor)
                return
            source = self._mountable(descriptor)
            url = await self._client.begin_upload(self._endpoint, self._reference,
                                                  descriptor.digest, source)
            if not url:
                self._work.reporter.state(f"mounted from {source}", descriptor)
                return
            await self._upload(descriptor, url)
            self._work.reporter.state("complete", descriptor, progress=descriptor.size)

    def _mountable(self, descriptor: Descriptor) -> str:
        """Another repository of this registry that is known to have the blob."""
        labels = self._work.content.info(descriptor.digest).labels
        known = labels.get(SOURCE_LABEL + self._reference.domain, "").split(",")
        return next((path for path in known if path and path != self._reference.path), "")

    async def _upload(self, descriptor: Descriptor, url: str) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if attempt > 1:
                    url = await self._client.begin_upload(self._endpoint, self._reference,
                                                          descriptor.digest)
                await self._client.upload(self._endpoint, self._reference, url,
                                          descriptor.digest, descriptor.size,
                                          lambda: self._pieces(descriptor))
                return
            except (Transient, errdefs.Unavailable) as error:
                if attempt == ATTEMPTS:
                    raise errdefs.Unavailable(str(error)) from error
                await self._client.transport.pause(attempt)

    async def _pieces(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        sent = 0
        with self._work.content.open(descriptor.digest) as file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                sent += len(piece)
                yield piece
                self._work.reporter.count("uploading", descriptor, sent)
