"""Pull: a reference of a registry into the content store, unpacked while it arrives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from carrel import errdefs
from carrel.containerd import image_tree, transfer_work
from carrel.containerd.archive_import import store_blob
from carrel.containerd.image_tree import SOURCE_LABEL
from carrel.containerd.transfer_auth import asker
from carrel.containerd.transfer_fetch import Download, Downloads, Fetcher
from carrel.containerd.transfer_work import Work, in_thread
from carrel.containerd.unpack_layers import Layer, Unpacker
from carrel.oci import digest as digests
from carrel.oci import image as oci
from carrel.oci import reference as references
from carrel.oci.image import Descriptor, Platform
from carrel.oci.reference import Reference
from carrel.proto import transfer_imagestore_pb2, transfer_registry_pb2
from carrel.registry.client import RegistryClient, Resolved

_FOREIGN = (oci.OCI_NONDISTRIBUTABLE, oci.DOCKER_FOREIGN)
_MAX_DEPTH = 3


async def pull(work: Work, source: transfer_registry_pb2.OCIRegistry,
               store: transfer_imagestore_pb2.ImageStore, downloads: Downloads,
               mirrors: tuple[str, ...], insecure: tuple[str, ...]) -> None:
    reference = references.parse(source.reference).tagged()
    unpack = transfer_work.platforms_to_unpack(store)
    wanted = [transfer_work.platform_of(p) for p in store.platforms] or unpack or [
        transfer_work.host_platform()]
    ask = asker(work.streams, work.namespace, source.resolver.auth_stream)
    async with RegistryClient(ask, mirrors=mirrors, insecure=insecure,
                              default_scheme=source.resolver.default_scheme) as client:
        resolved = await client.resolve(reference)
        work.reporter.state("resolved", resolved.descriptor)
        puller = _Puller(work, client, resolved, reference, downloads)
        await puller.run(wanted, unpack)
    target = resolved.descriptor
    image_tree.label_tree(work.content, target)
    puller.label_sources(target)
    names = transfer_work.names_for(store, target) or [str(reference)]
    transfer_work.save_names(work, store, target, names)
    work.reporter.state("Completed pull")


class _Puller:
    def __init__(self, work: Work, client: RegistryClient, resolved: Resolved,
                 reference: Reference, downloads: Downloads) -> None:
        self._work = work
        self._client = client
        self._resolved = resolved
        self._reference = reference
        self._fetcher = Fetcher(client, resolved.endpoint, reference, work.content, downloads,
                                work.reporter)

    async def run(self, wanted: list[Platform], unpack: list[Platform]) -> None:
        await in_thread(self._store, self._resolved.descriptor, self._resolved.data)
        done: set[str] = set()
        for platform in wanted:
            manifest = await self._manifest(self._resolved.descriptor, self._resolved.data,
                                            platform, 0)
            if manifest.digest not in done:
                done.add(manifest.digest)
                await self._image(manifest, bool(unpack))

    def _store(self, descriptor: Descriptor, data: bytes) -> None:
        store_blob(self._work.content, [data], descriptor.digest, len(data))

    async def _manifest(self, descriptor: Descriptor, data: bytes, platform: Platform,
                        depth: int) -> Descriptor:
        """The manifest for a platform, stored with the indexes above it."""
        if descriptor.media_type in oci.MANIFESTS:
            return descriptor
        if depth > _MAX_DEPTH:
            raise errdefs.InvalidParameter("image index is nested too deeply")
        index = oci.parse_index(data, descriptor.media_type)
        chosen = oci.select(index.manifests, platform)
        if chosen is None:
            raise errdefs.NotFound(
                f"no matching manifest for {platform} in the manifest list entries")
        if chosen.digest == descriptor.digest:
            raise errdefs.InvalidParameter("image index that names itself")
        if self._fetcher.present(chosen):
            below = self._work.content.read(chosen.digest, oci.MAX_MANIFEST)
        else:
            below = await self._client.manifest(self._resolved.endpoint, self._reference, chosen)
            await in_thread(self._store, chosen, below)
        return await self._manifest(chosen, below, platform, depth + 1)

    async def _image(self, descriptor: Descriptor, unpack: bool) -> None:
        content = self._work.content
        manifest = oci.parse_manifest(content.read(descriptor.digest, oci.MAX_MANIFEST),
                                      descriptor.media_type)
        config = await self._config(manifest)
        diff_ids = config.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise errdefs.InvalidParameter(
                f"image has {len(manifest.layers)} layers but {len(diff_ids)} diff IDs")
        for layer in manifest.layers:
            # `urls` of a foreign layer are never asked: they could name anything
            if layer.media_type.startswith(_FOREIGN):
                raise errdefs.NotImplementedYet(
                    f"layer {layer.digest} is not distributable: pull of foreign layers is not "
                    "built")
        await self._layers(manifest, diff_ids, unpack)
        if unpack:
            chain = digests.chain_id(diff_ids)
            transfer_work.record_unpacked(content, manifest, config, chain)

    async def _config(self, manifest: oci.Manifest) -> oci.ImageConfig:
        descriptor = manifest.config
        if descriptor.media_type not in oci.CONFIGS:
            raise errdefs.InvalidParameter(
                f"{self._reference.familiar} is not a container image: its configuration is "
                f"{descriptor.media_type}")
        if self._fetcher.present(descriptor):
            data = self._work.content.read(descriptor.digest, oci.MAX_CONFIG)
        else:
            data = await self._client.small_blob(self._reference, descriptor, oci.MAX_CONFIG,
                                                 self._resolved.endpoint)
            config = oci.parse_config(data)
            await in_thread(self._store, descriptor, data)
            return config
        return oci.parse_config(data)

    async def _layers(self, manifest: oci.Manifest, diff_ids: list[str], unpack: bool) -> None:
        """Downloads side by side, and one thread that unpacks in order as data arrives."""
        chains = digests.chain_ids(diff_ids)
        unpacker = Unpacker(self._work.content, self._work.snapshots)
        downloads: dict[str, Download] = {}
        layers: list[Layer] = []
        reporter = self._work.reporter
        for descriptor, diff_id, chain in zip(manifest.layers, diff_ids, chains):
            if self._fetcher.present(descriptor):
                known = not unpack or self._work.snapshots.exists(chain)
                reporter.state("already exists" if known else "waiting", descriptor)
                layers.append(unpacker.stored_layer(descriptor.digest, diff_id))
                continue
            reporter.state("waiting", descriptor)
            download = downloads.get(descriptor.digest)
            if download is None:
                download = downloads[descriptor.digest] = self._fetcher.start(descriptor)
            layers.append(Layer(descriptor.digest, diff_id, download.open, download.growing,
                                verified=False))
        try:
            await self._together(manifest, downloads, layers, unpacker, unpack)
        finally:
            for download in downloads.values():
                await self._fetcher.leave(download)

    async def _together(self, manifest: oci.Manifest, downloads: dict[str, Download],
                        layers: list[Layer], unpacker: Unpacker, unpack: bool) -> None:
        async def fetch(download: Download) -> None:
            await self._fetcher.fetch(download)
            self._work.reporter.state("complete", download.descriptor,
                                      progress=download.descriptor.size)

        fetching = [asyncio.ensure_future(fetch(d)) for d in downloads.values()]
        told = transfer_work.layer_progress(self._work.reporter, manifest.layers)
        unpacking = asyncio.ensure_future(
            in_thread(unpacker.unpack, layers, told, stop=unpacker.stop)) if (
            unpack) else None
        tasks: list[asyncio.Future[Any]] = [*fetching, *([unpacking] if unpacking else [])]
        try:
            await _all(tasks, first=unpacking)
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    def label_sources(self, target: Descriptor) -> None:
        """Note where the blobs came from: a push to the same registry can mount them."""
        note_source(self._work, target, self._reference)


def note_source(work: Work, target: Descriptor, reference: Reference) -> None:
    key = SOURCE_LABEL + reference.domain
    for descriptor, _ in image_tree.walk(work.content, target):
        try:
            known = work.content.info(descriptor.digest).labels.get(key, "")
        except errdefs.NotFound:
            continue
        paths = [p for p in known.split(",") if p]
        if reference.path not in paths:
            value = ",".join([*paths, reference.path])
            if len(key) + len(value) < 4096:
                work.content.update_labels(descriptor.digest, {key: value})


async def _all(tasks: Sequence[asyncio.Future[Any]], first: asyncio.Future[Any] | None) -> None:
    """All of them, or the first failure; a failed download is the reason of a failed unpack."""
    if not tasks:
        return
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    failed = [t for t in done if t.exception() is not None]
    if failed and not any(t is not first for t in failed) and isinstance(
            failed[0].exception(), errdefs.Cancelled) and pending:
        more, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
        failed += [t for t in more if t.exception() is not None]
    failed.sort(key=lambda t: t is first)
    for task in failed:
        task.result()
