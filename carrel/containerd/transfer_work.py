"""What every kind of transfer needs: stores under one lease, threads, names, unpacking."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from carrel import errdefs
from carrel.containerd import image_tree, images
from carrel.containerd.archive_import import IMAGE_NAME, IMPORT_PREFIX, REF_NAME
from carrel.containerd.content import ContentStore, NamespacedContent
from carrel.containerd.images import ImageStore, NamespacedImages
from carrel.containerd.leases import LeaseStore
from carrel.containerd.snapshots import NAME as SNAPSHOTTER
from carrel.containerd.snapshots import NamespacedSnapshots, Snapshotter
from carrel.containerd.streaming import StreamManager
from carrel.containerd.transfer_progress import Reporter
from carrel.containerd.unpack_layers import (
    GC_SNAPSHOT_LABEL,
    UNCOMPRESSED_LABEL,
    Layer,
    Unpacker,
)
from carrel.oci import image as oci
from carrel.oci.image import Descriptor, Platform
from carrel.proto import platform_pb2, transfer_imagestore_pb2
from carrel.proto.rpc import Context

_T = TypeVar("_T")
#: on the leases of work that cannot be taken up again, with the run of the daemon it is of
_RUN_LABEL = "carrel/transfer.run"
_RUN = secrets.token_hex(8)
#: a lease that nobody deletes (we were killed) ends by itself
_LEASE_HOURS = 24


@dataclass(frozen=True)
class Stores:
    """The stores of the daemon, as its main module makes them."""

    content: ContentStore
    images: ImageStore
    snapshotter: Snapshotter
    leases: LeaseStore
    streams: StreamManager


@dataclass(frozen=True)
class Work:
    """One transfer: the stores as its namespace and lease see them."""

    namespace: str
    content: NamespacedContent
    images: NamespacedImages
    snapshots: NamespacedSnapshots
    streams: StreamManager
    reporter: Reporter


def host_platform() -> Platform:
    return oci.host_platform(os.uname().machine)


def platform_of(message: platform_pb2.Platform) -> Platform:
    default = host_platform()
    if not message.os and not message.architecture:
        return default
    return oci.normalise(Platform(message.architecture or default.architecture,
                                  message.os or default.os, message.variant))


@contextlib.asynccontextmanager
async def working(stores: Stores, context: Context, progress_stream: str, *,
                  resumable: bool = False) -> AsyncIterator[Work]:
    """Everything written inside is held by a lease until the end.

    When we are killed, the lease of ``resumable`` work (a pull) keeps what was received
    for the next attempt; other work's is dropped by :func:`drop_abandoned`.
    """
    namespace, lease = context.namespace, context.lease
    made = ""
    if not lease:
        expire = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=_LEASE_HOURS)
        labels = {"containerd.io/gc.expire": expire.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if not resumable:
            labels[_RUN_LABEL] = _RUN
        made = lease = stores.leases.create(namespace, "", labels).id
    reporter = Reporter(None)
    try:
        if progress_stream:
            reporter = Reporter(await stores.streams.get(namespace, progress_stream))
        yield Work(namespace, stores.content.of(namespace, lease),
                   stores.images.of(namespace), stores.snapshotter.of(namespace, lease),
                   stores.streams, reporter)
    finally:
        await reporter.close()
        if made:
            with contextlib.suppress(errdefs.NotFound):
                stores.leases.delete(namespace, made)


def drop_abandoned(stores: Stores, namespace: str) -> None:
    """Free what a daemon that was killed left of loads: nothing will go on with it."""
    for lease in stores.leases.walk(namespace):
        if lease.labels.get(_RUN_LABEL, _RUN) == _RUN:
            continue
        for kind, name in stores.leases.resources(namespace, lease.id):
            if kind == "ingests" and name.startswith(IMPORT_PREFIX):
                with contextlib.suppress(errdefs.NotFound):
                    stores.content.of(namespace).abort(name)
        with contextlib.suppress(errdefs.NotFound):
            stores.leases.delete(namespace, lease.id)


async def in_thread(function: Callable[..., _T], *arguments: Any,
                    stop: Callable[[], object] | None = None) -> _T:
    """Run blocking work; when the caller is cancelled, ``stop`` it and wait for its end.

    A thread of its own, not one of the loop's few: this work waits for downloads, which
    need those.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("_T", result))

    def run() -> None:
        try:
            outcome: tuple[_T | None, BaseException | None] = (function(*arguments), None)
        except BaseException as error:
            outcome = (None, error)
        loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name=f"transfer-{function.__name__}", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        with contextlib.suppress(Exception):
            await future
        raise


