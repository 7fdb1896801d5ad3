"""Receive blobs into the content store: resumed, verified, one download for all who want it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import BinaryIO

from carrel import errdefs
from carrel.containerd.content import ContentWriter, NamespacedContent
from carrel.containerd.transfer_progress import Reporter, ref_key
from carrel.containerd.unpack_stream import Growing
from carrel.oci.image import Descriptor
from carrel.oci.reference import Reference
from carrel.registry.client import RegistryClient
from carrel.registry.errors import Transient
from carrel.registry.hosts import Endpoint
from carrel.registry.transport import ATTEMPTS

#: bytes gathered before they are hashed and written, in a thread
_GATHER = 512 * 1024


@dataclass
class Download:
    """One blob on its way, for one or more pulls."""

    descriptor: Descriptor
    path: str
    blob_path: str
    growing: Growing = field(default_factory=Growing)
    users: int = 0
    received: int = 0
    task: asyncio.Task[None] | None = None
    reporters: list[Reporter] = field(default_factory=list)
    #: whose connection it runs over
    owner: Fetcher | None = None

    def open(self) -> BinaryIO:
        """The file as far as it is there.  Blocks, in a thread, until there is one."""
        self.growing.wait_beyond(-1)
        for path in (self.path, self.blob_path):    # the second: it was committed just now
            with contextlib.suppress(FileNotFoundError):
                return open(path, "rb", buffering=0)
        # a file that was there already, and went before the commit put it back
        self.growing.wait_finished()
        return open(self.blob_path, "rb", buffering=0)


class Downloads:
    """What is being downloaded now, by namespace and digest."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Download] = {}

    def join(self, namespace: str, digest: str) -> Download | None:
        return self._running.get((namespace, digest))

    def add(self, namespace: str, download: Download) -> None:
        self._running[namespace, download.descriptor.digest] = download

    def drop(self, namespace: str, download: Download) -> None:
        if self._running.get((namespace, download.descriptor.digest)) is download:
            del self._running[namespace, download.descriptor.digest]


class Fetcher:
    """Fetches the blobs of one pull; at most ``parallel`` at once."""

    def __init__(self, client: RegistryClient, endpoint: Endpoint, reference: Reference,
                 content: NamespacedContent, downloads: Downloads, reporter: Reporter,
                 parallel: int = 3) -> None:
        self._client = client
        self._endpoint = endpoint
        self._reference = reference
        self._content = content
        self._downloads = downloads
        self._reporter = reporter
        self._slots = asyncio.Semaphore(parallel)

    def present(self, descriptor: Descriptor) -> bool:
        """Whether the blob is here; what is here joins our lease."""
        if not self._content.exists(descriptor.digest):
            return False
        try:
            self._content.writer(ref_key(descriptor), descriptor.digest).close()
        except errdefs.AlreadyExists:
            return True
        return False    # collected in this very moment

    async def fetch(self, download: Download) -> None:
        """Until the blob is committed.  Started by whoever asked first, shared by all."""
        async with self._slots:
            task = download.task
            if task is None:
                download.owner = self
                task = download.task = asyncio.ensure_future(self._run(download))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise errdefs.Cancelled(
                        f"download of {download.descriptor.digest} was cancelled") from None
                raise

    def start(self, descriptor: Descriptor) -> Download:
        """Take part in the download of a blob that is not here."""
        namespace = self._content.namespace
        download = self._downloads.join(namespace, descriptor.digest)
        if download is None:
            ref = ref_key(descriptor)
            path = os.path.join(self._content.store.ingest_path(namespace, ref), "data")
            download = Download(descriptor, path, self._content.store.path(descriptor.digest))
            self._downloads.add(namespace, download)
        download.users += 1
        download.reporters.append(self._reporter)
        return download

    async def leave(self, download: Download) -> None:
        """The last one to leave stops it; what was received stays for the next attempt."""
        download.users -= 1
        with contextlib.suppress(ValueError):
            download.reporters.remove(self._reporter)
        if download.users:
            # the others' download runs over our connection: it is kept open for them
            if download.owner is self and download.task is not None:
                await asyncio.wait((download.task,))
            return
        self._downloads.drop(self._content.namespace, download)
        task = download.task
        if task is not None and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        if task is None:
            download.growing.fail(errdefs.Cancelled("download was not begun"))

    async def _run(self, download: Download) -> None:
        descriptor = download.descriptor
        try:
            writer = await self._writer(descriptor)
            if writer is not None:
                try:
                    await self._receive(download, writer)
                    await self._commit(writer, descriptor)
                finally:
                    writer.close()
            else:
                download.growing.advance(descriptor.size)
            download.growing.finish()
        except BaseException as error:
            download.growing.fail(error)
            raise
        finally:
            self._downloads.drop(self._content.namespace, download)

    async def _writer(self, descriptor: Descriptor) -> ContentWriter | None:
        """The ingest, with what an earlier attempt left in it; None if the blob is here."""
        try:
            writer = await asyncio.to_thread(
                self._content.writer, ref_key(descriptor), descriptor.digest, descriptor.size)
        except errdefs.AlreadyExists:
            return None
        if writer.offset > descriptor.size:
            writer.truncate(0)
        return writer

    async def _receive(self, download: Download, writer: ContentWriter) -> None:
        failures = 0
        download.growing.advance(min(writer.offset, download.descriptor.size))
        while writer.offset < download.descriptor.size:
            before = writer.offset
            try:
                await self._attempt(download, writer)
            except Transient as error:
                # five failures in a row without a byte; progress earns new attempts
                failures = 1 if writer.offset > before else failures + 1
                if failures >= ATTEMPTS:
                    raise errdefs.Unavailable(str(error)) from error
                await self._client.transport.pause(failures)

    async def _attempt(self, download: Download, writer: ContentWriter) -> None:
        descriptor = download.descriptor
        async with self._client.blob(self._endpoint, self._reference, descriptor,
                                     writer.offset) as blob:
            # a server that does not know Range begins anew: skip what we have
            skip = writer.offset - blob.start
            gathered = bytearray()
            try:
                async for chunk in blob.chunks:
                    if skip:
                        cut = min(skip, len(chunk))
                        skip -= cut
                        chunk = chunk[cut:]
                    gathered += chunk
                    if len(gathered) >= _GATHER:
                        await self._write(download, writer, gathered)
                        gathered = bytearray()
            finally:
                if gathered:
                    await self._write(download, writer, gathered)

    @staticmethod
    async def _write(download: Download, writer: ContentWriter, data: bytearray) -> None:
        task = asyncio.ensure_future(asyncio.to_thread(writer.write, data))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task      # the writer must not be closed under the thread
            raise
        download.received = writer.offset
        download.growing.advance(writer.offset)
        for reporter in download.reporters:
            reporter.count("downloading", download.descriptor, writer.offset)

    async def _commit(self, writer: ContentWriter, descriptor: Descriptor) -> None:
        try:
            await asyncio.to_thread(writer.commit, descriptor.size, descriptor.digest)
        except errdefs.AlreadyExists:
            return
        except errdefs.Conflict as error:
            # what was received is wrong: the next attempt begins from nothing
            await asyncio.to_thread(writer.abort)
            raise errdefs.InvalidParameter(
                f"filesystem layer verification failed for digest {descriptor.digest}: "
                f"{error.message}") from error
