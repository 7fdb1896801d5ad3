"""Pull, push, load and save, with the progress that Docker's clients show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from carrel import errdefs
from carrel.engine import images_transfer, texts, web
from carrel.engine.context import EngineContext
from carrel.engine.images import ImageService
from carrel.engine.images_model import DANGLING, from_message, host_platform
from carrel.engine.images_transfer import Credentials, Lines, NdJson, Progress
from carrel.engine.server import headers
from carrel.oci import image as oci
from carrel.oci.reference import Reference
from carrel.proto import (
    transfer_imagestore_pb2,
    transfer_importexport_pb2,
    transfer_registry_pb2,
)

if TYPE_CHECKING:
    from carrel.registry.client import RegistryClient

HUB = "registry-1.docker.io"


def registry_host(reference: Reference) -> str:
    """The host that a reference's registry answers at."""
    return HUB if reference.domain == "docker.io" else reference.domain


def short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _is_layer(progress: Progress) -> bool:
    return progress.name.startswith("layer-")


def _bar(progress: Progress) -> dict[str, int]:
    return {"current": progress.progress, "total": progress.total}


class PullShow:
    """Progress of a pull as `docker pull` shows it."""

    #: event of the layer -> lines of Docker's clients
    _STATES = {
        "waiting": ("Pulling fs layer",), "already exists": ("Already exists",),
        "complete": ("Verifying Checksum", "Download complete"),
        "extracted": ("Pull complete",),
    }

    def __init__(self, out: NdJson, reference: Reference) -> None:
        self._out = out
        self._reference = reference
        self.digest = ""
        self._done: set[tuple[str, str]] = set()

    async def told(self, progress: Progress) -> None:
        if progress.event == "resolved":
            self.digest = progress.desc.digest
            await self._out.send({"status": f"Pulling from {self._reference.path}",
                                  "id": self._reference.tag or self._reference.digest})
        elif _is_layer(progress):
            await self._layer(progress, short(progress.desc.digest))

    async def _layer(self, progress: Progress, ident: str) -> None:
        if progress.event == "downloading":
            await self._line("Downloading", ident, _bar(progress))
        elif progress.event == "extracting":
            # the layer's own size is not known before its end: show the part of the blob
            await self._line("Extracting", ident, {
                "current": min(progress.progress, progress.total), "total": progress.total})
        else:
            for status in self._STATES.get(progress.event, ()):
                if not {(ident, status), (ident, "Already exists")} & self._done:
                    self._done.add((ident, status))
                    await self._line(status, ident, {})

    async def _line(self, status: str, ident: str, detail: dict[str, int]) -> None:
        await self._out.send({"status": status, "progressDetail": detail, "id": ident})


async def pull(ctx: EngineContext, images: ImageService, out: NdJson, reference: Reference,
               platform: str, auth: Credentials) -> None:
    name = str(reference)
    wanted = oci.parse_platform(platform, host_platform()) if platform else host_platform()
    before = await _digest_of(images, name)
    show = PullShow(out, reference)
    host = registry_host(reference)
    store = images_transfer.image_store(
        ctx, name, (wanted.os, wanted.architecture, wanted.variant))
    async with images_transfer.auth_stream(ctx.containerd, host, auth) as stream:
        source = transfer_registry_pb2.OCIRegistry(
            reference=name, resolver=transfer_registry_pb2.RegistryResolver(auth_stream=stream))
        try:
            await images_transfer.transfer(ctx.containerd, source, store, show.told)
        except errdefs.Unauthorized as error:
            # Docker answers 500 here, and its clients look at the text only
            raise errdefs.SystemFailure(error.message) from error
    after = show.digest
    await images.drop_dangling(after)
    await images.refresh(forget=after)
    await out.send({"status": f"Digest: {after}"})
    what = "Image is up to date for" if before == after else "Downloaded newer image for"
    await out.send({"status": f"Status: {what} {reference.familiar}"})
    ctx.events.publish("image", "pull", reference.familiar, {"name": reference.familiar_name})


