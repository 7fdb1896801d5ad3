"""One image as the engine remembers it, and how its documents are read from the content store."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from carrel import errdefs
from carrel.engine.containerd import Client
from carrel.oci import digest as digests
from carrel.oci import image as oci
from carrel.proto import content_pb2, descriptor_pb2, snapshots_pb2

DANGLING = "moby-dangling@"
SOURCE_LABEL = "containerd.io/distribution.source."
PARENT_LABEL = "io.carrel.image.parent"


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a target (manifest or index) is on this machine; never changes."""

    target: oci.Descriptor
    manifest: oci.Descriptor
    layers: tuple[oci.Descriptor, ...]
    id: str
    config: dict[str, Any]
    chain_ids: tuple[str, ...]
    layer_sizes: tuple[int, ...]
    #: repositories (canonical names) that this manifest was pulled from or pushed to
    sources: frozenset[str] = frozenset()
    #: ID of the image that this one was committed from, on this machine
    parent: str = ""

    @property
    def chain_id(self) -> str:
        return self.chain_ids[-1] if self.chain_ids else ""

    @property
    def size(self) -> int:
        return sum(self.layer_sizes)

    @property
    def platform(self) -> oci.Platform:
        return oci.Platform(self.config.get("architecture", ""), self.config.get("os", ""),
                            self.config.get("variant", "") or "")

    @property
    def defaults(self) -> dict[str, Any]:
        value = self.config.get("config")
        return value if isinstance(value, dict) else {}

    @property
    def labels(self) -> dict[str, str]:
        value = self.defaults.get("Labels")
        return value if isinstance(value, dict) else {}

    def descriptor(self) -> dict[str, Any]:
        """The manifest's descriptor, as the API shows it."""
        platform = self.platform
        shown = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            shown["variant"] = platform.variant
        return {"mediaType": self.manifest.media_type, "digest": self.manifest.digest,
                "size": self.manifest.size, "platform": shown}


def host_platform() -> oci.Platform:
    return oci.host_platform(os.uname().machine)


def from_message(message: descriptor_pb2.Descriptor) -> oci.Descriptor:
    return oci.Descriptor(message.media_type, message.digest, message.size,
                          annotations=dict(message.annotations))


async def read_blob(client: Client, digest: str, limit: int) -> bytes:
    """A small blob, checked against its digest."""
    data = bytearray()
    async for part in client.content.Read(content_pb2.ReadContentRequest(digest=digest)):
        data += part.data
        if len(data) > limit:
            raise errdefs.InvalidParameter(f"content {digest} is larger than {limit} bytes")
    digests.verify(digest, bytes(data))
    return bytes(data)


async def load_record(client: Client, target: oci.Descriptor, snapshotter: str) -> ImageRecord:
    """Read manifest and configuration of a target, for this machine's platform."""
    descriptor = await _select(client, target)
    manifest = oci.parse_manifest(
        await read_blob(client, descriptor.digest, oci.MAX_MANIFEST), descriptor.media_type)
    raw = await read_blob(client, manifest.config.digest, oci.MAX_CONFIG)
    parsed = oci.parse_config(raw)
    config = oci.load_json(raw, oci.MAX_CONFIG)
    chains = digests.chain_ids(parsed.rootfs.diff_ids)
    sizes = await asyncio.gather(*(_usage(client, snapshotter, chain) for chain in chains))
    labels = await labels_of(client, target.digest)
    return ImageRecord(
        target=target, manifest=descriptor, layers=tuple(manifest.layers),
        id=manifest.config.digest, config=config, chain_ids=tuple(chains),
        layer_sizes=tuple(sizes), sources=sources_in(labels),
        parent=labels.get(PARENT_LABEL, ""))


async def labels_of(client: Client, digest: str) -> dict[str, str]:
    response = await client.content.Info(content_pb2.InfoRequest(digest=digest))
    return dict(response.info.labels)


def sources_in(labels: dict[str, str]) -> frozenset[str]:
    found = set()
    for key, value in labels.items():
        if key.startswith(SOURCE_LABEL):
            host = key[len(SOURCE_LABEL):]
            found |= {f"{host}/{path}" for path in value.split(",") if path}
    return frozenset(found)


async def _select(client: Client, target: oci.Descriptor) -> oci.Descriptor:
    for _ in range(4):
        if target.media_type not in oci.INDEXES:
            return target
        index = oci.parse_index(await read_blob(client, target.digest, oci.MAX_MANIFEST),
                                target.media_type)
        here = [d for d in index.manifests if await _exists(client, d.digest)]
        # an image for another machine only is an image nevertheless
        plain = [d for d in here if not d.annotations.get("vnd.docker.reference.type")]
        chosen = oci.select(here, host_platform()) or (plain[0] if plain else None)
        if chosen is None:
            raise errdefs.NotFound(f"no image of index {target.digest} is on this machine")
        target = chosen
    raise errdefs.InvalidParameter("image index is nested too deeply")


async def _exists(client: Client, digest: str) -> bool:
    try:
        await client.content.Info(content_pb2.InfoRequest(digest=digest))
    except errdefs.NotFound:
        return False
    return True


async def _usage(client: Client, snapshotter: str, chain: str) -> int:
    """Bytes of a layer; 0 when it is not unpacked here."""
    try:
        response = await client.snapshots.Usage(
            snapshots_pb2.UsageRequest(snapshotter=snapshotter, key=chain))
    except errdefs.NotFound:
        return 0
    return int(response.size)
