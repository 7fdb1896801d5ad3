"""Images made here: `docker commit` of a container, `docker import` of a root file system."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from carrel import errdefs
from carrel.engine import images_actions, images_changes, jsonio, timefmt
from carrel.engine.images_model import (
    DANGLING,
    PARENT_LABEL,
    ImageRecord,
    from_message,
    host_platform,
)
from carrel.oci import digest as digests
from carrel.oci import image as oci
from carrel.oci import reference as references
from carrel.oci.reference import Reference
from carrel.proto import (
    content_pb2,
    diff_pb2,
    leases_pb2,
    mount_pb2,
    snapshots_pb2,
    tasks_pb2,
)

if TYPE_CHECKING:
    from carrel.engine import web
    from carrel.engine.containerd import Client
    from carrel.engine.context import ContainerView, EngineContext
    from carrel.engine.images import ImageService
    from carrel.engine.images_transfer import NdJson

_GC = "containerd.io/gc.ref.content."
_PIECE = 1 << 20
#: of a container's Config that belong to that container alone
_OWN = ("Hostname", "Domainname", "Image", "AttachStdin", "AttachStdout", "AttachStderr", "Tty",
        "OpenStdin", "StdinOnce", "NetworkDisabled", "MacAddress")


def target_reference(repo: str, tag: str) -> Reference | None:
    """Where a new image goes; None for an image without a name."""
    if not repo:
        return None
    reference = references.parse(repo)
    if reference.digest:
        raise errdefs.InvalidParameter("cannot import digest reference")
    return reference.with_tag(tag) if tag else reference.tagged()


# --- commit ---


async def commit(ctx: EngineContext, images: ImageService, query: Mapping[str, str],
                 body: dict[str, Any]) -> str:
    """A new image from a container's changes; its ID."""
    container = ctx.containers.find(query.get("container", ""))
    reference = target_reference(query.get("repo", ""), query.get("tag", ""))
    own = {k: v for k, v in container.config.items() if k not in _OWN}
    changes = query.getall("changes", []) if hasattr(query, "getall") else []
    config = _merge(images_changes.apply({**own, **{k: v for k, v in body.items() if v}},
                                         list(changes)), own)
    record = images.by_id().get(container.image_id)
    if record is None:
        raise errdefs.NotFound(f"No such image: {container.image_id}")
    pause = query.get("pause", "1").lower() not in ("0", "false")
    async with _lease(ctx.containerd) as lease, _paused(ctx.containerd, container, pause):
        layer, diff_id = await _diff(ctx, container, record, lease)
        document = _configuration(record, config, diff_id, author=query.get("author", ""),
                                  comment=query.get("comment", ""), command=container.config)
        await _unpack(ctx, record.chain_id, layer, diff_id, lease)
        target = await _write(ctx, record, layer, document, lease)
        await images.name_target(
            str(reference) if reference else f"{DANGLING}{target.digest}", target)
    ident = digests.of(document)
    ctx.events.publish("container", "commit", container.id, {
        "comment": query.get("comment", ""), "imageID": ident, "name": container.name,
        "imageRef": reference.familiar if reference else ""})
    return ident


def _merge(config: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in {**own, **config}.items() if v not in (None, "", [], {}, False)}


@contextlib.asynccontextmanager
async def _lease(client: Client) -> AsyncIterator[str]:
    response = await client.leases.Create(leases_pb2.CreateRequest(
        id=f"commit-{secrets.token_hex(8)}"))
    try:
        yield response.lease.id
    finally:
        with contextlib.suppress(errdefs.NotFound):
            await client.leases.Delete(leases_pb2.DeleteRequest(id=response.lease.id))


@contextlib.asynccontextmanager
async def _paused(client: Client, container: ContainerView, pause: bool) -> AsyncIterator[None]:
    """Freeze the container so that its files stand still; one that is frozen stays so."""
    frozen = False
    if pause and container.running:
        try:
            await client.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id=container.id))
            frozen = True
        except (errdefs.Conflict, errdefs.NotFound):
            pass    # paused before, or it has just ended
    try:
        yield
    finally:
        if frozen:
            with contextlib.suppress(errdefs.Conflict, errdefs.NotFound):
                await client.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=container.id))