async def _digest_of(images: ImageService, name: str) -> str:
    await images.refresh()
    named = images.named(name)
    return named.target.digest if named else ""


async def push(ctx: EngineContext, images: ImageService, out: NdJson, reference: Reference,
               auth: Credentials) -> None:
    """Push one name.  The lines are Docker's: layer states, then digest and size."""
    try:
        found = await images.find(str(reference))
    except errdefs.NotFound:
        raise errdefs.NotFound("An image does not exist locally with the tag: "
                               f"{reference.familiar_name}") from None
    pushed = found.record.target

    async def told(progress: Progress) -> None:
        ident = short(progress.desc.digest)
        nonlocal pushed
        if progress.event == "resolved":
            pushed = from_message(progress.desc)
            await out.send({"status": f"The push refers to repository [{reference.name}]"})
        elif _is_layer(progress):
            states = {"waiting": "Preparing", "already exists": "Layer already exists",
                      "uploading": "Pushing", "complete": "Pushed"}
            if progress.event.startswith("mounted from "):
                status = f"Mounted from {progress.event[len('mounted from '):]}"
            else:
                status = states.get(progress.event, "")
            if status:
                detail = _bar(progress) if progress.event == "uploading" else {}
                await out.send({"status": status, "progressDetail": detail, "id": ident})

    async with images_transfer.auth_stream(ctx.containerd, registry_host(reference),
                                           auth) as stream:
        destination = transfer_registry_pb2.OCIRegistry(
            reference=str(reference),
            resolver=transfer_registry_pb2.RegistryResolver(auth_stream=stream))
        await images_transfer.transfer(
            ctx.containerd, transfer_imagestore_pb2.ImageStore(name=found.name or ""),
            destination, told)
    await out.send({"status": f"{reference.tag}: digest: {pushed.digest} size: {pushed.size}"})
    await out.send({"progressDetail": {}, "aux": {
        "Tag": reference.tag, "Digest": pushed.digest, "Size": pushed.size}})
    await images.refresh(forget=found.record.target.digest)
    ctx.events.publish("image", "push", reference.familiar, {"name": reference.familiar_name})


async def load(ctx: EngineContext, images: ImageService, out: Lines, body: AsyncIterator[bytes],
               *, quiet: bool) -> None:
    saved: list[tuple[str, str]] = []
    indexes: set[str] = set()

    async def told(progress: Progress) -> None:
        if progress.event == "saved":
            saved.append((progress.name, progress.desc.digest))
            if progress.desc.media_type == oci.OCI_INDEX:
                indexes.add(progress.desc.digest)
        elif not quiet and progress.event in ("extracting", "extracted"):
            current = progress.total if progress.event == "extracted" else min(
                progress.progress, progress.total)
            await out.send({"status": "Loading layer", "id": short(progress.desc.digest),
                            "progressDetail": {"current": current, "total": progress.total}})

    async with images_transfer.channel(ctx) as channel:
        source = transfer_importexport_pb2.ImageImportStream(stream=channel.name)
        await images_transfer.together(
            images_transfer.transfer(ctx.containerd, source,
                                     images_transfer.image_store(ctx), told),
            channel.feed(body))
    await images.refresh()
    if ctx.config.foreign and len(saved) > 1 and saved[0][1] in indexes and (
            saved[0][0].startswith(DANGLING)):
        # some containerd name the archive's index like an image that has no name
        await images.delete_name(saved.pop(0)[0])
    for name, digest in saved:
        found = await images.find(digest)
        if name.startswith(DANGLING):
            line = f"Loaded image ID: {found.record.id}\n"
        else:
            await images.drop_dangling(digest)
            named = images.familiar(name)
            line = f"Loaded image: {named}\n"
        await out.send({"stream": line})
        ctx.events.publish("image", "load", found.record.id, {"name": found.record.id})
    await images.refresh()


