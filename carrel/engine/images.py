"""The images that the engine knows: names, IDs and what a container needs of them.

The containerd layer holds the truth; this is an index over it in memory, brought up to
date after every change that goes through the engine, before every listing, and when a
name is not found (somebody may have used ``ctr``).
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import msgspec

from carrel import errdefs
from carrel.engine import log, texts
from carrel.engine.context import ResolvedImage
from carrel.engine.images_model import (
    DANGLING,
    ImageRecord,
    from_message,
    host_platform,
    load_record,
)
from carrel.oci import digest as digests
from carrel.oci import image as oci
from carrel.oci import reference as references
from carrel.oci.reference import InvalidReference, Reference
from carrel.proto import images_pb2

if TYPE_CHECKING:
    from carrel.engine.context import EngineContext

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})", re.ASCII)


class Named(msgspec.Struct, frozen=True):
    """A name of the image store."""

    name: str
    target: oci.Descriptor
    updated_ns: int
    labels: dict[str, str]


class Found(msgspec.Struct, frozen=True):
    """What a user's reference stands for."""

    record: ImageRecord
    #: the name that it was found by; None by ID
    name: str | None


class ImageService:
    """See :class:`carrel.engine.context.Images`."""

    def __init__(self, ctx: EngineContext) -> None:
        self.ctx = ctx
        self._names: dict[str, Named] = {}
        self._records: dict[str, ImageRecord] = {}   # by target digest
        self._lock = asyncio.Lock()

    # --- the index ---

    async def start(self) -> None:
        await self.refresh()

    async def refresh(self, *, forget: str = "") -> None:
        """Read the names again; documents only of targets not seen before.

        ``forget``: a target whose record must be read anew (its labels changed).
        """
        async with self._lock:
            response = await self.ctx.containerd.images.List(images_pb2.ListImagesRequest())
            names = {}
            for image in response.images:
                stamp = image.updated_at
                names[image.name] = Named(image.name, from_message(image.target),
                                          stamp.seconds * 10**9 + stamp.nanos,
                                          dict(image.labels))
            targets = {n.target.digest: n.target for n in names.values()}
            # the index that others read is replaced as a whole, at the end
            missing = [t for d, t in targets.items() if d not in self._records or d == forget]
            loaded = await asyncio.gather(*(self._load(t) for t in missing))
            records = {d: r for d, r in self._records.items() if d in targets and d != forget}
            records.update({r.target.digest: r for r in loaded if r is not None})
            self._names = {k: v for k, v in names.items() if v.target.digest in records}
            self._records = records

    async def _load(self, target: oci.Descriptor) -> ImageRecord | None:
        try:
            return await load_record(self.ctx.containerd, target,
                                     self.ctx.config.snapshotter)
        except errdefs.CarrelError as error:
            log.warning(f"image {target.digest} is not usable: {error}")
            return None

    @property
    def records(self) -> list[ImageRecord]:
        return list(self._records.values())

    def names_of(self, image_id: str) -> list[Named]:
        """All names of an image, sorted."""
        return sorted((n for n in self._names.values()
                       if self._records[n.target.digest].id == image_id), key=lambda n: n.name)

    def named(self, name: str) -> Named | None:
        """The record of a canonical name."""
        return self._names.get(name)

    @staticmethod
    def familiar(name: str) -> str:
        """A canonical name as people write it."""
        return references.parse(name).familiar

    def by_id(self) -> dict[str, ImageRecord]:
        return {r.id: r for r in self._records.values()}

    def tags_of(self, image_id: str) -> list[str]:
        return [references.parse(n.name).familiar for n in self.names_of(image_id)
                if not n.name.startswith(DANGLING) and "@" not in n.name]

    def digests_of(self, image_id: str) -> list[str]:
        """``name@sha256:...`` of every manifest of the image that a registry knows."""
        found = set()
        for named in self.names_of(image_id):
            record = self._records[named.target.digest]
            if named.name.startswith(DANGLING):
                found |= {references.parse(s).familiar_name + "@" + record.target.digest
                          for s in record.sources}
                continue
            reference = references.parse(named.name)
            if reference.name in record.sources or reference.digest:
                found.add(f"{reference.familiar_name}@{record.target.digest}")
        return sorted(found)

    # --- finding ---

    async def find(self, text: str) -> Found:
        """By name, digest, ID or a prefix of one; NotFound in Docker's words."""
        found = self._find(text)
        if found is None:
            await self.refresh()
            found = self._find(text)
        if found is None:
            raise errdefs.NotFound(texts.no_such_image(missing_name(text)))
        return found

    def _find(self, text: str) -> Found | None:
        if digests.is_digest(text) or references.is_identifier(text):
            return self._by_digest(text if ":" in text else f"sha256:{text}")
        try:
            reference = references.parse(text).tagged()
        except InvalidReference:
            reference = None
        if reference is not None:
            named = self._by_reference(reference)
            if named is not None:
                return Found(self._records[named.target.digest], named.name)
        match = _HEX.fullmatch(text)
        if match:
            return self._by_prefix(text, match[1])
        if reference is None:
            references.parse(text)      # says what is wrong with it
        return None

    def _by_reference(self, reference: Reference) -> Named | None:
        if not reference.digest:
            return self._names.get(str(reference))
        exact = self._names.get(str(reference))
        if exact is not None:
            return exact
        for named in self._names.values():
            if named.target.digest == reference.digest and not named.name.startswith(DANGLING):
                candidate = references.parse(named.name)
                if candidate.name == reference.name:
                    return named
        for named in self._names.values():
            record = self._records[named.target.digest]
            if record.target.digest == reference.digest and reference.name in record.sources:
                return named
        return None

    def _by_digest(self, digest: str) -> Found | None:
        record = self._records.get(digest)
        for candidate in self._records.values() if record is None else ():
            if digest in (candidate.id, candidate.manifest.digest):
                record = candidate
        return Found(record, None) if record else None

    def _by_prefix(self, text: str, prefix: str) -> Found | None:
        found = {r.id: r for r in self._records.values()
                 if r.id.partition(":")[2].startswith(prefix)}
        if len(found) > 1:
            raise errdefs.NotFound(texts.multiple_ids(text))
        for record in found.values():
            return Found(record, None)
        return None

    async def resolve(self, reference: str, platform: str = "") -> ResolvedImage:
        found = await self.find(reference)
        record = found.record
        if platform:
            wanted = oci.parse_platform(platform, host_platform())
            if not oci.rank(record.platform, wanted):
                raise errdefs.NotFound(
                    f"image with reference {reference} was found but its platform "
                    f"({record.platform}) does not match the specified platform ({wanted})")
        return ResolvedImage(
            id=record.id, config=record.config, chain_id=record.chain_id,
            target=record.descriptor(), repo_tags=tuple(self.tags_of(record.id)),
            repo_digests=tuple(self.digests_of(record.id)))

    # --- changes of names ---

    async def name_target(self, name: str, target: oci.Descriptor) -> None:
        """Give a target one more name, or move the name to it."""
        image = images_pb2.Image(name=name)
        image.target.media_type, image.target.digest = target.media_type, target.digest
        image.target.size = target.size
        try:
            await self.ctx.containerd.images.Create(images_pb2.CreateImageRequest(image=image))
        except errdefs.AlreadyExists:
            await self.keep_dangling(name, target.digest)
            await self.ctx.containerd.images.Update(images_pb2.UpdateImageRequest(image=image))
        if not name.startswith(DANGLING):
            await self.drop_dangling(target.digest)
        await self.refresh()

    async def keep_dangling(self, name: str, new_digest: str) -> None:
        """An image whose last name moves on stays, as ``<none>``, until it is removed."""
        old = self._names.get(name)
        if old is None or old.target.digest == new_digest:
            return
        if any(n.target.digest == old.target.digest for n in self._names.values()
               if n.name != name):
            return
        image = images_pb2.Image(name=DANGLING + old.target.digest)
        image.target.media_type, image.target.digest = (old.target.media_type,
                                                        old.target.digest)
        image.target.size = old.target.size
        try:
            await self.ctx.containerd.images.Create(images_pb2.CreateImageRequest(image=image))
        except errdefs.AlreadyExists:
            pass

    async def drop_dangling(self, digest: str) -> None:
        """A target that has a name is not dangling."""
        if DANGLING + digest in self._names:
            await self.delete_name(DANGLING + digest)

    async def delete_name(self, name: str, *, sync: bool = False) -> None:
        try:
            await self.ctx.containerd.images.Delete(
                images_pb2.DeleteImageRequest(name=name, sync=sync))
        except errdefs.NotFound:
            pass

    # --- for `system df` and `info` ---

    async def summaries(self, *, all_images: bool = False) -> list[dict[str, Any]]:
        from carrel.engine import images_view

        await self.refresh()
        return images_view.summaries(self, shared_size=True)

    async def count(self) -> int:
        return len({r.id for r in self._records.values()})

    async def layers_size(self) -> int:
        sizes: dict[str, int] = {}
        for record in self._records.values():
            sizes.update(zip(record.chain_ids, record.layer_sizes))
        return sum(sizes.values())


def missing_name(text: str) -> str:
    """How Docker names an image that it does not have."""
    if digests.is_digest(text) or references.is_identifier(text):
        return text
    try:
        return references.parse(text).tagged().familiar
    except InvalidReference:
        return text