async def _diff(ctx: EngineContext, container: ContainerView, record: ImageRecord, lease: str,
                ) -> tuple[oci.Descriptor, str]:
    """The container's changes as a layer in the content store, and its diff ID."""
    response = await ctx.containerd.snapshots.Mounts(snapshots_pb2.MountsRequest(
        snapshotter=ctx.config.snapshotter, key=container.snapshot_key))
    # containerd's differ knows OCI's media types only; the bytes are the same
    diff = await ctx.containerd.diff.Diff(diff_pb2.DiffRequest(
        left=_without_changes(response.mounts), right=response.mounts,
        media_type=oci.OCI_LAYER_GZIP), lease=lease)
    descriptor = from_message(diff.diff)
    diff_id = descriptor.annotations.get("containerd.io/uncompressed", "")
    if not diff_id:
        info = await ctx.containerd.content.Info(
            content_pb2.InfoRequest(digest=descriptor.digest))
        diff_id = info.info.labels["containerd.io/uncompressed"]
    docker = record.manifest.media_type == oci.DOCKER_MANIFEST
    return oci.Descriptor(oci.DOCKER_LAYER_GZIP if docker else oci.OCI_LAYER_GZIP,
                          descriptor.digest, descriptor.size), diff_id


def _without_changes(mounts: Iterable[mount_pb2.Mount]) -> list[mount_pb2.Mount]:
    """The container's root as its image has it: the lower directories alone."""
    for mount in mounts:
        lowers = [o for o in mount.options if o.startswith("lowerdir=")]
        if mount.type != "overlay" or not lowers:
            continue
        if ":" in lowers[0]:
            return [mount_pb2.Mount(type="overlay", source="overlay", options=lowers)]
        # an overlay of one directory is none, says the kernel
        return [mount_pb2.Mount(type="bind", source=lowers[0].removeprefix("lowerdir="),
                                options=["ro", "rbind"])]
    return []


def _configuration(record: ImageRecord, config: dict[str, Any], diff_id: str, *, author: str,
                   comment: str, command: Mapping[str, Any]) -> bytes:
    created = timefmt.now()
    entry: dict[str, Any] = {"created": created}
    words = [*(command.get("Entrypoint") or []), *(command.get("Cmd") or [])]
    if words:
        entry["created_by"] = " ".join(words)
    if author:
        entry["author"] = author
    if comment:
        entry["comment"] = comment
    old = record.config
    document = {
        **{k: old[k] for k in ("architecture", "os", "variant", "os.version", "os.features")
           if old.get(k)},
        "created": created, "author": author or old.get("author") or "", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [*old["rootfs"]["diff_ids"], diff_id]},
        "history": [*(old.get("history") or []), entry],
    }
    if not document["author"]:
        del document["author"]
    return jsonio.encode(document)


async def _unpack(ctx: EngineContext, parent: str, layer: oci.Descriptor, diff_id: str,
                  lease: str) -> None:
    """The new layer as a snapshot, so that the image can be run."""
    snapshots, snapshotter = ctx.containerd.snapshots, ctx.config.snapshotter
    chain = digests.of(f"{parent} {diff_id}".encode()) if parent else diff_id
    key = f"commit-{secrets.token_hex(8)} {chain}"
    prepared = await snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=snapshotter, key=key, parent=parent,
        labels={"containerd.io/snapshot.ref": chain}), lease=lease)
    try:
        request = diff_pb2.ApplyRequest(mounts=prepared.mounts)
        request.diff.media_type, request.diff.digest = layer.media_type, layer.digest
        request.diff.size = layer.size
        await ctx.containerd.diff.Apply(request, lease=lease)
        await snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(
            snapshotter=snapshotter, name=chain, key=key,
            labels={"containerd.io/snapshot.ref": chain}), lease=lease)
    except errdefs.AlreadyExists:
        await snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(
            snapshotter=snapshotter, key=key))
    except BaseException:
        with contextlib.suppress(errdefs.CarrelError):
            await snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(
                snapshotter=snapshotter, key=key))
        raise


async def _write(ctx: EngineContext, record: ImageRecord, layer: oci.Descriptor,
                 document: bytes, lease: str) -> oci.Descriptor:
    """Configuration and manifest, with the collector's labels."""
    docker = record.manifest.media_type == oci.DOCKER_MANIFEST
    kind = oci.DOCKER_MANIFEST if docker else oci.OCI_MANIFEST
    config = oci.Descriptor(oci.DOCKER_CONFIG if docker else oci.OCI_CONFIG,
                            digests.of(document), len(document))
    layers = [*record.layers, layer]
    manifest = oci.encode({"schemaVersion": 2, "mediaType": kind, "config": config,
                           "layers": layers})
    chain = digests.chain_id(oci.parse_config(document).rootfs.diff_ids)
    await write_blob(ctx.containerd, document, lease, {
        f"containerd.io/gc.ref.snapshot.{ctx.config.snapshotter}": chain})
    await write_blob(ctx.containerd, manifest, lease, {
        f"{_GC}config": config.digest, PARENT_LABEL: record.id,
        **{f"{_GC}l.{n}": one.digest for n, one in enumerate(layers)}})
    return oci.Descriptor(kind, digests.of(manifest), len(manifest))