# --- unpacking ---


def unpack_image(work: Work, target: Descriptor, platform: Platform) -> str:
    """Unpack the image of a platform; its chain ID.  Blocking."""
    selected = image_tree.select(work.content, target, platform)
    unpacker = Unpacker(work.content, work.snapshots)
    pairs = list(zip(selected.manifest.layers, selected.config.rootfs.diff_ids))
    layers = [unpacker.stored_layer(layer.digest, diff_id) for layer, diff_id in pairs]
    chain = unpacker.unpack(layers, layer_progress(work.reporter, selected.manifest.layers))
    record_unpacked(work.content, selected.manifest, selected.config, chain)
    return chain


def layer_progress(reporter: Reporter, layers: Iterable[Descriptor],
                   ) -> Callable[[Layer, str, int], None]:
    by_digest = {layer.digest: layer for layer in layers}

    def told(layer: Layer, event: str, size: int) -> None:
        descriptor = by_digest[layer.digest]
        if event == "extracting" and size:
            reporter.count(event, descriptor, size)
        else:
            reporter.state(event, descriptor, progress=size)

    return told


def record_unpacked(content: NamespacedContent, manifest: oci.Manifest, config: oci.ImageConfig,
                    chain: str) -> None:
    """The labels by which the collector keeps the snapshots of an image."""
    for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids):
        content.update_labels(layer.digest, {UNCOMPRESSED_LABEL: diff_id})
    if chain:
        content.update_labels(manifest.config.digest, {GC_SNAPSHOT_LABEL: chain})


def platforms_to_unpack(store: transfer_imagestore_pb2.ImageStore) -> list[Platform]:
    found = []
    for unpack in store.unpacks:
        if unpack.snapshotter not in ("", SNAPSHOTTER):
            raise errdefs.InvalidParameter(f"snapshotter {unpack.snapshotter} does not exist")
        found.append(platform_of(unpack.platform))
    return found


# --- names ---


def names_for(store: transfer_imagestore_pb2.ImageStore, target: Descriptor) -> list[str]:
    """Under which names the destination wants a target that arrived."""
    own = target.annotations.get(IMAGE_NAME) or target.annotations.get(REF_NAME, "")
    names = [store.name] if store.name else []
    for reference in store.extra_references:
        if reference.is_prefix:
            # the archive's own image name always counts; a reference must begin with the
            # prefix unless that may be overridden (as `ctr images import` asks for)
            if own and (IMAGE_NAME in target.annotations or _has_prefix(own, reference.name)):
                names.append(own)
            elif own and ":" not in own and "/" not in own and reference.name:
                names.append(f"{reference.name.rstrip(':')}:{own}")
            elif own and reference.allow_overwrite:
                names.append(own)
        elif not reference.add_digest:
            names.append(reference.name)
        if reference.add_digest and not ((own or store.name) and reference.skip_named_digest):
            names.append(f"{reference.name}@{target.digest}")
    if not store.name and not store.extra_references and own:
        names.append(own)
    return list(dict.fromkeys(names))


def _has_prefix(name: str, prefix: str) -> bool:
    """Whole components only: ``docker.io/lib`` is no prefix of ``docker.io/library/x``."""
    return not prefix or name == prefix or (
        name.startswith(prefix) and (prefix[-1] in "/:" or name[len(prefix)] in "/:@"))


def save_names(work: Work, store: transfer_imagestore_pb2.ImageStore, target: Descriptor,
               names: Iterable[str]) -> None:
    """Point image names to a target; what they pointed to before may then be collected."""
    plain = Descriptor(target.media_type, target.digest, target.size)
    for name in names:
        _keep_old(work, store, name, target.digest)
        work.images.put(images.Image(name, image_tree.to_record(plain), dict(store.labels)))
        work.reporter.state("saved", target, name=name)


def _keep_old(work: Work, store: transfer_imagestore_pb2.ImageStore, name: str,
              digest: str) -> None:
    """A destination that names the nameless (``prefix@digest``) keeps what ``name`` stood
    for until now, if it has no other name: Docker's ``<none>`` images."""
    prefixes = [r.name for r in store.extra_references if r.add_digest and r.skip_named_digest]
    if not prefixes:
        return
    try:
        old = work.images.get(name).target
    except errdefs.NotFound:
        return
    if old.digest == digest or any(image.target.digest == old.digest and image.name != name
                                   for image in work.images.walk()):
        return
    work.images.put(images.Image(f"{prefixes[0]}@{old.digest}", old))