async def save(ctx: EngineContext, images: ImageService, request: web.Request,
               wanted: list[str], platform: str) -> web.StreamResponse:
    """An archive of images; a plain repository name means all its tags, as in Docker."""
    names = []
    for text in wanted:
        names += await _names_to_save(images, text)
    source = transfer_imagestore_pb2.ImageStore()
    for name in dict.fromkeys(names):
        source.extra_references.add(name=name)
    response = web.StreamResponse(
        headers={**headers(), "Content-Type": "application/x-tar"})

    async def ignore(_: Progress) -> None:
        pass

    async with images_transfer.channel(ctx) as channel:
        destination = transfer_importexport_pb2.ImageExportStream(
            stream=channel.name, all_platforms=not platform)
        if platform:
            chosen = oci.parse_platform(platform, host_platform())
            destination.platforms.add(os=chosen.os, architecture=chosen.architecture,
                                      variant=chosen.variant)
        call = asyncio.ensure_future(images_transfer.transfer(
            ctx.containerd, source, destination, ignore))
        call.add_done_callback(lambda _: channel.written())
        try:
            chunks = channel.chunks()
            first = asyncio.ensure_future(anext(chunks))
            await asyncio.wait((call, first), return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                call.result()
            await response.prepare(request)
            await response.write(await first)
            async for chunk in chunks:
                await response.write(chunk)
            await call      # an error here cuts the answer: the client sees it is not whole
        finally:
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await call
    await response.write_eof()
    for text in wanted:
        found = await images.find(text)
        ctx.events.publish("image", "save", found.record.id, {"name": found.record.id})
    return response


async def _names_to_save(images: ImageService, text: str) -> list[str]:
    try:
        found = await images.find(text)
    except errdefs.NotFound:
        raise errdefs.NotFound(texts.no_such_image(text)) from None
    target = found.record.target.digest
    if found.name is None:
        return [f"{DANGLING}{target}"]
    return [found.name]


def _client(ctx: EngineContext, host: str, auth: Credentials) -> RegistryClient:
    """A registry client of the engine's own, for questions without a transfer."""
    from carrel.registry.client import Credential, RegistryClient

    user, password = auth.pair
    credential = Credential(user, password, auth.identitytoken,
                            auth.registrytoken)

    async def give(asked: str, _: str, __: list[str]) -> Credential:
        return credential if asked == host else Credential()

    return RegistryClient(give, mirrors=tuple(ctx.config.registry_mirrors),
                          insecure=tuple(ctx.config.insecure_registries))


async def all_tags(ctx: EngineContext, reference: Reference, auth: Credentials,
                   ) -> list[Reference]:
    """Every tag that a registry has of a repository."""
    async with _client(ctx, registry_host(reference), auth) as client:
        tags = await client.tags(reference)
    if not tags:
        raise errdefs.NotFound(f"repository {reference.familiar_name} has no tags")
    return [reference.with_tag(tag) for tag in sorted(tags)]


async def distribution(ctx: EngineContext, reference: Reference, auth: Credentials,
                       ) -> dict[str, Any]:
    """``GET /distribution/{name}/json``: what a registry has under a name."""
    async with _client(ctx, registry_host(reference), auth) as client:
        resolved = await client.resolve(reference)
        platforms = []
        if resolved.media_type in oci.INDEXES:
            index = oci.parse_index(resolved.data, resolved.media_type)
            platforms = [_shown(d.platform) for d in index.manifests if d.platform is not None]
        else:
            manifest = oci.parse_manifest(resolved.data, resolved.media_type)
            raw = await client.small_blob(reference, manifest.config, oci.MAX_CONFIG,
                                          resolved.endpoint)
            platforms = [_shown(oci.parse_config(raw).platform)]
    return {"Descriptor": {"mediaType": resolved.media_type, "digest": resolved.digest,
                           "size": len(resolved.data)}, "Platforms": platforms}


def _shown(platform: oci.Platform) -> dict[str, str]:
    shown = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        shown["variant"] = platform.variant
    return shown