async def write_blob(client: Client, data: bytes, lease: str, labels: dict[str, str]) -> None:
    digest = digests.of(data)

    async def requests() -> AsyncIterator[content_pb2.WriteContentRequest]:
        yield content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref=f"write-{secrets.token_hex(8)}", total=len(data),
            expected=digest, offset=0, data=data, labels=labels)

    try:
        async for _ in client.content.Write(requests(), lease=lease):
            pass
    except errdefs.AlreadyExists:
        await client.content.Update(content_pb2.UpdateRequest(
            info=content_pb2.Info(digest=digest, labels=labels),
            update_mask={"paths": [f"labels.{key}" for key in labels]}))


# --- import ---


async def import_image(ctx: EngineContext, images: ImageService, out: NdJson,
                       request: web.Request) -> None:
    """A root file system from the request's body becomes an image of one layer."""
    query = request.query
    if query["fromSrc"] != "-":
        raise errdefs.NotImplementedYet(
            "import from a URL is not implemented in Carrel: pipe the archive to `docker import -`")
    reference = target_reference(query.get("repo", ""), query.get("tag", ""))
    config = images_changes.apply({}, query.getall("changes", []))
    wanted = oci.parse_platform(query["platform"], host_platform()) if query.get(
        "platform") else host_platform()
    folder = ctx.config.engine_dir
    with tempfile.TemporaryFile(dir=folder) as raw, tempfile.TemporaryFile(dir=folder) as plain:
        async for chunk in request.content.iter_any():
            await asyncio.to_thread(raw.write, chunk)
        if not raw.tell():
            raise errdefs.InvalidParameter("import of an empty archive")
        diff_id = await asyncio.to_thread(_decompress, raw, plain)
        created = timefmt.now()
        document = jsonio.encode({
            "architecture": wanted.architecture, "os": wanted.os,
            **({"variant": wanted.variant} if wanted.variant and wanted.architecture != "arm64"
               else {}),
            "created": created, "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "comment": query.get("message") or
                         "Imported from -"}]})
        quiet = _Quiet()
        await images_actions.load(
            ctx, images, quiet, _archive(plain, document, reference), quiet=True)
    ident = digests.of(document)
    await out.send({"status": ident})
    ctx.events.publish("image", "import", ident, {
        "name": reference.familiar if reference else ident})


class _Quiet:
    """Takes the lines of a load that the user did not ask for."""

    async def send(self, value: dict[str, Any]) -> None:
        pass


def _decompress(raw: BinaryIO, plain: BinaryIO) -> str:
    """The tar itself into ``plain``; its digest."""
    from carrel.containerd.unpack_stream import FileReader, Growing, decompressor

    raw.flush()
    size = os.fstat(raw.fileno()).st_size
    stream, _ = decompressor(FileReader(raw.fileno(), Growing(size, done=True)))
    state = hashlib.sha256()
    try:
        while piece := stream.read(_PIECE):
            state.update(piece)
            plain.write(piece)
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise errdefs.InvalidParameter(f"cannot decompress the archive: {error}") from error
    plain.flush()
    return f"sha256:{state.hexdigest()}"


async def _archive(plain: BinaryIO, document: bytes, reference: Reference | None,
                   ) -> AsyncIterator[bytes]:
    """What `docker save` would have written of the new image."""
    size = os.fstat(plain.fileno()).st_size
    yield _header("layer.tar", size)
    plain.seek(0)
    while piece := await asyncio.to_thread(plain.read, _PIECE):
        yield piece
    yield bytes(-size % 512)
    manifest = jsonio.encode([{"Config": "config.json", "Layers": ["layer.tar"],
                               "RepoTags": [reference.familiar] if reference else []}])
    for name, data in (("config.json", document), ("manifest.json", manifest)):
        yield _header(name, len(data)) + data + bytes(-len(data) % 512)
    yield bytes(1024)


def _header(name: str, size: int) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)
